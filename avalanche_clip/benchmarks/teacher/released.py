"""Readers of feature files in the forms released with CLL-CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avalanche_clip.common.array_pickles import read_array_pickle
from avalanche_clip.common.files import read_json

_SPARE_LINES = 10**6


def read_feature_pickle(
    path: str | Path, names: Sequence[str] | None = None
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Read ``{model}_{mode}.pkl``: a dict of picture name -> features.

    A feature of shape ``(frames, D)`` or ``(1, D)`` is averaged over the frames.
    Only numpy arrays in plain containers are unpickled.

    :param path: the file.
    :param names: pictures to return, in this order; default all, as stored.
    :return: names, and float32 features ``(N, D)``.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is damaged or holds anything else, features
        differ in width, or a name is missing.
    """
    content = read_array_pickle(
        path, "a pickle of features", "fiub", "features are numbers"
    )
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no dict of features.")
    chosen = list(content) if names is None else list(names)
    lost = [name for name in chosen if name not in content]
    if lost:
        raise ValueError(
            f"{path} has no features of {len(lost)} pictures, for example {lost[:3]}."
        )
    rows = [_feature(content[name], f"{path}: {name!r}") for name in chosen]
    shapes = {row.shape for row in rows}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"{path} has features of the shapes {sorted(shapes)}.")
    return chosen, np.stack(rows)


def _feature(value: Any, place: str) -> npt.NDArray[np.float32]:
    """Return a feature as float32, the mean of those of several frames.

    :param place: named by the error.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        found = getattr(value, "dtype", type(value).__name__)
        raise ValueError(f"{place} is no array of numbers but {found}.")
    row = value.astype(np.float32)
    return row.mean(axis=0) if row.ndim == 2 else row


def read_line_rows(path: str | Path, lines: int | None = None) -> npt.NDArray[np.int64]:
    """Read ``line2idx.json``: number of a caption line -> row of its features.

    :param path: JSON object with line numbers as keys.
    :param lines: number of caption lines; default the largest one named.
    :return: int64 ``(lines,)``, -1 where no row is named; the ``line_rows`` of
        :meth:`TeacherFeatureStore.from_released`.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, a key is no line number or a value no row.
    """
    content = read_json(path, dict)
    strange = [k for k in content if not (k.isascii() and k.isdigit() and len(k) < 19)]
    if strange:
        raise ValueError(f"{path}: a key is no line number ({strange[0]!r:.80}).")
    numbers = np.array([int(key) for key in content], dtype=np.int64)
    wrong = [v for v in content.values() if type(v) is not int or not 0 <= v < 2**62]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]!r:.80} is no row of an array.")
    if len(set(numbers.tolist())) != len(numbers):
        raise ValueError(f"{path} names a line twice.")
    size = int(numbers.max(initial=-1)) + 1 if lines is None else lines
    if lines is None and size > 100 * len(numbers) + _SPARE_LINES:
        raise ValueError(
            f"{path} names {len(numbers)} lines up to number {size - 1}; give lines=, "
            "the number of captions."
        )
    if (numbers >= size).any():
        raise ValueError(
            f"{path} names the lines {numbers.min()} to {numbers.max()}, but there are "
            f"{size}."
        )
    rows = np.full(size, -1, dtype=np.int64)
    rows[numbers] = np.fromiter(content.values(), dtype=np.int64, count=len(content))
    return rows
