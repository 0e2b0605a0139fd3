"""LwF for contrastive models: keep the similarities of the previous model.

Source: Li and Hoiem, ECCV 2016 (LwF), as used by Garg et al., TiC-CLIP, ICLR
2024 (arXiv 2310.16226). The symmetric form and the default weight are ours.
"""

from __future__ import annotations

from typing import Any

from avalanche_clip.common.checks import as_finite
from avalanche_clip.losses import similarity_distillation_loss
from avalanche_clip.training.templates.distillation import (
    DistillationPlugin,
    similarities,
)


class ContrastiveLwFPlugin(DistillationPlugin, supports_distributed=True):
    """Distil the in-batch image-text similarities of the previous model.

    Adds ``lwf_weight`` times the mean of both directions' KL divergence
    between the teacher's and the student's softmax over the global batch, each
    with its own logit scale. Nothing is added in the first experience, as in
    TiC-CLIP, unless asked for.

    Memory: one copy of the weights. Time: one forward pass of the teacher per
    step, booked as ``"teacher"``; TiC-CLIP accounts the method at 1.2 times
    the plain budget.

    :param lwf_weight: weight of the term, ``>= 0``; 0 turns it off exactly.
    :param teach_first_experience: add the term in the first experience too,
        where the teacher is the model as given; sensible if it is pretrained.
    """

    weights = ("lwf_weight",)
    nominal_cost = 1.2
    """Cost in plain budgets, as accounted in TiC-CLIP."""

    def __init__(
        self, lwf_weight: float = 1.0, *, teach_first_experience: bool = False
    ):
        super().__init__()
        self.lwf_weight = as_finite(lwf_weight, "lwf_weight", low=0)
        self.teach_first_experience = teach_first_experience

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the distillation term."""
        if not self.teaches(strategy):
            return
        student, teacher = (
            similarities(out.image_features, out.text_features, out.logit_scale)
            for out in (strategy.global_features, self.teacher_output(strategy))
        )
        loss = similarity_distillation_loss(student, teacher)
        strategy.add_loss("lwf", self.lwf_weight * loss)
