"""What a ``dual_encoder.json`` may say, key by key.

The file is meant to be edited by hand, so it has no checksum: unknown keys, wrong
types and impossible values are refused with the key named.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

from avalanche_clip.common.checks import did_you_mean
from avalanche_clip.common.files import inside
from avalanche_clip.models.encoders.hf_loading import HF_KEYS, HF_MODEL_TYPES
from avalanche_clip.models.images.augmentation import TinyAugmentation
from avalanche_clip.models.images.preprocessing import check_preprocess
from avalanche_clip.models.images.transforms import Preprocessing
from avalanche_clip.models.text.settings import (
    TOKENIZER_SETTINGS,
    check_tokenizer_settings,
)

FORMAT = 2
_SIZES = {
    "embed_dim",
    "layers",
    "width",
    "head_width",
    "heads",
    "dim_head",
    "patch_size",
    "image_size",
    "context_length",
    "vocab_size",
    "n_queries",
    "attn_pooler_queries",
    "attn_pooler_heads",
    "hidden_size",
    "intermediate_size",
    "projection_dim",
    "projection_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "max_position_embeddings",
}
_LARGEST = 10**7  # ten times the largest vocabulary that was published
_SHARES = {"patch_dropout", "timm_drop", "timm_drop_path", "attention_dropout"}
_TOP = ("format", "config", "growth", "files")
_GROWTH = ("base_rows", "rows", "init", "std", "seed", "tokenizer")
_TOKENIZER = ("type", "file", "preset", "kwargs")
_MODEL = {
    "embed_dim": int,
    "vision_cfg": dict,
    "text_cfg": dict,
    "multimodal_cfg": dict,
    "quick_gelu": bool,
    "custom_text": bool,
    "init_logit_scale": float,
    "init_logit_bias": float,
    "nonscalar_logit_scale": bool,
    "output_dict": bool,
    "pad_id": int,
}


class Schema:
    """Checks values of one file and names its keys in errors.

    :param source: the file, or words for it.
    :param strict: also refuse unknown keys, as in files that only we write.
    """

    def __init__(self, source: str | Path, *, strict: bool = False) -> None:
        self.source, self.strict = str(source), strict

    def refused(self, key: str, value: Any, advice: str) -> ValueError:
        """Make the error for one key."""
        return ValueError(f"{self.source}: {key}={value!r} is refused; {advice}.")

    def known(self, key: str, values: Any, names: typing.Iterable[str]) -> None:
        """Refuse what is no mapping, and unknown keys where that is strict."""
        if not isinstance(values, dict):
            raise self.refused(key, values, "give a mapping")
        names = sorted(names)
        for name in values if self.strict else ():
            if name not in names:
                place = f"{key}.{name}" if key else name
                raise ValueError(
                    f"{self.source}: the key {place!r} is unknown."
                    f"{did_you_mean(name, names)} Known here: {', '.join(names)}."
                )

    def size(self, key: str, value: Any, *, many: bool = False) -> None:
        """Refuse what is no whole number above 0."""
        values = value if many and isinstance(value, (list, tuple)) else [value]
        if not values or not all(_is_integer(v) and 0 < v <= _LARGEST for v in values):
            raise self.refused(
                key, value, f"give a whole number above 0 and up to {_LARGEST}"
            )

    def typed(self, key: str, value: Any, allowed: Any) -> None:
        """Refuse a value of another type than an annotation says."""
        name = key.rpartition(".")[2]
        if value is None:
            if name in _SIZES and name not in ("patch_size", "projection_size"):
                raise self.refused(key, value, "give a whole number above 0")
            return
        if name in _SIZES:
            self.size(key, value, many=name in ("layers", "image_size", "patch_size"))
            return
        kinds = _kinds(allowed)
        right = any(_is_kind(value, kind) for kind in kinds) if kinds else True
        if not right:
            names = " or ".join(sorted(kind.__name__ for kind in kinds))
            raise self.refused(key, value, f"its type must be {names}")
        if _is_number(value) and not math.isfinite(value):
            raise self.refused(key, value, "give a finite number")
        if name == "norm_kwargs":
            for option, given in value.items():
                self.typed(f"{key}.{option}", given, float | bool)
                if option == "eps" and not given > 0:
                    raise self.refused(f"{key}.{option}", given, "give more than 0")
        if name in _SHARES and not 0 <= value < 1:
            raise self.refused(key, value, "give a share, 0 or more and less than 1")
        if name == "mlp_ratio" and not value > 0:
            raise self.refused(key, value, "give a number above 0")

    # ------------------------------------------------------------- parts
    def model_cfg(self, values: Any, key: str = "model_cfg") -> None:
        """Check open_clip's model configuration."""
        from open_clip.coca_model import MultimodalCfg
        from open_clip.model import CLIPTextCfg, CLIPVisionCfg

        self.known(key, values, _MODEL)
        for name, value in values.items():
            if name in _MODEL:
                self.typed(f"{key}.{name}", value, _MODEL[name])
        parts = {
            "vision_cfg": CLIPVisionCfg,
            "text_cfg": CLIPTextCfg,
            "multimodal_cfg": MultimodalCfg,
        }
        for part, kind in parts.items():
            if part not in values:
                continue
            hints = typing.get_type_hints(kind)
            inner = values[part]
            self.known(f"{key}.{part}", inner, [f.name for f in fields(kind)])
            for name, value in inner.items():
                if name in hints:
                    self.typed(f"{key}.{part}.{name}", value, hints[name])
        self.divides(values.get("text_cfg", {}), f"{key}.text_cfg", "width", "heads")

    def divides(self, values: dict[str, Any], key: str, whole: str, part: str) -> None:
        """Refuse a width that the heads do not divide."""
        if whole in values and part in values and values[whole] % values[part]:
            raise self.refused(
                f"{key}.{part}", values[part], f"it must divide {whole}={values[whole]}"
            )

    def hf_config(self, values: Any, key: str = "hf_config") -> None:
        """Check a transformers configuration."""
        self.known(key, values, HF_KEYS[""])
        kind = values.get("model_type")
        if kind not in HF_MODEL_TYPES:
            raise self.refused(
                f"{key}.model_type", kind, f"use {' or '.join(HF_MODEL_TYPES)}"
            )
        for part in ("", "text_config", "vision_config"):
            inner = values.get(part) if part else values
            if inner is None:
                continue
            place = f"{key}.{part}" if part else key
            self.known(place, inner, HF_KEYS[part])
            for name, value in inner.items():
                if name in _SIZES or name in _SHARES:
                    self.typed(f"{place}.{name}", value, float)
            if part:
                self.divides(inner, place, "hidden_size", "num_attention_heads")

    def tokenizer(self, values: Any, key: str = "tokenizer") -> None:
        """Check the entry of a tokenizer."""
        if values is None:
            return
        self.known(key, values, _TOKENIZER)
        kind = values.get("type")
        if not isinstance(kind, str) or kind not in TOKENIZER_SETTINGS:
            raise self.refused(
                f"{key}.type", kind, f"use one of {', '.join(TOKENIZER_SETTINGS)}"
            )
        for name in ("file", "preset"):
            if name in values and not isinstance(values[name], str):
                raise self.refused(f"{key}.{name}", values[name], "give a text")
        named = kind == "open_clip" or "file" in values or "preset" in values
        if self.strict and not named:
            raise self.refused(f"{key}.file", None, "name the tokenizer's file")
        check_tokenizer_settings(kind, values.get("kwargs"), f"{self.source}: {key}")

    def preprocess_cfg(self, values: Any, key: str = "preprocess_cfg") -> None:
        """Check preprocessing, its augmentation included."""
        names = [f.name for f in fields(Preprocessing)]
        self.known(key, values, [*names, "augmentation", "mode"])
        augmentation = values.get("augmentation")
        if augmentation is not None:
            names = [f.name for f in fields(TinyAugmentation)]
            self.known(f"{key}.augmentation", augmentation, names)
        check_preprocess(values, self.source)
        if values.get("size") is not None:
            self.size(f"{key}.size", values["size"], many=True)

    def config(self, values: Any, key: str = "config") -> None:
        """Check a whole model configuration."""
        library = values.get("library") if isinstance(values, dict) else None
        parts = {"open_clip": "model_cfg", "transformers": "hf_config"}
        part = parts.get(library) if isinstance(library, str) else None
        if part is None:
            raise self.refused(
                f"{key}.library", library, "use 'open_clip' or 'transformers'"
            )
        self.known(key, values, ("library", part, "preprocess_cfg", "tokenizer"))
        for name in (part, "preprocess_cfg"):
            if name not in values:
                raise self.refused(f"{key}.{name}", None, "it is needed")
        getattr(self, part)(values[part], f"{key}.{part}")
        self.preprocess_cfg(values["preprocess_cfg"], f"{key}.preprocess_cfg")
        self.tokenizer(values.get("tokenizer"), f"{key}.tokenizer")

    def growth(self, values: Any, key: str = "growth") -> None:
        """Check what is said of a growing token table."""
        self.known(key, values, _GROWTH)
        missing = [name for name in _GROWTH if name not in values]
        if missing:
            raise self.refused(f"{key}.{missing[0]}", None, "it is needed")
        for name in ("base_rows", "rows"):
            self.size(f"{key}.{name}", values[name])
        if values["rows"] < values["base_rows"]:
            raise self.refused(
                f"{key}.rows", values["rows"], f"base_rows is {values['base_rows']}"
            )
        if not isinstance(values["init"], str):
            raise self.refused(f"{key}.init", values["init"], "give a text")
        std = values["std"]
        if std is not None and not (_is_number(std) and 0 <= std < math.inf):
            raise self.refused(f"{key}.std", std, "give a number of 0 or more")
        if not _is_integer(values["seed"]):
            raise self.refused(f"{key}.seed", values["seed"], "give a whole number")
        self.tokenizer(values["tokenizer"], f"{key}.tokenizer")


