"""Tokenizers with one interface, cut to the longest caption of the batch."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from avalanche_clip._files import read_text, require_file, unreadable, write_text
from avalanche_clip._numbers import as_size
from avalanche_clip.models.hf_loading import (
    TOKENIZER_SETTINGS,
    check_tokenizer_settings,
    is_hub_id,
)

if TYPE_CHECKING:
    from avalanche_clip.models.dual_encoder import DualEncoder

DATA_FOLDER = Path(__file__).parent / "data"
_CACHE_LIMIT = 65536
Codes = Sequence[int | str] | Tensor
START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"


class CaptionTokenizer:
    """Turn captions into padded token ids.

    Subclasses say how one caption becomes ids, start and end token included.
    This class cuts captions that are too long (the end token stays), pads,
    and trims the batch to its longest caption when ``trim`` is on, which is
    exact for causal text towers.

    :param context_length: longest row the text tower takes, end tokens
        included.
    :param sot_id: id of the start token, or None if there is none.
    :param eot_id: id of the end token.
    :param pad_id: id that fills rows.
    :param vocab_size: number of rows of the token table.
    :param trim: cut the batch to the longest caption in it.
    :param truncate: cut captions that are too long; False raises instead.
    """

    def __init__(
        self,
        *,
        context_length: int,
        sot_id: int | None,
        eot_id: int,
        pad_id: int,
        vocab_size: int,
        trim: bool,
        truncate: bool = True,
    ) -> None:
        # room for the start and the end token
        self.context_length = as_size(context_length, "context_length", least=2)
        self.sot_id = sot_id
        self.eot_id = eot_id
        self.pad_id = pad_id
        self.vocab_size = vocab_size
        self.trim = trim
        self.truncate = truncate
        #: captions cut so far by this object (each worker process counts its own)
        self.num_truncated = 0
        self._warned = False
        self._cache: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of one caption, uncut, start and end token included.

        :param text: the caption.
        :return: ids, never padded.
        """
        raise NotImplementedError

    def __call__(
        self,
        texts: str | Sequence[str],
        languages: Codes | None = None,
    ) -> Tensor:
        """Tokenise captions.

        :param texts: captions; a single string counts as a list of one.
        :param languages: language code or name per caption. It changes nothing
            where ids do not depend on the language, as in most tokenizers.
        :return: long tensor ``(N, L)``; L is ``context_length``, or the
            longest row when ``trim`` is on.
        :raises TypeError: if an element is not a string.
        :raises ValueError: if ``languages`` has another length than
            ``texts``, or if a caption is too long and ``truncate`` is off.
        """
        texts = check_texts(texts)
        check_languages(languages, len(texts))
        rows = [self._fit(self._encode_cached(text), text) for text in texts]
        return self._stack(rows)

    def _encode_cached(self, text: str) -> list[int]:
        row = self._cache.get(text)
        if row is None:
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            row = self._cache[text] = self.encode(text)
        return row

    def _fit(self, row: list[int], text: str) -> list[int]:
        if len(row) <= self.context_length:
            return row
        if not self.truncate:
            raise ValueError(
                f"The caption {_shorten(text)} has {len(row)} tokens, the text tower"
                f" takes {self.context_length}; shorten it or set truncate=True."
            )
        self.num_truncated += 1
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"The caption {_shorten(text)} has {len(row)} tokens and is cut to"
                f" {self.context_length}; further cuts are counted in num_truncated.",
                UserWarning,
                stacklevel=4,
            )
        return row[: self.context_length - 1] + [self.eot_id]

    def _stack(self, rows: list[list[int]]) -> Tensor:
        length = self.context_length
        if self.trim:
            length = max((len(row) for row in rows), default=2)
        padded = [row + [self.pad_id] * (length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.long).reshape(len(rows), length)

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write what is needed to rebuild this object.

        :param folder: existing folder.
        :return: plain description that ``build_tokenizer`` accepts; file
            names in it are relative to ``folder``.
        """
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> CaptionTokenizer:
        # vocabularies are large and never change in place: share them
        twin = copy.copy(self)
        twin._cache = {}
        memo[id(self)] = twin
        return twin

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_cache"] = {}
        return state

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(vocab_size={self.vocab_size},"
            f" context_length={self.context_length}, trim={self.trim})"
        )


def check_texts(texts: str | Sequence[str]) -> list[str]:
    """Return captions as a list, or say which element is not a string.

    :param texts: a string or a sequence of strings.
    :return: list of strings.
    :raises TypeError: for anything else.
    """
    if isinstance(texts, str):
        return [texts]
    if not isinstance(texts, Sequence):
        raise TypeError(
            f"Captions came as {type(texts).__name__}; give a list of strings."
        )
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"Caption {index} is a {type(text).__name__}, not a string; flatten"
                " nested lists and convert ids before tokenising."
            )
    return list(texts)


def check_languages(languages: Any, count: int) -> list[int | str] | None:
    """Return the languages of captions as a list, or say what is wrong with them.

    :param languages: codes (integers) or names, one per caption, or None.
    :param count: number of captions.
    :raises ValueError: for another number of them, or for anything else.

    >>> check_languages(torch.tensor([2, 0]), 2)
    [2, 0]
    """
    if languages is None:
        return None
    if isinstance(languages, (str, bytes)) or not hasattr(languages, "__len__"):
        raise ValueError(
            f"languages={languages!r} is no list; give one code or name per caption."
        )
    listed = languages.tolist() if hasattr(languages, "tolist") else list(languages)
    if len(listed) != count:
        raise ValueError(
            f"{len(listed)} language codes were given for {count} captions;"
            " give one per caption."
        )
    found: list[int | str] = []
    for language in listed:
        value = language.item() if hasattr(language, "item") else language
        if not isinstance(value, (int, str)) or isinstance(value, bool):
            raise ValueError(
                f"The language {language!r} is a {type(language).__name__}; give codes "
                "(whole numbers) or names."
            )
        found.append(value)
    return found


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


class OpenCLIPTokenizer(CaptionTokenizer):
    """CLIP's byte-pair encoding as open_clip ships it.

    :param context_length: as in the base class.
    :param trim: as in the base class.
    :param truncate: as in the base class.
    :param kwargs: further settings of ``open_clip.SimpleTokenizer``
        (``clean``, ``reduction_mask``, ``additional_special_tokens``).
    """

    def __init__(
        self, context_length: int, *, trim: bool, truncate: bool = True, **kwargs: Any
    ) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.kwargs = check_tokenizer_settings(
            "open_clip", kwargs, "The open_clip tokenizer"
        )
        self._inner = SimpleTokenizer(context_length=context_length, **kwargs)
        super().__init__(
            context_length=context_length,
            sot_id=self._inner.sot_token_id,
            eot_id=self._inner.eot_token_id,
            pad_id=0,
            vocab_size=self._inner.vocab_size,
            trim=trim,
            truncate=truncate,
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of one caption, uncut, start and end token included."""
        inner = self._inner
        return [inner.sot_token_id, *inner.encode(text), inner.eot_token_id]

    def _fit(self, row: list[int], text: str) -> list[int]:
        if len(row) > self.context_length and self._inner.reduction_fn is not None:
            # the model was trained with masked captions: open_clip draws them
            return self._inner([text])[0].tolist()
        return super()._fit(row, text)

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Describe this object; open_clip carries the vocabulary."""
        return {"type": "open_clip", "kwargs": self.kwargs}


class JSONTokenizer(CaptionTokenizer):
    """A tokenizer in the ``tokenizers`` library's JSON format.

    :param path: the JSON file; its vocabulary holds the two special tokens
        ``<|startoftext|>`` and ``<|endoftext|>``.
    :param context_length: as in the base class.
    :param trim: as in the base class.
    :param truncate: as in the base class.
    :raises FileNotFoundError: if ``path`` is missing.
    :raises ValueError: if a special token is missing.
    """

    def __init__(
        self,
        path: str | Path,
        context_length: int,
        *,
        trim: bool,
        truncate: bool = True,
    ) -> None:
        self._inner = _read_json_tokenizer(path)
        self._inner.no_truncation()
        self._inner.no_padding()
        start = self._inner.token_to_id(START_TOKEN)
        end = self._inner.token_to_id(END_TOKEN)
        if start is None or end is None:
            raise ValueError(
                f"The vocabulary in {path} lacks {START_TOKEN} or {END_TOKEN}; train it"
                " with both as special tokens."
            )
        self._ends = (int(start), int(end))
        super().__init__(
            context_length=context_length,
            sot_id=start,
            eot_id=end,
            pad_id=0,
            vocab_size=self._inner.get_vocab_size(),
            trim=trim,
            truncate=truncate,
        )

    def encode(self, text: str) -> list[int]:
        """Return the ids of one caption, uncut, start and end token included."""
        # one caption per call: the batch call starts threads, which forked
        # data workers then warn about
        ids = self._inner.encode(text, add_special_tokens=False).ids
        return [self._ends[0], *ids, self._ends[1]]

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write ``tokenizer.json`` and describe it."""
        write_text(Path(folder) / "tokenizer.json", self._inner.to_str(pretty=True))
        return {"type": "json", "file": "tokenizer.json"}


def _read_json_tokenizer(path: str | Path) -> Any:
    from tokenizers import Tokenizer

    path = require_file(path, "give the path of a tokenizer.json")
    try:
        inner = Tokenizer.from_str(read_text(path, "a tokenizer.json"))
        inner.encode("a photo")  # damaged vocabularies show when they are used
        return inner
    except BaseException as error:  # panics of the library are no Exceptions
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise unreadable(path, "a tokenizer.json", error) from error


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
    text = _read_json_tokenizer(path).to_str()
    return hashlib.sha256(text.encode()).hexdigest()


def portable_spec(
    spec: dict[str, Any] | None, model: DualEncoder | None = None
) -> dict[str, Any] | None:
    """Describe a tokenizer without naming a file of this machine.

    :param spec: tokenizer entry of a configuration.
    :param model: whose tokenizer counts if it was replaced.
    """
    own = None if model is None else model.__dict__.get("_tokenizer")
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
    kind = spec.get("type")
    if not isinstance(kind, str) or kind not in TOKENIZER_SETTINGS:
        raise ValueError(
            f"Tokenizer type {kind!r} is unknown; use"
            f" {', '.join(map(repr, TOKENIZER_SETTINGS))}."
        )
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
        from avalanche_clip.models.hf_tokenizers import HFCaptionTokenizer

        return HFCaptionTokenizer(
            spec["file"],
            context_length,
            trim=trim,
            open_clip=kind == "open_clip_hf",
            cache_dir=cache_dir,
            **kwargs,
        )
    from avalanche_clip.models.growing_tokenizer import GrowingTokenizer

    return GrowingTokenizer.load(spec["file"])


def __getattr__(name: str) -> Any:
    if name == "HFCaptionTokenizer":  # its place in earlier versions
        from avalanche_clip.models.hf_tokenizers import HFCaptionTokenizer

        return HFCaptionTokenizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "END_TOKEN",
    "START_TOKEN",
    "CaptionTokenizer",
    "Codes",
    "JSONTokenizer",
    "OpenCLIPTokenizer",
    "build_tokenizer",
    "check_languages",
    "check_texts",
    "json_hash",
    "portable_spec",
]
