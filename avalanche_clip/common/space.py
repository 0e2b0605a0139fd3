"""Room on a disk: asked for before writing, and told when it runs out."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MAKE_ROOM = "make room, keep less, or give another folder"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What systems say when a disk, a quota or a limit is used up."""


class NoSpaceError(OSError, ValueError):
    """Raised when a disk is full, or before anything is written that it cannot hold."""


def require_space(folder: str | Path, needed: int, what: str) -> None:
    """Raise unless the disk of a folder has room.

    :param folder: that is to be written to; it need not exist.
    :param needed: bytes.
    :param what: that needs them.
    :raises NoSpaceError: saying what is needed, and what is free.
    """
    if needed > (free := _free(Path(folder))):
        raise NoSpaceError(
            errno.ENOSPC,
            f"{what} needs at least {needed:,} bytes of disk, and {free:,} are free; "
            f"{_MAKE_ROOM}",
            str(folder),
        )


@contextmanager
def told_when_full(path: str | Path, left: str) -> Iterator[None]:
    """Say which file a full disk has stopped, and what is left.

    :param path: that is written.
    :param left: what is on the disk now, a sentence without its full stop.
    :raises NoSpaceError: in place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        words = error.strerror
        if not isinstance(error, NoSpaceError):
            words = f"{words} ({_free(Path(path)):,} bytes are free); {_MAKE_ROOM}"
        raise NoSpaceError(error.errno, f"{words}. {left}", str(path)) from error


def _free(path: Path) -> int:
    """Bytes that are free on the disk of a path, which need not exist."""
    path = path.absolute()
    place = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(place).free
