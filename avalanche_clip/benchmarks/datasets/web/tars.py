"""Samples of tar archives that may be damaged or hostile, read without unpacking.

Links, devices and folders are passed over; nothing is written by a member's name. What
would lie outside its folder, sparse members, whose declared size is not that of their
bytes, and archives that are cut, damaged or compressed are faults.
"""

from __future__ import annotations

import os
import re
import tarfile
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from avalanche_clip.benchmarks.items.skipped import SampleFault
from avalanche_clip.common.files import file_limits, found_in

_CHUNK = 2**20
_META = re.compile("__[^/]*__/")
_ADVICE = "Download or write the archive again, or leave it out."

Place = tuple[int, int, int]
"""First byte, size and CRC-32 of a member; 0 for a checksum that was not made."""
Samples = dict[str, dict[str, Place]]
"""Members by ending, of each sample by its name."""


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


def scan(
    path: Path, tell: Callable[[SampleFault], None], *, checksums: bool = False
) -> Samples:
    """Find the samples of an archive; the members of one need not lie together.

    A sample with a member of a refused name or twice the same one is left out, and of
    an archive that is cut or damaged the last one, which may be incomplete.

    :param path: of the archive.
    :param tell: called with each fault.
    :param checksums: read all bytes and note the CRC-32 of each member.
    """
    found: Samples = {}
    dropped, key = set(), ""
    try:
        with open(path, "rb") as file:
            for member in _members(path, file):
                parts = [part for part in member.name.split("/") if part != "."]
                key, ending = split_name("/".join(parts))
                wrong = _refused(member)
                if not wrong and (not ending or _META.match(key)):
                    continue  # no member of a sample, as webdataset has it
                own = found.setdefault(key, {})
                if wrong or ending in own:
                    cause = "member refused" if wrong else "member twice"
                    wrong = wrong or "occurs twice"
                    words = f"{path}: a member {member.name[:80]!a} {wrong}."
                    tell(SampleFault(cause, words))
                    dropped.add(key)
                crc = _crc(file, member) if checksums else 0
                own[ending] = (member.offset_data, member.size, crc)
    except SampleFault as fault:
        dropped.add(key)
        tell(fault)
    except OSError as error:
        tell(missing(path, error))
    return {name: own for name, own in found.items() if name not in dropped}


def _members(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """Yield the plain files of an archive in order.

    :raises SampleFault: if the rest cannot be read.
    """
    size, end = os.fstat(file.fileno()).st_size, 0
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # would hold all
                if member.size < 0 or member.offset < end:
                    raise tarfile.ReadError("a member of a negative size")
                end = member.offset_data + (member.size if member.isreg() else 0)
                if end > size:
                    raise EOFError
                if member.isreg():
                    yield member
            # Behind the last header that can be read there must be an empty one.
            file.seek(tar.offset)
            behind = file.read(tarfile.BLOCKSIZE)
            if behind != bytes(tarfile.BLOCKSIZE):
                short = len(behind) < tarfile.BLOCKSIZE
                raise EOFError if short else tarfile.ReadError("no header there")
            # A hole of zeros looks like the end.
            while part := file.read(_CHUNK):
                if part.strip(b"\0"):
                    raise tarfile.ReadError("its end is there, but more follows")
    except OSError:
        raise
    except Exception as error:  # hostile headers make tarfile raise nearly anything
        cut = isinstance(error, EOFError) or "unexpected end" in str(error)
        how = "cut off" if cut else "damaged"
        cause = "" if cut else f" ({error})"
        words = f"{path} is not a tar of samples: it is {how} behind byte {end}{cause}."
        words = f"{words} Found {found_in(path)}. {_ADVICE}"
        raise SampleFault(f"archive {how}", words) from error


def _refused(member: tarfile.TarInfo) -> str:
    """What is wrong with a member that is no sound file of its folder."""
    parts = member.name.replace("\\", "/").split("/")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in member.name):
        return "has a name with control characters, or that is no UTF-8"
    if not parts[0] or ".." in parts:
        return "would lie outside its folder"
    return "is sparse" if member.issparse() else ""


def missing(path: Path, error: OSError) -> SampleFault:
    """The fault of an archive that cannot be opened or read."""
    words = f"{path} cannot be read ({error.strerror or error}): the set is not"
    return SampleFault("archive missing", f"{words} complete. {_ADVICE}")


def _crc(file: IO[bytes], member: tarfile.TarInfo) -> int:
    crc, start, end = 0, member.offset_data, member.offset_data + member.size
    while start < end and (
        part := os.pread(file.fileno(), min(_CHUNK, end - start), start)
    ):
        crc, start = zlib.crc32(part, crc), start + len(part)
    return crc


def read_member(path: Path, place: Place, where: str) -> bytes:
    """Read a member of an archive.

    :param place: from :func:`scan`.
    :param where: names the member.
    :raises SampleFault: if its bytes are not those that were found before, it is larger
        than ``file_limits.member_bytes``, or the archive is gone.
    """
    start, size, crc = place
    if size > file_limits.member_bytes:
        raise SampleFault(
            "member too large",
            f"{where} has {size} bytes, more than the limit of "
            f"{file_limits.member_bytes}, so it is refused. If its size is meant, set "
            "avalanche_clip.file_limits.member_bytes.",
        )
    try:
        with open(path, "rb", buffering=0) as file:
            content = os.pread(file.fileno(), size, start)
    except OSError as error:
        raise missing(path, error) from error
    if len(content) < size or (crc and zlib.crc32(content) != crc):
        raise SampleFault(
            "content changed",
            f"{where}: {path} was cut or changed after its members were found. Get the "
            "archive again, or build its index again.",
        )
    return content
