"""Tokenizers with one interface, cut to the longest caption of the batch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.checks import as_size, as_texts, require_length, require_type
from avalanche_clip.common.files import read_text, require_file, unreadable, write_text
from avalanche_clip.models.text.settings import check_tokenizer_settings

_CACHE_LIMIT = 65536
Codes = Sequence[int | str] | Tensor
START_TOKEN = "<|startoftext|>"
END_TOKEN = "<|endoftext|>"


@dataclass(kw_only=True, eq=False, repr=False)
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

    context_length: int
    sot_id: int | None
    eot_id: int
    pad_id: int
    vocab_size: int
    trim: bool
    truncate: bool = True

    def __post_init__(self) -> None:
        # room for the start and the end token
        self.context_length = as_size(self.context_length, "context_length", least=2)
        #: captions cut so far by this object (each worker process counts its own)
        self.num_truncated = 0
        self._warned = False
        self._cache: dict[tuple[str, Any], list[int]] = {}

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
        if isinstance(texts, str):
            texts = [texts]
        texts = as_texts(texts, "the captions", least=0)
        ways = self._ways(languages, len(texts))
        return self._stack(
            [self._fit(self._cut(t, way), t) for t, way in zip(texts, ways)]
        )

    def _ways(self, languages: Codes | None, count: int) -> list[Any]:
        """Name the way in which each caption is cut, where there are several."""
        check_languages(languages, count)
        return [None] * count

    def _encode_in(self, text: str, way: Any) -> list[int]:
        """Return the uncut ids of one caption, cut in one of the ways."""
        return self.encode(text)

    def _cut(self, text: str, way: Any) -> list[int]:
        row = self._cache.get((text, way))
        if row is None:
            if len(self._cache) >= _CACHE_LIMIT:
                self._cache.clear()
            row = self._cache[text, way] = self._encode_in(text, way)
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
        # rows without an end token (T5 style ids) keep the last one they have
        return row[: self.context_length - 1] + row[-1:]

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
    require_length(listed, count, "language codes", "caption")
    found: list[int | str] = []
    for language in listed:
        value = language.item() if hasattr(language, "item") else language
        give = "codes (whole numbers) or names"
        require_type(value, (int, str), "A language", give, error=ValueError)
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
        self._inner = read_json_tokenizer(path)
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


def read_json_tokenizer(path: str | Path) -> Any:
    """Read a file of the ``tokenizers`` library, whole or refused."""
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
