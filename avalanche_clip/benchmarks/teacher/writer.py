"""Write a teacher's features: one writer, whole files, continued after a kill."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from avalanche_clip.benchmarks.teacher.files import (
    ARRAYS,
    HEADER,
    KINDS,
    array_facts,
    check_array,
    compare_headers,
    file_entry,
    read_arrays,
    read_header,
)
from avalanche_clip.common.arrays import npy_head, read_npy, seal_npy
from avalanche_clip.common.files import read_json, write_json
from avalanche_clip.common.lock import LOCK_FILE, FolderLock
from avalanche_clip.common.space import FULL

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"
# File systems that cannot reserve space; it is taken by writing.
_NO_RESERVING = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)
_BLOCK = 2**22


class FeatureWriter:
    """Fill a store in ``<path>.partial``, which gets its name when it is whole.

    A context: it locks the folder, so that one process writes, checks what an
    earlier one left there, and reserves the space of all files before anything
    is computed.

    :param path: of the finished store.
    :param header: what the store is made of; an unfinished one must have the same.
    :param ids: ids of the rows by kind, ascending.
    :param marks: marks of the rows by kind.
    :raises ValueError: if another process writes this store, the path is taken, or
        what was left there is damaged or of another origin.
    :raises OSError: if the disk is too small.
    """

    def __init__(
        self,
        path: Path,
        header: dict[str, Any],
        ids: dict[str, npt.NDArray[np.int64]],
        marks: dict[str, npt.NDArray[np.uint64]],
    ) -> None:
        self.path, self.header, self.ids, self.marks = path, header, ids, marks
        self.partial = path.with_name(path.name + ".partial")
        #: rows written so far, by kind
        self.done = dict.fromkeys(KINDS, 0)
        self._sums = dict.fromkeys(KINDS, 0)
        self._files: dict[str, IO[bytes]] = {}
        self._starts: dict[str, int] = {}
        self._lock = FolderLock(self.partial)
        self._whole = False

    def __enter__(self) -> FeatureWriter:
        self._check_place()
        self._lock.acquire()
        try:
            with self._told_when_full():
                self._open()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self._close()

    @property
    def finished(self) -> bool:
        """Whether the store is there, made by another process meanwhile."""
        return (self.path / HEADER).is_file()

    # ------------------------------------------------------------------ opening
    def _check_place(self) -> None:
        taken = self.path.exists() and not self.finished
        if taken and not (self.path.is_dir() and not any(self.path.iterdir())):
            raise ValueError(
                f"{self.path} exists and is no feature store; give another path."
            )

    def _open(self) -> None:
        if self.finished:
            return
        if (self.partial / HEADER).is_file():
            self._continue()
        else:
            self._begin()
        for kind in KINDS:
            self._starts[kind] = npy_head(self._features(kind)).start
            self._files[kind] = open(self._features(kind), "r+b")  # noqa: SIM115

    def _features(self, kind: str) -> Path:
        return self.partial / f"{kind}_features.npy"

    def _columns(self) -> Iterator[tuple[Path, str, str, npt.NDArray[Any]]]:
        """Files of ids and marks, what they are, and their content."""
        for kind in KINDS:
            for part, columns in (("ids", self.ids), ("marks", self.marks)):
                yield self.partial / f"{kind}_{part}.npy", kind, part, columns[kind]

    def _begin(self) -> None:
        """Make all files; the header comes last and says that they are there."""
        self._clear()
        try:
            for kind in KINDS:
                self._reserve(kind)
            for path, kind, part, column in self._columns():
                np.save(path, column)
                seal_npy(path, array_facts(self.header, kind, part))
            write_json(self.partial / HEADER, self.header, checksum=True)
        except OSError:
            self._clear()  # gives the space back
            raise

    def _clear(self) -> None:
        """Remove what an earlier process left; files of others are not touched."""
        ours = {*ARRAYS, HEADER, PROGRESS}
        found = [p for p in self.partial.iterdir() if p.name != LOCK_FILE]
        strange = [p.name for p in found if p.is_dir() or _whole_name(p) not in ours]
        if strange:
            raise ValueError(
                f"{self.partial} holds {strange[0]!r}, which is no part of a feature "
                "store; move it away, or give another path."
            )
        for path in found:
            path.unlink()

    def _reserve(self, kind: str) -> None:
        """Make a file of features at its full size, its space taken."""
        shape = (len(self.ids[kind]), self.header["dim"])
        dtype = np.dtype(self.header["dtype"])
        with open(self._features(kind), "wb") as file:
            head = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, head)
            file.flush()
            _allocate(file, file.tell(), shape[0] * shape[1] * dtype.itemsize)

    def _continue(self) -> None:
        """Compare everything that an earlier process left with this job."""
        header = read_header(self.partial, unfinished=True)
        compare_headers(self.partial, header, self.header)
        try:
            if "files" in header:  # killed before the folder got its name
                read_arrays(self.partial, header, verify=True)
                self.done = {kind: len(self.ids[kind]) for kind in KINDS}
                self._whole = True
                return
            for path, _, part, column in self._columns():
                if not np.array_equal(read_npy(path, sealed=True), column):
                    raise ValueError(f"{path} does not hold the {part} of these data.")
            for kind in KINDS:
                self._check_features(kind)
            if (self.partial / PROGRESS).is_file():
                self._check_progress()
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(
                f"The unfinished store {self.partial} cannot be continued: {error} "
                f"Delete {self.partial} and start again."
            ) from error
        logger.info("Continuing %s after %s rows.", self.partial, self.done)

    def _check_features(self, kind: str) -> None:
        path = self._features(kind)
        try:
            head = npy_head(path)
        except Exception as error:
            raise ValueError(f"{path} is damaged ({error}).") from error
        check_array(path, head, self.header, kind, "features")
        size = path.stat().st_size
        # A checksum may stand behind the array already, when it was being closed.
        if not head.end <= size <= head.end + _BLOCK:
            raise ValueError(f"{path} has {size} bytes, not {head.end}.")

    def _check_progress(self) -> None:
        path = self.partial / PROGRESS
        noted = read_json(path, checksum=True)
        for kind in KINDS:
            rows, total = noted.get(kind), len(self.ids[kind])
            if type(rows) is not int or not 0 <= rows <= total:
                raise ValueError(f"{path} counts {rows!r} of {total} {kind} rows.")
            self._sums[kind] = self._sum(kind, rows)
            if self._sums[kind] != noted.get(f"{kind}_crc32"):
                raise ValueError(
                    f"the first {rows} rows of {self._features(kind)} are not those "
                    "that were written."
                )
            self.done[kind] = rows

    def _sum(self, kind: str, rows: int) -> int:
        """CRC-32 of the first rows of a file of features."""
        head = npy_head(self._features(kind))
        left, found = rows * self.header["dim"] * head.dtype.itemsize, 0
        with open(self._features(kind), "rb") as file:
            file.seek(head.start)
            while left:
                block = file.read(min(_BLOCK, left))
                if not block:
                    return -1
                found, left = zlib.crc32(block, found), left - len(block)
        return found

    # ------------------------------------------------------------------ writing
    def append(self, kind: str, values: npt.NDArray[Any]) -> None:
        """Write the next rows of one kind.

        :param kind: ``"image"`` or ``"text"``.
        :param values: ``(n, D)`` of the store's type.
        """
        file = self._files[kind]
        content = np.ascontiguousarray(values, dtype=self.header["dtype"]).tobytes()
        row = self.header["dim"] * np.dtype(self.header["dtype"]).itemsize
        with self._told_when_full():
            file.seek(self._starts[kind] + self.done[kind] * row)
            file.write(content)
        self.done[kind] += len(values)
        self._sums[kind] = zlib.crc32(content, self._sums[kind])

    def note(self, kind: str) -> None:
        """Bring the rows of a kind to the disk and note how many there are."""
        with self._told_when_full():
            self._files[kind].flush()
            os.fsync(self._files[kind].fileno())
            sums = {f"{kind}_crc32": found for kind, found in self._sums.items()}
            write_json(self.partial / PROGRESS, {**self.done, **sums}, checksum=True)

    def finish(self) -> None:
        """Close the files with their checksums and give the folder its name."""
        missing = {k: len(self.ids[k]) - n for k, n in self.done.items()}
        if any(missing.values()):
            raise RuntimeError(f"Rows of {self.partial} are missing: {missing}.")
        self._close_files()
        if not self._whole:
            with self._told_when_full():
                self._seal()
        for path in self.partial.iterdir():
            if path.name == PROGRESS or path.suffix == ".tmp":
                path.unlink()
        if self.path.exists() and not any(self.path.iterdir()):
            self.path.rmdir()
        if os.name != "posix":  # where a folder with open files cannot be renamed
            self._lock.release()
        os.replace(self.partial, self.path)
        self._lock.folder = self.path  # it moved along

    def _seal(self) -> None:
        for kind in KINDS:
            facts = array_facts(self.header, kind, "features")
            seal_npy(self._features(kind), facts)
        files = {name: file_entry(self.partial / name) for name in ARRAYS}
        header = {**self.header, "files": files}
        write_json(self.partial / HEADER, header, checksum=True)

    # ------------------------------------------------------------------- ending
    def _close_files(self) -> None:
        with self._told_when_full():
            while self._files:
                self._files.popitem()[1].close()

    def _close(self) -> None:
        try:
            self._close_files()
        finally:
            self._lock.release()
            if self.partial.is_dir() and not any(self.partial.iterdir()):
                self.partial.rmdir()

    @contextmanager
    def _told_when_full(self) -> Iterator[None]:
        """Say what a full disk means for the store."""
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            # of one row: its feature, its id and its mark
            row = int(self.header["dim"]) * np.dtype(self.header["dtype"]).itemsize + 16
            size = sum(len(ids) for ids in self.ids.values()) * row
            place = self.partial if self.partial.exists() else self.partial.parent
            raise OSError(
                error.errno,
                f"{error.strerror}: the feature store needs {size:,} bytes, "
                f"{shutil.disk_usage(place).free:,} are free; make room, or give "
                "another path. What is written is continued later",
                str(self.partial),
            ) from error


def _whole_name(path: Path) -> str:
    """Name of the file that a temporary one was to become, else its own."""
    return path.name.rsplit(".", 2)[0] if path.suffix == ".tmp" else path.name


def _allocate(file: IO[bytes], start: int, size: int) -> None:
    """Take the space of a file, or raise OSError."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), start, max(size, 1))
            file.truncate(start + size)
            return
        except OSError as error:
            if error.errno not in _NO_RESERVING:
                raise
    file.seek(start)
    for low in range(0, size, _BLOCK):
        file.write(bytes(min(_BLOCK, size - low)))
