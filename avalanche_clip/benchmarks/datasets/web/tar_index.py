"""An index of tar archives: any member of any sample at once, in any order.

It is built once and kept in a folder beside the archives::

    tar_index/
      members.npy    first byte, size, CRC-32 and ending of each member
      samples.npy    archive, and the ends of its members and of its name, per sample
      names.npy      the names of all samples, UTF-8, one after the other
      index.json     archives with size, time and checksum; endings; what was left out

The arrays are mapped, not read, so that an index of millions of members opens at once
and worker processes share it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avalanche_clip.benchmarks.datasets.text_columns import TextColumn
from avalanche_clip.benchmarks.datasets.web.tars import (
    Samples,
    TarFiles,
    missing,
    scan,
)
from avalanche_clip.benchmarks.items.skipped import ON_ERROR, SampleFault
from avalanche_clip.common.arrays import npy_seal, read_npy, seal_npy
from avalanche_clip.common.checks import (
    require_choice,
    require_distinct,
    require_some,
)
from avalanche_clip.common.files import read_json, replacing, unreadable, write_json
from avalanche_clip.common.lock import FolderLock

logger = logging.getLogger(__name__)

FOLDER = "tar_index"
_FILE = "index.json"
_VERSION = 1
_TOLD = 20
_MEMBER = np.dtype(
    [("offset", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("ending", "<u4")]
)
_SAMPLE = np.dtype([("tar", "<u4"), ("members", "<u8"), ("name", "<u8")])
_KINDS = {"members": _MEMBER, "samples": _SAMPLE, "names": np.dtype("u1")}


def find_tars(folder: str | Path) -> list[Path]:
    """List the archives ``*.tar`` of a folder and of those in it, in order of name.

    Numbers count as such: ``2.tar`` comes before ``10.tar``.

    :raises FileNotFoundError: if there is no such folder, or no archive in it.
    """
    folder = Path(folder).expanduser()
    found = [p for p in folder.rglob("*.tar") if p.is_file()]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no *.tar files; give the folder of the archives, or a "
            "list of their paths."
        )
    return sorted(found, key=lambda p: [_natural(x) for x in p.parts])


def _natural(part: str) -> tuple[int, int, str]:
    stem = part.removesuffix(".tar")
    digits = stem.isascii() and stem.isdigit()
    return (0, int(stem), part) if digits else (1, 0, part)


class TarIndex:
    """Samples of tar archives in random order, see :func:`open_tar_index`.

    A sample is what has one name up to the first dot; its members are told apart by
    what follows. Names, archives and places are columns; bytes are read when they are
    asked for and compared with their checksum.

    :param tars: paths of the archives.
    :param endings: of members, by number.
    :param members: one row per member, those of a sample together.
    :param samples: one row per sample, those of an archive together.
    :param names: of the samples, UTF-8.
    :param faults: what was left out: cause and words.

    :ivar tar: number of the archive of each sample, ``(N,)``.
    :ivar names: of the samples, a :class:`TextColumn`.
    """

    def __init__(
        self,
        tars: Sequence[Path],
        endings: Sequence[str],
        members: npt.NDArray[Any],
        samples: npt.NDArray[Any],
        names: npt.NDArray[np.uint8],
        faults: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.tars, self.endings = list(tars), tuple(endings)
        self.faults = [SampleFault(*fault) for fault in faults]
        self.members, self.samples = members, samples
        self.tar = samples["tar"]
        self._ends = samples["members"]
        ends = np.concatenate([[0], samples["name"]]).astype(np.int64)
        self.names = TextColumn(memoryview(names), ends)
        self._files = TarFiles(self.tars)
        self._source: Any = None

    def __len__(self) -> int:
        return len(self.samples)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is not None:  # mapped again by each process
            return self._source, ()
        arrays = (self.members, self.samples, np.array(self.names.block))
        faults = [(fault.cause, str(fault)) for fault in self.faults]
        return TarIndex, (self.tars, self.endings, *arrays, faults)

    def __deepcopy__(self, memo: Any) -> TarIndex:
        return self

    def rows_with(self, *endings: str) -> npt.NDArray[np.bool_]:
        """Say which samples have a member of one of some endings, bool ``(N,)``."""
        numbers = [n for n, e in enumerate(self.endings) if e in endings]
        having = np.isin(self.members["ending"], numbers)
        counts = np.concatenate([[0], np.cumsum(having)])
        ends = self._ends.astype(np.int64)
        starts = np.concatenate([[0], ends[:-1]]) if len(ends) else ends
        return counts[ends] > counts[starts]

    def sample(self, index: int) -> dict[str, tuple[int, int, int]]:
        """Return the members of a sample: ending to place (first byte, size, CRC).

        :raises IndexError: if there is no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} is out of range for {len(self)}.")
        start = int(self._ends[index - 1]) if index else 0
        rows = self.members[start : int(self._ends[index])].tolist()
        return {self.endings[number]: tuple(place) for *place, number in rows}

    def read(self, index: int, ending: str) -> bytes | None:
        """Read a member of a sample; None if it has none of that ending.

        :raises SampleFault: if the archive is gone, or its bytes have changed.
        """
        place = self.sample(index).get(ending)
        if place is None:
            return None
        number = int(self.tar[index])
        return self._files.read(number, place, f"{self.where(index)}.{ending}")

    def where(self, index: int) -> str:
        """Name a sample, for messages."""
        return f"{self.tars[int(self.tar[index])]}, {self.names[index]}"

    @classmethod
    def of(cls, tars: Sequence[str | Path], *, checksums: bool = False) -> TarIndex:
        """Make an index in memory, which is not kept.

        :param tars: paths of the archives.
        :param checksums: read all bytes, to know later whether they changed.
        :return: an index; what was left out is in its ``faults``.
        """
        made = _Built([Path(path) for path in tars])
        made.scan(checksums=checksums)
        return cls(made.tars, list(made.endings), *made.columns(), made.faults)


