"""Summaries of a matrix of results over a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from avalanche_clip.common.checks import require_indices
from avalanche_clip.common.columns import as_integer_array
from avalanche_clip.evaluation.functional._inputs import (
    ArrayLike,
    as_float64_array,
    as_results,
    as_row,
)


def time_transfer(E: ArrayLike, steps: Sequence[int] | None = None) -> dict[str, float]:
    """Compute in-domain score, backward and forward transfer as levels.

    Nothing is subtracted: the three values are means of the diagonal, of the
    part below it and of the part above it, each entry with equal weight. Where steps
    came in another order, or again, these parts are the entries of the step just
    trained, of those trained before, and of those not trained yet.

    :param E: results, ``(T, T)``; ``E[i, j]`` belongs to the model after step i
        on the test set of step j.
    :param steps: column of the step that was trained before each row, ``(K,)`` for
        ``E`` of shape ``(K, T)``; each column at least once. Default ``0..T-1``.
    :return: Python floats ``in_domain``, ``backward`` and ``forward`` in the
        unit of ``E``. For T = 1 the last two are NaN. A missing (NaN) entry
        makes every value it enters NaN.
    :raises ValueError: if ``E`` is not a square matrix with at least one row, or
        ``steps`` do not fit.

    Source: Garg et al., ICLR 2024 (TiC-CLIP, arXiv 2310.16226), section 3.

    >>> time_transfer([[50, 40, 30], [45, 55, 35], [42, 52, 60]])["forward"]
    35.0
    """
    give = "one row per step; use fold_columns first if test sets are finer than steps"
    shape = "T T" if steps is None else "K T"
    matrix = as_results("E", E, shape, f"a square matrix, {give}")
    trained = _trained_columns(matrix, steps)
    if len(set(trained)) < matrix.shape[1]:
        raise ValueError(
            f"steps={trained} leave out some of {matrix.shape[1]} columns; pass the "
            "columns of trained steps only."
        )
    now, seen = _parts(matrix, trained)
    return {
        "in_domain": _mean(matrix[now]),
        "backward": _mean(matrix[seen & ~now]),
        "forward": _mean(matrix[~seen]),
    }


def _trained_columns(matrix: np.ndarray, steps: Sequence[int] | None) -> list[int]:
    """Column that was trained before each row, checked."""
    rows, columns = matrix.shape
    if steps is None:
        return list(range(rows))
    what, give = f"steps={steps!r}", "the column that was trained before each row"
    found = as_integer_array(steps, what, f"{rows}", give=give)
    require_indices(found, columns, what)
    return found.tolist()


def _parts(matrix: np.ndarray, trained: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Masks of the entries of the step just trained, and of all trained so far."""
    now = np.zeros(matrix.shape, dtype=bool)
    now[np.arange(len(trained)), trained] = True
    return now, np.maximum.accumulate(now, axis=0)


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
    matrix = as_results("E", E, "R J", "one column per test set")
    shape, give = f"{matrix.shape[1]}", "the step of each column of E"
    index = as_integer_array(steps, "steps", shape, give=give)
    present = np.unique(index)
    if present[0] < 0 or len(present) != present[-1] + 1:
        raise ValueError(
            f"steps {present.tolist()} occur; they must cover 0..T-1 without gaps."
        )
    return np.stack([matrix[:, index == s].mean(axis=1) for s in present], axis=1)


