"""Tokenizers as the files that transformers (and open_clip through it) reads."""

from __future__ import annotations

import copy
import json
import re
import string
from pathlib import Path
from typing import Any

from avalanche_clip.common.files import read_json, write_json
from avalanche_clip.models.text.growing import GrowingTokenizer
from avalanche_clip.models.text.hf_tokenizers import HFCaptionTokenizer, SiglipClean
from avalanche_clip.models.text.sources import Dress, read_source
from avalanche_clip.models.text.tokenizers import (
    CaptionTokenizer,
    JSONTokenizer,
    OpenCLIPTokenizer,
)

# open_clip's name for a tokenizer that lies beside the weights
NAME = "local"
_CONFIG = "tokenizer_config.json"
_PAD = "<|avalanche_clip_pad|>"
_CLEANS = (None, "lower", "whitespace", "canonicalize")


def for_open_clip(tokenizer: CaptionTokenizer, folder: Path) -> dict[str, Any]:
    """Write what open_clip's ``get_tokenizer`` needs.

    :param folder: existing; stays empty where open_clip carries the vocabulary.
    :return: entries of ``text_cfg``.
    :raises ValueError: if open_clip has no such tokenizer.
    """
    if isinstance(tokenizer, OpenCLIPTokenizer):
        return {"tokenizer_kwargs": dict(tokenizer.kwargs)}
    if isinstance(tokenizer, HFCaptionTokenizer):
        kwargs = {k: v for k, v in tokenizer.kwargs.items() if k in _OF_WRAPPER}
        if isinstance(tokenizer._clean, SiglipClean):
            kwargs["clean"] = "canonicalize"
        mode = kwargs.pop("tokenizer_mode", None)
        _save(_padded(tokenizer._inner), folder, tokenizer.context_length)
        return {
            "hf_tokenizer_name": NAME,
            "tokenizer_kwargs": kwargs,
            **({"tokenizer_mode": mode} if mode else {}),
        }
    inner, dress = _parts(tokenizer)
    if dress.clean not in _CLEANS:
        raise ValueError(f"it has no clean-up {dress.clean!r} for captions")
    kwargs = {"clean": dress.clean or "whitespace"}
    zeroed = None if dress.zeroed is None else inner.id_to_token(dress.zeroed)
    pad = _special(inner, dress, tokenizer.pad_id)
    if pad is None and tokenizer.pad_id == 0:
        # an ordinary token fills rows: another is written, which open_clip makes 0
        zeroed = pad = zeroed or _PAD
    if zeroed is not None:
        kwargs["strip_sep_token"] = True
    fast = _fast(tokenizer, inner, dress, pad_token=pad, sep_token=zeroed)
    _save(fast, folder, tokenizer.context_length)
    return {"hf_tokenizer_name": NAME, "tokenizer_kwargs": kwargs}


def is_cleaned(tokenizer: CaptionTokenizer) -> bool:
    """Whether captions are cleaned as open_clip does before its tokenizers."""
    if isinstance(tokenizer, GrowingTokenizer):
        return tokenizer._dress.clean is not None
    return getattr(tokenizer, "_wrapper", None) is not None


# clean-up -> whether it lowers letters, and leaves punctuation
_CLEANINGS = {
    "lower": (True, True),
    "whitespace": (False, True),
    "siglip-lower": (True, False),
    "siglip-cased": (False, False),
}
_OF_WRAPPER = ("clean", "strip_sep_token", "language", "tokenizer_mode")


