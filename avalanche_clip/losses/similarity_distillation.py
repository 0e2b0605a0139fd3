"""Distillation of the similarity matrix of a batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from avalanche_clip.losses._checks import (
    at_least_float32,
    check_score_pair,
    full_precision,
)


def similarity_distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Compute how far the similarities moved away from those of the teacher.

    Both matrices become probabilities over their rows and over their columns;
    the Kullback-Leibler divergence from the teacher to the student is averaged
    over the rows, likewise over the columns, and the two means are averaged.

    :param logits: similarities of the student times its own logit scale,
        ``(N, M)``, float32 or float64 (half precision is raised to float32).
    :param teacher_logits: the same of the teacher with its own scale, same
        shape; no gradient flows into it.
    :return: scalar loss, at least float32; 0 if the matrices are equal.
    :raises ValueError: if the shapes differ, are not matrices or are empty, or
        the types are not floating point.

    Source: Garg et al., ICLR 2024 (TiC-CLIP, arXiv 2310.16226), method LwF
    after Li and Hoiem, 2016; direction and averaging are the usual ones, the
    paper prints neither.

    >>> import torch
    >>> student, teacher = torch.eye(2), 2 * torch.eye(2)
    >>> round(similarity_distillation_loss(student, teacher).item(), 6)
    0.067131
    """
    check_score_pair(logits, teacher_logits, ("logits", "teacher_logits"))
    with full_precision(logits):
        student = at_least_float32(logits)
        teacher = at_least_float32(teacher_logits).detach()
        per_row = _divergence(student, teacher)
        per_column = _divergence(student.T, teacher.T)
        return (per_row + per_column) / 2


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean over rows of KL(softmax(teacher) || softmax(student))."""
    return F.kl_div(
        F.log_softmax(student, dim=1),
        F.log_softmax(teacher, dim=1),
        reduction="batchmean",
        log_target=True,
    )
