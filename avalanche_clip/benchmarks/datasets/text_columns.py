"""Columns of texts in one block of memory, and readers of tables of lines."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avalanche_clip.benchmarks.datasets.plain_texts import refuse_foreign
from avalanche_clip.common.files import read_lines, require_file, unreadable


class TextColumn(Sequence[str]):
    """Texts as one UTF-8 block and their boundaries: 8 bytes more than the text.

    Half a million captions take about 35 MB, where Python strings take three
    times that and are copied page by page into forked worker processes.

    :param block: all texts after each other, UTF-8; bytes, or a view of some.
    :param offsets: int64 ``(N + 1,)``: text i is ``block[offsets[i]:offsets[i + 1]]``.
    """

    def __init__(
        self, block: bytes | memoryview, offsets: npt.NDArray[np.int64]
    ) -> None:
        self.block = block
        self.offsets = offsets

    @classmethod
    def from_bytes(cls, texts: Iterable[bytes]) -> TextColumn:
        """Make a column of encoded texts."""
        block, ends = bytearray(), array("q", [0])
        for text in texts:
            block += text
            ends.append(len(block))
        return cls(bytes(block), np.array(ends, dtype=np.int64))

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> TextColumn:
        """Make a column of strings, or return the one given.

        >>> TextColumn.from_texts(["one", "zwölf"])[1]
        'zwölf'
        """
        if isinstance(texts, TextColumn):
            return texts
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
        return str(self.block[start:end], "utf-8")

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
        return next((i for i in range(common) if self[i] != other[i]), common)


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
    blocks = [bytearray() for _ in range(fields)]
    ends = [[0] for _ in range(fields)]
    for number, line in read_lines(path):
        if number == 1:
            refuse_foreign(path, line[:512].encode(), "a table of texts")
        texts = line.replace("\r", " ").split("\t")
        if len(texts) != fields:
            raise ValueError(
                f"{path}, line {number} has {len(texts)} tab-separated field(s), not "
                f"{fields}: {line[:80]!r}. Rows of all files belong together by their "
                "number, so the file has to be repaired."
            )
        for block, found, text in zip(blocks, ends, texts):
            block += text.encode()
            found.append(len(block))
    if len(ends[0]) == 1:
        raise unreadable(path, "a table of texts", "it has no rows")
    return [
        TextColumn(bytes(block), np.array(found, dtype=np.int64))
        for block, found in zip(blocks, ends)
    ]


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
        rows[i] = numbers.setdefault(bytes(column.block[start:end]), len(numbers))
    return TextColumn.from_bytes(numbers), rows
