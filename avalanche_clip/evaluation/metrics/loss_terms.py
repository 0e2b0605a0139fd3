"""Each term of the training loss, by name."""

from __future__ import annotations

from typing import Any

import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from avalanche_clip.evaluation.metrics._values import metric_values


class LossTermsMetric(PluginMetric[dict[str, float]]):
    """Mean of every term of the loss over an epoch, and what plugins tell.

    Terms are those of ``strategy.add_loss``, weights included: ``loss_criterion``
    is the method-free loss, ``loss_alignment`` that of Mod-X, and so on; the
    ratio of a term to the criterion is emitted as ``loss_alignment_ratio``. A
    :class:`MethodPlugin` may tell more numbers per step with its ``step_values``, a
    dict of names and scalars.

    Emitted after each training epoch as floats, named
    ``loss_alignment/train_phase/train_stream/Task000/Exp000``, and after each
    iteration on request. Sums stay on the device until then.

    :param iteration: whether to emit the values of every iteration too, which
        makes a GPU wait.
    """

    def __init__(self, *, iteration: bool = False) -> None:
        super().__init__()
        self.iteration = iteration
        self.reset()

    def reset(self) -> None:
        """Forget the sums."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def update(self, values: dict[str, Tensor]) -> None:
        """Add the values of one step.

        :param values: scalars by name.
        """
        for name, value in values.items():
            known = self._sums.get(name)
            value = value.detach().double()
            self._sums[name] = value if known is None else value + known.to(value)
            self._counts[name] = self._counts.get(name, 0) + 1

    def result(self) -> dict[str, float]:
        """Return the means since the last reset."""
        means = {
            name: float(total) / self._counts[name]
            for name, total in self._sums.items()
        }
        return means | _ratios(means)

    def before_training_epoch(self, strategy: Any) -> None:
        """Start anew."""
        self.reset()

    def after_training_iteration(self, strategy: Any) -> list[MetricValue]:
        """Add one step, and emit it on request."""
        values = _values(strategy)
        self.update(values)
        if not self.iteration:
            return []
        numbers = {name: float(value) for name, value in values.items()}
        numbers |= _ratios(numbers)
        named = {f"{name}_iteration": value for name, value in numbers.items()}
        return metric_values(self, strategy, named)

    def after_training_epoch(self, strategy: Any) -> list[MetricValue]:
        """Emit the means of the epoch."""
        return metric_values(self, strategy, self.result())

    def state_dict(self) -> dict[str, Any]:
        """Return the sums of the running epoch."""
        sums = {name: float(value) for name, value in self._sums.items()}
        return {"sums": sums, "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self._sums = {
            name: torch.tensor(value, dtype=torch.float64)
            for name, value in state["sums"].items()
        }
        self._counts = dict(state["counts"])

    def __str__(self) -> str:
        return "LossTerms"


def loss_term_metrics(*, iteration: bool = False) -> list[PluginMetric]:
    """Return the metric of the loss terms to hand to an ``EvaluationPlugin``.

    :param iteration: whether to emit the values of every iteration too.
    """
    return [LossTermsMetric(iteration=iteration)]


def _values(strategy: Any) -> dict[str, Tensor]:
    values = {f"loss_{name}": value for name, value in strategy.loss_terms.items()}
    for contract in strategy.contracts:
        values |= contract.step_values
    return values


def _ratios(values: dict[str, float]) -> dict[str, float]:
    whole = values.get("loss_criterion", 0.0)
    if not whole:
        return {}
    return {
        f"{name}_ratio": value / whole
        for name, value in values.items()
        if name.startswith("loss_") and name != "loss_criterion"
    }
