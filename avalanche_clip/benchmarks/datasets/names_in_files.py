"""Names of files that come from other files: they stay in their folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from avalanche_clip._files import inside

_SUSPECT = ("..", "\\", "\0", ":", "//")


def check_names(
    names: Iterable[str], source: str | Path, folder: str | Path | None = None
) -> None:
    """Refuse names that would leave the folder they are looked up in.

    Names are judged as written, so links on disk are followed. Most need no look at
    all, which makes the check cheap for a hundred thousand of them.

    :param names: relative paths, as found in ``source``.
    :param source: the file that holds them, for the message.
    :param folder: where they are looked up, for the message; None if not known yet.
    :raises ValueError: naming the file and the name, if one is empty, absolute, or
        climbs out of the folder with ``..``.

    >>> check_names(["train2014/a.jpg", "b.jpg"], "list.json")
    """
    for name in names:
        if not name.strip() or name[0] == "/" or any(p in name for p in _SUSPECT):
            _check(name, source, folder)


def _check(name: str, source: str | Path, folder: str | Path | None) -> None:
    inside("images" if folder is None else folder, name, source)
    # What is a path on one system only is refused on all.
    drive = len(name) > 1 and name[1] == ":"
    if drive or name.startswith(("/", "\\")):
        raise ValueError(
            f"{source} names the file {name!r}, which is no path below the folder of "
            "the images; names in files are relative."
        )


__all__ = ["check_names"]
