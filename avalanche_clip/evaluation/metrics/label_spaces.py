"""Accuracy of class names in both label spaces: with the step known, and without."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from torch import Tensor

from avalanche_clip.evaluation.metrics._values import metric_values

SPACES = ("own", "seen")
"""Label spaces of ``accuracy_own`` and ``accuracy_seen``."""


class LabelSpaceAccuracy(PluginMetric[dict[str, float]]):
    """Share of images whose class has the highest score, in two label spaces.

    ``accuracy_own`` is task-aware: among the classes of the evaluated experience.
    ``accuracy_seen`` is task-agnostic: among these and all that were trained on. They
    are what ``Top1_Acc_Exp`` would be with ``eval_label_space`` ``"own"`` and
    ``"seen"``, whatever it is; ties go to the lowest class id.

    Emitted for each experience as a float in [0, 1], named
    ``accuracy_own/eval_phase/test_stream/Task000/Exp000``. Images are encoded once;
    classes that the strategy's label space lacks are encoded too.

    Chaudhry et al., ECCV 2018 (arXiv 1801.10112) compare the two as multi-head and
    single-head evaluation.
    """

    stateless = True
    """Checkpoints hold nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.chance: dict[str, float] = {}
        """What guessing would score on the last experience."""
        self.reset()

    def reset(self) -> None:
        """Forget the images counted so far."""
        self._right: dict[str, int | Tensor] = dict.fromkeys(SPACES, 0)
        self._count = 0

    def result(self) -> dict[str, float]:
        """Return both accuracies; nothing before the first image."""
        if not self._count:
            return {}
        return {f"accuracy_{k}": int(n) / self._count for k, n in self._right.items()}

    def before_eval_exp(self, strategy: Any) -> None:
        """Start anew."""
        self.reset()

    def after_eval_iteration(self, strategy: Any) -> None:
        """Count the batch."""
        for space in SPACES:
            logits, classes = strategy.logits_among(space)
            right = classes[logits.argmax(dim=1)] == strategy.mb_targets
            self._right[space] = self._right[space] + right.sum()
            self.chance[f"accuracy_{space}"] = 1 / len(classes)
        self._count += len(strategy.mb_targets)

    def after_eval_exp(self, strategy: Any) -> list[MetricValue]:
        """Emit the accuracies of the experience."""
        return metric_values(self, strategy, self.result())

    def __str__(self) -> str:
        return "LabelSpaceAccuracy"


def label_space_metrics() -> list[PluginMetric]:
    """Return the metric of both label spaces to hand to an ``EvaluationPlugin``.

    Runs on class names (:func:`run_stream`) have it without that.
    """
    return [LabelSpaceAccuracy()]


@contextmanager
def both_spaces(strategy: Any) -> Iterator[None]:
    """Measure both label spaces in a ``with`` block, if there are class names.

    :param strategy: its evaluator may have the metric already.
    """
    metrics = strategy.evaluator.metrics
    known = any(isinstance(metric, LabelSpaceAccuracy) for metric in metrics)
    added = [] if known or strategy.reads_captions else label_space_metrics()
    metrics.extend(added)
    try:
        yield
    finally:
        metrics[:] = [m for m in metrics if all(m is not one for one in added)]
