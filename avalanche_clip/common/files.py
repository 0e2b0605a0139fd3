"""Files that are whole or refused: atomic writing, bounded reading, one error rule.

Bad content raises ValueError with the file's name, what was found and what to do;
an absent file raises FileNotFoundError. Nothing that is read runs code.
"""

from __future__ import annotations

import fnmatch
import gzip
import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from avalanche_clip.common.space import told_when_full

CHECKSUM = "checksum"
_HEAD = 512


@dataclass
class FileLimits:
    """How much a file may unpack to before it is refused.

    The one object :data:`file_limits` holds for the whole process; set its
    fields to read larger files on purpose.

    >>> file_limits.gzip_bytes
    67108864
    """

    gzip_bytes: int = 64 * 2**20
    """Unpacked bytes up to which the ratio is not looked at."""
    gzip_ratio: float = 100.0
    """Largest number of unpacked bytes per byte read, above ``gzip_bytes``."""
    line_bytes: int = 2**20
    """Longest line of a gzipped text, in bytes."""
    member_bytes: int = 2**28
    """Largest member of an archive that is read, in bytes."""
    picture_pixels: int | None = None
    """Largest picture, in pixels; None takes Pillow's ``MAX_IMAGE_PIXELS``."""


file_limits = FileLimits()


# ------------------------------------------------------------------ errors
def found_in(path: str | Path) -> str:
    """Say in a few words what a file really is.

    :param path: anything that could not be read as what it should be.

    >>> found_in("/nowhere/at/all")
    'nothing'
    """
    path = Path(path)
    if path.is_dir():
        return "a folder"
    if not path.exists():
        return "nothing"
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
    except OSError as error:
        return f"a file that cannot be opened ({error.strerror})"
    return found_in_bytes(head)


def found_in_bytes(head: bytes) -> str:
    """Say in a few words what begins with these bytes.

    >>> found_in_bytes(b"")
    'an empty file'
    """
    if not head:
        return "an empty file"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself; run `git lfs pull`"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html", b"<?xml", b"<head")):
        return "a web page, not the file itself; download it again"
    for start, name in _KINDS.items():
        if head.startswith(start):
            return name
    if not head.strip(b"\0"):
        return "only zero bytes; the file was not written to its end"
    return f"bytes that begin with {head[:12]!r}"


_KINDS = {
    b"\x1f\x8b": "gzipped data",
    b"PK\x03\x04": "a zip archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x80\x02": "a pickle",
    b"\x89HDF": "an HDF5 file",
}


def unreadable(path: str | Path, wanted: str, cause: object) -> ValueError:
    """Make the error for a file that is not what it should be.

    :param path: named first in the message.
    :param wanted: what the file should be, with its article: ``"a JSON text"``.
    :param cause: the true cause: an exception, or words.
    """
    if isinstance(cause, BaseException):
        early = isinstance(cause, EOFError)
        kind = "it ends too early" if early else type(cause).__name__
        cause = str(cause).strip() or kind
    return ValueError(
        f"{path} is not {wanted}: {cause}. Found {found_in(path)}. Get or write the "
        "file again."
    )