def check_model_file(facts: dict[str, Any], path: Path) -> None:
    """Make sure that a ``dual_encoder.json`` says what it may.

    :param facts: its content.
    :param path: the file.
    :raises ValueError: naming file and key.
    """
    schema = Schema(path, strict=True)
    form = facts.get("format")
    if form == 1 and not isinstance(form, bool):
        raise ValueError(
            f"{path} was written by an earlier version, without hashes of the files "
            f"beside it; avalanche_clip.models.rewrite_file({str(path.parent)!r}) "
            "rewrites a folder that you trust."
        )
    if form != FORMAT or not _is_integer(form):
        raise schema.refused(
            "format", facts.get("format"), f"this version reads {FORMAT}"
        )
    schema.known("", facts, _TOP)
    schema.config(facts.get("config"))
    if facts.get("growth") is not None:
        schema.growth(facts["growth"])
    files = facts.get("files")
    if not isinstance(files, dict):
        raise schema.refused("files", files, "give a mapping of names to hashes")
    for name, digest in files.items():
        inside(path.parent, name, path)
        if not _is_hash(digest):
            raise schema.refused(
                f"files.{name}", digest, "give a SHA-256, 64 hex digits"
            )


def _is_hash(value: Any) -> bool:
    if not isinstance(value, str) or len(value) != 64:
        return False
    return all(c in "0123456789abcdef" for c in value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _kinds(annotation: Any) -> list[type]:
    """List the plain types of an annotation."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = typing.get_args(annotation)
        return [kind for part in parts for kind in _kinds(part)]
    annotation = typing.get_origin(annotation) or annotation
    plain = {tuple: list, list: list, dict: dict, str: str, bool: bool}
    plain |= {int: int, float: float}
    return [plain[annotation]] if annotation in plain else []


def _is_kind(value: Any, kind: type) -> bool:
    if kind is float:
        return _is_number(value)
    if kind is int:
        return _is_integer(value)
    if kind is list:
        return isinstance(value, (list, tuple))
    return isinstance(value, kind)
