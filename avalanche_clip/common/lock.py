"""One writer per folder: an advisory lock that ends with its process."""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
import warnings
from pathlib import Path

LOCK_FILE = ".lock"
# File systems, some on networks, that have no locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_OPEN = os.O_RDWR | os.O_CREAT


class FolderLock:
    """Keep other runs out of a folder, in this process and in others.

    The system holds the lock (``flock`` on the open file ``<folder>/.lock``)
    and ends it with the process, however that ends: a file that a killed
    process left behind is no obstacle. Inside are the process id and the host.
    Child processes do not hold it. It is advisory: it binds those who ask for
    it. Where the file system has no locks a warning says so and nothing is
    locked. On Windows ``msvcrt.locking`` takes the place of ``flock``.

    :param folder: made if it is missing.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as name, FolderLock(name):
    ...     FolderLock(name).acquire()  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: ... is in use by this process (... on ...)...
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._handle: int | None = None

    @property
    def path(self) -> Path:
        """The lock file."""
        return self.folder / LOCK_FILE

    def acquire(self) -> None:
        """Take the lock at once or not at all.

        :raises ValueError: if it is held, naming the folder and its owner.
        :raises OSError: if the lock file cannot be opened.
        """
        if self._handle is not None:
            raise ValueError(self._in_use())
        handle = self._open()
        try:
            while not self._lock(handle):
                # The owner before removed the file after it was opened here.
                os.close(handle)
                handle = self._open()
            owner = {"process": os.getpid(), "host": platform.node()}
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps(owner).encode() + b"\n")
        except BaseException:
            os.close(handle)
            raise
        self._handle = handle
        _HELD[handle] = self

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._handle is None:
            return
        handle, self._handle = self._handle, None
        del _HELD[handle]
        try:
            if os.name == "posix":
                # While it is still held: nobody else's file is removed.
                self._remove(handle)
        finally:
            os.close(handle)
        if os.name != "posix":
            self._remove(None)

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def _open(self) -> int:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, _OPEN, 0o644)
        except OSError as error:
            raise type(error)(
                error.errno,
                f"{error.strerror}: {self.folder} cannot be locked for writing; give a "
                "folder that can be written to",
                str(self.path),
            ) from error

    def _lock(self, handle: int) -> bool:
        """Lock an open file; False if it is no longer the one in the folder."""
        try:
            _lock_file(handle)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise ValueError(self._in_use()) from None
            warnings.warn(
                f"The file system of {self.folder} has no locks ({error.strerror}): "
                "nothing keeps a second run out of it.",
                stacklevel=4,
            )
        return self._is_ours(handle)

    def _is_ours(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _remove(self, handle: int | None) -> None:
        """Remove the file, unless it is another one by now."""
        try:
            if handle is None or self._is_ours(handle):
                self.path.unlink()
        except OSError:
            pass  # A file without an owner is no obstacle.

    def _in_use(self) -> str:
        owner = "another process, which did not say which"
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
            number, host = found["process"], found["host"]
            here = number == os.getpid() and host == platform.node()
            owner = f"process {number} on {host}"
            if here:
                owner = f"this process ({number} on {host})"
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return (
            f"{self.folder} is in use by {owner}. Wait until that has ended, or give "
            "another folder."
        )


if sys.platform == "win32":
    import msvcrt

    def _lock_file(handle: int) -> None:
        # One byte behind the content, which others may still read.
        os.lseek(handle, 1 << 20, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)

else:
    import fcntl

    def _lock_file(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


_HELD: dict[int, FolderLock] = {}


def _leave_to_parent() -> None:
    """Close, in a forked child, the files that its parent holds locks on.

    A worker that outlives a killed run would hold its lock.
    """
    for handle, lock in _HELD.items():
        lock._handle = None
        os.close(handle)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
