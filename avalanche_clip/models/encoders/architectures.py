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
from typing import Any

from torch import nn

from avalanche_clip.models.encoders.config_schema import Schema
from avalanche_clip.models.encoders.hf_loading import (
    check_text_tower,
    hf_config_object,
    plain_hf_config,
)
from avalanche_clip.models.encoders.towers import (
    OpenCLIPTowers,
    Towers,
    TransformersTowers,
)
from avalanche_clip.models.images.preprocessing import OPENAI, SIGLIP, check_preprocess
from avalanche_clip.models.images.resizing import as_pair
from avalanche_clip.models.text.build import build_tokenizer
from avalanche_clip.models.text.settings import check_tokenizer_settings
from avalanche_clip.models.text.tokenizers import CaptionTokenizer

DEFAULT_CONTEXT_LENGTH = 77
_OWN_TOKENIZERS = ("open_clip", "json", "growing")
# how configurations begin that stand alone
_BARE = {
    "hf_config": ("model_type",),
    "model_cfg": ("embed_dim", "vision_cfg", "text_cfg"),
}


def complete_config(
    values: dict[str, Any], source: str = "The configuration"
) -> dict[str, Any]:
    """Bring any accepted configuration to the full form.

    :param values: the full form (see the module), an ``open_clip_config.json``
        (``model_cfg`` and ``preprocess_cfg``), a bare open_clip model
        configuration (``embed_dim``, ``vision_cfg``, ``text_cfg``), or a
        transformers configuration (``model_type``).
    :param source: what holds it, for messages.
    :return: new dictionary in the full form.
    :raises ValueError: if it is none of these, or a value is impossible.
    """
    config = copy.deepcopy(dict(values))
    for part, keys in _BARE.items():
        if part not in config and all(key in config for key in keys):
            extra = {k: config.pop(k, None) for k in ("preprocess_cfg", "tokenizer")}
            config = {part: config, **extra}
    if "hf_config" in config:
        return _complete_transformers(config, source)
    if "model_cfg" in config:
        return _complete_open_clip(config, source)
    raise ValueError(
        f"{source} has the keys {sorted(map(str, config))}; give an open_clip"
        " configuration (embed_dim, vision_cfg, text_cfg), the content of an"
        " open_clip_config.json (model_cfg), or a transformers configuration"
        " (model_type)."
    )


def stated_preprocess(values: dict[str, Any], source: str) -> dict[str, Any]:
    """Return the preprocessing that a configuration states itself.

    :param values: in any accepted form.
    :param source: what holds it, for messages.
    """
    stated = check_preprocess(values.get("preprocess_cfg") or {}, source)
    return {k: v for k, v in stated.items() if k not in ("size", "mode")}


def _complete_open_clip(config: dict[str, Any], source: str) -> dict[str, Any]:
    schema = Schema(source)
    model_cfg = config["model_cfg"]
    schema.entries("model_cfg", model_cfg, {}, _BARE["model_cfg"])
    schema.model_cfg(model_cfg)
    spec = config.get("tokenizer") or open_clip_tokenizer_spec(model_cfg, source)
    schema.tokenizer(spec)
    size = model_cfg["vision_cfg"].get("image_size", 224)
    stated = stated_preprocess(config, source)
    return {
        "library": "open_clip",
        "model_cfg": model_cfg,
        "preprocess_cfg": {**OPENAI, **stated, "size": size},
        "tokenizer": spec,
    }


def open_clip_tokenizer_spec(
    model_cfg: dict[str, Any], source: str = "The configuration"
) -> dict[str, Any]:
    """Describe the tokenizer that an open_clip configuration implies."""
    text_cfg = model_cfg["text_cfg"]
    kind = "open_clip_hf" if text_cfg.get("hf_tokenizer_name") else "open_clip"
    kwargs = check_tokenizer_settings(kind, text_cfg.get("tokenizer_kwargs"), source)
    name = text_cfg.get("hf_tokenizer_name")
    if not name:
        return {"type": "open_clip", "kwargs": kwargs}
    if text_cfg.get("tokenizer_mode"):
        kwargs["tokenizer_mode"] = text_cfg["tokenizer_mode"]
    return {"type": "open_clip_hf", "file": name, "kwargs": kwargs}


