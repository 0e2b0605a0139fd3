"""Check the structure of MATLAB files before scipy reads them.

scipy trusts the sizes that a file declares: a flipped bit can end the process. Here
every size is compared with what is there, and nothing is kept.
"""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

from avalanche_clip.common.files import file_limits, require_file, unreadable

_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15
_DEPTH = 32
# Type of the data -> bytes per value.
_WIDTHS = {
    **dict.fromkeys((1, 2, 16), 1),
    **dict.fromkeys((3, 4, 17), 2),
    **dict.fromkeys((5, 6, 7, 18), 4),
    **dict.fromkeys((9, 12, 13), 8),
}
_TEXTS = (16, 17, 18)
_CELL, _STRUCT, _CHAR = 1, 2, 4
_NUMBERS = range(6, 16)


class _Fault(Exception):
    """What is wrong with a file, in words."""


def check_mat(path: str | Path) -> None:
    """Raise ValueError unless a file is a whole MATLAB 5 file.

    :param path: with cells, structures, texts and numbers, as annotations have them.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: naming the file, if a size does not fit, it holds other kinds
        of values, or it unpacks to more than ``avalanche_clip.file_limits`` allow.
    """
    path = require_file(path)
    content = path.read_bytes()
    try:
        order = {b"IM": "<", b"MI": ">"}.get(content[_HEADER - 2 : _HEADER])
        if order is None:
            raise _Fault("it does not begin like one (version 7.3 is not read)")
        _File(content, order).variables()
    except (_Fault, zlib.error) as error:
        raise unreadable(path, "a whole MATLAB 5 file", error) from error


class _File:
    """A stretch of bytes that is walked through element by element."""

    def __init__(self, content: bytes, order: str) -> None:
        self.content, self.order = content, order

    def variables(self) -> None:
        """Walk through all variables after the header."""
        place, size = _HEADER, len(self.content)
        while place < size:
            kind, start, length = self._tag(place, size)
            file, place = self, self._after(start, length)
            if kind == _COMPRESSED:
                place = start + length
                packed = self.content[start:place]
                file = _File(self._unpack(packed), self.order)
                kind, start, length = file._tag(0, len(file.content))
            if kind != _MATRIX:
                raise _Fault(f"a variable has the type {kind}")
            file._matrix(start, start + length, 0)

    def _unpack(self, packed: bytes) -> bytes:
        most = max(file_limits.gzip_bytes, int(file_limits.gzip_ratio * len(packed)))
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(packed, most + 1)
        if len(content) > most:
            raise _Fault(f"{len(packed)} bytes of it unpack to more than {most}")
        if not unpacker.eof:
            raise _Fault("a packed variable is cut off")
        return content

    def _tag(self, place: int, end: int) -> tuple[int, int, int]:
        """Type, start and length of an element."""
        if place + 8 > end:
            raise _Fault("it ends inside an element")
        first, length = struct.unpack_from(f"{self.order}II", self.content, place)
        if first >> 16:  # both in four bytes, the data in the next four
            kind, length, start = first & 0xFFFF, first >> 16, place + 4
            if length > 4:
                raise _Fault(f"a short element has {length} bytes")
        else:
            kind, start = first, place + 8
        if start + length > end:
            raise _Fault(f"an element of {length} bytes goes beyond the end")
        return kind, start, length

    @staticmethod
    def _after(start: int, length: int) -> int:
        """Where the element after one lies: at a multiple of eight bytes."""
        return start + length + -(start + length) % 8

    def _data(
        self, place: int, end: int, kinds: tuple[int, ...]
    ) -> tuple[int, int, int, int]:
        """Type, start and number of values of an element, and where the next lies."""
        kind, start, length = self._tag(place, end)
        if kind not in kinds or length % _WIDTHS[kind]:
            raise _Fault(f"{length} bytes have the type {kind}")
        return kind, start, length // _WIDTHS[kind], self._after(start, length)

    def _matrix(self, place: int, end: int, depth: int) -> None:
        if place == end:
            return  # an empty cell
        if depth > _DEPTH:
            raise _Fault("it is nested too deeply")
        _, start, count, place = self._data(place, end, (6,))
        if count != 2:
            raise _Fault("an array has no flags")
        flags = struct.unpack_from(f"{self.order}I", self.content, start)[0]
        kind, is_complex = flags & 0xFF, bool(flags & 0x0800)
        _, start, count, place = self._data(place, end, (5,))
        shape = struct.unpack_from(f"{self.order}{count}i", self.content, start)
        if count < 2 or min(shape) < 0:
            raise _Fault(f"an array has the shape {shape[:8]}")
        size = math.prod(shape)
        _, _, _, place = self._data(place, end, (1, 2, 16))  # its name
        if kind == _CELL:
            self._cells(place, end, size, depth)
        elif kind == _STRUCT:
            _, start, count, place = self._data(place, end, (5,))
            if count != 1:
                raise _Fault("a structure has no length of names")
            width = struct.unpack_from(f"{self.order}i", self.content, start)[0]
            _, _, letters, place = self._data(place, end, (1,))
            if not 0 < width <= 64 or letters % width:
                raise _Fault(f"a structure has names of {width} letters")
            self._cells(place, end, size * (letters // width), depth)
        elif kind == _CHAR or kind in _NUMBERS:
            for _ in range(1 + is_complex):
                type_, _, found, place = self._data(place, end, tuple(_WIDTHS))
                # Letters may take several bytes of a text.
                if found != size and not (type_ in _TEXTS and found > size):
                    raise _Fault(f"an array of {size} values holds {found}")
                if kind != _CHAR and type_ in _TEXTS:
                    raise _Fault("numbers are stored as a text")
        else:
            raise _Fault(f"it holds a value of the class {kind}")

    def _cells(self, place: int, end: int, count: int, depth: int) -> None:
        if 8 * count > end - place:
            raise _Fault(f"{count} cells do not fit into {end - place} bytes")
        for _ in range(count):
            kind, start, length = self._tag(place, end)
            if kind != _MATRIX:
                raise _Fault(f"a cell has the type {kind}")
            self._matrix(start, start + length, depth + 1)
            place = self._after(start, length)
