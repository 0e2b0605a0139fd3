"""Pictures and captions of samples in tar archives, in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from avalanche_clip.benchmarks.datasets.captioned import is_text, is_texts
from avalanche_clip.benchmarks.datasets.fields import (
    FILE,
    Field,
    decode_picture,
    require_times,
    time_of,
)
from avalanche_clip.benchmarks.datasets.web.folder_index import PICTURES, FolderIndex
from avalanche_clip.benchmarks.datasets.web.tar_index import TarIndex
from avalanche_clip.benchmarks.items.skipped import SampleFault, leave_out, skipped_for
from avalanche_clip.common.checks import as_texts
from avalanche_clip.common.files import file_limits, parse_json

CAPTIONS = ("txt", "json:caption")
"""Where captions are looked for, in this order: endings, or fields of a JSON text."""

Read = Callable[[str], "bytes | None"]
"""Gives the bytes of a sample's member by its ending, None if it has none."""


class SampleReader:
    """What of a sample is its picture and what its captions.

    :param captions: where captions are looked for: an ending (``"txt"``), or an ending
        and a field of the mapping in a JSON text (``"json:caption"``), a string or a
        list of them. The first that a sample has counts.
    """

    def __init__(self, captions: str | Sequence[str] = CAPTIONS) -> None:
        given = (captions,) if isinstance(captions, str) else captions
        self.captions = tuple(as_texts(given, "captions"))

    def picture(self, read: Read, where: str) -> Image.Image:
        """Read the picture of a sample as RGB.

        :param where: names the sample.
        :raises SampleFault: if there is none, or it cannot be decoded or is too large.
        """
        for ending in PICTURES:
            content = read(ending)
            if content is not None:
                return decode_picture(content, f"{where}.{ending}")
        raise SampleFault("no picture", f"{where} has no picture {PICTURES}.")

    def text(self, read: Read, where: str) -> str | list[str]:
        """Read the caption of a sample, or the list of its captions.

        :raises SampleFault: if there is none, or it is no UTF-8 or no JSON text.
        """
        for source in self.captions:
            ending, _, field = source.partition(":")
            content = read(ending)
            if content is None:
                continue
            text = decode_text(content, f"{where}.{ending}")
            found = _field(text, field, f"{where}.{ending}") if field else text
            if found is not None:
                return found
        raise SampleFault("no caption", f"{where} has no caption {self.captions}.")


def decode_text(content: bytes, where: str) -> str:
    """Decode a text in UTF-8; a byte order mark is skipped.

    :raises SampleFault: if it is in another encoding, or longer than
        ``file_limits.line_bytes``.
    """
    if len(content) > file_limits.line_bytes:
        words = f"{where} has {len(content)} bytes, more than file_limits.line_bytes."
        raise SampleFault("member too large", words)
    try:
        return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        words = f"{where} is no UTF-8: {error}. Convert it."
        raise SampleFault("caption unreadable", words) from error


def _field(text: str, field: str, where: str) -> str | list[str] | None:
    content = _parsed(text, where, "caption unreadable")
    known = isinstance(content, dict)
    found = content.get(field) if known else content
    if known and (found is None or is_text(found) or is_texts(found)):
        return found
    raise SampleFault(
        "caption unreadable", f"{where} holds {found!r:.80} in place of {field!r}."
    )


def _parsed(text: str, where: str, cause: str) -> Any:
    try:
        return parse_json(text, where)
    except ValueError as error:
        raise SampleFault(cause, f"{where}: {error}") from error


class TarPairs:
    """Map-style data set of the pictures and captions in tar archives or folders.

    Items are ``(RGB image, caption or list of captions)``, for
    :func:`make_image_text_dataset`; bytes are read when an item is.

    :param index: of the archives, from :func:`open_tar_index`, or of a folder of files,
        a :class:`FolderIndex`.
    :param captions: see :class:`SampleReader`; None for the usual places.
    :param time: field of the JSON text of each sample that holds its time, or a
        function of it (a mapping, with the path of the archive in ``"__file__"``). All
        texts are read for it.
    :param on_error: about samples without a picture or caption, or that cannot be read
        when they are needed: ``"raise"``, or ``"skip"``: the former are no items, the
        latter are left out of their batch by our loaders; all are counted.
    :raises SampleFault: (a ValueError) for the first sample without, with ``"raise"``.
    :raises ValueError: if no sample is left, or none has a time.

    :ivar rows: sample of the index that each item is, int64 ``(N,)``.
    :ivar timestamps: seconds since 1970 (UTC), NaN for missing ones, ``(N,)``, or None.
    :ivar skipped: what was left out until now, by cause; None with ``"raise"``.
    """

    def __init__(
        self,
        index: TarIndex | FolderIndex,
        captions: str | Sequence[str] | None = None,
        *,
        time: Field | None = None,
        on_error: str = "raise",
    ) -> None:
        self.index: Any = index
        self.skipped = skipped_for(on_error)
        self.reader = SampleReader(CAPTIONS if captions is None else captions)
        for fault in index.faults:
            leave_out(fault, self.skipped)
        endings = [source.partition(":")[0] for source in self.reader.captions]
        pictures, texts = index.rows_with(*PICTURES), index.rows_with(*endings)
        for row in np.flatnonzero(~(pictures & texts)).tolist():
            cause = "no caption" if pictures[row] else "no picture"
            fault = SampleFault(cause, f"{index.where(row)} has {cause}.")
            leave_out(fault, self.skipped)
        self.rows = np.flatnonzero(pictures & texts)
        if not len(self.rows):
            raise ValueError(
                f"None of the {len(index)} samples of {index.tars[0]} and others has a "
                f"picture {PICTURES} and a caption {self.reader.captions}."
            )
        self.timestamps = None if time is None else self._timed(time)

    def _timed(self, time: Field) -> npt.NDArray[np.float64]:
        """Read the time of each item; those whose time is unreadable may leave."""
        found: dict[int, float] = {}
        for row in self.rows.tolist():
            where = self.index.where(row)
            try:
                content = decode_text(self.index.read(row, "json") or b"{}", where)
                facts = _parsed(content, f"{where}.json", "row unreadable")
                if not isinstance(facts, dict):
                    raise SampleFault("row unreadable", f"{where}.json is no mapping.")
                facts[FILE] = self.index.file(row)
                found[row] = time_of(facts, time, where)
            except SampleFault as fault:
                leave_out(fault, self.skipped)
        self.rows = np.array(list(found), dtype=np.int64)
        times = np.array(list(found.values()))
        require_times(times, time, f"{self.index.tars[0]} and others")
        return times

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, item: int) -> tuple[Image.Image, str | list[str]]:
        row, read = self._sample(item)
        where = self.index.where(row)
        return self.reader.picture(read, where), self.reader.text(read, where)

    def text(self, item: int) -> str | list[str]:
        """Return the caption or captions of an item without its picture."""
        row, read = self._sample(item)
        return self.reader.text(read, self.index.where(row))

    def _sample(self, item: int) -> tuple[int, Read]:
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} is out of range for {len(self)} samples.")
        row = int(self.rows[item])
        return row, lambda ending: self.index.read(row, ending)