def require_file(path: str | Path, advice: str = "give the path of a file") -> Path:
    """Return the path of an existing file, ``~`` expanded.

    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is a folder or a device.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    if path.exists():
        raise ValueError(f"{path} is {found_in(path)}; {advice}.")
    raise FileNotFoundError(f"{path} does not exist; {advice}.")


def files_below(folder: str | Path, pattern: str) -> list[Path]:
    """List files of a folder and of all in it, in order of name.

    Folders in it may be links to others, as where data lie on several disks. Each is
    gone through once, by its own path if it has one here.

    :param pattern: of the names, such as ``"*.tar"``.
    :return: paths below ``folder``; none if there is no such folder.
    :raises OSError: for a folder that cannot be opened.
    """

    def fail(error: OSError) -> None:
        raise error

    found, seen = list[Path](), set[str]()
    waiting = [str(folder)] if os.path.isdir(folder) else []
    for start in waiting:  # which grows
        for base, folders, files in os.walk(start, onerror=fail):
            real = os.path.realpath(base)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            paths = (os.path.join(base, name) for name in sorted(folders))
            waiting += filter(os.path.islink, paths)
            found += (Path(base, name) for name in fnmatch.filter(files, pattern))
    return sorted(path for path in found if path.is_file())


def inside(folder: str | Path, name: str, source: str | Path) -> Path:
    """Return the path of a file that another file names, never outside its folder.

    Names are compared as written; links on disk are followed.

    :param folder: which the name must stay in.
    :param name: as found in ``source``.
    :param source: the file that holds the name, for the message.
    :raises ValueError: if the name is empty or no text, or leaves the folder.
    """
    base = os.path.abspath(os.path.expanduser(folder))
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"{source} names the file {name!r}; a file name is needed.")
    whole = os.path.normpath(os.path.join(base, name))
    climbs = os.path.normpath(name.replace("\\", "/")).split("/")[0] == ".."
    if os.path.commonpath([base, whole]) != base or whole == base or climbs:
        raise ValueError(
            f"{source} names the file {name!r}, which lies outside {folder}; names in "
            "files must stay in the folder (make a link there if the data lie "
            "elsewhere)."
        )
    return Path(whole)


# ----------------------------------------------------------------- writing
@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path that replaces ``path`` at the end, all at once.

    Its content is on disk before it replaces the old file; after an error the old
    file is as it was. Folders are made.

    :raises NoSpaceError: if the disk is full.
    :raises ValueError: if there is a folder in the place of the file.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, where a file is to be written; move it.")
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with told_when_full(path, f"{path.name} is as it was before"):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path) -> Iterator[Path]:
    """Give an empty temporary folder that takes the place of ``path`` at the end.

    Nothing of the old folder remains, so no stale file is read with the new ones.
    After an error the old folder is as it was. A link is replaced, not followed.

    :raises NoSpaceError: if the disk is full.
    """
    path = Path(path)
    new, old = (
        path.with_name(f"{path.name}.{os.getpid()}.{x}") for x in ("tmp", "old")
    )
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        with told_when_full(path, f"{path.name} is as it was before"):
            yield new
            for name in new.rglob("*"):
                if name.is_file():
                    with open(name, "rb") as file:
                        os.fsync(file.fileno())
        if path.is_symlink() or path.is_file():
            path.unlink()
        elif path.exists():
            os.replace(path, old)
        os.replace(new, path)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(
    path: str | Path,
    content: Any,
    *,
    checksum: bool = False,
    indent: Literal[1] | None = 1,
) -> None:
    """Write JSON, whole or not at all.

    :param content: plain data, numbers of NumPy included; NaN and infinity are
        refused.
    :param checksum: also store the hash of the content (a mapping), which
        :func:`read_json` can ask for.
    :param indent: 1, or None for a single line.
    :raises ValueError: for numbers that are not finite, or an entry of the checksum's
        name.
    :raises TypeError: for what is not plain data.
    """
    if checksum:
        # As it will be read: keys are texts, tuples are lists.
        content = json.loads(json_text(content, path))
        if CHECKSUM in content:
            raise ValueError(f"{path} cannot hold an entry {CHECKSUM!r} of its own.")
        content[CHECKSUM] = json_checksum(content)
    write_text(path, json_text(content, path, indent=indent) + "\n")


def json_text(content: Any, place: str | Path, **options: Any) -> str:
    """Turn plain data into strict JSON.

    :param content: plain data; numbers of NumPy become Python's.
    :param place: what the text is for, named by errors.
    :param options: of :func:`json.dumps`.
    :raises ValueError: for numbers that are not finite.
    :raises TypeError: for what is not plain data.

    >>> json_text({"a": (1, 2.5)}, "x.json")
    '{"a": [1, 2.5]}'
    """
    try:
        return json.dumps(content, allow_nan=False, default=_number, **options)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{place} cannot hold what was to be written: {error}."
        ) from error


def _number(value: Any) -> Any:
    """Return the number in a scalar of NumPy or torch."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is not plain data")


def json_checksum(content: dict[str, Any]) -> str:
    """Hash a mapping of plain data, whatever the order and layout of its text."""
    content = {k: v for k, v in content.items() if k != CHECKSUM}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# ----------------------------------------------------------------- reading
