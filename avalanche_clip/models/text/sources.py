"""Read the vocabulary and the pipeline of every tokenizer that can grow."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from avalanche_clip.models.text.hf_tokenizers import HFCaptionTokenizer, SiglipClean
from avalanche_clip.models.text.tokenizers import (
    END_TOKEN,
    START_TOKEN,
    CaptionTokenizer,
    JSONTokenizer,
    OpenCLIPTokenizer,
)
from avalanche_clip.models.text.vocabulary import Vocabulary

PRETOKENIZERS = ("clip", "marks")
# both spellings of CLIP's special tokens; neither is ever learnt
SPECIAL_NAMES = (START_TOKEN, END_TOKEN, "<start_of_text>", "<end_of_text>")
_SUFFIX = "</w>"
_SIGLIP = ("siglip-lower", "siglip-cased")
# contractions, runs of letters, single digits, runs of anything else
_WORDS = r"[\p{L}]+"
_SYMBOLS = r"[^\s\p{L}\p{N}]+"
_PATTERN = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{_WORDS}|[\p{{N}}]|{_SYMBOLS}"
_WITH_MARKS = ((_WORDS, r"[\p{L}\p{M}]+"), (_SYMBOLS, r"[^\s\p{L}\p{M}\p{N}]+"))


@dataclass
class Dress:
    """What happens to a caption around the vocabulary's own work.

    :param clean: name of open_clip's clean-up, or None.
    :param template: whether start and end come from the pipeline's template.
    :param renamed: what is replaced in captions, in this order: special tokens by
        their names here, and plain text that only looks like them here.
    :param zeroed: id that is replaced by 0, or None.
    :param special_ids: ids that never stand for words.
    """

    clean: str | None = None
    template: bool = False
    renamed: dict[str, str] = field(default_factory=dict)
    zeroed: int | None = None
    special_ids: list[int] = field(default_factory=list)


def read_source(tokenizer: CaptionTokenizer) -> tuple[Vocabulary, Dress]:
    """Take a tokenizer apart into vocabulary and surroundings.

    Supported: open_clip's own byte pairs; ``tokenizers`` JSON files and fast
    transformers tokenizers whose model is BPE over bytes (CLIP) or Unigram
    (XLM-R, T5, mT5, SigLIP).

    :param tokenizer: one of this package.
    :return: base vocabulary and dress.
    :raises ValueError: for another kind, naming it.
    """
    if isinstance(tokenizer, OpenCLIPTokenizer):
        return _from_open_clip(tokenizer)
    if isinstance(tokenizer, JSONTokenizer):
        vocabulary = _from_json(tokenizer._inner.to_str(), "the JSON tokenizer")
        return vocabulary, Dress(special_ids=_special_ids(vocabulary, tokenizer))
    if isinstance(tokenizer, HFCaptionTokenizer):
        return _from_transformers(tokenizer)
    raise ValueError(
        f"A {type(tokenizer).__name__} cannot grow; use a model with open_clip's, a "
        "JSON or a transformers tokenizer."
    )


def _from_open_clip(tokenizer: OpenCLIPTokenizer) -> tuple[Vocabulary, Dress]:
    if tokenizer.kwargs.get("reduction_mask"):
        raise ValueError(
            "The tokenizer draws tokens of long captions at random (reduction_mask="
            f"{tokenizer.kwargs['reduction_mask']!r}), which a growing one does not; "
            "build the model with a configuration without it."
        )
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    inner = tokenizer._inner
    names = {"<start_of_text>": START_TOKEN, "<end_of_text>": END_TOKEN}
    # To open_clip the names used here are plain text, cut behind "<|" anyway.
    plain = {name: name.replace("<|", "<| ") for name in names.values()}
    tokens = [names.get(token, token) for token in inner.encoder]
    split = pre_tokenizers.Split(Regex(_PATTERN), "removed", invert=True)
    pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    merges = list(inner.bpe_ranks)
    model = models.BPE(
        {token: number for number, token in enumerate(tokens)},
        merges,
        unk_token=END_TOKEN,
        end_of_word_suffix=_SUFFIX,
    )
    # open_clip's clean-up has done before what a normalizer would do
    own = Tokenizer(model)
    own.pre_tokenizer = pre_tokenizers.Sequence([split, pieces])
    own.add_special_tokens([tokens[number] for number in inner.all_special_ids])
    dress = Dress(
        clean=str(tokenizer.kwargs.get("clean", "lower")),
        renamed={**plain, **names},
        special_ids=[int(n) for n in inner.all_special_ids],
    )
    return _from_json(own.to_str(), "open_clip's tokenizer"), dress


def _from_json(text: str, name: str) -> Vocabulary:
    pipeline = json.loads(text)
    model = pipeline["model"]
    kind = model.get("type")
    stored, merges = model.pop("vocab"), model.pop("merges", ())
    added = {int(t["id"]): str(t["content"]) for t in pipeline["added_tokens"]}
    prefix = model.get("continuing_subword_prefix")
    if kind == "BPE" and _is_byte_level(pipeline) and not prefix:
        # a pair, or (older files) a string with a space between both parts
        split = [m.split(" ", 1) if isinstance(m, str) else m for m in merges]
        pairs = [(str(first), str(second)) for first, second in split]
        tokens = _by_id({int(i): t for t, i in stored.items()} | added)
        return Vocabulary(pipeline, tokens, merges=pairs)
    if kind == "Unigram":
        known = {i: str(piece) for i, (piece, _) in enumerate(stored)}
        tokens = _by_id(known | added)
        scores = [float(score) for _, score in stored]
        scores += [-1e4] * (len(tokens) - len(scores))
        return Vocabulary(pipeline, tokens, scores=scores)
    what = "BPE without a byte-level pre-tokeniser" if kind == "BPE" else kind
    raise ValueError(
        f"{name} has a model of the kind {what}, which cannot grow; supported are "
        "byte-level BPE (CLIP) and Unigram (SentencePiece: XLM-R, T5, mT5, SigLIP)."
    )


def _is_byte_level(pipeline: dict[str, Any]) -> bool:
    parts = pipeline.get("pre_tokenizer") or {}
    steps = parts.get("pretokenizers", [parts])
    return any(step.get("type") == "ByteLevel" for step in steps)


def _by_id(tokens: dict[int, str]) -> list[str]:
    """List tokens by id; ids that nothing has get a name of their own."""
    size = max(tokens) + 1
    return [tokens.get(number, f"<unused_{number}>") for number in range(size)]


def _from_transformers(tokenizer: HFCaptionTokenizer) -> tuple[Vocabulary, Dress]:
    inner, wrapper = tokenizer._inner, tokenizer._wrapper
    backend = getattr(inner, "backend_tokenizer", None)
    if backend is None:
        raise ValueError(
            f"{type(inner).__name__} of {tokenizer.name!r} is no fast tokenizer, so "
            "its vocabulary cannot be read; load one with a tokenizer.json."
        )
    if wrapper is not None and wrapper.tokenizer_mode:
        raise ValueError(
            f"tokenizer_mode={wrapper.tokenizer_mode!r} is not supported by growing "
            "tokenizers; use a model without it."
        )
    vocabulary = _from_json(backend.to_str(), repr(tokenizer.name))
    dress = Dress(
        template=True,
        special_ids=_special_ids(vocabulary, tokenizer, inner.all_special_ids),
    )
    if isinstance(tokenizer._clean, SiglipClean):
        dress.clean = _SIGLIP[0 if tokenizer._clean.lower else 1]
    if wrapper is not None:
        dress.clean = str(tokenizer.kwargs.get("clean", "whitespace"))
        dress.zeroed = inner.sep_token_id if wrapper.strip_sep_token else None
    return vocabulary, dress


def _special_ids(
    vocabulary: Vocabulary, tokenizer: CaptionTokenizer, more: Any = ()
) -> list[int]:
    """Start, end, unknown, and whatever the pipeline calls special."""
    model, added = vocabulary.pipeline["model"], vocabulary.pipeline["added_tokens"]
    unknown = vocabulary.ids.get(model.get("unk_token")), model.get("unk_id")
    found = [*more, tokenizer.sot_id, tokenizer.eot_id, *unknown]
    found += [token["id"] for token in added if token.get("special")]
    return sorted({int(number) for number in found if number is not None})


def use_marks(pipeline: dict[str, Any]) -> dict[str, Any]:
    """Let words keep their combining marks, which CLIP's pattern cuts off.

    :param pipeline: with CLIP's split pattern.
    :return: a changed copy.
    :raises ValueError: if the pipeline has another pattern.
    """
    changed = json.loads(json.dumps(pipeline))
    steps = (changed.get("pre_tokenizer") or {}).get("pretokenizers", [])
    for step in steps:
        pattern = (step.get("pattern") or {}).get("Regex", "")
        if _WORDS in pattern and _SYMBOLS in pattern:
            for old, new in _WITH_MARKS:
                pattern = pattern.replace(old, new)
            step["pattern"] = {"Regex": pattern}
            return changed
    raise ValueError(
        "pretokenizer='marks' changes CLIP's split pattern, which this tokenizer "
        "does not have; use pretokenizer='clip', which keeps it as it is."
    )


def clean_function(name: str | None) -> Callable[[str], str] | None:
    """Return open_clip's clean-up of that name, or SigLIP's of transformers."""
    if name is None:
        return None
    if name in _SIGLIP:
        return SiglipClean(name == _SIGLIP[0])
    from open_clip.tokenizer import get_clean_fn

    return get_clean_fn(name)
