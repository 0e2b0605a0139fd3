"""Weight consolidation: pull the weights to those of the experience's start.

Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628) and their code, which
builds a graph over every parameter for it. Here the gradient is added after the
backward pass, which is the same in exact arithmetic and keeps no graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import as_finite
from avalanche_clip.common.grown import clones
from avalanche_clip.training.templates.contract import MethodPlugin


class WeightConsolidationPlugin(MethodPlugin, supports_distributed=True):
    """Add ``weight * sum_p (theta_p - start_p)^2`` to the loss.

    The sum (not a mean) runs over the trainable parameters of the model (what losses
    train beside it, such as a projector, is not pulled); ``start`` are
    their values before the first step of the experience, so both value and
    gradient are zero there. The gradient ``2 * weight * (theta - start)`` is
    added in place after the backward pass: unscaled in mixed precision,
    averaged over processes, and not yet clipped. The value is in
    ``strategy.loss_terms["consolidation"]`` and in the reported loss.

    Memory: one copy of the trainable weights, and a temporary one per step.
    Time: a few reads of the weights per step.

    :param weight: ``>= 0``; 0 turns the method off exactly.
    :raises ValueError: for a negative weight; together with
        :class:`RestartPlugin`, whose start has learned nothing.
    """

    state_attributes = ("start",)
    keeps_per_weight_state = True
    reads_weights_in_steps = True

    def __init__(self, weight: float = 1.0):
        super().__init__()
        as_finite(weight, "weight", low=0)
        self.weight = weight
        self.start: dict[str, Tensor] = {}
        """Weights at the start of the running experience, else empty."""

    @property
    def excludes(self) -> dict[str, str]:  # type: ignore[override]
        """Plugins that begin each step anew."""
        why = "pulls weights to where the step began, but {} begins each one anew"
        return {"starts_fresh": why} if self.weight > 0 else {}

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Keep the weights before the first step, when all plugins have set them."""
        if self.weight > 0 and strategy.clock.train_exp_iterations == 0:
            self.start = clones(strategy.model, trainable=True)

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Add the gradient of the term, and report its value."""
        if not self.start:
            return
        value = add_consolidation_gradient(strategy.model, self.start, self.weight)
        known = strategy.loss_terms.get("consolidation", 0.0)
        strategy.loss_terms["consolidation"] = known + value
        strategy.loss = strategy.loss + value

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Let go of the start."""
        self.start = {}


@torch.no_grad()
def add_consolidation_gradient(
    model: nn.Module, start: dict[str, Tensor], weight: float
) -> Tensor:
    """Add the gradient of ``weight * sum (theta - start)^2`` in place.

    :param model: parameters that are frozen, or not in ``start``, are left
        alone; those without a gradient get one.
    :param start: weights to pull to, by name, of the parameters' shapes.
    :param weight: factor of the sum of squares.
    :return: value of the term, a scalar on the parameters' device; nothing
        waits for it.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> start = {"weight": model.weight.detach() - 3.0}
    >>> value = add_consolidation_gradient(model, start, 0.5)
    >>> round(value.item(), 4), round(model.weight.grad.item(), 4)
    (4.5, 3.0)
    """
    found = [
        (parameter, start[name])
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and name in start
    ]
    if not found:
        return torch.zeros((), device=next(model.parameters()).device)
    parameters: list[Any] = [parameter for parameter, _ in found]
    change = torch._foreach_sub(parameters, [value for _, value in found])
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients: list[Any] = [parameter.grad for parameter in parameters]
    torch._foreach_add_(gradients, change, alpha=2 * weight)
    norms = torch.stack([norm.to(change[0]) for norm in torch._foreach_norm(change)])
    return weight * norms.square().sum()
