"""What the metrics of this room have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name


def metric_values(
    metric: Any,
    strategy: Any,
    values: Mapping[str, Any],
    full_name: Callable[[str], str] | None = None,
) -> list[MetricValue]:
    """Return values as Avalanche's loggers take them.

    :param metric: where they come from.
    :param strategy: its clock gives the step.
    :param values: by short name.
    :param full_name: makes the emitted name of a short one; default: the name of a
        value of the experience at hand.
    """
    full_name = full_name or (
        lambda name: get_metric_name(name, strategy, add_experience=True)
    )
    step = strategy.clock.train_iterations
    return [
        MetricValue(metric, full_name(name), value, step)
        for name, value in values.items()
    ]


def bare_model(strategy: Any) -> Any:
    """The model of a strategy, outside its wrapper for several processes."""
    return getattr(strategy.model, "module", strategy.model)