class _Unpacked(io.RawIOBase):
    """The unpacked side of a gzipped file, refused when it swells."""

    def __init__(self, path: Path):
        self.path, self.count = path, 0
        self._packed = open(path, "rb")  # noqa: SIM115
        self._file = gzip.GzipFile(fileobj=self._packed, mode="rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            size = self._file.readinto(buffer)
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(self.path, "a gzipped file", error) from error
        self.count += size
        read = self._packed.tell()
        large = self.count > file_limits.gzip_bytes
        if large and self.count > file_limits.gzip_ratio * read:
            raise ValueError(
                f"{self.path} unpacks to more than {self.count} bytes from "
                f"{read}, over {file_limits.gzip_ratio:g} times as much: "
                "it is refused. Raise avalanche_clip.file_limits.gzip_ratio if that is "
                "meant."
            )
        return size

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            self._packed.close()
        super().close()


def open_bytes(path: str | Path) -> IO[bytes]:
    """Open a file for reading, unpacked with limits if its name ends with ``.gz``.

    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: while reading: if it is damaged, or swells beyond
        :data:`file_limits`.
    """
    path = require_file(path)
    if path.suffix != ".gz":
        return open(path, "rb")
    return io.BufferedReader(_Unpacked(path), 2**18)


def read_bytes(path: str | Path) -> bytes:
    """Read a whole file, see :func:`open_bytes`."""
    with open_bytes(path) as file:
        return file.read()


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield numbers (from 1) and texts of the lines of a UTF-8 file, one at a time.

    Lines end at line feeds only, a carriage return before one is dropped, a byte
    order mark is skipped.

    :param path: text file, gzipped if its name ends with ``.gz``.
    :raises ValueError: naming file and line: if it is no UTF-8, or a line of a
        gzipped file is longer than ``file_limits.line_bytes``.
    """
    path = Path(path)
    most = file_limits.line_bytes if path.suffix == ".gz" else -1
    with open_bytes(path) as file:
        number = 0
        while line := file.readline(most + 2 if most >= 0 else -1):
            number += 1
            if most >= 0 and len(line.rstrip(b"\r\n")) > most:
                raise ValueError(
                    f"{path}, line {number} is longer than {most} bytes: it is "
                    "refused. Raise avalanche_clip.file_limits.line_bytes if that is "
                    "meant."
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number} is no UTF-8: {error}. Convert the file."
                ) from error
            yield number, text.removesuffix("\n").removesuffix("\r")


def read_text(path: str | Path, wanted: str = "a UTF-8 text") -> str:
    """Read a whole text file; a byte order mark is skipped.

    :param wanted: what the file should be, for the error.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is no UTF-8.
    """
    content = read_bytes(path).removeprefix(b"\xef\xbb\xbf")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise unreadable(path, wanted, error) from error


def read_json(
    path: str | Path,
    kind: type[Any] | tuple[type[Any], ...] = object,
    *,
    checksum: bool = False,
    rewrite: str = "write the file again",
) -> Any:
    """Read a JSON file.

    :param path: UTF-8, gzipped if its name ends with ``.gz``.
    :param kind: type that the content must have.
    :param checksum: the file is one of :func:`write_json` with a checksum, which is
        compared; it is not part of what is returned.
    :param rewrite: what to do about a file without a checksum, for the error.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: naming the file and the cause.
    """
    text = read_text(path, "a JSON text")
    content: Any = parse_json(text, path)
    kind = dict if checksum else kind
    if not isinstance(content, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(_JSON_NAMES.get(k, k.__name__) for k in kinds)
        found = _JSON_NAMES.get(type(content), type(content).__name__)
        raise unreadable(path, f"JSON that holds {names}", f"it holds {found}")
    if not checksum:
        return content
    stored = content.pop(CHECKSUM, None)
    if stored is None:
        raise ValueError(
            f"{path} has no checksum, so it cannot be told whole; {rewrite}."
        )
    if stored != json_checksum(content) or not _as_written(text, content, stored):
        raise ValueError(
            f"{path} is damaged or was changed: its content does not have the checksum "
            f"it was written with; {rewrite}."
        )
    return content


_JSON_NAMES: dict[type[Any], str] = {dict: "a mapping", list: "a list", str: "a text"}


def _as_written(text: str, content: dict[str, Any], stored: str) -> bool:
    """Whether a text is, letter by letter, one that :func:`write_json` writes.

    Some changes leave the values alone, such as ``E`` for ``e`` in a number or an
    end that is cut off behind the last bracket.
    """
    whole = {**content, CHECKSUM: stored}
    return any(text == json.dumps(whole, indent=i) + "\n" for i in (1, None))


def parse_json(text: str, path: str | Path) -> Any:
    """Parse JSON that comes from a file.

    :param path: of the file, for the error.
    :raises ValueError: naming the file and the cause.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise unreadable(path, "a JSON text", "it is nested too deeply") from error
    except ValueError as error:
        raise unreadable(path, "a JSON text", error) from error
