"""Summaries of a matrix of results over a stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avalanche_clip.evaluation.functional._inputs import ArrayLike, as_float64_array


def time_transfer(E: ArrayLike) -> dict[str, float]:
    """Compute in-domain score, backward and forward transfer as levels.

    Nothing is subtracted: the three values are means of the diagonal, of the
    part below it and of the part above it, each entry with equal weight.

    :param E: results, ``(T, T)``; ``E[i, j]`` belongs to the model after step i
        on the test set of step j.
    :return: Python floats ``in_domain``, ``backward`` and ``forward`` in the
        unit of ``E``. For T = 1 the last two are NaN. A missing (NaN) entry
        makes every value it enters NaN.
    :raises ValueError: if ``E`` is not a square matrix with at least one row.

    Source: Garg et al., ICLR 2024 (TiC-CLIP, arXiv 2310.16226), section 3.

    >>> time_transfer([[50, 40, 30], [45, 55, 35], [42, 52, 60]])["forward"]
    35.0
    """
    matrix = as_float64_array("E", E)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.size == 0:
        raise ValueError(
            f"E of shape {matrix.shape} given; pass a square matrix (T, T). Use "
            "fold_columns first if test sets are finer than steps."
        )
    lower = np.tril_indices_from(matrix, -1)
    upper = np.triu_indices_from(matrix, 1)
    return {
        "in_domain": _mean(np.diagonal(matrix)),
        "backward": _mean(matrix[lower]),
        "forward": _mean(matrix[upper]),
    }


def fold_columns(E: ArrayLike, steps: Sequence[int]) -> np.ndarray:
    """Average the columns that belong to one step, with equal weight.

    :param E: results, ``(R, J)``: one column per test set.
    :param steps: step of each column, J integers that cover 0..T-1.
    :return: float64 array ``(R, T)``; NaN where one of the averaged entries is.
    :raises ValueError: if ``E`` is not a matrix, ``steps`` has another length,
        or a step is missing or negative.

    Source: our choice, for time steps that pool several test years.

    >>> fold_columns([[10, 20, 60, 40], [20, 30, 70, 80]], [0, 0, 0, 1]).tolist()
    [[30.0, 40.0], [40.0, 80.0]]
    """
    matrix = as_float64_array("E", E)
    index = np.asarray(steps)
    if matrix.ndim != 2 or index.shape != matrix.shape[1:] or index.size == 0:
        raise ValueError(
            f"E of shape {matrix.shape} and {index.size} steps given; pass a matrix "
            "and one step per column."
        )
    if not np.issubdtype(index.dtype, np.integer):
        raise ValueError(f"steps of type {index.dtype} given; pass integers.")
    present = np.unique(index)
    if present[0] < 0 or len(present) != present[-1] + 1:
        raise ValueError(
            f"steps {present.tolist()} occur; they must cover 0..T-1 without gaps."
        )
    return np.stack([matrix[:, index == s].mean(axis=1) for s in present], axis=1)


def continual_summary(
    E: ArrayLike, before: ArrayLike | None = None
) -> dict[str, float]:
    """Compute accuracy, forgetting and transfer as differences.

    With K the last of the trained experiences (rows), the values are

    * ``average_accuracy``: mean of ``E[K, j]`` over j <= K;
    * ``forgetting``: mean over j < K of the best earlier result on j (the one
      before the stream included, if given) minus ``E[K, j]``;
    * ``backward_transfer``: mean over j < K of ``E[K, j] - E[j, j]``;
    * ``forward_transfer``: mean of ``E[k, j] - before[j]`` over k < j, that is
      before training on j;
    * ``retention``: mean of ``E[K, j] - before[j]`` over all j.

    :param E: results, ``(K, J)`` with J >= K: one row per experience trained so
        far, one column per test set.
    :param before: results of the model before the stream, ``(J,)``; without it
        ``forward_transfer`` and ``retention`` are NaN.
    :return: Python floats in the unit of ``E``; NaN where a mean is over no
        entry (forgetting and backward transfer after one experience) or over a
        missing (NaN) one.
    :raises ValueError: if ``E`` is empty, not a matrix, or has more rows than
        columns, or ``before`` does not fit.

    Source: Chaudhry et al., ECCV 2018 (forgetting), Lopez-Paz and Ranzato,
    NeurIPS 2017 (transfer); ``retention`` and the use of ``before`` are our
    choice.

    >>> summary = continual_summary([[0.5, 0.2], [0.4, 0.6]], before=[0.1, 0.1])
    >>> {name: round(value, 3) for name, value in summary.items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'average_accuracy': 0.5, 'forgetting': 0.1, 'backward_transfer': -0.1,
     'forward_transfer': 0.1, 'retention': 0.4}
    """
    matrix = as_float64_array("E", E)
    if matrix.ndim != 2 or matrix.size == 0 or matrix.shape[0] > matrix.shape[1]:
        raise ValueError(
            f"E of shape {matrix.shape} given; pass one row per trained experience "
            "and at least as many columns (test sets)."
        )
    rows, columns = matrix.shape
    start = np.full(columns, np.nan) if before is None else _row(before, columns)
    history = matrix if before is None else np.vstack([start, matrix])
    last = matrix[-1]
    old = slice(0, rows - 1)
    earlier = history[:-1, old]
    best = earlier.max(axis=0) if earlier.size else np.empty(0)
    above = np.triu_indices(rows, 1, columns)
    return {
        "average_accuracy": _mean(last[:rows]),
        "forgetting": _mean(best - last[old]),
        "backward_transfer": _mean(last[old] - np.diagonal(matrix)[old]),
        "forward_transfer": _mean((matrix - start)[above]),
        "retention": _mean(last - start),
    }


def _row(before: ArrayLike, columns: int) -> np.ndarray:
    row = as_float64_array("before", before)
    if row.shape != (columns,):
        raise ValueError(
            f"before of shape {row.shape} given; pass one value per column of E, "
            f"shape ({columns},)."
        )
    return row


def _mean(values: np.ndarray) -> float:
    # an empty mean is NaN without NumPy's warning
    return float(values.mean()) if values.size else float("nan")


__all__ = ["continual_summary", "fold_columns", "time_transfer"]
