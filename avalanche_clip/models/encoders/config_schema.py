"""What a ``dual_encoder.json`` may say, key by key.

The file is meant to be edited by hand, so it has no checksum: unknown keys, wrong
types and impossible values are refused with the key named.
"""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from avalanche_clip.common.checks import did_you_mean
from avalanche_clip.common.files import inside
from avalanche_clip.models.encoders.hf_loading import HF_KEYS, HF_MODEL_TYPES
from avalanche_clip.models.images.augmentation import FORMER, TinyAugmentation
from avalanche_clip.models.images.preprocessing import check_preprocess
from avalanche_clip.models.images.transforms import Preprocessing
from avalanche_clip.models.text.settings import (
    TOKENIZER_SETTINGS,
    check_tokenizer_settings,
)

FORMAT = 2
_SIZES = (
    *("embed_dim", "layers", "width", "head_width", "heads", "dim_head", "size"),
    *("patch_size", "image_size", "context_length", "vocab_size", "n_queries"),
    *("attn_pooler_queries", "attn_pooler_heads", "hidden_size", "intermediate_size"),
    *("projection_dim", "projection_size", "num_hidden_layers", "num_channels"),
    *("num_attention_heads", "max_position_embeddings", "rows", "base_rows"),
)
_SEVERAL = ("layers", "image_size", "patch_size", "size")
_OPEN = ("patch_size", "projection_size", "size")  # None leaves them to the model
_SHARES = ("patch_dropout", "timm_drop", "timm_drop_path", "attention_dropout")
_LARGEST = 10**7  # ten times the largest vocabulary that was published
_MODEL = {
    **dict.fromkeys(("embed_dim", "pad_id"), int),
    **dict.fromkeys(("vision_cfg", "text_cfg", "multimodal_cfg"), dict),
    **dict.fromkeys(("quick_gelu", "custom_text", "output_dict"), bool),
    **dict.fromkeys(("init_logit_scale", "init_logit_bias"), float),
    "nonscalar_logit_scale": bool,
}
_GROWTH = {
    **dict.fromkeys(("base_rows", "rows", "seed"), int),
    **{"init": str, "std": float, "tokenizer": dict},
}
_TOKENIZER = {"type": str, "file": str, "preset": str, "kwargs": Any}


def _is(value: Any, kind: type) -> bool:
    """Whether a value of JSON is of a plain type; no flag is a number."""
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    return isinstance(value, (list, tuple) if kind is list else kind)


def _is_size(value: Any) -> bool:
    return _is(value, int) and 0 < value <= _LARGEST


