"""Tokenizers out of the entries of configurations, and such entries made portable."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from avalanche_clip.common.checks import require_choice
from avalanche_clip.models.text.growing import GrowingTokenizer
from avalanche_clip.models.text.hf_tokenizers import HFCaptionTokenizer
from avalanche_clip.models.text.settings import (
    TOKENIZER_SETTINGS,
    check_tokenizer_settings,
    is_hub_id,
)
from avalanche_clip.models.text.tokenizers import (
    CaptionTokenizer,
    JSONTokenizer,
    OpenCLIPTokenizer,
    read_json_tokenizer,
)

DATA_FOLDER = Path(__file__).parents[1] / "data"


def _json_path(spec: dict[str, Any]) -> Path | None:
    if spec.get("preset") is not None:
        if Path(spec["preset"]).name != spec["preset"]:
            raise ValueError(
                f"The tokenizer preset {spec['preset']!r} is a path; name a file of "
                "this package, or give 'file'."
            )
        return DATA_FOLDER / spec["preset"]
    return None if spec.get("file") is None else Path(spec["file"]).expanduser()


def json_hash(spec: dict[str, Any]) -> str | None:
    """Hash what a tokenizer in a JSON file does, whatever the file's layout.

    :param spec: tokenizer entry.
    :return: 64 hex digits; None for other types, and absent files.
    """
    path = _json_path(spec) if spec.get("type") == "json" else None
    if path is None or not path.is_file():
        return None
    text = read_json_tokenizer(path).to_str()
    return hashlib.sha256(text.encode()).hexdigest()


def portable_spec(
    spec: dict[str, Any] | None, own: CaptionTokenizer | None = None
) -> dict[str, Any] | None:
    """Describe a tokenizer without naming a file of this machine.

    :param spec: tokenizer entry of a configuration.
    :param own: the model's tokenizer, if it has been made or given; its content
        counts.
    """
    if isinstance(own, JSONTokenizer) and (spec or {}).get("preset") is None:
        digest = hashlib.sha256(own._inner.to_str().encode()).hexdigest()
        return {"type": "json", "sha256": digest}
    if spec is None or "file" not in spec:
        return spec
    plain = {key: value for key, value in spec.items() if key != "file"}
    if spec["type"] in ("hf", "open_clip_hf") and not Path(spec["file"]).exists():
        return spec if is_hub_id(spec["file"]) else plain
    digest_ = json_hash(spec)
    return plain if digest_ is None else {**plain, "sha256": digest_}


def build_tokenizer(
    spec: dict[str, Any],
    context_length: int,
    *,
    trim: bool,
    cache_dir: str | None = None,
) -> CaptionTokenizer:
    """Build the tokenizer that a model configuration describes.

    :param spec: ``{"type": "open_clip" | "open_clip_hf" | "hf" | "json" | "growing"}``
        with ``file`` (path, or hub id for the ``hf`` types) and ``kwargs``;
        ``json`` takes ``preset``, the name of a file of this package, instead.
    :param context_length: longest row of the text tower.
    :param trim: True for causal text towers.
    :param cache_dir: download folder of transformers.
    :return: the tokenizer.
    :raises ValueError: for another type, for settings that are not listed in
        ``TOKENIZER_SETTINGS``, and for damaged files.
    """
    kind: Any = spec.get("type")
    require_choice("tokenizer type", kind, TOKENIZER_SETTINGS)
    if kind != "open_clip" and not ("file" in spec or "preset" in spec):
        raise ValueError(
            f"The tokenizer entry {spec} names no file; add the key 'file'."
        )
    kwargs = check_tokenizer_settings(kind, spec.get("kwargs"), "The tokenizer entry")
    if kind == "open_clip":
        return OpenCLIPTokenizer(context_length, trim=trim, **kwargs)
    if kind == "json":
        path = _json_path(spec)
        assert path is not None
        return JSONTokenizer(path, context_length, trim=trim, **kwargs)
    if kind in ("hf", "open_clip_hf"):
        return HFCaptionTokenizer(
            spec["file"],
            context_length,
            trim=trim,
            open_clip=kind == "open_clip_hf",
            cache_dir=cache_dir,
            **kwargs,
        )
    return GrowingTokenizer.load(spec["file"])
