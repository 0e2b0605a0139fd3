"""Mod-X: align the similarity matrix of each batch with a teacher's.

Source: Ni et al., ICML 2023 (Mod-X, arXiv 2305.07437), and the authors' code.
That code runs the teacher with autograd on and loops over rows; values are the
same. Options beyond its defaults are ours.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from avalanche_clip.common.checks import as_finite, require_choice
from avalanche_clip.losses import off_diagonal_alignment_loss
from avalanche_clip.losses.off_diagonal_alignment import (
    REDUCTIONS,
    ROW_FILTERS,
    correctly_ranked_rows,
)
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.teachers import KINDS

LOGIT_SCALE_MODES = ("none", "own", "shared")


class OffDiagonalAlignmentPlugin(MethodPlugin, supports_distributed=True):
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
    :param ema_decay: of the ``"ema"`` teacher, in ``[0, 1)``.
    :param teach_first_experience: whether there is a term in the first
        experience; None: if the model has pretrained weights.
    :raises ValueError: for a value outside its range; for an initial teacher
        with random weights, unless ``teach_first_experience`` is given.
    """

    def __init__(
        self,
        alpha: float = 20.0,
        *,
        temperature: float = 1.0,
        logit_scale_mode: str = "none",
        reduction: str = "sum",
        row_filter: str = "correct",
        include_diagonal: bool = True,
        teacher: str = "previous",
        ema_decay: float = 0.999,
        teach_first_experience: bool | None = None,
    ):
        super().__init__()
        as_finite(alpha, "alpha", low=0)
        as_finite(temperature, "temperature", above=0)
        as_finite(ema_decay, "ema_decay", low=0, below=1)
        for name, value, allowed in (
            ("logit_scale_mode", logit_scale_mode, LOGIT_SCALE_MODES),
            ("reduction", reduction, REDUCTIONS),
            ("row_filter", row_filter, ROW_FILTERS),
            ("teacher", teacher, KINDS),
        ):
            require_choice(name, value, allowed)
        self.alpha = alpha
        self.logit_scale_mode = logit_scale_mode
        self.teacher = teacher
        self.ema_decay = ema_decay
        self.teach_first_experience = teach_first_experience
        self.temperature = temperature
        self.reduction = reduction
        self.row_filter = row_filter
        self.include_diagonal = include_diagonal
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
        unknown = self.teach_first_experience is None and not _pretrained(strategy)
        if self.alpha > 0 and self.teacher == "initial" and unknown:
            raise ValueError(
                "OffDiagonalAlignmentPlugin(teacher='initial') keeps what the initial "
                "model knows, but model.pretrained is None: its weights are random. "
                "Load pretrained weights, use teacher='previous', or give "
                "teach_first_experience if the weights are worth keeping."
            )

    def teacher_kinds(self, strategy: Any) -> tuple[str, ...]:
        """Ask for the teacher before any plugin replaces the weights."""
        return (self.teacher,) if self._needed(strategy) else ()

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Make the teacher, if it is not there yet."""
        self.step_values = {}
        if self._needed(strategy):
            decay = self.ema_decay if self.teacher == "ema" else None
            strategy.teachers.get(self.teacher, decay=decay)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the alignment term."""
        if not self._active(strategy):
            return
        output = strategy.global_features
        teacher = strategy.teachers.get(self.teacher).features(strategy.mb_x)
        scores, targets = self._scores(output, teacher)
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

    def _scores(self, output: CLIPOutput, teacher: CLIPOutput) -> tuple[Tensor, Tensor]:
        """Similarities ``(B, B)`` of the student and of the teacher, float32."""
        scores, targets = cosines(output), cosines(teacher)
        if self.logit_scale_mode == "own":
            return scores * output.logit_scale, targets * teacher.logit_scale
        if self.logit_scale_mode == "shared":
            scale = output.logit_scale.detach()
            return scores * scale, targets * scale
        return scores, targets

    def _active(self, strategy: Any) -> bool:
        """Whether the running experience is taught."""
        if self.alpha == 0:
            return False
        if strategy.clock.train_exp_counter > 0:
            return True
        first = self.teach_first_experience
        return _pretrained(strategy) if first is None else first

    def _needed(self, strategy: Any) -> bool:
        """Whether the teacher must exist: copies of the past cannot be made later."""
        return self._active(strategy) or (self.alpha > 0 and self.teacher == "initial")

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the teacher belongs to the strategy."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Accept the empty state."""


def _pretrained(strategy: Any) -> bool:
    return getattr(strategy.model, "pretrained", None) is not None


def _share(targets: Tensor) -> Tensor:
    return correctly_ranked_rows(targets).float().mean()


def cosines(output: CLIPOutput) -> Tensor:
    """Cosine similarities ``(B, B)`` of a batch, image rows, text columns."""
    return output.image_features @ output.text_features.T
