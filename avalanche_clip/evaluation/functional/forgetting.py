"""Average recall and forgetting over a stream, as in CLL-CLIP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from avalanche_clip.common.checks import require_some
from avalanche_clip.evaluation.functional._inputs import ArrayLike, as_float64_array


def recall_forgetting(
    R: ArrayLike | Sequence[Sequence[float]], *, unseen_start: bool = False
) -> dict[str, float]:
    """Compute average recall and forgetting after the last task.

    With T the number of rows (tasks trained), counted from 1:

    * ``average_recall``: mean of ``R[T, j]`` over j <= T;
    * ``forgetting``: mean over j < T of the best earlier result on j since it
      was learned, ``max R[l, j]`` over j <= l < T, minus ``R[T, j]``; negative
      where later tasks helped;
    * ``first_task_forgetting``: the same for the first task alone.

    Unlike ``forgetting`` of :func:`continual_summary`, results on a task before
    it was learned do not count.

    :param R: results, ``R[i, j]`` after task i on task j: a matrix ``(T, J)``
        with J >= T, or rows of growing length, row i with at least i entries.
        What is above the diagonal is not read.
    :param unseen_start: put 0 in place of ``R[1, 1]``, which the released tables
        of CLL-CLIP do for COCO by mistake (its result was stored under another
        name). For comparison with those tables only.
    :return: Python floats in the unit of ``R``; the two kinds of forgetting are
        NaN after one task. A missing (NaN) entry on or below the diagonal makes
        every value it enters NaN.
    :raises ValueError: if ``R`` is empty, no table of numbers, or a row does not
        reach the diagonal.

    Source: Yang et al., AAAI 2024 (CLL-CLIP, arXiv 2401.17186) and the released
    code.

    >>> recall_forgetting([[50.0], [48.0, 40.0], [49.0, 35.0, 42.0]])
    {'average_recall': 42.0, 'forgetting': 3.0, 'first_task_forgetting': 1.0}
    """
    curves = recall_forgetting_curves(R, unseen_start=unseen_start)
    return {name: float(curve[-1]) for name, curve in curves.items()}


def recall_forgetting_curves(
    R: ArrayLike | Sequence[Sequence[float]], *, unseen_start: bool = False
) -> dict[str, np.ndarray]:
    """Compute the values of :func:`recall_forgetting` after each task.

    :param R: see :func:`recall_forgetting`.
    :param unseen_start: see :func:`recall_forgetting`.
    :return: float64 arrays ``(T,)`` named as there; entry i is after task i,
        the first entry of the two kinds of forgetting is NaN.
    :raises ValueError: see :func:`recall_forgetting`.
    """
    lower = _lower_triangle(R)
    if unseen_start:
        lower[0, 0] = 0.0
    per_task = forgetting_per_task(lower)
    tasks = range(len(lower))
    nothing = float("nan")
    return {
        "average_recall": np.array([lower[i, : i + 1].mean() for i in tasks]),
        "forgetting": np.array(
            [per_task[i, :i].mean() if i else nothing for i in tasks]
        ),
        "first_task_forgetting": per_task[:, 0].copy(),
    }


def multilingual_summary(E: ArrayLike) -> dict[str, float]:
    """Name the values of :func:`recall_forgetting` as in the summary of a run.

    There ``forgetting`` is the one of :func:`continual_summary`.

    :param E: results ``(T, J)``, one column per language in the order of learning;
        further columns (languages that are not learned) do not enter.
    :return: ``average_recall``, ``recall_forgetting`` and
        ``first_task_forgetting``; empty if there are fewer columns than rows.
    """
    matrix = as_float64_array("E", E)
    if matrix.ndim != 2 or not matrix.size or matrix.shape[0] > matrix.shape[1]:
        return {}
    values = recall_forgetting(matrix)
    return {
        "average_recall": values["average_recall"],
        "recall_forgetting": values["forgetting"],
        "first_task_forgetting": values["first_task_forgetting"],
    }


def forgetting_per_task(R: ArrayLike | Sequence[Sequence[float]]) -> np.ndarray:
    """Compute how far each task is below its best earlier result.

    :param R: see :func:`recall_forgetting`.
    :return: float64 ``(T, T)``: entry (i, j) for j < i is the largest ``R[l, j]``
        over j <= l < i minus ``R[i, j]``; NaN on and above the diagonal.
    :raises ValueError: see :func:`recall_forgetting`.
    """
    lower = _lower_triangle(R)
    size = len(lower)
    forgotten = np.full((size, size), np.nan)
    for j in range(size - 1):
        # NaN entries stay NaN in the running maximum.
        best = np.maximum.accumulate(lower[j:-1, j])
        forgotten[j + 1 :, j] = best - lower[j + 1 :, j]
    return forgotten


def _lower_triangle(R: Any) -> np.ndarray:
    """Return a copy with zeros above the diagonal, float64 ``(T, T)``."""
    listed = isinstance(R, Iterable) and not isinstance(R, str)
    rows = list(R) if listed and getattr(R, "shape", None) != () else []
    require_some(rows, "rows of R, one per trained task")
    lower = np.zeros((len(rows), len(rows)))
    for i, row in enumerate(rows):
        values = as_float64_array(f"row {i} of R", row)
        if values.ndim != 1 or len(values) <= i:
            raise ValueError(
                f"Row {i} of R has shape {values.shape}; after task {i} (counted from "
                f"0) there are results on {i + 1} tasks at least."
            )
        lower[i, : i + 1] = values[: i + 1]
    return lower
