"""A constant trunk with a decayed branch per step to deploy.

Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226), appendix: warm up
once, keep the learning rate constant over all steps, and decay it only on a
branch; the next step continues from the trunk. The share of decay iterations
is that of the released parameter files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from avalanche_clip.common.checks import as_finite
from avalanche_clip.common.grown import clones, overlay
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.plan import trunk_steps


class ConstantCosinePlugin(MethodPlugin, supports_distributed=True):
    """Decay at the end of each experience, then go on from before the decay.

    The last ``decay_fraction`` of an experience's iterations are the branch;
    what is evaluated and deployed are its weights. What a model has grown
    since the trunk was kept stays as it is. Memory: one copy of the
    weights and of the optimiser state. Needs ``schedule="const-cosine"``.

    :param decay_fraction: share of the branch, in ``(0, 1)``.
    """

    state_attributes = ("trunk",)
    keeps_per_weight_state = False
    reads_weights_in_steps = True
    starts_elsewhere = True
    excludes = {
        "starts_fresh": (
            "continues from the trunk, but {} starts each step from fresh weights"
        )
    }

    def __init__(self, decay_fraction: float = 0.2):
        super().__init__()
        as_finite(decay_fraction, "decay_fraction", above=0, below=1)
        self.decay_fraction = decay_fraction
        self.trunk: dict[str, Any] | None = None

    def check_compatible(self, strategy: Any) -> None:
        """Raise without the schedule; pass on the fraction."""
        if strategy.schedule != "const-cosine":
            raise ValueError(
                f"ConstantCosinePlugin needs schedule='const-cosine', got "
                f"{strategy.schedule!r}."
            )
        strategy.decay_fraction = self.decay_fraction

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Go back to the trunk that the previous experience left."""
        if self.trunk is not None:
            _put_back(strategy.model, self.trunk["model"])
            strategy.load_optimizer_state(self.trunk["optimizer"])
            # An experience that stops before its decay leaves no trunk of its own.
            self.trunk = None

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the trunk when the branch begins."""
        first = trunk_steps(strategy.planned_iterations, self.decay_fraction)
        if strategy.clock.train_exp_iterations == first:
            self.trunk = {
                "model": clones(strategy.model),
                "optimizer": strategy.optimizer_state(),
            }


def _put_back(model: nn.Module, trunk: dict[str, torch.Tensor]) -> None:
    """Load the trunk; rows that have grown since stay as they are."""
    weights = model.state_dict()
    for name, old in trunk.items():
        if name in weights and weights[name].dim() == old.dim():
            weights[name] = overlay(weights[name], old)
    model.load_state_dict(weights)
