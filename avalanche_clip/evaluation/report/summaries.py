"""Which summaries a matrix of results gets, by the kind of its stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avalanche_clip.evaluation.functional import (
    continual_summary,
    incremental_accuracy,
    multilingual_summary,
    seen_unseen_harmonic,
    time_transfer,
    transfer_average_last,
)

MULTI_DOMAIN = "multi_domain"
CLASS_INCREMENTAL = "class_incremental"
MULTILINGUAL = "multilingual"
JOINT_SPACES = ("seen", "all")
"""Label spaces in which the classes of all steps met so far compete."""


def is_result(metric: str) -> bool:
    """Whether a metric is a recall or an accuracy, which summaries are made of."""
    return "R@" in metric or metric.startswith(("Top1_Acc", "acc"))


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


def stream_summary(
    E: np.ndarray,
    before: np.ndarray | None,
    protocol: str | None = None,
    counts: Sequence[int] | None = None,
    space: str | None = None,
    by_step: bool = True,
) -> dict[str, float]:
    """All summaries of one matrix of a run.

    A stream whose experiences are not the trained steps (a gallery), and a run that
    was not evaluated after each step, have no transfer between steps: there ``final``
    is the mean of the last row and ``average`` that of all rows.

    :param E: results after each step, ``(T, J)``, not empty.
    :param before: results of the model before the stream, ``(J,)``.
    :param protocol: see :func:`protocol_summary`.
    :param counts: see :func:`protocol_summary`.
    :param space: see :func:`protocol_summary`.
    :param by_step: whether there is a row for each training step.
    """
    found = {"final": float(E[-1].mean()), "average": float(E.mean())}
    if not by_step:
        return found
    if E.shape[0] == E.shape[1]:
        found |= {**time_transfer(E), **continual_summary(E, before)}
    return found | protocol_summary(E, protocol, counts, space)
