"""The two tiny models that go with the embedded emoji data."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from avalanche_clip.common.checks import require_choice
from avalanche_clip.common.files import require_file
from avalanche_clip.models.images.augmentation import TinyAugmentation
from avalanche_clip.models.text.build import DATA_FOLDER
from avalanche_clip.models.text.tokenizers import read_json_tokenizer

TOKENIZER_FILE = DATA_FOLDER / "emoji_bpe.json"
PRESETS = ("tiny-emoji", "tiny-emoji-vit")
PRESET_WEIGHTS = ("emoji-2010", "icons")

_IMAGE_SIZE = 48
_CONTEXT_LENGTH = 32
_WIDTH = 128
_INITIAL_SCALE = 25.0  # CLIP's 1 / 0.07 takes a third of a short training to grow

_VISION: dict[str, dict[str, Any]] = {
    "tiny-emoji": {
        "timm_model_name": "test_convnext2",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": _IMAGE_SIZE,
    },
    "tiny-emoji-vit": {
        "layers": 4,
        "width": _WIDTH,
        "head_width": 32,
        "patch_size": 8,
        "image_size": _IMAGE_SIZE,
    },
}


def preset_config(name: str) -> dict[str, Any]:
    """Return the configuration of a tiny preset.

    ``"tiny-emoji"`` has timm's ``test_convnext2`` as image tower,
    ``"tiny-emoji-vit"`` a transformer of four blocks, for methods that change
    residual blocks. Both share a two-block text tower and a byte-pair
    vocabulary trained on English emoji names and keywords.

    :param name: one of the two.
    :return: configuration for ``create_dual_encoder``.
    :raises FileNotFoundError: if the package data is missing.
    """
    return {
        "library": "open_clip",
        "model_cfg": {
            "embed_dim": _WIDTH,
            "init_logit_scale": math.log(_INITIAL_SCALE),
            "vision_cfg": dict(_VISION[name]),
            "text_cfg": {
                "context_length": _CONTEXT_LENGTH,
                "vocab_size": read_json_tokenizer(TOKENIZER_FILE).get_vocab_size(),
                "width": _WIDTH,
                "heads": 4,
                "layers": 2,
            },
        },
        "preprocess_cfg": {
            "size": _IMAGE_SIZE,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "fill_color": 255,
            "trim": True,
            "augmentation": json.loads(json.dumps(asdict(TinyAugmentation()))),
        },
        "tokenizer": {"type": "json", "preset": TOKENIZER_FILE.name},
    }


def preset_weights(name: str, tag: str) -> Path:
    """Return the file with a preset's trained weights.

    :param name: preset.
    :param tag: ``"emoji-2010"``: trained on the emoji of the year 2010 only;
        ``"icons"``: on these and on 75,586 openly licensed icons; they know many
        of the things that later emoji show, but no drawing of those.
    :return: path of a safetensors file.
    :raises ValueError: for another tag.
    :raises FileNotFoundError: if the file is not in the package.
    """
    require_choice("pretrained", tag, PRESET_WEIGHTS)
    script = f"train_{tag.replace('-', '_')}.py"
    advice = f"make the weights with the repository's tools/{script}"
    return require_file(DATA_FOLDER / f"{name}-{tag}.safetensors", advice)
