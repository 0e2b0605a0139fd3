"""Model configurations as plain data, and the modules built from them.

A configuration is a dictionary that survives JSON::

    {"library": "open_clip", "model_cfg": {...}, "preprocess_cfg": {...},
     "tokenizer": {...}}
    {"library": "transformers", "hf_config": {...}, "preprocess_cfg": {...},
     "tokenizer": {...}}

``model_cfg`` is open_clip's model configuration and ``hf_config`` that of
transformers' ``CLIPConfig`` or ``SiglipConfig``.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from torch import nn

from avalanche_clip.models.towers import OpenCLIPTowers, Towers, TransformersTowers

_OPENAI_MEAN = [0.48145466, 0.4578275, 0.40821073]
_OPENAI_STD = [0.26862954, 0.26130258, 0.27577711]
_SIGLIP_MEAN_STD = [0.5, 0.5, 0.5]
HF_MODEL_TYPES = ("clip", "siglip")
_PIL_FILTERS = {2: "bilinear", 3: "bicubic"}

DEFAULT_CONTEXT_LENGTH = 77


def complete_config(values: dict[str, Any]) -> dict[str, Any]:
    """Bring any accepted configuration to the full form.

    :param values: the full form (see the module), an ``open_clip_config.json``
        (``model_cfg`` and ``preprocess_cfg``), a bare open_clip model
        configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``), or a
        transformers configuration (``model_type``).
    :return: new dictionary in the full form.
    :raises ValueError: if it is none of these.
    """
    config = copy.deepcopy(dict(values))
    if "hf_config" in config:
        return _complete_transformers(config)
    if "model_type" in config:
        extra = {k: config.pop(k, None) for k in ("preprocess_cfg", "tokenizer")}
        return _complete_transformers({"hf_config": config, **extra})
    if "model_cfg" in config:
        return _complete_open_clip(config)
    if all(key in config for key in ("embed_dim", "vision_cfg", "text_cfg")):
        extra = {k: config.pop(k, None) for k in ("preprocess_cfg", "tokenizer")}
        return _complete_open_clip({"model_cfg": config, **extra})
    raise ValueError(
        f"The configuration has the keys {sorted(config)}; give an open_clip"
        " configuration (embed_dim, vision_cfg, text_cfg), the content of an"
        " open_clip_config.json (model_cfg), or a transformers configuration"
        " (model_type)."
    )


def _complete_open_clip(config: dict[str, Any]) -> dict[str, Any]:
    model_cfg = config["model_cfg"]
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(model_cfg)
    if missing:
        raise ValueError(
            f"model_cfg lacks {sorted(missing)}; it needs embed_dim, vision_cfg and"
            " text_cfg."
        )
    preprocess = {"mean": _OPENAI_MEAN, "std": _OPENAI_STD}
    preprocess.update(
        {k: v for k, v in (config.get("preprocess_cfg") or {}).items() if v is not None}
    )
    preprocess["size"] = model_cfg["vision_cfg"].get("image_size", 224)
    return {
        "library": "open_clip",
        "model_cfg": model_cfg,
        "preprocess_cfg": preprocess,
        "tokenizer": config.get("tokenizer") or open_clip_tokenizer_spec(model_cfg),
    }


def open_clip_tokenizer_spec(model_cfg: dict[str, Any]) -> dict[str, Any]:
    """Describe the tokenizer that an open_clip configuration implies."""
    text_cfg = model_cfg["text_cfg"]
    kwargs = dict(text_cfg.get("tokenizer_kwargs") or {})
    name = text_cfg.get("hf_tokenizer_name")
    if not name:
        return {"type": "open_clip", "kwargs": kwargs}
    if text_cfg.get("tokenizer_mode"):
        kwargs["tokenizer_mode"] = text_cfg["tokenizer_mode"]
    return {"type": "open_clip_hf", "file": name, "kwargs": kwargs}


def _complete_transformers(config: dict[str, Any]) -> dict[str, Any]:
    hf_config = config["hf_config"]
    kind = hf_config.get("model_type")
    if kind not in HF_MODEL_TYPES:
        raise ValueError(
            f"transformers model type {kind!r} is not supported; use one of"
            f" {', '.join(HF_MODEL_TYPES)}, or an open_clip model."
        )
    if kind == "clip":
        preprocess: dict[str, Any] = {"mean": _OPENAI_MEAN, "std": _OPENAI_STD}
    else:
        preprocess = {
            "mean": _SIGLIP_MEAN_STD,
            "std": _SIGLIP_MEAN_STD,
            "resize_mode": "squash",
        }
    preprocess.update(config.get("preprocess_cfg") or {})
    vision = hf_config.get("vision_config") or {}
    preprocess["size"] = vision.get("image_size", 224)
    return {
        "library": "transformers",
        "hf_config": hf_config,
        "preprocess_cfg": preprocess,
        "tokenizer": config.get("tokenizer"),
    }


def read_image_processor(folder: Path) -> dict[str, Any]:
    """Read preprocessing from a transformers folder.

    :param folder: holds ``preprocessor_config.json`` or
        ``processor_config.json``; neither gives an empty result.
    :return: ``preprocess_cfg`` entries.
    """
    values: dict[str, Any] = {}
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            read = json.loads((folder / name).read_text(encoding="utf-8"))
            values.update(read.get("image_processor", read))
    if not values:
        return {}
    found: dict[str, Any] = {
        "mean": values.get("image_mean"),
        "std": values.get("image_std"),
        "interpolation": _PIL_FILTERS.get(values.get("resample", 3), "bicubic"),
    }
    size = values.get("size")
    if isinstance(size, dict) and "shortest_edge" in size:
        found["resize_mode"] = "shortest"
        found["resize_to"] = size["shortest_edge"]
    elif isinstance(size, dict):
        found["resize_mode"] = "squash"
    elif isinstance(size, int):
        found["resize_to"] = size
    return {key: value for key, value in found.items() if value is not None}


def context_length_of(config: dict[str, Any]) -> int:
    """Return the longest text the configured model takes, in tokens."""
    if config["library"] == "transformers":
        text = config["hf_config"].get("text_config") or {}
        default = 77 if config["hf_config"]["model_type"] == "clip" else 64
        return int(text.get("max_position_embeddings", default))
    text_cfg = config["model_cfg"]["text_cfg"]
    return int(text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH))


def vocab_size_of(config: dict[str, Any]) -> int:
    """Return the number of rows of the configured token table."""
    if config["library"] == "transformers":
        text = config["hf_config"].get("text_config") or {}
        default = 49408 if config["hf_config"]["model_type"] == "clip" else 32000
        return int(text.get("vocab_size", default))
    return int(config["model_cfg"]["text_cfg"].get("vocab_size", 49408))


def embed_dim_of(config: dict[str, Any], clip: Any) -> int:
    """Return the number of dimensions of the shared space."""
    if config["library"] == "open_clip":
        return int(config["model_cfg"]["embed_dim"])
    if config["hf_config"]["model_type"] == "clip":
        return int(clip.config.projection_dim)
    return int(clip.config.vision_config.hidden_size)


def towers_of(config: dict[str, Any]) -> Towers:
    """Return the object that knows the configured library's attribute names."""
    if config["library"] == "transformers":
        return TransformersTowers()
    return OpenCLIPTowers()


