"""Tokenizers with one interface, cut to the longest caption of the batch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DATA_FOLDER = Path(__file__).parent / "data"
_CACHE_LIMIT = 65536
# one of them is in every tokenizer folder of transformers
_HF_FILES = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
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
        if context_length < 2:
            raise ValueError(
                f"context_length={context_length} leaves no room for the start and the"
                " end token; give at least 2."
            )
        self.context_length = context_length
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
        languages: Sequence[int] | Tensor | None = None,
    ) -> Tensor:
        """Tokenise captions.

        :param texts: captions; a single string counts as a list of one.
        :param languages: language code per caption. Tokenizers of a single
            language ignore it.
        :return: long tensor ``(N, L)``; L is ``context_length``, or the
            longest row when ``trim`` is on.
        :raises TypeError: if an element is not a string.
        :raises ValueError: if ``languages`` has another length than
            ``texts``, or if a caption is too long and ``truncate`` is off.
        """
        texts = check_texts(texts)
        if languages is not None and len(languages) != len(texts):
            raise ValueError(
                f"{len(languages)} language codes were given for {len(texts)} captions;"
                " give one per caption."
            )
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

        self.kwargs = dict(kwargs)
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
        from tokenizers import Tokenizer

        if not Path(path).is_file():
            raise FileNotFoundError(
                f"There is no tokenizer file {path}; give the path of a tokenizer.json."
            )
        self._inner = Tokenizer.from_file(str(path))
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
        self._inner.save(str(Path(folder) / "tokenizer.json"))
        return {"type": "json", "file": "tokenizer.json"}


class HFCaptionTokenizer(CaptionTokenizer):
    """A transformers tokenizer, optionally behind open_clip's clean-up.

    :param name: folder or hub id of the tokenizer.
    :param context_length: as in the base class.
    :param trim: as in the base class.
    :param truncate: as in the base class.
    :param open_clip: clean captions as ``open_clip.HFTokenizer`` does.
    :param cache_dir: download folder of transformers.
    :param kwargs: settings of ``open_clip.HFTokenizer`` (``clean``,
        ``strip_sep_token``, ``tokenizer_mode``) or of ``AutoTokenizer``.
    :raises ValueError: if no tokenizer can be loaded from ``name``.
    """

    def __init__(
        self,
        name: str,
        context_length: int,
        *,
        trim: bool,
        truncate: bool = True,
        open_clip: bool = False,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.name = name
        self.kwargs = dict(kwargs)
        self._wrapper: Any = None
        self._clean: Callable[[str], str] | None = None
        loader = self._load_open_clip if open_clip else self._load
        if Path(name).is_dir() and not any(Path(name, f).is_file() for f in _HF_FILES):
            # transformers 5 would make an empty vocabulary of such a folder
            raise ValueError(
                f"No tokenizer could be loaded from {name!r}: it holds none of"
                f" {', '.join(_HF_FILES)}; put the tokenizer's files there."
            )
        try:
            self._inner = loader(name, context_length, cache_dir)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ValueError(
                f"No tokenizer could be loaded from {name!r} ({error}); put the"
                " tokenizer's files beside the weights or give its folder."
            ) from error
        pad = self._inner.pad_token_id
        eot = self._end_id()
        super().__init__(
            context_length=context_length,
            sot_id=self._start_id(),
            eot_id=eot,
            pad_id=eot if pad is None else pad,
            vocab_size=len(self._inner),
            trim=trim,
            truncate=truncate,
        )

    def _load(self, name: str, context_length: int, cache_dir: str | None) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(name, cache_dir=cache_dir, **self.kwargs)

    def _load_open_clip(
        self, name: str, context_length: int, cache_dir: str | None
    ) -> Any:
        from open_clip.tokenizer import HFTokenizer

        self._wrapper = HFTokenizer(
            name, context_length=context_length, cache_dir=cache_dir, **self.kwargs
        )
        self._clean = self._wrapper.clean_fn
        return self._wrapper.tokenizer

    def _start_id(self) -> int | None:
        for token in (self._inner.bos_token_id, self._inner.cls_token_id):
            if token is not None:
                return int(token)
        return None

    def _end_id(self) -> int:
        for token in (self._inner.eos_token_id, self._inner.sep_token_id):
            if token is not None:
                return int(token)
        raise ValueError("the tokenizer has neither an end nor a separator token")

    def encode(self, text: str) -> list[int]:
        """Return the ids of one caption, uncut, special tokens included."""
        if self._clean is not None:
            text = self._clean(text)
        if self._wrapper is not None and self._wrapper.tokenizer_mode == "clips":
            return self._wrapper([text])[0].tolist()
        ids = list(self._inner(text, truncation=False, verbose=False).input_ids)
        if self._wrapper is not None and self._wrapper.strip_sep_token:
            ids = [0 if i == self._inner.sep_token_id else i for i in ids]
        return ids

    def _fit(self, row: list[int], text: str) -> list[int]:
        cut = super()._fit(row, text)
        # rows without an end token of their own (T5 style ids) keep their form
        if cut is not row and row[-1] != self.eot_id:
            cut[-1] = row[-1]
        return cut

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write the tokenizer's files into ``folder/tokenizer``."""
        self._inner.save_pretrained(str(Path(folder) / "tokenizer"))
        kind = "hf" if self._wrapper is None else "open_clip_hf"
        return {"type": kind, "file": "tokenizer", "kwargs": self.kwargs}


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
    :raises ValueError: for another type.
    """
    kind = spec.get("type")
    kwargs = dict(spec.get("kwargs") or {})
    if kind == "open_clip":
        return OpenCLIPTokenizer(context_length, trim=trim, **kwargs)
    if kind == "json":
        preset = spec.get("preset")
        path = spec["file"] if preset is None else DATA_FOLDER / preset
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
    if kind == "growing":
        from avalanche_clip.models.growing_tokenizer import GrowingTokenizer

        return GrowingTokenizer.load(spec["file"])
    raise ValueError(
        f"Tokenizer type {kind!r} is unknown; use 'open_clip', 'open_clip_hf', 'hf',"
        " 'json' or 'growing'."
    )


__all__ = [
    "END_TOKEN",
    "START_TOKEN",
    "CaptionTokenizer",
    "HFCaptionTokenizer",
    "JSONTokenizer",
    "OpenCLIPTokenizer",
    "build_tokenizer",
    "check_texts",
]
