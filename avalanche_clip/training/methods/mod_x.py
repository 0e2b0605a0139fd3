"""Mod-X: align the similarity matrix of each batch with a teacher's.

Source: Ni et al., ICML 2023 (Mod-X, arXiv 2305.07437), and the authors' code.
That code runs the teacher with autograd on and loops over rows; values are the
same. Options beyond its defaults are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from avalanche_clip.common.checks import as_finite, require_choice
from avalanche_clip.losses import off_diagonal_alignment_loss
from avalanche_clip.losses.off_diagonal_alignment import (
    REDUCTIONS,
    ROW_FILTERS,
    correctly_ranked_rows,
)
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training.methods.tic import Sequential
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.distillation import (
    DistillationPlugin,
    similarities,
)
from avalanche_clip.training.templates.options import further_options
from avalanche_clip.training.templates.teachers import KINDS

LOGIT_SCALE_MODES = ("none", "own", "shared")
CHOICES = {
    "logit_scale_mode": LOGIT_SCALE_MODES,
    "reduction": REDUCTIONS,
    "row_filter": ROW_FILTERS,
    "teacher": KINDS,
}
"""Setting -> its allowed words."""


@dataclass(eq=False)
class OffDiagonalAlignmentPlugin(DistillationPlugin, supports_distributed=True):
    """Keep how a teacher lays out the pairs of each batch.

    Adds ``alpha`` times :func:`off_diagonal_alignment_loss` of the cosines of
    the global batch. The teacher is, by default, the model as it was before
    the experience. :func:`loss_term_metrics` logs the term, the unweighted loss,
    and the shares of rows that the teacher ranks correctly; shares near 0 mean
    that it does not know the data and the method does nothing.

    With the sum over rows, the effect of ``alpha`` grows with the batch size:
    ``alpha * B`` weighs the mean over rows.

    Memory: one copy of the weights. Time: one forward pass of the teacher per
    step, booked as ``"teacher"`` and shared with other plugins that use the
    same teacher.

    :param alpha: weight of the term, ``>= 0``; 0 turns it off exactly, and no
        teacher is made.
    :param temperature: divides the similarities of both models, ``> 0``.
    :param logit_scale_mode: ``"none"`` compares cosines (original); ``"own"``
        multiplies them by each model's own logit scale, ``"shared"`` by the
        student's, without gradient.
    :param reduction: ``"sum"`` over rows (original) or ``"batchmean"``.
    :param row_filter: ``"correct"`` (original), ``"none"`` or ``"soft"``.
    :param include_diagonal: False aligns off-diagonal entries only.
    :param teacher: ``"previous"`` (original), ``"initial"`` or ``"ema"``.
    :param teach_first_experience: whether there is a term in the first
        experience; None: if the model has pretrained weights.
    :raises ValueError: for a value outside its range; for an initial teacher
        with random weights, unless ``teach_first_experience`` is given.
    """

    weights = ("alpha",)

    alpha: float = 20.0
    _: KW_ONLY
    temperature: float = 1.0
    logit_scale_mode: str = "none"
    reduction: str = "sum"
    row_filter: str = "correct"
    include_diagonal: bool = True
    teacher: str = "previous"
    teach_first_experience: bool | None = None

    def __post_init__(self) -> None:
        super().__init__()
        as_finite(self.alpha, "alpha", low=0)
        as_finite(self.temperature, "temperature", above=0)
        for name, allowed in CHOICES.items():
            require_choice(name, getattr(self, name), allowed)
        self.step_values: dict[str, Tensor] = {}
        """Unweighted loss and shares of kept rows in the last step, without a term
        empty; :func:`loss_term_metrics` logs them."""

    def check_compatible(self, strategy: Any) -> None:
        """Raise without pairs, or when the initial model has nothing to teach."""
        if not strategy.reads_captions:
            raise ValueError(
                f"{type(self).__name__} cannot be used with "
                f"{type(strategy).__name__}: it aligns the square matrix of image-text "
                "pairs; use ReferenceDistillationPlugin, or "
                "ContrastiveTemplate(positives='targets')."
            )
        super().check_compatible(strategy)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Forget the values of the last experience."""
        self.step_values = {}

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the alignment term."""
        if not self.teaches(strategy):
            return
        student, teacher = strategy.global_features, self.teacher_output(strategy)
        scores, targets = (
            similarities(out.image_features, out.text_features, scale)
            for out, scale in zip((student, teacher), self._scales(student, teacher))
        )
        loss = off_diagonal_alignment_loss(
            scores,
            targets,
            temperature=self.temperature,
            reduction=self.reduction,
            row_filter=self.row_filter,
            include_diagonal=self.include_diagonal,
        )
        strategy.add_loss("alignment", self.alpha * loss)
        self.step_values = {
            "alignment_unweighted": loss.detach(),
            "alignment_kept_image_to_text": _share(targets),
            "alignment_kept_text_to_image": _share(targets.T),
        }

    def _scales(self, student: CLIPOutput, teacher: CLIPOutput) -> tuple[Any, Any]:
        """What the cosines of both are multiplied by."""
        if self.logit_scale_mode == "own":
            return student.logit_scale, teacher.logit_scale
        if self.logit_scale_mode == "shared":
            return (student.logit_scale.detach(),) * 2
        return None, None


def _share(targets: Tensor) -> Tensor:
    return correctly_ranked_rows(targets).float().mean()


def mod_x_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW with the values of the authors' scripts."""
    return torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.999), weight_decay=0.1)


class ModX(Sequential):
    """Sequential training with the off-diagonal alignment term.

    The authors' scripts train with batches of 280, the default here, a linear
    warm-up over 20 % of the steps of each phase and a cosine to zero; give both
    warm-ups (``warmup_iterations``, ``later_warmup_iterations``) as a fifth of the
    budget for that.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`.
    :param optimizer: default AdamW with their values: learning rate 5e-4, betas
        0.9 and 0.999, eps 1e-8 and, unless ``param_groups`` are given, weight
        decay 0.1 on matrices only (that restriction is OpenCLIP's).
    :param param_groups: see :class:`CLIPTemplate`.
    :param train_mb_size: pairs per step and process.
    :param alpha: weight of the term (20 at a batch of 280; as a sum over rows it
        weighs more in larger batches).
    :param plugin_options: further options of :class:`OffDiagonalAlignmentPlugin`.
    :param kwargs: see :class:`Sequential`.
    """

    _default_optimizer = staticmethod(mod_x_optimizer)
    _default_groups = staticmethod(partial(optim.clip_param_groups, weight_decay=0.1))
    former_options = "alignment"

    def __init__(
        self,
        *,
        train_mb_size: int = 280,
        alpha: float = 20.0,
        plugin_options: Mapping[str, Any] | None = None,
        alignment: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        plugin = OffDiagonalAlignmentPlugin
        further = further_options(self, plugin, plugin_options, ["alpha"], alignment)
        self._own = [plugin(alpha, **further)]
        super().__init__(train_mb_size=train_mb_size, **kwargs)