def build_clip(config: dict[str, Any]) -> nn.Module:
    """Build the configured model with random float32 weights.

    Weights are drawn from torch's global CPU generator, in the same order as
    the library itself draws them.

    :param config: full configuration.
    :return: open_clip or transformers module in train mode, on the CPU.
    :raises ValueError: if the library refuses the configuration.
    """
    if config["library"] == "transformers":
        return _build_transformers(config["hf_config"])
    return _build_open_clip(config["model_cfg"])


def _build_open_clip(model_cfg: dict[str, Any]) -> nn.Module:
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    cfg = copy.deepcopy(model_cfg)
    # backbone weights of their own never come with an architecture
    cfg["vision_cfg"]["timm_model_pretrained"] = False
    cfg["text_cfg"]["hf_model_pretrained"] = False
    custom = cfg.pop("custom_text", False) or cfg["text_cfg"].get("hf_model_name")
    kind = CLIP
    if custom:
        kind = CoCa if "multimodal_cfg" in cfg else CustomTextCLIP
    try:
        clip = kind(**cfg)
    except (TypeError, ValueError, RuntimeError, OSError, AssertionError) as error:
        raise ValueError(
            f"open_clip cannot build the configured model ({error}); check the keys"
            " against open_clip's model_configs, and give a local folder for a text"
            " tower that cannot be downloaded."
        ) from error
    _fit_timm_input(clip.visual, cfg["vision_cfg"].get("image_size", 224))
    return clip


def _fit_timm_input(visual: Any, image_size: Any) -> None:
    # open_clip never tells timm transformers the image size (3.3)
    trunk = getattr(visual, "trunk", None)
    built_for = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    size = (image_size,) * 2 if isinstance(image_size, int) else tuple(image_size)
    if built_for is not None and tuple(built_for) != size:
        visual.set_input_size(size)


def _build_transformers(hf_config: dict[str, Any]) -> nn.Module:
    import transformers

    kind = hf_config["model_type"]
    if kind == "clip":
        config = transformers.CLIPConfig.from_dict(copy.deepcopy(hf_config))
        return transformers.CLIPModel(config).train()
    config = transformers.SiglipConfig.from_dict(copy.deepcopy(hf_config))
    return transformers.SiglipModel(config).train()


__all__ = [
    "HF_MODEL_TYPES",
    "build_clip",
    "complete_config",
    "context_length_of",
    "embed_dim_of",
    "open_clip_tokenizer_spec",
    "read_image_processor",
    "towers_of",
    "vocab_size_of",
]
