"""Repairs of stock Avalanche plugins, made when a strategy uses one.

Checked against avalanche-lib 0.6.0.
"""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import EarlyStoppingPlugin, LRSchedulerPlugin
from torch import nn

from avalanche_clip.training.templates.watchers import (
    repair_early_stopping,
    repair_scheduler,
)


def repair_plugins(plugins: list[Any]) -> None:
    """Repair the classes of stock plugins that silently do nothing.

    :class:`SynapticIntelligencePlugin` keeps its "copies" of the weights as
    ``param.detach().cpu().flatten()``, which on the CPU are the weights
    themselves: they always equal the current ones, so that importances and
    penalty stay zero. Its method is replaced, on the class, by one that
    copies. Early stopping and schedulers watch values of other steps, see
    :mod:`avalanche_clip.training.templates.watchers`.
    """
    for plugin in plugins:
        for cls in type(plugin).__mro__:
            if cls.__name__ == "SynapticIntelligencePlugin":
                stock: Any = cls
                stock.extract_weights = staticmethod(_copy_weights)
            elif cls is EarlyStoppingPlugin:
                repair_early_stopping(cls)
            elif cls is LRSchedulerPlugin:
                repair_scheduler(cls)


@torch.no_grad()
def _copy_weights(
    model: nn.Module, target: dict[str, Any], excluded_parameters: set[str]
) -> None:
    from avalanche.training.plugins import SynapticIntelligencePlugin

    allowed = SynapticIntelligencePlugin.allowed_parameters(model, excluded_parameters)
    for name, parameter in allowed:
        target[name].data = parameter.detach().cpu().flatten().clone()
