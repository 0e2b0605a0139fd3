"""Readers of feature files in the forms released with CLL-CLIP."""

from __future__ import annotations

import codecs
import json
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

# What a pickled dict of arrays needs. Numpy renamed its modules in version 2, so its
# functions are known by their names and taken from what arrays are pickled by.
_MODULES = tuple(
    f"numpy.{core}.{end}"
    for core in ("core", "_core")
    for end in ("multiarray", "numeric")
)
_FUNCTIONS: dict[str, Any] = {
    function.__name__: function
    for function in (
        cast(Any, np.ones(1).__reduce__()[0]),
        cast(Any, np.float32(1).__reduce__()[0]),
        cast(Any, np.ones(1).__reduce_ex__(5)[0]),
    )
}
_ALLOWED = {
    ("_codecs", "encode"): codecs.encode,  # bytes in protocols before 3
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Read plain containers and arrays; refuse everything else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in _MODULES and name in _FUNCTIONS:
            return _FUNCTIONS[name]
        raise ValueError(
            f"The file asks for {module}.{name}; feature files hold a dict of numpy "
            "arrays only. Do not load it."
        )


def read_feature_pickle(
    path: str | Path, names: Sequence[str] | None = None
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Read ``{model}_{mode}.pkl``: a dict of picture name -> features.

    A feature of shape ``(frames, D)`` or ``(1, D)`` is averaged over the frames.
    Only numpy arrays in plain containers are unpickled.

    :param path: the file.
    :param names: pictures to return, in this order; default all, as stored.
    :return: names, and float32 features ``(N, D)``.
    :raises ValueError: if the file holds anything else, features differ in width,
        or a name is missing.
    """
    with open(path, "rb") as file:
        content = _ArrayUnpickler(file).load()
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path} holds no dict of features.")
    chosen = list(content) if names is None else list(names)
    lost = [name for name in chosen if name not in content]
    if lost:
        raise ValueError(
            f"{path} has no features of {len(lost)} pictures, for example {lost[:3]}."
        )
    rows = [np.asarray(content[name], dtype=np.float32) for name in chosen]
    rows = [row.mean(axis=0) if row.ndim == 2 else row for row in rows]
    shapes = {row.shape for row in rows}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        raise ValueError(f"{path} has features of the shapes {sorted(shapes)}.")
    return chosen, np.stack(rows)


def read_line_rows(path: str | Path, lines: int | None = None) -> npt.NDArray[np.int64]:
    """Read ``line2idx.json``: number of a caption line -> row of its features.

    :param path: JSON object with line numbers as keys.
    :param lines: number of caption lines; default the largest one named.
    :return: int64 ``(lines,)``, -1 where no row is named; the ``line_rows`` of
        :meth:`TeacherFeatureStore.from_released`.
    :raises ValueError: if a key is no line number.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    try:
        numbers = np.array([int(key) for key in content], dtype=np.int64)
    except ValueError as error:
        raise ValueError(f"{path}: a key is no line number ({error}).") from error
    size = int(numbers.max(initial=-1)) + 1 if lines is None else lines
    if (numbers < 0).any() or (numbers >= size).any():
        raise ValueError(
            f"{path} names the lines {numbers.min()} to {numbers.max()}, but there are "
            f"{size}."
        )
    rows = np.full(size, -1, dtype=np.int64)
    rows[numbers] = np.fromiter(content.values(), dtype=np.int64, count=len(content))
    return rows


__all__ = ["read_feature_pickle", "read_line_rows"]
