"""LwF for contrastive models: keep the similarities of the previous model.

Source: Li and Hoiem, ECCV 2016 (LwF), as used by Garg et al., TiC-CLIP, ICLR
2024 (arXiv 2310.16226). The symmetric form and the default weight are ours.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from avalanche_clip.common.checks import as_finite
from avalanche_clip.losses import similarity_distillation_loss
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training.templates.contract import MethodPlugin


class ContrastiveLwFPlugin(MethodPlugin, supports_distributed=True):
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

    nominal_cost = 1.2
    """Cost in plain budgets, as accounted in TiC-CLIP."""

    def __init__(
        self, lwf_weight: float = 1.0, *, teach_first_experience: bool = False
    ):
        super().__init__()
        as_finite(lwf_weight, "lwf_weight", low=0)
        self.lwf_weight = lwf_weight
        self.teach_first_experience = teach_first_experience

    def _active(self, strategy: Any) -> bool:
        later = strategy.clock.train_exp_counter > 0
        return self.lwf_weight > 0 and (later or self.teach_first_experience)

    def teacher_kinds(self, strategy: Any) -> tuple[str, ...]:
        """Ask for the teacher before any plugin replaces the weights."""
        return ("previous",) if self._active(strategy) else ()

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the distillation term."""
        if not self._active(strategy):
            return
        teacher = strategy.teachers.get("previous").features(strategy.mb_x)
        loss = similarity_distillation_loss(
            similarities(strategy.global_features), similarities(teacher)
        )
        strategy.add_loss("lwf", self.lwf_weight * loss)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the teacher belongs to the strategy."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept the empty state."""


def similarities(output: CLIPOutput) -> Tensor:
    """Scaled cosine similarities ``(B, B)`` of a batch."""
    return output.logit_scale * output.image_features @ output.text_features.T
