"""Columns of numbers that users give, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from avalanche_clip.common.checks import require_array


def as_integer_array(
    values: Any, what: str, shape: str = "*", *, give: str = ""
) -> np.ndarray:
    """Return integers as an array of int64.

    :param values: an array, tensor or list; nothing at all counts as integers.
    :param what: what they are, for the message.
    :param shape: see :func:`require_array`.
    :param give: what to do, for the message.
    :raises ValueError: for anything else, or integers of 64 bits without a sign.

    >>> as_integer_array([3, 1], "indices")
    array([3, 1])
    """
    array = np.asarray(values)
    if array.size == 0:  # NumPy makes floats of nothing
        array = array.astype(np.int64)
    require_array(array, what, shape, "integer", give=give)
    if array.dtype == np.uint64 and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{what} has values of 2**63 or more; use signed 64-bit ones.")
    return array.astype(np.int64)
