"""Columns of texts in one block of memory, and readers of tables of lines."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avalanche_clip.benchmarks.datasets.plain_texts import refuse_foreign
from avalanche_clip.common.files import (
    file_limits,
    open_bytes,
    require_file,
    unreadable,
)

_LINE_FEED, _TAB = 10, 9
_BLOCK = 1 << 20


class TextColumn(Sequence[str]):
    """Texts as one UTF-8 block and their boundaries: 8 bytes more than the text.

    Half a million captions take about 35 MB, where Python strings take three
    times that and are copied page by page into forked worker processes.

    :param block: all texts after each other, UTF-8.
    :param offsets: int64 ``(N + 1,)``: text i is ``block[offsets[i]:offsets[i + 1]]``.
    """

    def __init__(self, block: bytes, offsets: npt.NDArray[np.int64]) -> None:
        self.block = block
        self.offsets = offsets

    @classmethod
    def from_bytes(cls, texts: Iterable[bytes]) -> TextColumn:
        """Make a column of encoded texts."""
        block, ends = bytearray(), [0]
        for text in texts:
            block += text
            ends.append(len(block))
        return cls(bytes(block), np.array(ends, dtype=np.int64))

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> TextColumn:
        """Make a column of strings.

        >>> TextColumn.from_texts(["one", "zwölf"])[1]
        'zwölf'
        """
        return cls.from_bytes(text.encode("utf-8") for text in texts)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = int(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"text {index} is out of range for {len(self)} texts.")
        position %= len(self)
        start, end = self.offsets[position], self.offsets[position + 1]
        return self.block[start:end].decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        for i in range(len(self)):
            yield self[i]

    def same_as(self, other: TextColumn) -> bool:
        """Tell whether two columns hold the same texts."""
        return self.block == other.block and np.array_equal(self.offsets, other.offsets)

    def first_difference(self, other: TextColumn) -> int | None:
        """Return the first row in which two columns differ, None if there is none.

        :param other: a column; where one is longer, its first further row counts.
        """
        if self.same_as(other):
            return None
        common = min(len(self), len(other))
        for i in range(common):
            if self[i] != other[i]:
                return i
        return common


def read_table(path: str | Path, fields: int) -> list[TextColumn]:
    """Read a tab-separated file as columns.

    Rows end at line feeds only: a carriage return inside a caption does not
    split its row, as text mode would have it, but becomes a space; one before the
    line feed is dropped. A byte order mark is skipped.

    :param path: file, gzipped if its name ends with ``.gz``; within the limits of
        ``avalanche_clip.file_limits``.
    :param fields: number of columns.
    :return: one column per field.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: naming the file, and the line if a row has another number of
        fields, is too long or no UTF-8; also if a gzipped file is damaged or swells.
    """
    path = require_file(
        path, "give the folder that holds the released files, with their original names"
    )
    content = _read_lines(path).removeprefix(b"\xef\xbb\xbf")
    refuse_foreign(path, content[:512], "a table of texts")
    if not content:
        raise unreadable(path, "a table of texts", "it has no rows")
    if not content.endswith(b"\n"):
        content += b"\n"
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    data = np.frombuffer(content, dtype=np.uint8)
    ends = np.flatnonzero(data == _LINE_FEED)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    tabs = np.flatnonzero(data == _TAB)
    _check_fields(path, content, tabs, starts, ends, fields)
    _check_encoding(path, content)
    cuts = tabs.reshape(len(ends), fields - 1)
    edges = np.column_stack([starts - 1, cuts, ends])
    return [_column(data, edges[:, k] + 1, edges[:, k + 1]) for k in range(fields)]


def _read_lines(path: Path) -> bytes:
    """Read a file block by block; lines of a gzipped one have a longest length."""
    if path.suffix != ".gz":
        return path.read_bytes()
    most = file_limits.line_bytes
    content = bytearray()
    start = lines = 0
    with open_bytes(path) as file:
        while block := file.read(_BLOCK):
            content += block
            while (end := content.find(b"\n", start)) >= 0 and end - start <= most:
                start, lines = end + 1, lines + 1
            if len(content) - start > most:
                raise ValueError(
                    f"{path}, line {lines + 1} is longer than {most} bytes: it is "
                    "refused. Raise avalanche_clip.file_limits.line_bytes if that is "
                    "meant."
                )
    return bytes(content)


def _column(
    data: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
) -> TextColumn:
    """Gather disjoint pieces of a block, given in order."""
    inside = np.zeros(len(data) + 1, dtype=np.int8)
    # An empty piece starts where it ends, so marks are added, not set.
    inside[starts] += 1
    inside[ends] -= 1
    kept = data[np.cumsum(inside, dtype=np.int8)[:-1].astype(bool)]
    offsets = np.concatenate([[0], np.cumsum(ends - starts)])
    return TextColumn(kept.tobytes(), offsets.astype(np.int64))


def _check_fields(
    path: Path,
    content: bytes,
    tabs: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    fields: int,
) -> None:
    found = np.searchsorted(tabs, ends) - np.searchsorted(tabs, starts) + 1
    wrong = np.flatnonzero(found != fields)
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(
            f"{path}, line {row + 1} has {found[row]} tab-separated field(s), not "
            f"{fields}: {content[starts[row] : ends[row]][:80]!r}. Rows of all files "
            "belong together by their number, so the file has to be repaired."
        )


def _check_encoding(path: Path, content: bytes) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    for start in range(0, len(content), _BLOCK):
        try:
            decoder.decode(
                content[start : start + _BLOCK], start + _BLOCK >= len(content)
            )
        except UnicodeDecodeError:
            break
    else:
        return
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number} is no UTF-8: {error}.") from error


def number_texts(column: TextColumn) -> tuple[TextColumn, npt.NDArray[np.int64]]:
    """Number the distinct texts of a column in order of first appearance.

    :param column: texts, some of them equal.
    :return: the distinct texts, and the number of each row's text, ``(N,)``.

    >>> number_texts(TextColumn.from_texts(["b", "a", "b"]))[1].tolist()
    [0, 1, 0]
    """
    numbers: dict[bytes, int] = {}
    rows = np.empty(len(column), dtype=np.int64)
    edges = column.offsets.tolist()
    for i, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        rows[i] = numbers.setdefault(column.block[start:end], len(numbers))
    return TextColumn.from_bytes(numbers), rows