def continual_summary(
    E: ArrayLike,
    before: ArrayLike | None = None,
    steps: Sequence[int] | None = None,
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

    With ``steps``, ``j <= K`` are the columns of trained steps and ``j < K`` those
    but the last one's; ``E[j, j]`` is the row after the last visit of j, and the
    forward transfer is over the rows before its first.

    :param E: results, ``(K, J)`` with J >= K: one row per experience trained so
        far, one column per test set.
    :param before: results of the model before the stream, ``(J,)``; without it
        ``forward_transfer`` and ``retention`` are NaN.
    :param steps: column of the step that was trained before each row, ``(K,)``,
        where steps were left out, came in another order, or came again (then K may
        exceed J). Default ``0..K-1``.
    :return: Python floats in the unit of ``E``; NaN where a mean is over no
        entry (forgetting and backward transfer after one experience) or over a
        missing (NaN) one. For forgetting results on j from before j was trained may be
        missing, as those of models that a longer stream has not kept.
    :raises ValueError: if ``E`` is empty, not a matrix, or has more rows than
        columns, or ``before`` or ``steps`` do not fit.

    Source: Chaudhry et al., ECCV 2018 (forgetting), Lopez-Paz and Ranzato,
    NeurIPS 2017 (transfer); ``retention`` and the use of ``before`` are our
    choice.

    >>> summary = continual_summary([[0.5, 0.2], [0.4, 0.6]], before=[0.1, 0.1])
    >>> {name: round(value, 3) for name, value in summary.items()}
    ... # doctest: +NORMALIZE_WHITESPACE
    {'average_accuracy': 0.5, 'forgetting': 0.1, 'backward_transfer': -0.1,
     'forward_transfer': 0.1, 'retention': 0.4}
    """
    give = "one row per trained experience, one column per test set"
    matrix = as_results("E", E, "K J", give, wide=steps is None)
    trained = _trained_columns(matrix, steps)
    columns = matrix.shape[1]
    start = np.full(columns, np.nan)
    if before is not None:
        start = as_row("before", before, columns)
    history = matrix if before is None else np.vstack([start, matrix])
    last = matrix[-1]
    # Last row that a step was trained before, by column.
    visits = {column: row for row, column in enumerate(trained)}
    old = sorted(column for column in visits if column != trained[-1])
    earlier = history[:-1, old]
    first = [trained.index(column) + len(history) - len(matrix) for column in old]
    unlearned = np.arange(len(earlier))[:, None] < np.array(first, dtype=np.int64)
    earlier = np.where(unlearned & np.isnan(earlier), -np.inf, earlier)
    best = earlier.max(axis=0) if earlier.size else np.empty(0)
    learned = matrix[[visits[column] for column in old], old]
    _, seen = _parts(matrix, trained)
    return {
        "average_accuracy": _mean(last[sorted(visits)]),
        "forgetting": _mean(best - last[old]),
        "backward_transfer": _mean(last[old] - learned),
        "forward_transfer": _mean((matrix - start)[~seen]),
        "retention": _mean(last - start),
    }


def transfer_per_task(A: ArrayLike) -> dict[str, np.ndarray]:
    """Compute Transfer, Average and Last of each data set of a sequence.

    * ``transfer[j]``: mean of ``A[i, j]`` over the rows i < j, that is before
      data set j was learned; NaN for j = 0;
    * ``average[j]``: mean of ``A[i, j]`` over all rows;
    * ``last[j]``: ``A[T-1, j]``.

    :param A: results, ``(T, T)``; row i belongs to the model after data set i,
        there is no row for the model before the sequence.
    :return: float64 arrays ``(T,)`` in the unit of ``A``.
    :raises ValueError: if ``A`` is not square, is empty, or an entry is missing
        (NaN) or infinite: nothing is filled in.

    Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628), their MTIL
    benchmark.

    >>> transfer_per_task([[50.0, 30.0], [40.0, 60.0]])["transfer"]
    array([nan, 30.])
    """
    matrix = as_results("A", A, "T T", "a square matrix, one row per learned data set")
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise ValueError(
            f"A of shape {matrix.shape} is incomplete: A[{row}, {column}] is "
            f"{matrix[row, column]}. Evaluate every data set after each step."
        )
    columns = range(len(matrix))
    return {
        "transfer": np.array([_mean(matrix[:j, j]) for j in columns]),
        "average": matrix.mean(axis=0),
        "last": matrix[-1].copy(),
    }


def transfer_average_last(A: ArrayLike) -> dict[str, float]:
    """Compute the three numbers of a sequence of data sets (MTIL).

    Each is the mean over data sets of the values of :func:`transfer_per_task`;
    data sets count equally, whatever their size. Transfer leaves out the first
    data set and is a mean of column means.

    :param A: results, ``(T, T)``; row i belongs to the model after data set i.
    :return: Python floats ``transfer`` (NaN for T = 1), ``average`` and
        ``last`` in the unit of ``A``.
    :raises ValueError: see :func:`transfer_per_task`.

    Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628).

    >>> transfer_average_last([[50.0, 30.0], [40.0, 60.0]])
    {'transfer': 30.0, 'average': 45.0, 'last': 50.0}
    """
    columns = transfer_per_task(A)
    return {
        "transfer": _mean(columns["transfer"][1:]),
        "average": _mean(columns["average"]),
        "last": _mean(columns["last"]),
    }


def seen_unseen_per_step(E: ArrayLike) -> dict[str, np.ndarray]:
    """Compute mean results on learned and on future data sets after each step.

    :param E: results, ``(K, J)`` with J >= K: row i belongs to the model after
        data set i, columns j <= i are learned.
    :return: float64 arrays ``(K,)``: ``seen``, ``unseen`` (NaN when all data
        sets are learned) and their harmonic mean ``harmonic`` (0 if both are 0).
    :raises ValueError: if ``E`` is empty, no matrix, has more rows than
        columns, or a negative entry.

    Source: our choice of the usual definitions (Xian et al., CVPR 2017, for the
    harmonic mean).

    >>> seen_unseen_per_step([[0.5, 0.25], [0.4, 0.6]])["seen"]
    array([0.5, 0.5])
    """
    matrix = as_results("E", E, "K J", "one row per learned data set", wide=True)
    if (matrix < 0).any():
        raise ValueError(f"E of shape {matrix.shape} holds negative values.")
    rows = range(len(matrix))
    seen = np.array([_mean(matrix[i, : i + 1]) for i in rows])
    unseen = np.array([_mean(matrix[i, i + 1 :]) for i in rows])
    total = seen + unseen
    product = 2 * seen * unseen
    harmonic = np.divide(product, total, out=np.zeros_like(total), where=total != 0)
    return {"seen": seen, "unseen": unseen, "harmonic": harmonic}


def seen_unseen_harmonic(E: ArrayLike) -> dict[str, float]:
    """Average the results on learned and on future data sets over a sequence.

    :param E: see :func:`seen_unseen_per_step`.
    :return: Python floats: ``seen``, the mean over all steps, ``unseen`` and
        ``harmonic``, the means over the steps that have future data sets (NaN if
        there are none).
    :raises ValueError: see :func:`seen_unseen_per_step`.

    Source: our choice, see :func:`seen_unseen_per_step`.

    >>> seen_unseen_harmonic([[0.5, 0.25], [0.4, 0.6]])["unseen"]
    0.25
    """
    steps = seen_unseen_per_step(E)
    rows, columns = as_float64_array("E", E).shape
    open_steps = rows if columns > rows else rows - 1
    return {
        "seen": _mean(steps["seen"]),
        "unseen": _mean(steps["unseen"][:open_steps]),
        "harmonic": _mean(steps["harmonic"][:open_steps]),
    }


def incremental_accuracy(E: ArrayLike, counts: Sequence[int]) -> dict[str, Any]:
    """Compute the accuracy over all classes met so far, after each step.

    ``per_step[t]`` is the share of right answers among the test samples of
    steps 0..t, as if their test sets were one: ``sum_j n_j E[t, j] / sum_j n_j``
    over j <= t.

    :param E: accuracies, ``(K, J)`` with J >= K: ``E[t, j]`` after step t on the
        test samples of step j, with all classes met so far as candidates.
    :param counts: test samples of each step, ``(J,)``, integers >= 1.
    :return: ``per_step`` (list of K floats), their mean ``average`` (the average
        incremental accuracy) and the final one, ``last``, in the unit of ``E``.
    :raises ValueError: if shapes do not fit or a count is not positive.

    Source: the class-incremental protocol of Continual-CLIP (arXiv 2210.03114)
    and ZSCL (arXiv 2303.06628).

    >>> incremental_accuracy([[0.5, 0.0], [0.5, 1.0]], [3, 1])["last"]
    0.625
    """
    matrix = as_results("E", E, "K J", "one row per step", wide=True)
    shape = f"{matrix.shape[1]}"
    sizes = as_integer_array(counts, "counts", shape, give="one per column of E")
    if (sizes < 1).any():
        raise ValueError(f"counts={sizes.tolist()} must all be at least 1.")
    steps = [
        float(np.average(row[: t + 1], weights=sizes[: t + 1]))
        for t, row in enumerate(matrix)
    ]
    return {"per_step": steps, "average": float(np.mean(steps)), "last": steps[-1]}


def _mean(values: np.ndarray) -> float:
    # an empty mean is NaN without NumPy's warning
    return float(values.mean()) if values.size else float("nan")
