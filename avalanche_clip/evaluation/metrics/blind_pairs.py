"""Blind pairs of a continual run, as a metric of Avalanche."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name

from avalanche_clip.common.checks import require_distinct
from avalanche_clip.evaluation.metrics._values import bare_model, metric_values
from avalanche_clip.evaluation.suites.blind_pairs import BlindPairsSuite


class BlindPairsMetric(PluginMetric[dict[str, list[float]]]):
    """Follow which pairs of fixed images become blind and which recover.

    For strategies that are trained without :func:`run_stream`, which takes the suite
    of this metric itself: :class:`BlindPairsSuite
    <avalanche_clip.evaluation.suites.blind_pairs.BlindPairsSuite>`. It is evaluated
    before the first training experience and after each, in full precision; its values
    are emitted after each, named ``BlindPairs/born_count/train_phase/train_stream``.

    :param images: see the suite.
    :param reference: see there.
    :param name: first part of the emitted names, without ``/``.
    :param options: see there.
    """

    in_results = True
    """Whether :func:`run_stream` writes :meth:`result` into ``results.json``."""

    def __init__(
        self,
        images: Sequence[Any],
        reference: Any,
        *,
        name: str = "BlindPairs",
        **options: Any,
    ):
        super().__init__()
        if not name or "/" in name:
            raise ValueError(f"name={name!r} must be a word without '/'.")
        self.suite = BlindPairsSuite(images, reference, name=name, **options)
        self.reset()

    def reset(self) -> None:
        """Forget all results; the next training starts anew."""
        self.load_state_dict({"rows": [], "suite": {}})

    def result(self) -> dict[str, list[float]]:
        """Return name -> value before the stream and after each experience."""
        names = self.rows[0] if self.rows else ()
        return {name: [row[name] for row in self.rows] for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Return results and pairs as plain data."""
        return {"rows": list(self.rows), "suite": self.suite.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.suite.load_state_dict(state["suite"])
        self.rows: list[dict[str, float]] = list(state["rows"])
        """Values before the stream and after each experience."""

    def before_training(self, strategy: Any) -> None:
        """Find the pairs of the model before the stream, once."""
        names = [str(metric) for metric in strategy.evaluator.metrics]
        require_distinct([n for n in names if n == str(self)], "names of metrics")
        if not self.rows:
            self.suite.check(bare_model(strategy))
            self._evaluate(strategy)

    def after_training_exp(self, strategy: Any) -> list[MetricValue]:
        """Find the pairs again and emit what became of them."""
        named = {
            get_metric_name(f"{self}/{key}", strategy, add_task=False): value
            for key, value in self._evaluate(strategy).items()
        }
        return metric_values(self, strategy, named, str)

    def _evaluate(self, strategy: Any) -> dict[str, float]:
        model = bare_model(strategy)
        features = model.features
        self.rows += self.suite.evaluate(model, device=strategy.device).values()
        model.features = features
        return self.rows[-1]

    def __str__(self) -> str:
        return self.suite.name
