"""Files that come with the package, in ``data`` beside the readers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib import resources

import numpy as np
import numpy.typing as npt

from avalanche_clip.common.pictures import read_picture

TILE_SIZE = 48


def read_data(name: str) -> bytes:
    """Return the content of a file."""
    return (resources.files(__package__) / "data" / name).read_bytes()


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn what a damaged file raises into one error."""
    try:
        yield
    # Unpacking, parsing and decoding raise nearly anything.
    except Exception as error:
        raise ValueError(
            f"{name} of the installed package is damaged ({type(error).__name__}: "
            f"{error}); install avalanche_clip again."
        ) from error


def read_sheet(name: str, count: int) -> npt.NDArray[np.uint8]:
    """Decode a sheet of drawings to uint8 ``(count, 48, 48, 3)``, row by row.

    :raises ValueError: if the file is damaged or holds fewer drawings.
    """
    content = read_data(name)
    with reading(name):
        pixels = np.asarray(read_picture(content, name))
        rows, columns = (n // TILE_SIZE for n in pixels.shape[:2])
        tiles = pixels.reshape(rows, TILE_SIZE, columns, TILE_SIZE, 3)
        # (row, y, column, x, c) -> (row, column, y, x, c)
        sheet = tiles.transpose(0, 2, 1, 3, 4).reshape(-1, TILE_SIZE, TILE_SIZE, 3)
        if len(sheet) < count:
            raise ValueError(f"{len(sheet)} drawings instead of {count}")
    sheet = sheet[:count].copy()
    sheet.flags.writeable = False
    return sheet
