"""Stock metrics on image-text strategies: what they read, repaired or refused.

Checked against avalanche-lib 0.6.0. Metrics that count by class take ``mb_y`` for the
class and the columns of ``mb_output`` for all classes. Here both are positions: in
the label space, which may differ from experience to experience, or in the batch. They
are shown the global ids instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from avalanche.evaluation.metrics import Mean
from avalanche.evaluation.metrics.acc_matrix import AccuracyMatrixPluginMetric
from avalanche.evaluation.metrics.amca import AMCAPluginMetric
from avalanche.evaluation.metrics.class_accuracy import ClassAccuracyPluginMetric
from avalanche.evaluation.metrics.confusion_matrix import (
    StreamConfusionMatrix,
    WandBStreamConfusionMatrix,
)
from avalanche.evaluation.metrics.cumulative_accuracies import (
    CumulativeAccuracyPluginMetric,
    CumulativeForgettingPluginMetric,
)
from avalanche.evaluation.metrics.forgetting_bwt import GenericExperienceForgetting
from avalanche.evaluation.metrics.forward_transfer import (
    ForwardTransfer,
    GenericExperienceForwardTransfer,
)
from avalanche.evaluation.metrics.images_samples import ImagesSamplePlugin
from avalanche.evaluation.metrics.labels_repartition import LabelsRepartitionPlugin
from avalanche.evaluation.metrics.mac import MACPluginMetric
from avalanche.evaluation.metrics.mean_scores import (
    MeanNewOldScores,
    MeanScoresEvalPluginMetric,
    MeanScoresPluginMetricABC,
    MeanScoresTrainPluginMetric,
)
from avalanche.evaluation.metrics.topk_acc import TopkAccuracy
from torch import Tensor

from avalanche_clip.benchmarks.items.items import item_fields
from avalanche_clip.evaluation.metrics import LabelSpaceAccuracy
from avalanche_clip.training.templates.contract import repair_once
from avalanche_clip.training.templates.image_samples import sample_pictures

MAX_CLASSES = 2**16
"""Ids that metrics by class may have: they keep a row or column for each."""

_BY_CLASS: dict[Any, str] = {
    StreamConfusionMatrix: "after_eval_iteration",
    WandBStreamConfusionMatrix: "after_eval_iteration",
    ClassAccuracyPluginMetric: "update",
    AMCAPluginMetric: "update",
    MeanScoresPluginMetricABC: "update",
    CumulativeAccuracyPluginMetric: "update",
    CumulativeForgettingPluginMetric: "update",
    LabelsRepartitionPlugin: "update",
}
"""Metric class -> its method that reads ``mb_y`` and ``mb_output``."""


class ClassView:
    """A strategy whose ``mb_y`` and ``mb_output`` are by global class id.

    :param strategy: shows everything else.
    :param targets: class of each image, ``(B,)``.
    :param classes: class of each column, ``(C,)``; the best of the columns of one
        class counts.
    :param width: smallest number of classes to make columns for; without a column of
        its own a class has the score -inf.
    :raises ValueError: for negative ids, and for those of :data:`MAX_CLASSES` or more.
    """

    def __init__(self, strategy: Any, targets: Tensor, classes: Tensor, width: int = 0):
        self._strategy = strategy
        self.mb_y = targets
        scores = strategy.mb_output.detach()
        width = max(width, int(classes.max()) + 1)
        if int(classes.min()) < 0 or width > MAX_CLASSES:
            raise ValueError(
                f"The data have class ids from {int(classes.min())} to {width - 1}; "
                f"metrics by class keep a place for each from 0 to {MAX_CLASSES - 1}. "
                "Number the targets consecutively from 0, or leave these metrics out."
            )
        shape = (len(scores), width)
        self.mb_output = scores.new_full(shape, float("-inf")).scatter_reduce(
            1, classes.expand(len(scores), -1), scores, "amax"
        )

    def __getattr__(self, name: str) -> Any:
        return getattr(self._strategy, name)


# -------------------------------------------------------------------- checking
def check_metrics(strategy: Any) -> None:
    """Repair the metrics of a strategy, or raise for those that cannot work.

    :raises ValueError: naming the metric, the reason, and what to use.
    """
    repair_metrics(strategy.evaluator.metrics)
    for metric in strategy.evaluator.metrics:
        name = type(metric).__name__
        if isinstance(metric, LabelSpaceAccuracy) and strategy.reads_captions:
            raise ValueError(
                f"{name} needs classes, which {type(strategy).__name__} has none of; "
                "use retrieval_plugin_metrics, or a strategy on class names."
            )
        if isinstance(metric, MACPluginMetric):
            raise ValueError(
                f"{name} cannot be used with {type(strategy).__name__}: it counts one "
                "tensor through linear layers of two dimensions only. The cost is in "
                "strategy.compute.report(model.macs()) and in run_stream's results."
            )
        if isinstance(metric, GenericExperienceForwardTransfer):
            if strategy.eval_every < 0:
                raise ValueError(
                    f"{name} compares with the model before its first training, which "
                    f"is not evaluated with eval_every={strategy.eval_every}; build "
                    "the strategy with eval_every=0 or more."
                )


def check_classes(strategy: Any, datasets: Iterable[Any], mode: str) -> None:
    """Raise if a metric by class is to count data that have no classes.

    :param datasets: to be trained or evaluated.
    :param mode: ``"train"`` or ``"eval"``.
    :raises ValueError: naming the metric.
    """
    bare = any("targets" not in item_fields(dataset) for dataset in datasets)
    for metric in strategy.evaluator.metrics:
        if bare and isinstance(metric, tuple(_BY_CLASS)) and _mode(metric) == mode:
            raise ValueError(
                f"{type(metric).__name__} counts by class, but the data are pairs "
                "without targets: what is told apart are the captions of a batch. Give "
                "targets to make_image_text_dataset, leave the metric out, or use "
                "retrieval_plugin_metrics."
            )


def _mode(metric: Any) -> str:
    if isinstance(metric, MeanScoresTrainPluginMetric):
        return "train"
    return str(getattr(metric, "_mode", "eval"))


# --------------------------------------------------------------------- repairs
def repair_metrics(metrics: Iterable[Any]) -> None:
    """Repair the classes of stock metrics; other strategies see no difference."""
    for cls, name, new in _repairs():
        repair_once(cls, name, new)
    for metric in metrics:
        # Before a stored run fills them.
        if isinstance(metric, GenericExperienceForgetting):
            factory: Any = type(metric.forgetting)
            vars(metric).setdefault("by_stream", defaultdict(factory))
        elif isinstance(metric, GenericExperienceForwardTransfer):
            vars(metric).setdefault("by_stream", defaultdict(ForwardTransfer))
        elif isinstance(metric, AccuracyMatrixPluginMetric):
            vars(metric).setdefault("by_stream", {})


def _repairs() -> list[tuple[Any, str, Callable[..., Any]]]:
    """Class, method, and the new one, which is given the metric and the stock one."""
    return [
        *((cls, method, _by_class) for cls, method in _BY_CLASS.items()),
        (TopkAccuracy, "_compute_topk_acc", _topk),
        (ImagesSamplePlugin, "_load_data", _pictures),
        (AMCAPluginMetric, "before_eval", _amca_before_eval),
        (MeanScoresEvalPluginMetric, "before_eval", _scores_before_eval),
        (MeanNewOldScores, "result", _new_and_old),
        (AccuracyMatrixPluginMetric, "before_eval", _own_matrix),
        (AccuracyMatrixPluginMetric, "after_eval_exp", _row_of_training),
        (GenericExperienceForgetting, "before_eval", _own_forgetting),
        (GenericExperienceForwardTransfer, "before_eval", _own_transfer),
        (ForwardTransfer, "result_key", _transfer_of),
    ]


def _by_class(self: Any, stock: Any, strategy: Any) -> Any:
    view = getattr(strategy, "class_view", None)
    seen = getattr(self, "classes_seen_so_far", ())
    if view is None:  # a strategy of another package
        return stock(self, strategy)
    return stock(self, view(max(seen, default=-1) + 1))


def _topk(self: Any, stock: Any, pred: Tensor, gt: Tensor, top_k: int) -> Tensor:
    """Share of rows whose class is among the ``top_k`` best, or all if fewer."""
    scores, wanted = pred.reshape(-1, pred.shape[-1]), gt.reshape(-1, 1)
    best = scores.topk(min(top_k, scores.shape[1]), dim=1).indices
    return (best == wanted).any(dim=1).float().mean()


def _pictures(self: Any, stock: Any, strategy: Any) -> Any:
    if not hasattr(strategy, "class_view"):
        return stock(self, strategy)
    return sample_pictures(
        strategy, self.n_wanted_images, augmented=not self.disable_augmentations
    )


def _amca_before_eval(self: Any, stock: Any, strategy: Any) -> Any:
    # A training that was interrupted leaves the mark behind.
    self._is_training = getattr(strategy, "in_training", self._is_training)
    return stock(self, strategy)


def _scores_before_eval(self: Any, stock: Any, strategy: Any) -> Any:
    # Each evaluation counts its own samples; the new classes stay.
    self.mean_scores.label2mean = defaultdict(Mean)
    return stock(self, strategy)


def _new_and_old(self: Any, stock: Any) -> dict[str, float]:
    """Means of the categories that have samples; stock gives 0 for an empty one."""
    groups: dict[str, list[Mean]] = {"new": [], "old": []}
    for label, mean in self.label2mean.items():
        groups["new" if label in self.new_classes else "old"].append(mean)
    return {k: sum(v, start=Mean()).result() for k, v in groups.items() if v}


def _stream_of(strategy: Any) -> str:
    first = next(iter(strategy.current_eval_stream))
    return str(first.origin_stream.name)


def _own_matrix(self: Any, stock: Any, strategy: Any) -> Any:
    if hasattr(self, "by_stream"):
        self.matrix = self.by_stream.get(_stream_of(strategy), torch.zeros(1, 1))
        self._accuracy.reset()
    return stock(self, strategy)


def _row_of_training(self: Any, stock: Any, strategy: Any) -> Any:
    if self.num_training_steps is None:  # no row before the first training
        self._accuracy.reset()
        return None
    found = stock(self, strategy)
    if hasattr(self, "by_stream"):
        self.by_stream[_stream_of(strategy)] = self.matrix
    return found


def _own_forgetting(self: Any, stock: Any, strategy: Any) -> Any:
    # Experiences of different streams have the same numbers.
    if hasattr(self, "by_stream"):
        self.forgetting = self.by_stream[_stream_of(strategy)]
    return stock(self, strategy)


def _own_transfer(self: Any, stock: Any, strategy: Any) -> Any:
    if hasattr(self, "by_stream"):
        name = _stream_of(strategy)
        new = name not in self.by_stream
        self.forward_transfer = self.by_stream[name]
        self.at_init = new and self.train_exp_id is None
    return stock(self, strategy)


def _transfer_of(self: Any, stock: Any, k: int) -> float | None:
    """Transfer of an experience; None while one of the two values is missing."""
    if k in self.previous and k in self.initial:
        return float(self.previous[k] - self.initial[k])
    return None
