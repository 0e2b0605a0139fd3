"""Angles between feature vectors, exact near 0 and 180 degrees."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from avalanche_clip.evaluation.functional._inputs import ArrayLike, as_float_matrix

# Cosines beyond this (0.8 degrees) lose digits in acos: their angle comes from the
# length of a difference instead, which has no cancellation.
_NEAR = 1 - 1e-4
# Angles computed at once: 4 MiB each of angles and of their cosines.
_ANGLES_PER_BAND = 1 << 19
_ROWS_PER_BLOCK = 4096


def unit_rows(name: str, value: ArrayLike) -> Tensor:
    """Return the rows of a matrix in float64, scaled to length 1.

    :param name: name of the argument, for the message.
    :param value: ``(N, D)``, float32 or float64.
    :return: float64 tensor on the same device.
    :raises ValueError: if shape or type do not fit, a value is not finite, or
        a row is zero and so has no direction.
    """
    rows = as_float_matrix(name, value).double()
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        row = int((norms[:, 0] == 0).nonzero()[0])
        raise ValueError(
            f"{name} of shape {tuple(rows.shape)} has length 0 in row {row}; a zero "
            "vector has no angle. Pass normalised features."
        )
    return rows / norms


def row_angles(left: Tensor, right: Tensor) -> Tensor:
    """Return the angle between equal rows in degrees, for unit rows."""
    parts = [
        2
        * torch.atan2(
            torch.linalg.vector_norm(a - b, dim=1),
            torch.linalg.vector_norm(a + b, dim=1),
        )
        for a, b in zip(left.split(_ROWS_PER_BLOCK), right.split(_ROWS_PER_BLOCK))
    ]
    return torch.cat(parts).rad2deg()


def pair_angles(left: Tensor, right: Tensor, same_from: int | None = None) -> Tensor:
    """Return the angles of all pairs of rows in radians, for unit rows.

    :param left: float64, ``(N, D)``.
    :param right: float64, ``(M, D)``.
    :param same_from: says that row a of ``left`` is row ``same_from + a`` of
        ``right``, whose angle is 0.
    :return: float64, ``(N, M)``; the memory is a few times that of the result.
    """
    cosines = left @ right.T
    if same_from is not None:
        cosines.diagonal(same_from).zero_()
    low, high = cosines.aminmax()
    angles = cosines.clamp(-1, 1).acos_()
    if bool(high > _NEAR):
        _refine(angles, cosines > _NEAR, left, right, opposite=False)
    if bool(low < -_NEAR):
        _refine(angles, cosines < -_NEAR, left, -right, opposite=True)
    if same_from is not None:
        angles.diagonal(same_from).zero_()
    return angles


def _refine(
    angles: Tensor, mask: Tensor, left: Tensor, right: Tensor, *, opposite: bool
) -> None:
    """Replace the marked angles by those from the lengths of differences."""
    rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    chords = torch.cdist(
        left[rows], right[columns], compute_mode="donot_use_mm_for_euclid_dist"
    )
    exact = 2 * (chords / 2).clamp(max=1).asin()
    if opposite:
        exact = math.pi - exact
    place = (rows[:, None], columns)
    angles[place] = torch.where(mask[place], exact, angles[place])


def bands(size: int) -> Iterator[tuple[int, int]]:
    """Yield the first and last + 1 row of bands of a ``size`` x ``size`` matrix."""
    height = max(1, _ANGLES_PER_BAND // size)
    for start in range(0, size, height):
        yield start, min(start + height, size)
