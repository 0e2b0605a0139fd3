"""Accuracy at any time of an online stream of classes, as in Si-Blurry."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

from avalanche_clip.common.checks import as_integers, require_indices
from avalanche_clip.common.columns import as_integer_array
from avalanche_clip.evaluation.functional._inputs import (
    ArrayLike,
    as_float64_array,
    as_results,
)


def online_accuracy(
    E: ArrayLike,
    counts: Sequence[int] | None = None,
    *,
    curve: Sequence[int] | None = None,
    task_ends: Sequence[int] | None = None,
    include_final: bool = False,
) -> dict[str, float]:
    """Compute the accuracies of an online stream, at any time and at its end.

    The accuracy of a row is that over all test images of the classes that have
    occurred by then, as if they were one test set. A class has occurred from the
    first row on in which it has a value; before, its cells are NaN (a 0 there would
    count as wrong answers).

    * ``A_AUC``: mean over the evaluation points ``curve``, which lie at equal
      distances in samples. Without any point (a stream shorter than the period) it
      is the final accuracy, with a warning.
    * ``A_Avg``: mean over the ends of the tasks.
    * ``A_Last``: that of the last row.
    * ``F_Last``: best accuracy of a class at the ends of earlier tasks minus its
      final one, averaged over the classes whose earlier best is above 0; NaN
      without any.

    A NaN behind the first value of a class is a missing result: what it enters is
    NaN, and so is the accuracy of a row in which no class has occurred.

    :param E: accuracies, ``(P, C)``, by time and class; fractions or per cent.
    :param counts: test images of each class, ``(C,)``, integers >= 1; default
        equal numbers.
    :param curve: rows that A_AUC averages; default all.
    :param task_ends: rows at the ends of tasks, ascending, the last row included;
        default all; an empty list if they are not known, then ``A_Avg`` and
        ``F_Last`` are NaN.
    :param include_final: let A_AUC average the last row, too. The released code
        leaves it out where the stream ends exactly at a multiple of the period.
    :return: Python floats in the unit of ``E``.
    :raises ValueError: if shapes do not fit, or rows are out of range, repeated or
        do not end with the last one.

    Source: Koh et al., ICLR 2022 (CLIB) for A_AUC; Moon et al., ICCV 2023 (MVP) and
    the released codes of MVP and of SIT (arXiv 2405.15155).

    >>> nan = float("nan")
    >>> found = online_accuracy([[0.8, nan, nan], [0.6, 0.9, nan], [0.5, 0.7, 1.0]])
    >>> {name: round(value, 4) for name, value in found.items()}
    {'A_AUC': 0.7611, 'A_Avg': 0.7611, 'A_Last': 0.7333, 'F_Last': 0.25}
    """
    accuracy = exposed_accuracy(E, counts)
    matrix, rows = as_float64_array("E", E), len(accuracy)
    points = _rows(range(rows) if curve is None else curve, rows, "curve")
    ends = _rows(range(rows) if task_ends is None else task_ends, rows, "task_ends")
    if ends and ends[-1] != rows - 1:
        raise ValueError(
            f"task_ends={ends} must end with the last row, {rows - 1}: the stream ends "
            "with its last task. Give [] if they are not known."
        )
    if include_final and rows - 1 not in points:
        points.append(rows - 1)
    if not points:
        warnings.warn(
            "There is no evaluation point before the end of the stream; A_AUC is the "
            "final accuracy. Evaluate after fewer samples.",
            stacklevel=2,
        )
    return {
        "A_AUC": float(accuracy[points or [rows - 1]].mean()),
        "A_Avg": float(accuracy[ends].mean()) if ends else math.nan,
        "A_Last": float(accuracy[-1]),
        "F_Last": _forgetting(matrix, ends[:-1]),
    }


def exposed_accuracy(E: ArrayLike, counts: Sequence[int] | None = None) -> np.ndarray:
    """Compute the accuracy over all classes that have occurred, at each time.

    :param E: see :func:`online_accuracy`.
    :param counts: see :func:`online_accuracy`.
    :return: float64 ``(P,)``; NaN where no class has occurred or one is missing.
    :raises ValueError: if shapes do not fit or a count is not positive.

    >>> exposed_accuracy([[0.5, float("nan")], [0.5, 1.0]], [3, 1]).tolist()
    [0.5, 0.625]
    """
    matrix = as_results("E", E, "P C", "one row per evaluation, one column per class")
    classes = matrix.shape[1]
    given = [1] * classes if counts is None else counts
    sizes = as_integer_array(given, "counts", f"{classes}", give="one per class")
    if (sizes < 1).any():
        raise ValueError(f"counts={sizes.tolist()} must all be at least 1.")
    exposed, values = _exposed(matrix)
    total = exposed @ sizes
    return np.where(total > 0, values @ sizes / np.maximum(total, 1), math.nan)


def _exposed(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each class has had a value by each time, and values with 0 before."""
    exposed = np.logical_or.accumulate(~np.isnan(matrix), axis=0)
    return exposed, np.where(exposed, matrix, 0)


def _forgetting(matrix: np.ndarray, earlier: list[int]) -> float:
    if not earlier:
        return math.nan
    best = _exposed(matrix)[1][earlier].max(axis=0)  # NaN where one is missing
    counted = ~(best <= 0)
    lost = (best - matrix[-1])[counted]
    return float(lost.mean()) if lost.size else math.nan


def _rows(given: Sequence[int], count: int, what: str) -> list[int]:
    found = as_integers(given, what)
    require_indices(np.asarray(found, dtype=np.int64), count, what)
    if sorted(set(found)) != found:
        raise ValueError(f"{what}={found} must be ascending rows, each named once.")
    return found
