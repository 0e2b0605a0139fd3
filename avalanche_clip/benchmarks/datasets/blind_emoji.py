"""The embedded blind pairs: emoji that a small CLIP confuses and the eye does not."""

from __future__ import annotations

import functools
import json

from avalanche_clip.benchmarks.datasets.emoji import EmojiImages, load_emoji_table
from avalanche_clip.benchmarks.datasets.mmvp import ImagePair
from avalanche_clip.benchmarks.datasets.shipped import read_data, reading
from avalanche_clip.common.checks import require_length

BLIND_EMOJI_STYLE = "twemoji"

_TABLE = "blind_emoji.json"


@functools.cache
def _load_pairs() -> tuple[tuple[int, int], ...]:
    """Rows of the emoji of each pair, read once per process."""
    rows = {emoji: row for row, emoji in enumerate(load_emoji_table().ids)}
    content = read_data(_TABLE)
    with reading(_TABLE):
        pairs = tuple((rows[a], rows[b]) for a, b in json.loads(content)["pairs"])
        require_length(pairs, 135, "pairs", "place of nine groups of 15")
        return pairs


class BlindEmoji:
    """Map-style set of 135 pairs of drawings with their names as statements.

    Made as MMVP-VLM was, but by rule: in each of the nine groups of emoji the 15 pairs
    of Twemoji drawings whose cosine to the image tower of ``tiny-emoji`` with the
    weights ``emoji-2010`` exceeds that to :func:`drawing_features
    <avalanche_clip.models.images.drawing_features.drawing_features>` most, each drawing
    in one pair. With names alone as statements that model scores 47.4 %, ``tiny-emoji``
    with ``icons`` 70.4 %; chance is 25 %. ``tools/mine_blind_emoji.py`` makes the list.

    :ivar patterns: group of each pair.
    :ivar statements: names of the two emoji of each pair.
    :ivar emoji_index: rows in the table of emoji, of each pair.

    >>> pairs = BlindEmoji()
    >>> len(pairs), len(set(pairs.patterns)), pairs[0].images[0].size
    (135, 9, (48, 48))
    """

    def __init__(self) -> None:
        table = load_emoji_table()
        self.emoji_index = list(_load_pairs())
        self.patterns = [table.groups[table.group[a]] for a, _ in self.emoji_index]
        self.statements = [
            (table.names[a], table.names[b]) for a, b in self.emoji_index
        ]

    def __len__(self) -> int:
        return len(self.emoji_index)

    def __getitem__(self, item: int) -> ImagePair:
        """Return a pair, its drawings as new images."""
        drawings = EmojiImages(BLIND_EMOJI_STYLE, self.emoji_index[item])
        pair = drawings[0], drawings[1]
        return ImagePair(pair, self.statements[item], self.patterns[item], item + 1)
