"""Distillation of probabilities at a temperature, as a cross-entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from avalanche_clip.common.checks import as_finite
from avalanche_clip.losses._checks import (
    at_least_float32,
    check_score_pair,
    full_precision,
)


def temperature_distillation_loss(
    teacher_logits: Tensor, student_logits: Tensor, *, temperature: float = 2.0
) -> Tensor:
    """Compute the cross-entropy from the teacher's to the student's rows.

    ``temperature ** 2`` times the mean over rows of ``-sum_j softmax(teacher /
    temperature)_j * log_softmax(student / temperature)_j``. It is not a KL
    divergence: equal arguments give ``temperature ** 2`` times the teacher's
    mean entropy, with zero gradient.

    :param teacher_logits: already multiplied by the logit scale, ``(N, M)``; no
        gradient flows into it.
    :param student_logits: the same of the student, same shape, float32 or
        float64 (half precision is raised to float32). Transpose both for the
        other direction.
    :param temperature: ``> 0``; divides both.
    :return: scalar loss, at least float32.
    :raises ValueError: if the shapes differ, are not matrices or are empty, the
        types are not floating point, or the temperature is not positive.

    Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628), and their code; the
    same term serves VR-LwF (arXiv 2207.09248) there.

    >>> import torch
    >>> teacher = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
    >>> student = torch.tensor([[1.0, 0.0], [2.0, 2.0]])
    >>> round(temperature_distillation_loss(teacher, student).item(), 6)
    2.60339
    """
    check_score_pair(
        student_logits, teacher_logits, ("student_logits", "teacher_logits")
    )
    as_finite(temperature, "temperature", above=0)
    with full_precision(student_logits):
        student = at_least_float32(student_logits) / temperature
        teacher = at_least_float32(teacher_logits).detach() / temperature
        per_row = (teacher.softmax(dim=1) * F.log_softmax(student, dim=1)).sum(dim=1)
        return -(temperature**2) * per_row.mean()