def _complete_transformers(config: dict[str, Any], source: str) -> dict[str, Any]:
    schema = Schema(source)
    schema.entries("hf_config", config["hf_config"], {})
    try:
        hf_config = plain_hf_config(config["hf_config"])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    schema.hf_config(hf_config)
    schema.tokenizer(config.get("tokenizer"))
    family = SIGLIP if hf_config["model_type"] == "siglip" else OPENAI
    size = hf_config["vision_config"].get("image_size", 224)
    stated = stated_preprocess(config, source)
    return {
        "library": "transformers",
        "hf_config": hf_config,
        "preprocess_cfg": {**family, **stated, "size": size},
        "tokenizer": config.get("tokenizer"),
    }


def context_length_of(config: dict[str, Any]) -> int:
    """Return the longest text the configured model takes, in tokens."""
    if config["library"] == "transformers":
        return int(config["hf_config"]["text_config"]["max_position_embeddings"])
    text_cfg = config["model_cfg"]["text_cfg"]
    return int(text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH))


def vocab_size_of(config: dict[str, Any]) -> int:
    """Return the number of rows of the configured token table."""
    if config["library"] == "transformers":
        return int(config["hf_config"]["text_config"]["vocab_size"])
    return int(config["model_cfg"]["text_cfg"].get("vocab_size", 49408))


def embed_dim_of(config: dict[str, Any], clip: Any) -> int:
    """Return the number of dimensions of the shared space."""
    if config["library"] == "open_clip":
        return int(config["model_cfg"]["embed_dim"])
    if config["hf_config"]["model_type"] == "clip":
        return int(clip.config.projection_dim)
    return int(clip.config.vision_config.hidden_size)


def tokenizer_of(
    config: dict[str, Any], *, trim: bool, cache_dir: str | None, label: str | None
) -> CaptionTokenizer:
    """Build the tokenizer that a full configuration names.

    :param trim: True for causal text towers.
    :param cache_dir: download folder of transformers.
    :param label: where the weights come from, for messages.
    :raises ValueError: if it names none, or one with more ids than the token table
        has rows.
    """
    spec = config.get("tokenizer")
    if spec is None:
        raise ValueError(
            "The configuration names no tokenizer; add the key 'tokenizer'"
            " ({'type': 'hf', 'file': <folder or id>}) or assign one to"
            " model.tokenizer."
        )
    length, rows = context_length_of(config), vocab_size_of(config)
    built = build_tokenizer(spec, length, trim=trim, cache_dir=cache_dir)
    if spec["type"] in _OWN_TOKENIZERS and built.vocab_size > rows:
        raise ValueError(
            f"The tokenizer has {built.vocab_size} ids, the token table"
            f" {rows} rows ({label}); set text_cfg['vocab_size'],"
            " or name the tokenizer that belongs to the model."
        )
    return built


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
    if cfg["text_cfg"].get("hf_model_name"):
        check_text_tower(cfg["text_cfg"]["hf_model_name"])
    kind = CLIP
    if custom:
        kind = CoCa if "multimodal_cfg" in cfg else CustomTextCLIP
    try:
        clip = kind(**cfg)
    except Exception as error:  # of open_clip, timm, transformers and the hub client
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
    if built_for is not None and tuple(built_for) != as_pair(image_size):
        visual.set_input_size(as_pair(image_size))


def _build_transformers(hf_config: dict[str, Any]) -> nn.Module:
    import transformers

    config = hf_config_object(hf_config)
    kinds = {"clip": transformers.CLIPModel, "siglip": transformers.SiglipModel}
    try:
        return kinds[hf_config["model_type"]](config).train()
    except Exception as error:  # impossible sizes raise nearly anything
        raise ValueError(
            f"transformers cannot build the configured model ({error}); check the"
            " sizes in its configuration."
        ) from error
