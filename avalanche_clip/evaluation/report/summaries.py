"""Which summaries a matrix of results gets, by the kind of its stream."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from avalanche_clip.evaluation.functional import (
    incremental_accuracy,
    multilingual_summary,
    online_accuracy,
    seen_unseen_harmonic,
    transfer_average_last,
)

MULTI_DOMAIN = "multi_domain"
CLASS_INCREMENTAL = "class_incremental"
MULTILINGUAL = "multilingual"
SI_BLURRY = "si_blurry"
ONLINE_SPACES = ("seen", "open")
"""Label spaces in which the classes that have occurred compete on Si-Blurry."""
BOTH_SPACES = ("accuracy_own", "accuracy_seen")
"""Accuracies that every run on class names has, whatever its label space."""
JOINT_SPACES = ("seen", "all")
"""Label spaces in which the classes of all steps met so far compete."""


def is_result(metric: str) -> bool:
    """Whether a metric is a recall or an accuracy, which summaries are made of."""
    return "R@" in metric or metric.startswith(("Top1_Acc", "acc"))


def is_own(metric: str) -> bool:
    """Whether a metric is none of those that evaluators have by default."""
    known = ("R@", "_rank", "_tie_share", "rsum", "Top1_Acc", "Loss_", "loss_")
    return not any(part in metric for part in known)


def online_summary(
    E: np.ndarray, counts: Sequence[int] | None, space: str | None, online: Any
) -> dict[str, float]:
    """Values of :func:`online_accuracy` in a run on a Si-Blurry benchmark.

    :param E: accuracies by time and class, NaN before a class has occurred.
    :param counts: test samples of each class.
    :param space: ``eval_label_space`` of the strategy. The accuracies are defined
        among the classes that have occurred: nothing unless this is ``"seen"``, or
        ``"open"``, which here is the same.
    :param online: mapping with the rows ``curve`` and ``task_ends``. Without a curve
        there is no ``A_AUC``, without two ends neither ``A_Avg`` nor ``F_Last``.
    """
    if space not in ONLINE_SPACES or counts is None:
        return {}
    curve, ends = online["curve"], online["task_ends"]
    points = range(len(E)) if curve is None else curve
    found = online_accuracy(E, counts, curve=points, task_ends=ends)
    left_out = ["A_AUC"] * (curve is None) + ["A_Avg", "F_Last"] * (len(ends) < 2)
    return {name: value for name, value in found.items() if name not in left_out}


def warn_of_gaps(space: str | None, tasks: Sequence[int]) -> None:
    """Say in words what a run on a Si-Blurry benchmark will not have, or not count.

    :param space: see :func:`online_summary`.
    :param tasks: training samples of each task.
    """
    if space not in ONLINE_SPACES:
        said = (
            "the results will have no online accuracies (A_AUC, A_Avg, A_Last, F_Last):"
            " they are defined among the classes that have occurred, but images are "
            f"classified with eval_label_space={space!r}; use 'seen'."
        )
    elif empty := [number for number, size in enumerate(tasks) if not size]:
        said = f"A_Avg and F_Last need two tasks with samples; the tasks {empty} have "
        said += "none and do not count. Choose another seed if that is not wanted."
    else:
        return
    warnings.warn(f"Si-Blurry: {said}", stacklevel=2)


def protocol_summary(
    E: np.ndarray,
    protocol: str | None,
    counts: Sequence[int] | None = None,
    space: str | None = None,
) -> dict[str, float]:
    """Summaries that belong to the protocol of a benchmark.

    :param E: results after each step, ``(T, J)``.
    :param protocol: ``"multi_domain"``: ``transfer``, ``average`` and ``last``
        of :func:`transfer_average_last`, and ``seen``, ``unseen`` and
        ``harmonic`` of :func:`seen_unseen_harmonic`; ``"class_incremental"``:
        ``incremental_average`` and ``incremental_last`` of
        :func:`incremental_accuracy`; ``"multilingual"``: those of
        :func:`multilingual_summary`, over the languages that are trained on;
        another one: nothing.
    :param counts: test samples of each column.
    :param space: ``eval_label_space`` of the strategy. The incremental accuracy
        is defined over the classes met so far: it is left out unless this is
        ``"seen"`` or ``"all"``.
    :return: empty too where test sets are not the steps or a value is missing.
    """
    if protocol == MULTILINGUAL:
        return multilingual_summary(E)
    if E.ndim != 2 or not E.size or E.shape[0] != E.shape[1]:
        return {}
    if not np.isfinite(E).all() or (E < 0).any():
        return {}
    if protocol == MULTI_DOMAIN:
        return {**transfer_average_last(E), **seen_unseen_harmonic(E)}
    joint = protocol == CLASS_INCREMENTAL and space in JOINT_SPACES
    if joint and counts is not None:
        if len(counts) == E.shape[1] and min(counts) > 0:
            found = incremental_accuracy(E, [int(n) for n in counts])
            return {f"incremental_{k}": found[k] for k in ("average", "last")}
    return {}
