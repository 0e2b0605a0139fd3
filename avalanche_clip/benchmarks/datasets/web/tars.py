"""Members of tar archives that may be damaged or hostile, read without unpacking.

Plain files of the formats V7, ustar, GNU and pax are found by their headers alone.
Links, devices and folders are passed over; nothing is written by a member's name. A
member that would lie outside its folder, archives that are cut, damaged or compressed,
and sparse members, whose declared size is not that of their bytes, are faults.
"""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from avalanche_clip.benchmarks.items.skipped import SampleFault
from avalanche_clip.common.files import file_limits, found_in

_BLOCK = 512
_LONGEST = 2**20  # bytes of an extended header
_CHUNK = 2**20
_OPEN = 64  # files kept open per thread
_PLAIN = (b"0", b"\0", b"7")
# Their size field, if any, is not that of bytes that follow.
_EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")
_ADVICE = "Download or write the archive again, or leave it out."

Place = tuple[int, int, int]
"""First byte, size and CRC-32 of a member; 0 for a checksum that was not made."""
Samples = dict[str, dict[str, Place]]
"""Members by ending, of each sample by its name."""


class Member(NamedTuple):
    """A plain file in an archive: its name and where its bytes are."""

    name: str
    offset: int
    size: int


class _Broken(Exception):
    """The rest of an archive cannot be read."""


def split_name(name: str) -> tuple[str, str]:
    """Cut the name of a member into that of its sample and its ending.

    A sample's name goes up to the first dot after the last slash; the ending is in
    lower case, and empty for members of no sample.

    >>> split_name("a.b/s001.left.PNG"), split_name("a/README"), split_name("a/.rc")
    (('a.b/s001', 'left.png'), ('a/README', ''), ('a/', ''))
    """
    folder, slash, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return f"{folder}{slash}{key}", ending.lower() if key else ""


