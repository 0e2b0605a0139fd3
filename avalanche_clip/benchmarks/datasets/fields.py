"""What rows by name hold: fields, captions, times and pictures, or a fault."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from avalanche_clip.benchmarks.datasets.plain_texts import check_names
from avalanche_clip.benchmarks.items.skipped import SampleFault
from avalanche_clip.benchmarks.items.times import is_missing, stored_timestamp
from avalanche_clip.common.files import parse_json
from avalanche_clip.common.pictures import (
    PictureSizeError,
    picture_to_rgb,
    read_picture,
)

Row = Mapping[str, Any]
Field = str | Callable[[Row], Any]
"""Name of a field (``"a.b"`` is one in a mapping, or in each of a list of them, or in
the JSON text of one, as img2dataset stores EXIF), or a function of the row. A function
finds the path of the row's file in ``"__file__"``: of the picture, or of the archive or
table that holds it."""
FILE = "__file__"


def file_time(row: Row) -> float:
    """Return when the file of a row was last changed, seconds since 1970 (UTC).

    To be given as ``time=`` of readers, where files keep the time of what they show.
    """
    return os.stat(row[FILE]).st_mtime


def value_of(row: Row, field: Field, where: str) -> Any:
    """Return what a row holds; None if it has no such field.

    :param where: names the row.
    :raises SampleFault: if a function fails.
    """
    if not isinstance(field, str):
        try:
            return field(row)
        except Exception as error:  # the user's own
            absent = isinstance(error, FileNotFoundError)
            words = f"{where}: {type(error).__name__}: {error}."
            cause = "no picture" if absent else "row unreadable"
            raise SampleFault(cause, words) from error
    if field in row:
        return row[field]
    first, _, rest = field.partition(".")
    inner = row.get(first) if rest else None
    if isinstance(inner, str) and inner.startswith("{"):
        try:
            inner = parse_json(inner, where)
        except ValueError as error:
            raise SampleFault("row unreadable", f"{where}, {first}: {error}") from error
    if isinstance(inner, list):
        return [part.get(rest) if isinstance(part, Mapping) else None for part in inner]
    return value_of(inner, rest, where) if isinstance(inner, Mapping) else None


def time_of(row: Row, field: Field, where: str) -> float:
    """Return the time of a row in seconds since 1970 (UTC), NaN if it has none.

    :raises SampleFault: if it is no time.
    """
    value = value_of(row, field, where)
    try:
        return stored_timestamp(value)
    except Exception as error:  # comparisons of what is no time raise anything
        words = f"{where} has the time {value!r:.80}: {error}"
        raise SampleFault("time unreadable", words) from error


def require_times(times: npt.ArrayLike, field: Field, source: str | Path) -> None:
    """Raise ValueError if no row has a time."""
    if np.isnan(np.asarray(times)).all():
        raise ValueError(
            f"{source}: no row has a time ({field!r}); give another time=."
        )


def picture_path(name: Any, root: str | Path | None, where: str) -> Path:
    """Return the path of a picture that a row names.

    :param root: folder that it must lie in; None allows absolute paths, and nothing
        else; ``""`` none at all.
    :raises SampleFault: if it is no such path.
    """
    words = f"{where} names the picture {name!r:.80}"
    try:
        os.fsencode(name)
        if root is None:
            if not os.path.isabs(name) or "\0" in name:
                raise ValueError(f"{words}, which is no absolute path; give its root=.")
            return Path(name)
        if not str(root):
            raise ValueError(f"{words}, a path; give root=, the folder it lies in.")
        check_names([name], where, root)
    except (TypeError, AttributeError, ValueError) as error:
        text = str(error) if isinstance(error, ValueError) else f"{words}: no path."
        raise SampleFault("member refused", text) from error
    return Path(root).expanduser() / name


def as_picture(value: Any, root: str | Path | None, where: str) -> Image.Image:
    """Turn what a row holds in place of a picture into one in RGB.

    :param value: bytes, a picture, a path, or ``{"bytes", "path"}``, as Hugging Face's
        data sets have it.
    :param root: see :func:`picture_path`.
    :raises SampleFault: if it is none, cannot be decoded or is too large.
    :raises FileNotFoundError: if there is no such file.
    """
    if isinstance(value, Mapping):
        value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if not isinstance(value, Image.Image) and is_missing(value):
        raise SampleFault("no picture", f"{where} has no picture.")
    if isinstance(value, (str, os.PathLike)):
        value = picture_path(os.fspath(value), root, where)
    if not isinstance(value, (bytes, Path, Image.Image)):
        words = f"{where} holds a {type(value).__name__} in place of a picture."
        raise SampleFault("picture unreadable", words)
    return decode_picture(value, where)


def decode_picture(content: bytes | Path | Image.Image, where: str) -> Image.Image:
    """Decode a picture, or bring one to RGB.

    :raises SampleFault: if it is damaged or too large.
    :raises FileNotFoundError: if there is no such file.
    """
    try:
        if isinstance(content, Image.Image):
            return picture_to_rgb(content)
        return read_picture(content, None if isinstance(content, Path) else where)
    except PictureSizeError as error:
        raise SampleFault("picture too large", str(error)) from error
    except ValueError as error:
        raise SampleFault("picture unreadable", str(error)) from error
