"""Choose the embedded blind pairs of emoji, see ``benchmarks/datasets/blind_emoji.py``.

    python tools/mine_blind_emoji.py

Writes ``avalanche_clip/benchmarks/datasets/data/blind_emoji.json``; seconds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from avalanche_clip.benchmarks.datasets import (  # noqa: E402
    EmojiImages,
    load_emoji_table,
)
from avalanche_clip.benchmarks.datasets.blind_emoji import (  # noqa: E402
    BLIND_EMOJI_STYLE,
)
from avalanche_clip.common.files import write_json  # noqa: E402
from avalanche_clip.evaluation.functional import clip_blind_pairs  # noqa: E402
from avalanche_clip.models import create_dual_encoder  # noqa: E402
from avalanche_clip.models.images.drawing_features import (  # noqa: E402
    drawing_features,
)

TARGET = ROOT / "avalanche_clip" / "benchmarks" / "datasets" / "data"
PRESET, WEIGHTS = "tiny-emoji", "emoji-2010"
PER_GROUP = 15
# Lower than published: some groups are small, and so is the model.
CLIP_THRESHOLD, REFERENCE_THRESHOLD = 0.5, 0.6


@torch.no_grad()
def mine(group: int) -> list[tuple[str, str]]:
    """Return the ids of the emoji of the pairs of one group."""
    table = load_emoji_table()
    model = create_dual_encoder(PRESET, WEIGHTS).eval()
    transform = model.transform(False)
    members = np.flatnonzero(table.group == group)
    images = EmojiImages(BLIND_EMOJI_STYLE, members)
    drawings = [images[place] for place in range(len(images))]
    features = [
        model.encode_image(torch.stack(list(map(transform, drawings[k : k + 64]))))
        for k in range(0, len(drawings), 64)
    ]
    pairs = clip_blind_pairs(
        torch.cat(features),
        drawing_features(drawings),
        clip_threshold=CLIP_THRESHOLD,
        reference_threshold=REFERENCE_THRESHOLD,
        max_per_image=1,
    )[:PER_GROUP]
    if len(pairs) < PER_GROUP:
        raise SystemExit(f"Only {len(pairs)} pairs in {table.groups[group]!r}.")
    rows = sorted((int(members[p.first]), int(members[p.second])) for p in pairs)
    return [(table.ids[a], table.ids[b]) for a, b in rows]


def main() -> None:
    """Write the list."""
    settings = {
        "model": PRESET,
        "weights": WEIGHTS,
        "drawings": BLIND_EMOJI_STYLE,
        "clip_threshold": CLIP_THRESHOLD,
        "reference_threshold": REFERENCE_THRESHOLD,
        "per_group": PER_GROUP,
    }
    groups = range(len(load_emoji_table().groups))
    pairs = [pair for group in groups for pair in mine(group)]
    write_json(TARGET / "blind_emoji.json", {"settings": settings, "pairs": pairs})


if __name__ == "__main__":
    main()