def members(path: Path, file: IO[bytes]) -> Iterator[Member | SampleFault]:
    """Yield the plain files of an archive in order, and what is wrong with it.

    After a fault that ends the reading (``"archive ..."``) nothing more comes: the
    sample before it may be incomplete.

    :param path: names the archive.
    :param file: the archive, opened; its position is moved.
    """
    size = os.fstat(file.fileno()).st_size
    offset, extended = 0, {}
    try:
        while True:
            head = _block(file, offset, size)
            if head == bytes(_BLOCK):
                return
            kind, length = _header(head, offset)
            offset += _BLOCK
            if "size" in extended:
                length = _decimal(extended["size"])
            if kind in (b"L", b"K", b"x", b"X", b"g"):
                content = _extension(file, offset, length, size)
                if kind == b"L":
                    extended["path"] = content.partition(b"\0")[0]
                elif kind in (b"x", b"X"):
                    extended.update(_pax(content))
            else:
                raw, sparse = _name(head, extended)
                extended = {}
                if kind == b"S" or sparse:
                    raise _Broken("damaged", f"a sparse member before byte {offset}")
                if kind in _EMPTY:
                    continue
                if offset + length > size:
                    raise _Broken("cut off", f"at byte {size}, in {raw[:80]!r}")
                if kind in _PLAIN and not raw.endswith(b"/"):
                    yield _checked(path, raw, offset, length)
            offset += -(-length // _BLOCK) * _BLOCK
    except _Broken as broken:
        how, where = broken.args
        words = f"{path} is not a tar of samples: it is {how}, {where}."
        words = f"{words} Found {found_in(path)}. {_ADVICE}"
        yield SampleFault(f"archive {how}", words)


def _block(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    head = file.read(_BLOCK)
    if len(head) < _BLOCK:
        if not offset:
            raise _Broken("damaged", "it is not a tar, or an empty one")
        raise _Broken("cut off", f"there is no mark of its end at byte {size}")
    return head


def _header(head: bytes, offset: int) -> tuple[bytes, int]:
    """Kind and size of a member; its checksum is compared."""
    total = sum(head) - sum(head[148:156]) + 8 * 32
    try:
        if total != _octal(head[148:156]):
            raise ValueError
        return head[156:157], _octal(head[124:136])
    except ValueError:
        kind = "it is not a tar" if not offset else "no header of a member"
        raise _Broken("damaged", f"{kind} at byte {offset}") from None


def _octal(field: bytes) -> int:
    """Read a number of a header; large ones are written in base 256."""
    if field[0] & 0x80:
        if field[0] != 0x80:  # negative
            raise ValueError
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0")
    if not all(byte in b"01234567" for byte in text):
        raise ValueError
    return int(text or b"0", 8)


def _decimal(field: bytes) -> int:
    if not field.isdigit() or len(field) > 18:
        raise _Broken("damaged", f"a member of the size {field[:20]!r}")
    return int(field)


def _extension(file: IO[bytes], offset: int, length: int, size: int) -> bytes:
    if length > _LONGEST:
        raise _Broken("damaged", f"a header of {length} bytes at byte {offset}")
    if offset + length > size:
        raise _Broken("cut off", f"in a header at byte {size}")
    file.seek(offset)
    return file.read(length)


def _pax(content: bytes) -> dict[str, bytes]:
    """The records of an extended header that matter."""
    found, start = {}, 0
    while start < len(content):
        digits = content[start : start + 20].partition(b" ")[0]
        end = start + (_decimal(digits) if digits else 0)
        key, equals, value = content[start + len(digits) + 1 : end].partition(b"=")
        if end > len(content) or not equals or not value.endswith(b"\n"):
            raise _Broken("damaged", "an extended header that cannot be read")
        if key in (b"path", b"size") or key.startswith(b"GNU.sparse."):
            found[key.decode("ascii", "replace")] = value[:-1]
        start = end
    return found


def _name(head: bytes, extended: dict[str, bytes]) -> tuple[bytes, bool]:
    """Name of a member as bytes, and whether it is sparse."""
    name = head[:100].partition(b"\0")[0]
    prefix = head[345:500].partition(b"\0")[0]
    if prefix and head[257:263] == b"ustar\0":
        name = prefix + b"/" + name
    sparse = any(key.startswith("GNU.sparse.") for key in extended)
    return extended.get("path", name), sparse


def _checked(path: Path, raw: bytes, offset: int, size: int) -> Member | SampleFault:
    shown = f"{path} has a member {raw[:80]!r}"
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return SampleFault("name refused", f"{shown}, whose name is no UTF-8: {error}.")
    parts = name.replace("\\", "/").split("/")
    if not name or name[0] in "/\\" or ".." in parts or "\0" in name:
        return SampleFault(
            "name refused", f"{shown}, which would lie outside its folder."
        )
    return Member("/".join(p for p in name.split("/") if p != "."), offset, size)


# -------------------------------------------------------------------- whole archives
def scan(
    path: Path, tell: Callable[[SampleFault], None], *, checksums: bool = False
) -> Samples:
    """Find the samples of an archive; those of one name need not lie together.

    :param path: of the archive.
    :param tell: called with each fault.
    :param checksums: read all bytes and note the CRC-32 of each member.
    """
    found: Samples = {}
    dropped = set()
    last = ""
    try:
        with open(path, "rb") as file:
            for member in members(path, file):
                if isinstance(member, SampleFault):
                    tell(member)
                    if member.cause.startswith("archive"):
                        dropped.add(last)
                    continue
                key, ending = split_name(member.name)
                if not ending or key.startswith("__"):
                    continue  # no member of a sample, as webdataset has it
                last, own = key, found.setdefault(key, {})
                if ending in own:
                    words = f"{path}: {member.name} occurs twice, {key} is left out."
                    tell(SampleFault("member twice", words))
                    dropped.add(key)
                crc = _crc(file, member) if checksums else 0
                own[ending] = (member.offset, member.size, crc)
    except OSError as error:
        tell(missing(path, error))
    return {key: own for key, own in found.items() if key not in dropped}


def missing(path: Path, error: OSError) -> SampleFault:
    """The fault of an archive that cannot be opened or read."""
    return SampleFault(
        "archive missing",
        f"{path} cannot be read ({error.strerror}): the set is not complete. {_ADVICE}",
    )


def _crc(file: IO[bytes], member: Member) -> int:
    crc, start, end = 0, member.offset, member.offset + member.size
    while start < end:
        part = os.pread(file.fileno(), min(_CHUNK, end - start), start)
        if not part:
            return crc  # it became shorter: the reader will tell
        crc, start = zlib.crc32(part, crc), start + len(part)
    return crc


def require_member_size(size: int, where: str) -> None:
    """Refuse a member that would take too much memory, before it is read.

    :raises SampleFault: naming the limit, ``file_limits.member_bytes``.
    """
    if size > file_limits.member_bytes:
        raise SampleFault(
            "other",
            f"{where} has {size} bytes, more than the limit of "
            f"{file_limits.member_bytes}, so it is refused. If its size is meant, set "
            "avalanche_clip.file_limits.member_bytes.",
        )


class TarFiles:
    """Bytes of archives at noted places; few of them are open at a time.

    :param paths: of the archives.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths
        self._own = threading.local()

    def __reduce__(self) -> tuple[type, tuple[Sequence[Path]]]:
        return TarFiles, (self.paths,)

    def read(self, number: int, place: Place, where: str) -> bytes:
        """Read a member.

        :param number: of the archive.
        :param place: of the member, from :func:`scan`.
        :param where: names it.
        :raises SampleFault: if its bytes are not those that were found before, it is
            too large, or the archive is gone.
        """
        offset, size, crc = place
        require_member_size(size, where)
        try:
            content = os.pread(self._file(number).fileno(), size, offset)
        except OSError as error:
            raise missing(self.paths[number], error) from error
        if len(content) < size or (crc and zlib.crc32(content) != crc):
            raise SampleFault(
                "content changed",
                f"{where}: {self.paths[number]} was cut or changed after its members "
                "were found. Get the archive again, or build its index again.",
            )
        return content

    def _file(self, number: int) -> IO[bytes]:
        files: dict[int, IO[bytes]] = self._own.__dict__.setdefault("files", {})
        file = files.pop(number, None)
        if file is None:
            if len(files) >= _OPEN:
                files.pop(next(iter(files))).close()
            file = open(self.paths[number], "rb", buffering=0)  # noqa: SIM115
        files[number] = file  # the one used last is closed last
        return file
