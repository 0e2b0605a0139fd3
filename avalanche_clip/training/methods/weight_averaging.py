"""Averages of the weights along the training path: WE and WiSE-FT.

Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628) and their code for the
weight ensemble (WE) and its mix with the start; Wortsman et al., CVPR 2022
(WiSE-FT, arXiv 2109.01903).
"""

from __future__ import annotations

import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.common.grown import aligned, clones
from avalanche_clip.training.templates.contract import MethodPlugin

CHOICES = {
    "mode": ("we", "wise", "we+wise"),
    "anchor": ("start", "initial"),
    "score": ("average", "student"),
}
"""Setting -> its allowed words."""


@dataclass(eq=False)
class WeightAveragingPlugin(MethodPlugin, supports_distributed=True):
    """Deploy an average of the weights that an experience went through.

    With ``theta`` the weights after the step of iteration ``i = 0, 1, ...`` of
    the experience and ``avg`` first those of its start:

    - ``"we"``: each ``interval`` iterations (``i = 0`` included) a snapshot is
      merged, ``avg = (n avg + theta) / (n + 1)`` with ``n`` the snapshots so
      far, this one included: the plain mean of start and snapshots;
    - ``"we+wise"``: the same, then ``avg = alpha avg + (1 - alpha) anchor``;
    - ``"wise"``: no average on the way; ``alpha theta + (1 - alpha) anchor`` at
      the end of the experience.

    Training itself is not changed. After the experience the average replaces
    the weights in place, before other plugins copy them (anchors, teachers);
    it is what is evaluated, stored and trained on. Parameters that were
    trainable at the start are averaged, buffers are those of the last step:
    running statistics of batch normalisation do not fit averaged weights, which
    is warned about. What a model has grown since the anchor keeps its values.

    Memory: one copy of the trainable weights; a second one with
    ``"we+wise"`` and ``anchor="start"``; the strategy's ``"initial"`` teacher
    with ``anchor="initial"``. Time: one pass over the weights per snapshot.

    :param mode: see above.
    :param interval: iterations between snapshots, at least 1; default 100. Not for
        ``"wise"``.
    :param alpha: share of the trained weights in ``[0, 1]``; default 0.8 for
        ``"wise"``, 0.99 for ``"we+wise"``. Only for these two.
    :param anchor: of these two: ``"start"`` of the experience, or
        ``"initial"``, the weights before the first one.
    :param score: what an evaluation *inside* an experience sees: ``"average"``
        (as the authors' code) or ``"student"``. The average is swapped in for
        the evaluation and out again, bit for bit. ``"wise"`` has no average
        then: it is the student that is seen.
    :raises ValueError: for a value outside its range, or a setting that the
        mode does not use; together with :class:`PatchingPlugin`,
        :class:`RestartPlugin`, :class:`ConstantCosinePlugin` or another
        :class:`WeightAveragingPlugin`, which replace the weights too.
    """

    state_attributes = ("average", "start")
    replaces_deployed_weights = True
    excludes = {
        "replaces_deployed_weights": (
            "replaces the weights at the end of each step, but so does {} "
            "(mode='we+wise' is an ensemble with WiSE-FT)"
        ),
        "starts_elsewhere": (
            "continues from the averaged weights, but {} starts each step from others"
        ),
    }
    keeps_per_weight_state = True
    reads_weights_in_steps = True

    mode: str = "we"
    _: KW_ONLY
    interval: int | Any = None
    alpha: float | Any = None
    anchor: str = "start"
    score: str = "average"

    def __post_init__(self) -> None:
        super().__init__()
        mode = self.mode
        for name, allowed in CHOICES.items():
            require_choice(name, getattr(self, name), allowed)
        unused = {
            "interval": self.interval is not None and mode == "wise",
            "alpha": self.alpha is not None and "wise" not in mode,
            "anchor": self.anchor != "start" and "wise" not in mode,
        }
        for name, given in unused.items():
            if given:
                raise ValueError(f"{name} is not used by mode={mode!r}; leave it out.")
        interval = 100 if self.interval is None else self.interval
        alpha = (0.8 if mode == "wise" else 0.99) if self.alpha is None else self.alpha
        self.interval = as_size(interval, "interval")
        self.alpha = as_finite(alpha, "alpha", low=0, high=1)
        self.merged = 0
        """Snapshots merged in the running experience, or in the last one."""
        self.average: dict[str, Tensor] = {}
        self.start: dict[str, Tensor] = {}
        self._student: dict[str, Tensor] = {}

    # ------------------------------------------------------------- settings
    @property
    def _mixes(self) -> bool:
        return "wise" in self.mode and self.alpha < 1

    def teacher_kinds(self, strategy: Any) -> tuple[str, ...]:
        """Ask for the weights before the first experience, if they are needed."""
        return ("initial",) if self._mixes and self.anchor == "initial" else ()

    def check_compatible(self, strategy: Any) -> None:
        """Raise with early stopping; warn of batch norms."""
        for contract in strategy.contracts:
            if self.mode != "wise" and contract.chooses_weights:
                name = type(contract.wrapped).__name__
                raise ValueError(
                    f"WeightAveragingPlugin(mode={self.mode!r}) would replace the best "
                    f"weights that {name} loads by an average that goes on behind "
                    "them; leave one out, or use mode='wise'."
                )
        if any(_has_statistics(module) for module in strategy.model.modules()):
            warnings.warn(
                "The model has batch normalisation: its running statistics are those "
                "of the last step, not of the averaged weights. Freeze the tower, or "
                "recompute them before evaluation.",
                stacklevel=4,
            )

    # ---------------------------------------------------------------- hooks
    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Take the start, when all plugins have set the weights."""
        if strategy.clock.train_exp_iterations > 0:
            return
        self.merged = 0
        self.average, self.start = {}, {}
        if self.mode != "wise":
            self.average = clones(strategy.model, trainable=True)
        if self._mixes and self.anchor == "start":
            self.start = clones(strategy.model, trainable=True)

    @torch.no_grad()
    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Merge the weights into the average, each ``interval`` iterations."""
        if not self.average or strategy.clock.train_exp_iterations % self.interval:
            return
        self.merged += 1
        average, now = aligned(self.average, dict(strategy.model.named_parameters()))
        torch._foreach_lerp_(average, now, 1 / (self.merged + 1))
        if self._mixes:
            average, anchor = aligned(self.average, self._anchor(strategy))
            if average:
                torch._foreach_lerp_(average, anchor, 1 - self.alpha)

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Load the average in place."""
        ours = dict(strategy.model.named_parameters())
        if self.average:
            _load(ours, self.average)
        elif self.mode == "wise" and self._mixes:
            trained = {n: p for n, p in ours.items() if p.requires_grad}
            now, anchor = aligned(trained, self._anchor(strategy))
            if now and self.alpha == 0:
                torch._foreach_copy_(now, anchor)
            elif now:
                # From the anchor, so that frozen (equal) values stay as they are.
                mixed = torch._foreach_lerp(anchor, now, self.alpha)
                torch._foreach_copy_(now, mixed)
        self.average, self.start = {}, {}

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Inside an experience, show the average to the evaluation."""
        if self.average and self.score == "average" and not self._student:
            self._student = clones(strategy.model, trainable=True)
            _load(dict(strategy.model.named_parameters()), self.average)

    def after_eval(self, strategy: Any, **kwargs: Any) -> None:
        """Go on training with the student."""
        self.evaluation_failed(strategy)

    def evaluation_failed(self, strategy: Any) -> None:
        """Go on with the student too."""
        if self._student:
            _load(dict(strategy.model.named_parameters()), self._student)
            self._student = {}

    def _anchor(self, strategy: Any) -> dict[str, Tensor]:
        if self.anchor == "start":
            return self.start
        teacher = strategy.teachers.get("initial").model
        return dict(teacher.named_parameters())


def _has_statistics(module: nn.Module) -> bool:
    if getattr(module, "running_mean", None) is None:
        return False
    own = list(module.parameters(recurse=False))
    return not own or any(parameter.requires_grad for parameter in own)


@torch.no_grad()
def _load(parameters: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    torch._foreach_copy_([parameters[n] for n in values], list(values.values()))