def for_transformers(tokenizer: CaptionTokenizer, folder: Path) -> Any:
    """Write what ``AutoTokenizer`` reads.

    :param folder: existing.
    :return: the tokenizer of transformers.
    :raises ValueError: if transformers has no such tokenizer.
    """
    if isinstance(tokenizer, HFCaptionTokenizer):
        inner, clean = _padded(tokenizer._inner), tokenizer._clean
        if isinstance(clean, SiglipClean):
            inner = copy.deepcopy(inner)
            _clean_first(inner.backend_tokenizer, clean.lower, marks=False)
        elif clean is not None:
            name = tokenizer.kwargs.get("clean", "whitespace")
            raise ValueError(f"captions are cleaned ({name}) before they are cut")
        return _save(inner, folder, tokenizer.context_length)
    inner, dress = _parts(tokenizer)
    if dress.clean not in (None, *_CLEANINGS) or dress.zeroed is not None:
        raise ValueError(f"captions are cleaned ({dress.clean}) before they are cut")
    if dress.clean is not None:
        _clean_first(inner, *_CLEANINGS[dress.clean])
    end = inner.id_to_token(tokenizer.eot_id)
    pad = _special(inner, dress, tokenizer.pad_id) or end
    fast = _fast(tokenizer, inner, dress, pad_token=pad)
    return _save(fast, folder, tokenizer.context_length)


def _parts(tokenizer: CaptionTokenizer) -> tuple[Any, Dress]:
    """Return the tokenizer of ``tokenizers``, and what happens around it."""
    from tokenizers import Tokenizer

    if isinstance(tokenizer, JSONTokenizer):
        return Tokenizer.from_str(tokenizer._inner.to_str()), Dress()
    if isinstance(tokenizer, OpenCLIPTokenizer):
        vocabulary, dress = read_source(tokenizer)
        return vocabulary.build(0), dress
    if not isinstance(tokenizer, GrowingTokenizer):
        raise ValueError(f"it has no counterpart of a {type(tokenizer).__name__}")
    vocabulary = tokenizer.vocabulary
    levels = {snapshot.level for snapshot in tokenizer.snapshots.values()}
    if tokenizer.scope == "language" and levels - {vocabulary.level}:
        raise ValueError(
            "captions are cut with the vocabulary of their language (scope='language'),"
            " and its tokenizers have one vocabulary"
        )
    return vocabulary.build(vocabulary.level), tokenizer._dress


def _special(inner: Any, dress: Dress, number: int) -> str | None:
    """Return the token of an id if captions cannot contain it as plain text."""
    added = {t["id"] for t in json.loads(inner.to_str())["added_tokens"]}
    known = number in added or number in dress.special_ids
    return inner.id_to_token(number) if known else None


def _clean_first(inner: Any, lower: bool, marks: bool) -> None:
    """Let a tokenizer clean captions, as before it captions without broken characters.

    :param lower: whether letters become small.
    :param marks: whether punctuation stays.
    """
    from tokenizers import Regex, normalizers

    signs = Regex(f"[{re.escape(string.punctuation)}]")
    steps: list[Any] = [normalizers.NFC() if marks else normalizers.Replace(signs, "")]
    steps += [normalizers.Lowercase()] if lower else []
    steps += [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    steps += [inner.normalizer] if inner.normalizer else []
    inner.normalizer = normalizers.Sequence(steps)


def _fast(tokenizer: CaptionTokenizer, inner: Any, dress: Dress, **special: Any) -> Any:
    """Wrap a tokenizer so that it puts start and end around captions itself."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    start, end = tokenizer.sot_id, tokenizer.eot_id
    ids = [number for number in (start, end) if number is not None]
    ends: dict[Any, str] = {number: inner.id_to_token(number) for number in ids}
    if not dress.template:
        before = "" if start is None else f"{ends[start]}:0 "
        inner.post_processor = TemplateProcessing(
            single=f"{before}$A:0 {ends[end]}:0",
            special_tokens=[(token, number) for number, token in ends.items()],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=ends.get(start),
        eos_token=ends[end],
        **special,
    )


def _padded(inner: Any) -> Any:
    """Let rows be filled with the end token where there is no other."""
    if inner.pad_token_id is None:
        inner = copy.deepcopy(inner)
        inner.pad_token = inner.eos_token or inner.sep_token
    return inner


def _save(inner: Any, folder: Path, length: int) -> Any:
    inner.save_pretrained(str(folder))
    config = read_json(folder / _CONFIG, dict)
    if config.get("tokenizer_class") == "TokenizersBackend":
        # the name that releases before transformers 5 know as well
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(folder / _CONFIG, {**config, "model_max_length": length})
    return inner
