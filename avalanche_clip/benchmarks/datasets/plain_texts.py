"""Plain texts in files, and the names of other files that they hold."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from avalanche_clip.common.files import found_in_bytes, inside, read_text, unreadable

_FOREIGN = ("a Git LFS", "a web page", "only zero")
_SUSPECT = ("..", "\\", "\0", ":", "//")


def read_plain(path: str | Path, wanted: str) -> str:
    """Read a text that a person or a program wrote, and nothing else.

    What stands in place of a file that was not fetched (a pointer of Git LFS, a web
    page) is text, too, but is refused. A byte order mark is skipped.

    :param path: UTF-8, gzipped if its name ends with ``.gz``.
    :param wanted: what the file should be, with its article, for the error.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: naming the file and what was found.
    """
    text = read_text(path, wanted)
    refuse_foreign(path, text[:512].encode(), wanted)
    if "\0" in text:
        raise unreadable(path, wanted, "it holds zero bytes")
    return text


def plain_lines(path: str | Path, wanted: str) -> Iterator[tuple[int, str]]:
    """Yield numbers (from 1) and texts of the lines that are not blank.

    :param path: see :func:`read_plain`.
    :raises ValueError: also if there are none.
    """
    lines = enumerate(read_plain(path, wanted).split("\n"), 1)
    filled = [(number, line.strip()) for number, line in lines if line.strip()]
    if not filled:
        raise unreadable(path, wanted, "it has no lines")
    yield from filled


def refuse_foreign(path: str | Path, head: bytes, wanted: str) -> None:
    """Raise ValueError if a text is a pointer of Git LFS or a web page.

    :param head: how it begins, about 512 bytes.
    """
    found = found_in_bytes(head)
    if found.startswith(_FOREIGN):
        raise unreadable(path, wanted, f"it is {found}")


def require_last_end(path: Path) -> None:
    """Raise ValueError if the last line of a table has no end, as one that was cut.

    A gzipped one has a checksum instead.
    """
    if path.suffix == ".gz":
        return
    with open(path, "rb") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        if file.read() != b"\n":
            cause = "its last line has no end, so it may be cut; end it if it is not"
            raise unreadable(path, "a whole table", cause)


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