class _Built:
    """Columns of an index in the making."""

    def __init__(self, tars: Sequence[Path]) -> None:
        self.tars = tars
        self.endings: dict[str, int] = {}
        self.faults: list[tuple[str, str]] = []
        self.checksums: list[str] = []
        self.stats: list[tuple[int, int]] = []
        self._parts: list[tuple[npt.NDArray[Any], ...]] = []
        self._ends = [0, 0]

    def scan(self, *, checksums: bool) -> None:
        for number, path in enumerate(self.tars):
            self.stats.append(_stat(path))
            tell = lambda fault: self.faults.append((fault.cause, str(fault)))  # noqa: E731
            found = scan(path, tell, checksums=checksums)
            self.checksums.append(_digest(found))
            self._add(number, found)

    def _add(self, tar: int, found: Samples) -> None:
        rows, samples, names = [], [], bytearray()
        for key, own in found.items():
            for ending, place in own.items():
                known = self.endings.setdefault(ending, len(self.endings))
                rows.append((*place, known))
            names += key.encode()
            ends = self._ends
            samples.append((tar, ends[0] + len(rows), ends[1] + len(names)))
        self._parts.append(
            (
                np.array(rows, dtype=_MEMBER),
                np.array(samples, dtype=_SAMPLE),
                np.frombuffer(bytes(names), dtype=np.uint8),
            )
        )
        self._ends = [self._ends[0] + len(rows), self._ends[1] + len(names)]

    def columns(self) -> list[npt.NDArray[Any]]:
        return [np.concatenate(part) for part in zip(*self._parts, strict=True)]


def _stat(path: Path) -> tuple[int, int]:
    """Size and time of a file, -1 for one that is not there."""
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


def _checksum(path: Path) -> str:
    told: list[SampleFault] = []
    return _digest(scan(path, told.append, checksums=True))


def _digest(samples: Samples) -> str:
    """Hash what an archive holds: names, places and checksums of all members."""
    digest = hashlib.sha256()
    for key, own in samples.items():
        digest.update(json.dumps([key, list(own.items())]).encode())
    return digest.hexdigest()[:32]


