"""Mod-X: keep the similarity matrix of the previous model, row by row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_clip.common.checks import as_finite, require_array, require_choice
from avalanche_clip.losses._checks import (
    at_least_float32,
    check_score_pair,
    full_precision,
)

REDUCTIONS = ("sum", "batchmean")
ROW_FILTERS = ("correct", "none", "soft")


def off_diagonal_alignment_loss(
    scores: Tensor,
    teacher_scores: Tensor,
    *,
    temperature: float = 1.0,
    reduction: str = "sum",
    row_filter: str = "correct",
    include_diagonal: bool = True,
) -> Tensor:
    """Compute the alignment term of Mod-X on one batch.

    Rows of both matrices become probabilities; the term is the sum over rows
    of KL(teacher || student), over the rows that the teacher ranks correctly,
    and the mean of this for both directions (rows, then columns, each with a
    filter of its own).

    :param scores: raw cosines of the student, image ``i`` against text ``j``,
        ``(B, B)``, float32 or float64 (half precision is raised to float32).
        The logit scale does not enter the original method.
    :param teacher_scores: the same of the teacher; no gradient flows into it.
    :param temperature: ``> 0``; divides both matrices.
    :param reduction: ``"sum"`` over rows (original), or ``"batchmean"``, which
        divides it by B.
    :param row_filter: ``"correct"`` keeps row ``i`` if no entry exceeds entry
        ``i`` (a tie counts as correct); ``"none"`` keeps all; ``"soft"`` weighs
        row ``i`` by the teacher's probability of entry ``i``.
    :param include_diagonal: False leaves entry ``i`` out of row ``i``, after
        the filter; with one pair the loss is then 0.
    :return: scalar loss, at least float32, ``>= 0`` up to rounding.
    :raises ValueError: if the matrices are not square, of one shape, floating
        point and on one device, or an option is unknown.

    Source: Ni et al., ICML 2023 (Mod-X, arXiv 2305.07437), and the authors'
    code; the handling of ties and the options beyond the defaults are ours.

    >>> import torch
    >>> round(off_diagonal_alignment_loss(torch.eye(2) / 2, torch.eye(2)).item(), 6)
    0.052689
    """
    check_score_pair(scores, teacher_scores, ("scores", "teacher_scores"))
    require_array(scores, "scores", "B B", give="a square matrix")
    as_finite(temperature, "temperature", above=0)
    require_choice("reduction", reduction, REDUCTIONS)
    require_choice("row_filter", row_filter, ROW_FILTERS)
    with full_precision(scores):
        student = at_least_float32(scores) / temperature
        teacher = at_least_float32(teacher_scores).detach() / temperature
        total = _one_direction(student, teacher, row_filter, include_diagonal)
        total = total + _one_direction(
            student.T, teacher.T, row_filter, include_diagonal
        )
        return total / (2 * len(scores) if reduction == "batchmean" else 2)


def correctly_ranked_rows(scores: Tensor) -> Tensor:
    """Mark the rows whose own pair has the highest score.

    :param scores: similarities ``(B, B)``; row ``i`` belongs to column ``i``.
    :return: bool tensor ``(B,)``; a tie counts as correct.
    :raises ValueError: if ``scores`` is not a square matrix.

    >>> import torch
    >>> correctly_ranked_rows(torch.tensor([[0.9, 0.1], [0.8, 0.2]]))
    tensor([ True, False])
    """
    require_array(scores, "scores", "B B", give="a square matrix")
    return scores.diagonal() >= scores.amax(dim=1)


def _one_direction(
    student: Tensor, teacher: Tensor, row_filter: str, include_diagonal: bool
) -> Tensor:
    """Sum over rows of the weighted KL divergence."""
    weights = None
    if row_filter == "correct":
        weights = correctly_ranked_rows(teacher).to(student.dtype)
    elif row_filter == "soft":
        weights = teacher.softmax(dim=1).diagonal()
    if not include_diagonal:
        student, teacher = _without_diagonal(student), _without_diagonal(teacher)
        if not student.shape[1]:
            return student.sum()
    divergence = F.kl_div(
        F.log_softmax(student, dim=1),
        F.log_softmax(teacher, dim=1),
        reduction="none",
        log_target=True,
    ).sum(dim=1)
    return divergence.sum() if weights is None else (divergence * weights).sum()


def _without_diagonal(matrix: Tensor) -> Tensor:
    """Drop entry i of row i: ``(B, B)`` to ``(B, B - 1)``."""
    size = len(matrix)
    off = ~torch.eye(size, dtype=torch.bool, device=matrix.device)
    return matrix[off].view(size, size - 1)
