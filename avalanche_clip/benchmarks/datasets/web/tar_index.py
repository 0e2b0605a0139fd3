"""An index of tar archives: any member of any sample at once, in any order.

It is built once and kept in a file ``index.safetensors`` in a folder beside the
archives, with a checksum: first byte, size, CRC-32 and ending of each member; archive,
and the ends of its members and of its name, of each sample; the names of all samples,
UTF-8, one after the other; size, time and a hash of each archive; what was left out.

The arrays are mapped, not read, so that an index of millions of members opens at once
and worker processes share it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from array import array
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avalanche_clip.benchmarks.datasets.text_columns import TextColumn
from avalanche_clip.benchmarks.datasets.web.tars import (
    Place,
    Samples,
    missing,
    read_member,
    scan,
)
from avalanche_clip.benchmarks.items.skipped import ON_ERROR, SampleFault
from avalanche_clip.common.arrays import read_safetensors, write_safetensors
from avalanche_clip.common.checks import (
    require_choice,
    require_distinct,
    require_some,
)
from avalanche_clip.common.files import files_below
from avalanche_clip.common.lock import FolderLock
from avalanche_clip.common.progress import progress

logger = logging.getLogger(__name__)

FOLDER = "tar_index"
_FILE = "index.safetensors"
_KIND = "tar index 2"
_COLUMNS = ("facts", "members", "samples", "names")
_TOLD = 20
_AGAIN = "call open_tar_index with rebuild=True"


def find_tars(tars: str | Path | Iterable[str | Path]) -> list[Path]:
    """List archives: ``*.tar`` of a folder and of those in it, in order of name.

    :param tars: a folder, an archive, or the paths of several, whose order stays.
    :return: absolute paths.
    :raises FileNotFoundError: if there is no such folder, or no archive in it.
    :raises ValueError: if there are no paths, or one is given twice.
    """
    if isinstance(tars, (str, Path)):
        folder = Path(tars).expanduser()
        one = folder.is_file()
        tars = [folder] if one else files_below(folder, "*.tar")
        if not tars:
            raise FileNotFoundError(
                f"{folder} holds no *.tar files; give the folder of the archives, or a "
                "list of their paths."
            )
    paths = [Path(os.path.abspath(Path(path).expanduser())) for path in tars]
    require_some(paths, "archives")
    require_distinct(paths, "archives")
    return paths


class TarIndex:
    """Samples of tar archives in random order, see :func:`open_tar_index`.

    A sample is what has one name up to the first dot; its members are told apart by
    what follows. Names, archives and places are columns; bytes are read when they are
    asked for and compared with their checksum.

    :param tars: paths of the archives.
    :param facts: ``"endings"`` of members by number, and ``"faults"``: cause and words
        of what was left out.
    :param members: first byte, size, CRC-32 and number of the ending of each member,
        those of a sample together, int64 ``(M, 4)``.
    :param samples: number of the archive, and the ends of the members and of the name,
        of each sample, those of an archive together, int64 ``(N, 3)``.
    :param names: of the samples, UTF-8.

    :ivar tar: number of the archive of each sample, ``(N,)``.
    :ivar names: of the samples, a :class:`TextColumn`.
    """

    def __init__(
        self,
        tars: Sequence[Path],
        facts: dict[str, Any],
        members: npt.NDArray[np.int64],
        samples: npt.NDArray[np.int64],
        names: npt.NDArray[np.uint8],
    ) -> None:
        self._source: Any = (TarIndex, (tars, facts, members, samples, names))
        self.tars, self.endings = list(tars), tuple(facts["endings"])
        self.faults = [SampleFault(*fault) for fault in facts["faults"]]
        self.members, self.tar = members, samples[:, 0]
        self._ends, ends = np.concatenate([[[0, 0]], samples[:, 1:]]).T
        self.names = TextColumn(names.data, ends)

    def __len__(self) -> int:
        return len(self.tar)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._source

    def __deepcopy__(self, memo: Any) -> TarIndex:
        return self

    def rows_with(self, *endings: str) -> npt.NDArray[np.bool_]:
        """Say which samples have a member of one of some endings, bool ``(N,)``."""
        numbers = [n for n, e in enumerate(self.endings) if e in endings]
        having = np.isin(self.members[:, 3], numbers)
        return np.diff(np.concatenate([[0], np.cumsum(having)])[self._ends]) > 0

    def sample(self, index: int) -> dict[str, Place]:
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
    def of(cls, tars: str | Path | Iterable[str | Path]) -> TarIndex:
        """Make an index in memory, which is not kept and has no checksums.

        :param tars: see :func:`find_tars`.
        :return: an index; what was left out is in its ``faults``.
        """
        paths = find_tars(tars)
        return cls(paths, *_scanned(paths, checksums=False))


def _scanned(tars: Sequence[Path], checksums: bool) -> tuple[Any, ...]:
    """What an index is made of: facts, members, samples and names."""
    endings: dict[str, int] = {}
    faults: list[SampleFault] = []
    stats = []
    members, samples, names = array("q"), array("q"), bytearray()
    for tar, path in enumerate(progress(tars, "reading archives", unit="archive")):
        stat = _stat(path)
        found = scan(path, faults.append, checksums=checksums)
        stats.append((*stat, _digest(found)))
        for key, own in found.items():
            for ending, place in own.items():
                members.extend((*place, endings.setdefault(ending, len(endings))))
            names += key.encode()
            samples.extend((tar, len(members) // 4, len(names)))
    told = [(fault.cause, str(fault)) for fault in faults]
    facts = {"endings": list(endings), "faults": told, "stats": stats}
    rows = np.array(members, dtype=np.int64).reshape(-1, 4)
    ends = np.array(samples, dtype=np.int64).reshape(-1, 3)
    return facts, rows, ends, np.array(names, dtype=np.uint8)


def _stat(path: Path) -> tuple[int, int]:
    """Size and time of a file, -1 for one that is not there."""
    found = path.stat() if path.is_file() else None
    return (-1, -1) if found is None else (found.st_size, found.st_mtime_ns)


def _digest(samples: Samples) -> str:
    """Hash what an archive holds: names, places and checksums of all members."""
    return hashlib.sha256(json.dumps(samples).encode()).hexdigest()[:32]


# ------------------------------------------------------------------------- in a folder
def open_tar_index(
    tars: str | Path | Iterable[str | Path],
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

    :param tars: folder of the archives, or their paths, see :func:`find_tars`.
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
    paths = find_tars(tars)
    if folder is None:
        whole = isinstance(tars, (str, Path)) and Path(tars).expanduser().is_dir()
        base: Any = tars if whole else os.path.commonpath([p.parent for p in paths])
        folder = Path(base, FOLDER)
    folder = Path(folder).expanduser()
    if rebuild or not (folder / _FILE).is_file():
        lock = FolderLock(folder)
        _wait_for(lock)
        try:
            if rebuild or not (folder / _FILE).is_file():
                _write(folder, paths, *_scanned(paths, checksums=True))
        finally:
            lock.release()
    index = _open(folder, paths)
    if on_error == "raise" and index.faults:
        raise index.faults[0]
    for fault in index.faults[:_TOLD]:
        logger.warning("left out (%s): %s", fault.cause, fault)
    return index


def _wait_for(lock: FolderLock) -> None:
    while True:
        try:
            return lock.acquire()
        except ValueError:  # another process builds
            time.sleep(0.05)


def _write(folder: Path, tars: Sequence[Path], facts: Any, *arrays: Any) -> None:
    facts["tars"] = [os.path.relpath(path, folder) for path in tars]
    text = np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8).copy()
    tensors = zip(_COLUMNS, map(torch.from_numpy, (text, *arrays)), strict=True)
    write_safetensors(folder / _FILE, dict(tensors), {"kind": _KIND})
    logger.info("indexed %d samples of %d archives", len(arrays[1]), len(tars))


def _open(folder: Path, paths: Sequence[Path], *, checked: bool = True) -> TarIndex:
    path = folder / _FILE
    tensors, known = read_safetensors(path, verify=checked, rewrite=_AGAIN)
    if known.get("kind") != _KIND:
        raise ValueError(f"{path} is no index of this version; {_AGAIN}.")
    text, *arrays = (tensors[name].numpy() for name in _COLUMNS)
    facts = json.loads(bytes(text))
    if checked:
        _check_tars(folder.absolute(), facts, paths)
    index = TarIndex(paths, facts, *arrays)
    # Mapped again by each process.
    index._source = partial(_open, folder, paths, checked=False), ()
    return index


def _check_tars(folder: Path, facts: dict[str, Any], paths: Sequence[Path]) -> None:
    """Compare archives with what an index says of them.

    :raises ValueError: naming the one that differs.
    """
    known = [Path(os.path.normpath(folder / name)) for name in facts["tars"]]
    if known != list(paths):
        new, gone = set(paths) - set(known), set(known) - set(paths)
        what = f"of others: {min(gone)} is not given" if gone else "in another order"
        what = f"without {min(new)}" if new else what
        raise ValueError(
            f"{folder} is an index of {len(known)} archives, {what}; {_AGAIN}, or give "
            "another folder."
        )
    for (size, when, digest), path in zip(facts["stats"], paths, strict=True):
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
