"""Conversion and checks of the inputs of the pure metrics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from avalanche_clip.common.checks import require_array

ArrayLike = Tensor | np.ndarray | Sequence

_ROWS_PER_CHECK = 4096


def as_tensor(name: str, value: ArrayLike) -> Tensor:
    """Return ``value`` as a tensor without copying where that is possible.

    :param name: name of the argument, for the message.
    :param value: tensor, NumPy array or nested sequence of numbers.
    :return: detached tensor; an array is shared, not copied, unless it is
        read-only or has negative strides.
    :raises ValueError: if the values cannot become a tensor.
    """
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    if not array.flags.writeable or any(stride < 0 for stride in array.strides):
        array = array.copy()
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise ValueError(
            f"{name} of type {array.dtype} given; pass numbers in a rectangular "
            "tensor, array or sequence."
        ) from error


def as_float_matrix(name: str, value: ArrayLike) -> Tensor:
    """Return ``value`` as a float32 or float64 matrix.

    :param name: name of the argument, for the message.
    :param value: tensor, array or nested sequence.
    :return: tensor of two dimensions with at least one row and one column.
    :raises ValueError: if type or shape do not fit or a value is not finite.
    """
    matrix = as_tensor(name, value)
    require_array(matrix, name, "N D")
    shape = tuple(matrix.shape)
    if matrix.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"{name} of shape {shape} has type {matrix.dtype}; pass float32 or "
            "float64, since half precision creates ties."
        )
    if not _all_finite(matrix):
        raise ValueError(
            f"{name} of shape {shape} holds NaN or infinite values; look at "
            "the model or the loss that produced them."
        )
    return matrix


def _all_finite(matrix: Tensor) -> bool:
    # NaN and infinity survive a sum, which is many times faster than a mask; only
    # a sum that overflows needs the mask, by blocks to save memory
    if torch.isfinite(matrix.sum()):
        return True
    blocks = matrix.split(_ROWS_PER_CHECK)
    return all(bool(torch.isfinite(rows).all()) for rows in blocks)


def as_float64_array(name: str, value: ArrayLike) -> np.ndarray:
    """Return ``value`` as a float64 array on the CPU; NaN is allowed.

    :param name: name of the argument, for the message.
    :param value: tensor, array or nested sequence of numbers.
    :return: float64 array.
    :raises ValueError: if the values are no rectangular block of numbers.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy()
    try:
        return np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} is no rectangular block of numbers ({error}); fill missing "
            "cells with NaN."
        ) from error


def as_results(
    name: str, value: ArrayLike, shape: str, give: str, *, wide: bool = False
) -> np.ndarray:
    """Return a matrix of results as a float64 array; NaN is allowed.

    :param name: name of the argument, for the message.
    :param value: tensor, array or nested sequence of numbers.
    :param shape: see :func:`require_array`: ``"T T"`` for a square one.
    :param give: what to pass, for the message.
    :param wide: whether it must have at least as many columns as rows.
    :raises ValueError: if the values are no such matrix.
    """
    matrix = as_float64_array(name, value)
    require_array(matrix, name, shape, give=give)
    if wide and matrix.shape[0] > matrix.shape[1]:
        raise ValueError(
            f"{name} of shape {matrix.shape} given; it needs at least as many columns "
            f"as rows: {give}."
        )
    return matrix


def as_row(name: str, value: ArrayLike, columns: int) -> np.ndarray:
    """Return one value per column of a matrix of results as a float64 array."""
    row = as_float64_array(name, value)
    require_array(row, name, f"{columns}", give="one value per column of E")
    return row