# ------------------------------------------------------------------------- in a folder
def open_tar_index(
    tars: str | Path | Sequence[str | Path],
    folder: str | Path | None = None,
    *,
    on_error: str = "raise",
    rebuild: bool = False,
    verify: bool = True,
) -> TarIndex:
    """Open the index of some archives, built when it is not there yet.

    Building reads all bytes once; of several processes one builds, the others wait.
    Opening compares the index with its checksums, and size and time of each archive
    with those that it describes; an archive of another time is read again. When bytes
    change later, reading them tells.

    :param tars: folder of the archives, see :func:`find_tars`, or their paths.
    :param folder: of the index; default ``tar_index`` beside the archives, in the
        folder that all of them are in.
    :param on_error: about archives that are cut, damaged or missing, members of refused
        names or that occur twice: ``"raise"``, or ``"skip"``, which leaves out what
        cannot be read. They are in ``faults`` then.
    :param rebuild: build it anew, for archives that were changed on purpose.
    :param verify: False opens without reading the arrays.
    :raises FileNotFoundError: if there are no archives.
    :raises SampleFault: (a ValueError) for the first fault, with ``"raise"``.
    :raises ValueError: if the index is damaged or of other archives, or an archive was
        changed after it was built.

    >>> from avalanche_clip.benchmarks.datasets import open_tar_index
    >>> index = open_tar_index("shards")  # doctest: +SKIP
    >>> index.names[0], index.read(0, "txt")  # doctest: +SKIP
    ('00000000', b'a red fox')
    """
    require_choice("on_error", on_error, ON_ERROR)
    if isinstance(tars, (str, Path)):
        paths = find_tars(tars)
        folder = Path(tars).expanduser() / FOLDER if folder is None else folder
    else:
        paths = [Path(path).expanduser() for path in tars]
        require_some(paths, "archives")
        parents = [os.path.abspath(path.parent) for path in paths]
        folder = Path(os.path.commonpath(parents), FOLDER) if folder is None else folder
    paths = [Path(os.path.abspath(path)) for path in paths]
    require_distinct(paths, "archives")
    folder = Path(folder).expanduser()
    if rebuild or not (folder / _FILE).is_file():
        with _locked(folder):
            if rebuild or not (folder / _FILE).is_file():
                _build(paths, folder)
        rebuild = False
    index = _open(folder, tuple(paths), verify)
    if on_error == "raise" and index.faults:
        raise index.faults[0]
    for fault in index.faults[:_TOLD]:
        logger.warning("left out (%s): %s", fault.cause, fault)
    return index


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Be the only process that builds; wait for another one."""
    lock = FolderLock(folder)
    while True:
        try:
            lock.acquire()
            break
        except ValueError:
            time.sleep(0.05)
        except OSError as error:
            raise type(error)(
                f"{folder} cannot be written ({error}); give another folder= for the "
                "index of the archives."
            ) from error
    try:
        yield
    finally:
        lock.release()


def _build(paths: Sequence[Path], folder: Path) -> None:
    made = _Built(paths)
    made.scan(checksums=True)
    _keep(made, folder)


def _keep(made: _Built, folder: Path) -> None:
    """Write an index; the file that makes it valid comes last."""
    (folder / _FILE).unlink(missing_ok=True)
    columns, seals = dict(zip(_KINDS, made.columns(), strict=True)), {}
    for name, column in columns.items():
        with replacing(folder / f"{name}.npy") as temporary:
            with open(temporary, "wb") as file:
                np.save(file, column)
            seals[name] = seal_npy(temporary, {"column": name})
    names = [os.path.relpath(path, folder) for path in made.tars]
    tars = zip(names, made.stats, made.checksums, strict=True)
    content = {
        "version": _VERSION,
        "tars": [[name, *stat, digest] for name, stat, digest in tars],
        "endings": list(made.endings),
        "faults": made.faults,
        "arrays": seals,
    }
    write_json(folder / _FILE, content, checksum=True, indent=None)
    count = len(columns["samples"])
    logger.info("indexed %d samples of %d archives", count, len(made.tars))


_AGAIN = "call open_tar_index with rebuild=True"


def _open(folder: Path, paths: tuple[Path, ...], verify: bool) -> TarIndex:
    content = read_json(folder / _FILE, checksum=True, rewrite=_AGAIN)
    if content.get("version") != _VERSION:
        what = f"its version is {content.get('version')!r}"
        raise unreadable(folder / _FILE, f"an index of version {_VERSION}", what)
    _check_tars(folder, content, paths)
    columns = []
    for name, kind in _KINDS.items():
        path = folder / f"{name}.npy"
        column = read_npy(path, mmap=True, sealed=True, verify=verify)
        if column.dtype != kind or npy_seal(path)["all"] != content["arrays"][name]:
            raise ValueError(f"{path} belongs to another index; {_AGAIN}.")
        columns.append(np.asarray(column))
    index = TarIndex(paths, content["endings"], *columns, content["faults"])
    index._source = partial(_open, folder, paths, False)
    return index


def _check_tars(folder: Path, content: dict[str, Any], paths: Sequence[Path]) -> None:
    """Compare archives with what an index says of them.

    :raises ValueError: naming the one that differs.
    """
    folder = folder.absolute()
    rows = content["tars"]
    known = [Path(os.path.normpath(folder / row[0])) for row in rows]
    if known != list(paths):
        new, gone = set(paths) - set(known), set(known) - set(paths)
        what = f"of others: {min(gone)} is not given" if gone else "in another order"
        what = f"without {min(new)}" if new else what
        raise ValueError(
            f"{folder} is an index of {len(known)} archives, {what}; {_AGAIN}, or give "
            "another folder."
        )
    again = []
    for row, path in zip(rows, paths, strict=True):
        _, size, when, digest = row
        found = _stat(path)
        if list(found) == [size, when]:
            continue
        if found[0] < 0:
            raise missing(path, FileNotFoundError(2, os.strerror(2)))
        if found[0] != size or _checksum(path) != digest:
            raise ValueError(
                f"{path} was changed after {folder} was built ({size} bytes then, "
                f"{found[0]} now): get the archive again or, if the change is meant, "
                f"{_AGAIN}."
            )
        row[2] = found[1]
        again.append(path)
    if again:  # copied, say: the same bytes with another time
        with suppress(OSError):
            write_json(folder / _FILE, content, checksum=True, indent=None)
