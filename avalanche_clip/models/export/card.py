"""The card of an exported model: where it comes from, how it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from avalanche_clip.models.encoders.presets import PRESET_WEIGHTS

MARK = "<!-- written by avalanche_clip.export_model -->"
"""By this line a folder is known as one that may be replaced."""
_UNKNOWN = "not stated by those who exported the model"
_DRAWINGS = (
    "drawings of Noto Emoji (Apache-2.0) and OpenMoji (CC-BY-SA-4.0) with names of"
    " Unicode CLDR (Unicode-3.0)"
)
_PRESETS = dict(
    zip(
        PRESET_WEIGHTS,
        (
            f"{_DRAWINGS} released in 2010",
            f"{_DRAWINGS} released in 2010, and the icon sets that the NOTICE of"
            " avalanche_clip names with their licences",
        ),
        strict=True,
    )
)
_LOADING = {
    "open_clip": """import open_clip

model, preprocess = open_clip.create_model_from_pretrained("local-dir:<this folder>")
tokenizer = open_clip.get_tokenizer("local-dir:<this folder>")""",
    "transformers": """from transformers import {kind}Model, AutoProcessor

model = {kind}Model.from_pretrained("<this folder>")
processor = AutoProcessor.from_pretrained("<this folder>", backend="pil")""",
}


def model_card(
    model: Any, form: str, notes: list[str], data: str | None, license: str | None
) -> str:
    """Write the ``README.md`` of an exported model.

    :param model: the dual encoder.
    :param form: format of the folder.
    :param notes: what the other library does in another way.
    :param data: what it was trained on.
    :param license: of the weights.
    """
    label = model.pretrained
    origin = "random weights" if label is None else f"`{Path(label).name}`"
    if label in _PRESETS:
        origin += f", trained on {_PRESETS[label]}"
    is_siglip = model.config.get("hf_config", {}).get("model_type") == "siglip"
    kind = "Siglip" if is_siglip else "CLIP"
    size = model.image_size
    lines = [
        "---",
        f"library_name: {form}",
        "pipeline_tag: zero-shot-image-classification",
        f"license: {_as_yaml(license or 'unknown')}",
        "---",
        MARK,
        "",
        "# A dual encoder for images and texts",
        "",
        f"- **Origin**: started from {origin}; exported by avalanche_clip.",
        f"- **Data**: {data or _UNKNOWN}.",
        f"- **Licence**: {license or _UNKNOWN}.",
        f"- **Input**: images of {size} pixels, texts of up to {model.context_length}"
        f" tokens out of {model.tokenizer.vocab_size}; features have"
        f" {model.embed_dim} numbers.",
        "",
        "```python",
        _LOADING[form].replace("{kind}", kind),
        "```",
        *(["", "What this library does in another way:", ""] if notes else []),
        *(f"- {note}" for note in notes),
    ]
    return "\n".join(lines) + "\n"


def _as_yaml(text: str) -> str:
    """A word as it is, anything else in quotes."""
    word = text.replace("-", "").replace(".", "").isalnum()
    return text if word else json.dumps(text, ensure_ascii=False)
