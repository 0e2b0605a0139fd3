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
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avalanche_clip.benchmarks.datasets.text_columns import TextColumn
from avalanche_clip.benchmarks.datasets.web.tars import (
    Samples,
    missing,
    read_member,
    scan,
)
from avalanche_clip.benchmarks.items.skipped import ON_ERROR, SampleFault
from avalanche_clip.common.arrays import npy_seal, read_npy, seal_npy
from avalanche_clip.common.checks import (
    require_choice,
    require_distinct,
    require_some,
)
from avalanche_clip.common.files import read_json, replacing, write_json
from avalanche_clip.common.lock import FolderLock
from avalanche_clip.common.progress import progress

logger = logging.getLogger(__name__)

FOLDER = "tar_index"
_FILE = "index.json"
_VERSION = 1
_TOLD = 20
_AGAIN = "call open_tar_index with rebuild=True"
_MEMBER = np.dtype(
    [("offset", "<u8"), ("size", "<u8"), ("crc", "<u4"), ("ending", "<u4")]
)
_SAMPLE = np.dtype([("tar", "<u4"), ("members", "<u8"), ("name", "<u8")])
_COLUMNS = {"members": _MEMBER, "samples": _SAMPLE, "names": np.dtype("u1")}


def find_tars(folder: str | Path) -> list[Path]:
    """List the archives ``*.tar`` of a folder and of those in it, in order of name.

    :raises FileNotFoundError: if there is no such folder, or no archive in it.
    """
    folder = Path(folder).expanduser()
    found = sorted(path for path in folder.rglob("*.tar") if path.is_file())
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no *.tar files; give the folder of the archives, or a "
            "list of their paths."
        )
    return found


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
        faults: Sequence[Sequence[str]],
        members: npt.NDArray[Any],
        samples: npt.NDArray[Any],
        names: npt.NDArray[np.uint8],
    ) -> None:
        self.tars, self.endings = list(tars), tuple(endings)
        self.faults = [SampleFault(*fault) for fault in faults]
        self.members, self.samples, self.tar = members, samples, samples["tar"]
        self._ends = np.concatenate([[0], samples["members"]]).astype(np.int64)
        ends = np.concatenate([[0], samples["name"]]).astype(np.int64)
        self.names = TextColumn(names.data, ends)
        self._source: Any = None

    def __len__(self) -> int:
        return len(self.samples)

    def __reduce__(self) -> tuple[Any, ...]:
        if self._source is not None:  # mapped again by each process
            return self._source, ()
        names = np.array(self.names.block)
        faults = [(fault.cause, str(fault)) for fault in self.faults]
        known = (self.tars, self.endings, faults, self.members, self.samples, names)
        return TarIndex, known

    def __deepcopy__(self, memo: Any) -> TarIndex:
        return self

    def rows_with(self, *endings: str) -> npt.NDArray[np.bool_]:
        """Say which samples have a member of one of some endings, bool ``(N,)``."""
        numbers = [n for n, e in enumerate(self.endings) if e in endings]
        having = np.isin(self.members["ending"], numbers)
        return np.diff(np.concatenate([[0], np.cumsum(having)])[self._ends]) > 0

    def sample(self, index: int) -> dict[str, tuple[int, int, int]]:
        """Return the members of a sample: ending to place (first byte, size, CRC).

        :raises IndexError: if there is no such sample.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} is out of range for {len(self)}.")
        rows = self.members[self._ends[index] : self._ends[index + 1]].tolist()
        return {self.endings[number]: tuple(place) for *place, number in rows}

    def read(self, index: int, ending: str) -> bytes | None:
        """Read a member of a sample; None if it has none of that ending.

        :raises SampleFault: if the archive is gone, or its bytes have changed.
        """
        place = self.sample(index).get(ending)
        if place is None:
            return None
        return read_member(self.file(index), place, f"{self.where(index)}.{ending}")

    def file(self, index: int) -> Path:
        """Return the path of the archive of a sample."""
        return self.tars[int(self.tar[index])]

    def where(self, index: int) -> str:
        """Name a sample, for messages."""
        return f"{self.file(index)}, {self.names[index]}"

    @classmethod
    def of(cls, tars: Sequence[str | Path], *, checksums: bool = False) -> TarIndex:
        """Make an index in memory, which is not kept.

        :param tars: paths of the archives.
        :param checksums: read all bytes, to know later whether they changed.
        :return: an index; what was left out is in its ``faults``.
        """
        return cls(*_scanned([Path(path) for path in tars], checksums)[0])


def _scanned(
    tars: Sequence[Path], checksums: bool
) -> tuple[list[Any], list[tuple[int, int, str]]]:
    """What an index is made of, and size, time and checksum of each archive."""
    endings: dict[str, int] = {}
    faults: list[SampleFault] = []
    parts: list[list[npt.NDArray[Any]]] = []
    stats = []
    members, letters = 0, 0
    for tar, path in enumerate(progress(tars, "reading archives", unit="archive")):
        stat = _stat(path)
        found = scan(path, faults.append, checksums=checksums)
        stats.append((*stat, _digest(found)))
        rows, samples, names = [], [], bytearray()
        for key, own in found.items():
            for ending, place in own.items():
                rows.append((*place, endings.setdefault(ending, len(endings))))
            names += key.encode()
            samples.append((tar, members + len(rows), letters + len(names)))
        columns = zip((rows, samples, names), _COLUMNS.values(), strict=True)
        parts.append([np.array(column, dtype=kind) for column, kind in columns])
        members, letters = members + len(rows), letters + len(names)
    told = [(fault.cause, str(fault)) for fault in faults]
    arrays = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return [tars, list(endings), told, *arrays], stats


def _stat(path: Path) -> tuple[int, int]:
    """Size and time of a file, -1 for one that is not there."""
    found = path.stat() if path.is_file() else None
    return (-1, -1) if found is None else (found.st_size, found.st_mtime_ns)


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
                _write(folder, *_scanned(paths, checksums=True))
    index = _open(folder, paths)
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


def _write(folder: Path, made: Sequence[Any], stats: Sequence[Any]) -> None:
    """Write an index; the file that makes it valid comes last."""
    (folder / _FILE).unlink(missing_ok=True)
    tars, endings, faults, *arrays = made
    seals = {}
    for name, array in zip(_COLUMNS, arrays, strict=True):
        with replacing(folder / f"{name}.npy") as temporary:
            with open(temporary, "wb") as file:
                np.save(file, array)
            seals[name] = seal_npy(temporary, {"column": name})
    names = [os.path.relpath(path, folder) for path in tars]
    rows = [[name, *stat] for name, stat in zip(names, stats, strict=True)]
    content = {"version": _VERSION, "tars": rows, "endings": endings, "faults": faults}
    content["arrays"] = seals
    write_json(folder / _FILE, content, checksum=True, indent=None)
    logger.info("indexed %d samples of %d archives", len(arrays[1]), len(tars))


def _open(folder: Path, paths: Sequence[Path], *, checked: bool = True) -> TarIndex:
    content = read_json(folder / _FILE, checksum=True, rewrite=_AGAIN)
    if content.get("version") != _VERSION:
        raise ValueError(f"{folder} is an index of another version; {_AGAIN}.")
    if checked:
        _check_tars(folder.absolute(), content["tars"], paths)
    arrays = []
    for name, kind in _COLUMNS.items():
        path = folder / f"{name}.npy"
        array = read_npy(path, mmap=True, sealed=True, verify=checked)
        if array.dtype != kind or npy_seal(path)["all"] != content["arrays"][name]:
            raise ValueError(f"{path} belongs to another index; {_AGAIN}.")
        arrays.append(np.asarray(array))
    index = TarIndex(paths, content["endings"], content["faults"], *arrays)
    index._source = partial(_open, folder, paths, checked=False)
    return index


def _check_tars(folder: Path, rows: Sequence[Any], paths: Sequence[Path]) -> None:
    """Compare archives with what an index says of them.

    :raises ValueError: naming the one that differs.
    """
    known = [Path(os.path.normpath(folder / row[0])) for row in rows]
    if known != list(paths):
        new, gone = set(paths) - set(known), set(known) - set(paths)
        what = f"of others: {min(gone)} is not given" if gone else "in another order"
        what = f"without {min(new)}" if new else what
        raise ValueError(
            f"{folder} is an index of {len(known)} archives, {what}; {_AGAIN}, or give "
            "another folder."
        )
    for (_, size, when, digest), path in zip(rows, paths, strict=True):
        found = _stat(path)
        if found == (size, when):
            continue
        if found[0] < 0:
            raise missing(path, FileNotFoundError(2, os.strerror(2)))
        same = found[0] == size  # copied, say, so that its time is another one
        if not same or _digest(scan(path, lambda _: None, checksums=True)) != digest:
            raise ValueError(
                f"{path} was changed after {folder} was built ({size} bytes then, "
                f"{found[0]} now): get the archive again or, if the change is meant, "
                f"{_AGAIN}."
            )