# name -> what its value must be besides its type
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        _SIZES, (_is_size, f"give a whole number above 0 and up to {_LARGEST}")
    ),
    **dict.fromkeys(
        _SHARES,
        (lambda v: _is(v, float) and 0 <= v < 1, "give a share, at least 0, below 1"),
    ),
    **dict.fromkeys(("mlp_ratio", "eps"), (lambda v: v > 0, "give a number above 0")),
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

    def entries(
        self, key: str, values: Any, known: Mapping[str, Any], needed: Any = ()
    ) -> None:
        """Refuse what is no mapping, unknown keys where that is strict, wrong values.

        :param key: of the mapping, empty for the whole file.
        :param known: allowed keys with the annotations of their types.
        :param needed: those of them that must be there.
        """
        if not isinstance(values, dict):
            raise self.refused(key, values, "give a mapping")
        prefix = f"{key}." if key else ""
        for name, value in values.items():
            if name in known:
                self.value(prefix + name, value, known[name])
            elif self.strict:
                raise ValueError(
                    f"{self.source}: the key {prefix + name!r} is unknown."
                    f"{did_you_mean(name, known)} Known here: "
                    f"{', '.join(sorted(known))}."
                )
        for name in needed:
            if values.get(name) is None:
                raise self.refused(prefix + name, None, "it is needed")

    def value(self, key: str, value: Any, allowed: Any) -> None:
        """Refuse a value of another type than an annotation says, or out of range."""
        name = key.rpartition(".")[2]
        holds, advice = _RULES.get(name, (None, ""))
        if value is None and (name not in _SIZES or name in _OPEN):
            return
        if name not in _SIZES:
            kinds = _kinds(allowed)
            if kinds and not any(_is(value, kind) for kind in kinds):
                names = " or ".join(sorted(kind.__name__ for kind in kinds))
                raise self.refused(key, value, f"its type must be {names}")
            if _is(value, float) and not math.isfinite(value):
                raise self.refused(key, value, "give a finite number")
        several = name in _SEVERAL and isinstance(value, (list, tuple)) and value
        if holds and not all(holds(v) for v in (value if several else [value])):
            raise self.refused(key, value, advice)
        if name == "norm_kwargs":
            self.entries(key, value, dict.fromkeys(value, float | bool))

    # ------------------------------------------------------------- parts
    def model_cfg(self, values: Any, key: str = "model_cfg") -> None:
        """Check open_clip's model configuration."""
        from open_clip.coca_model import MultimodalCfg
        from open_clip.model import CLIPTextCfg, CLIPVisionCfg

        self.entries(key, values, _MODEL)
        for part, kind in (
            ("vision_cfg", CLIPVisionCfg),
            ("text_cfg", CLIPTextCfg),
            ("multimodal_cfg", MultimodalCfg),
        ):
            if part in values:
                hints = typing.get_type_hints(kind)
                self.entries(f"{key}.{part}", values[part], hints)
        self.divides(values.get("text_cfg", {}), f"{key}.text_cfg", "width", "heads")

    def divides(self, values: dict[str, Any], key: str, whole: str, part: str) -> None:
        """Refuse a width that the heads do not divide."""
        if whole in values and part in values and values[whole] % values[part]:
            raise self.refused(
                f"{key}.{part}", values[part], f"it must divide {whole}={values[whole]}"
            )

    def hf_config(self, values: Any, key: str = "hf_config") -> None:
        """Check a transformers configuration."""
        self.entries(key, values, dict.fromkeys(HF_KEYS[""], Any))
        kind = values.get("model_type")
        if kind not in HF_MODEL_TYPES:
            raise self.refused(
                f"{key}.model_type", kind, f"use {' or '.join(HF_MODEL_TYPES)}"
            )
        for part in ("text_config", "vision_config"):
            inner, place = values.get(part), f"{key}.{part}"
            if inner is not None:
                self.entries(place, inner, dict.fromkeys(HF_KEYS[part], Any))
                self.divides(inner, place, "hidden_size", "num_attention_heads")

    def tokenizer(self, values: Any, key: str = "tokenizer") -> None:
        """Check the entry of a tokenizer."""
        if values is None:
            return
        self.entries(key, values, _TOKENIZER)
        for name in ("file", "preset"):
            if values.get(name, "") is None:
                raise self.refused(f"{key}.{name}", None, "give a text")
        kind = values.get("type")
        if kind not in TOKENIZER_SETTINGS:
            raise self.refused(
                f"{key}.type", kind, f"use one of {', '.join(TOKENIZER_SETTINGS)}"
            )
        named = kind == "open_clip" or values.get("file") or values.get("preset")
        if self.strict and not named:
            raise self.refused(f"{key}.file", None, "name the tokenizer's file")
        check_tokenizer_settings(kind, values.get("kwargs"), f"{self.source}: {key}")

    def preprocess_cfg(self, values: Any, key: str = "preprocess_cfg") -> None:
        """Check preprocessing, its augmentation included."""
        names = [f.name for f in fields(Preprocessing)]
        self.entries(key, values, dict.fromkeys([*names, "augmentation", "mode"], Any))
        if values.get("augmentation") is not None:
            known = [*(f.name for f in fields(TinyAugmentation)), *FORMER]
            place = f"{key}.augmentation"
            self.entries(place, values["augmentation"], dict.fromkeys(known, Any))
        check_preprocess(values, self.source)

    def config(self, values: Any, key: str = "config") -> None:
        """Check a whole model configuration."""
        library = values.get("library") if isinstance(values, dict) else None
        parts = {"open_clip": "model_cfg", "transformers": "hf_config"}
        if not isinstance(library, str) or library not in parts:
            raise self.refused(
                f"{key}.library", library, "use 'open_clip' or 'transformers'"
            )
        part = parts[library]
        known = dict.fromkeys(("library", "preprocess_cfg", "tokenizer", part), Any)
        self.entries(key, values, known, needed=(part, "preprocess_cfg"))
        getattr(self, part)(values[part], f"{key}.{part}")
        self.preprocess_cfg(values["preprocess_cfg"], f"{key}.preprocess_cfg")
        self.tokenizer(values.get("tokenizer"), f"{key}.tokenizer")

    def growth(self, values: Any, key: str = "growth") -> None:
        """Check what is said of a growing token table."""
        self.entries(key, values, _GROWTH, needed=_GROWTH)
        if values["rows"] < values["base_rows"]:
            raise self.refused(
                f"{key}.rows", values["rows"], f"base_rows is {values['base_rows']}"
            )
        if values["std"] < 0:
            raise self.refused(f"{key}.std", values["std"], "give 0 or more")
        self.tokenizer(values["tokenizer"], f"{key}.tokenizer")


def check_model_file(facts: dict[str, Any], path: Path) -> None:
    """Make sure that a ``dual_encoder.json`` says what it may.

    :param facts: its content.
    :param path: the file.
    :raises ValueError: naming file and key.
    """
    schema = Schema(path, strict=True)
    form = facts.get("format")
    if form == 1 and _is(form, int):
        raise ValueError(
            f"{path} was written by an earlier version, without hashes of the files "
            f"beside it; avalanche_clip.models.rewrite_file({str(path.parent)!r}) "
            "rewrites a folder that you trust."
        )
    if form != FORMAT or not _is(form, int):
        raise schema.refused("format", form, f"this version reads {FORMAT}")
    known = {"format": int, "config": Any, "growth": Any, "files": dict}
    schema.entries("", facts, known, needed=("files",))
    schema.config(facts.get("config"))
    if facts.get("growth") is not None:
        schema.growth(facts["growth"])
    for name, digest in facts["files"].items():
        inside(path.parent, name, path)
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise schema.refused(
                f"files.{name}", digest, "give a SHA-256, 64 hex digits"
            )


def _kinds(annotation: Any) -> list[type]:
    """List the plain types of an annotation."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = typing.get_args(annotation)
        return [kind for part in parts for kind in _kinds(part)]
    kind = typing.get_origin(annotation) or annotation
    kind = list if kind is tuple else kind
    return [kind] if kind in (list, dict, str, bool, int, float) else []
