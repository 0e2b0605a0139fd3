"""Stop an experience when validation data say so, and keep its best epoch.

Prechelt, "Early stopping - but when?", Neural Networks: Tricks of the Trade, 1998.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from avalanche.training.templates.base_sgd import PeriodicEval
from torch import Tensor

from avalanche_clip import distributed
from avalanche_clip.benchmarks.streams.merged import counterparts
from avalanche_clip.common.checks import (
    as_finite,
    as_size,
    did_you_mean,
    require_type,
)
from avalanche_clip.models import ExpandableTokenEmbedding
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.watchers import (
    index_of,
    require_measured,
    step_value,
    stream_of,
)

_LOWER = re.compile("loss|error|rank|forgetting|perplexity|tie_share|disorder", re.I)
"""In the names of metrics whose lowest value is the best."""


class EpochChoice(MethodPlugin, supports_distributed=True):
    """Scores the epochs of an experience on its own validation data, and keeps one.

    These are the experiences of the validation stream in the languages of the running
    experience, or of the same index where experiences name none.

    :param validation: name of the stream.
    """

    only_one = True
    state_attributes = ("_best", "_factors")
    keeps_per_weight_state = False
    excludes = {
        "chooses_weights": "chooses the weights that end an experience, and so does {}"
    }
    sign = 1.0
    """-1 where the lowest score is the best."""
    margin = 0.0
    """By how much a score must be better to count as such."""
    restores = True
    """Whether the best weights end the experience."""
    waits = math.inf
    """Epochs without a better score after which the experience ends."""

    def __init__(self, validation: str = "valid"):
        super().__init__()
        self.validation = validation
        self.chosen: list[int] = []
        """Best epoch of each finished experience, counted from 0; epochs without an
        iteration, of a small budget, do not count."""
        self.scores: list[float] = []
        """Scores of the epochs of the running experience."""
        self._best: dict[str, Tensor] = {}
        self._factors: dict[str, float] = {}

    @property
    def chooses_weights(self) -> bool:  # type: ignore[override]
        """Unless the newest weights are kept."""
        return self.restores

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Start anew; missing data are reported before training."""
        self._forget()
        if strategy.train_epochs > 1:
            self._data(strategy)

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Measure the epoch, unless a small budget left it without an iteration."""
        if strategy.train_epochs > 1 and strategy.clock.train_epoch_iterations:
            self._measure(strategy)

    def _measure(self, strategy: Any) -> None:
        """Have :meth:`_decide` called with the score of the epoch."""
        raise NotImplementedError

    @property
    def best(self) -> int:
        """Epoch of the running experience that is the best so far."""
        found = 0
        for epoch, score in enumerate(self.scores):
            gain = self.sign * (score - self.scores[found])
            if gain > self.margin or (math.isnan(gain) and not math.isnan(score)):
                found = epoch
        return found

    def _decide(self, strategy: Any, score: float) -> None:
        """Keep the weights, stop, or put the best ones back at the end."""
        self.scores.append(float(distributed.broadcast_object(score)))
        last, best = len(self.scores) - 1, self.best
        if self.restores and best == last:
            moving = _moving(strategy.model)
            self._best = {name: value.detach().clone() for name, value in moving}
            self._factors = _factors(strategy.model)
        over = strategy.clock.train_exp_epochs + 1 == strategy.train_epochs
        if over or last - best >= self.waits:
            self._restore(strategy.model)
            self._best = {}  # what others close the experience with stays
            if not over:
                strategy.stop_training()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Note the epoch; put its weights back if others have stopped training."""
        self._restore(strategy.model)
        self.chosen.append(self.best)
        self._forget()

    def _forget(self) -> None:
        self.scores, self._best, self._factors = [], {}, {}

    @torch.no_grad()
    def _restore(self, model: torch.nn.Module) -> None:
        if not self._best:
            return
        for name, value in _moving(model):
            value.copy_(self._best[name])
        for name, factor in self._factors.items():
            module: Any = model.get_submodule(name)
            module.factor = factor

    # ----------------------------------------------------------- validation
    def _data(self, strategy: Any) -> list[Any]:
        """Validation data of the running experience."""
        return [e.dataset for e in self._experiences(strategy)]

    def _experiences(self, strategy: Any) -> list[Any]:
        return self._found(strategy.experience.logging())

    def _found(self, experience: Any) -> list[Any]:
        name = type(self).__name__
        streams = getattr(experience.origin_stream.benchmark, "streams", {})
        if self.validation not in streams:
            raise ValueError(
                f"{name} chooses on stream {self.validation!r}, but the "
                f"benchmark has {sorted(streams)}; make one with validation=True or "
                f"split_validation.{did_you_mean(self.validation, streams)}"
            )
        stream = list(streams[self.validation])
        languages = set(getattr(experience, "languages", ()))
        found = [e for e in stream if languages & set(getattr(e, "languages", ()))]
        if not languages:
            found = counterparts(experience, stream)
        if not found:
            raise ValueError(
                f"Stream {self.validation!r} has no data for experience "
                f"{index_of(experience)}; give it one experience per step or "
                "language."
            )
        return found


class EarlyStopping(EpochChoice, supports_distributed=True):
    """End an experience when a metric on its own validation data stops getting better.

    After each epoch the experience's part of stream ``"valid"``
    (:func:`split_validation` makes one) is evaluated with the strategy's metrics, on
    pairs as on class names; where ``eval_every=1`` evaluates it anyway, that
    evaluation counts. The score is the value of ``metric``, the mean over the
    experiences where several belong to the step. The highest is the best; of losses,
    errors, ranks, tie shares, disorder, perplexity and forgetting, by their name, the
    lowest. NaN is worse than any number.

    With a budget an epoch is one of the ``train_epochs`` equal parts that it is cut
    into. A run that is resumed decides as if it had not been interrupted.

    Memory: a copy of what is trained, and of the buffers. Time: a pass over the
    validation data per epoch, booked as ``"search"``.

    :param metric: name of a metric that the strategy's evaluator measures, without
        phase, stream and experience: ``"mean_R@1"``, ``"Top1_Acc_Exp"``,
        ``"Loss_Exp"``.
    :param patience: epochs in a row without a better score after which the experience
        ends, at least 1.
    :param min_delta: by how much a score must exceed the best one to be better, at
        least 0. Smaller gains count neither for patience nor as the best epoch.
    :param restore_best: end the experience with the weights of its best epoch (of
        equal ones the first), before other plugins close it; else with the newest.
    :raises ValueError: for values outside their ranges; if the strategy trains one
        epoch per experience, so that there is nothing to choose; before training if
        the evaluator has no such metric, or a step no validation data.

    >>> stop = EarlyStopping("mean_R@1", patience=2)
    >>> stop.patience, stop.restore_best
    (2, True)
    """

    def __init__(
        self,
        metric: str,
        patience: int,
        min_delta: float = 0.0,
        restore_best: bool = True,
    ):
        super().__init__()
        require_type(metric, str, "metric", "the name of a metric")
        require_type(restore_best, bool, "restore_best", "True or False")
        self.metric = metric
        self.patience = as_size(patience, "patience")
        self.min_delta = as_finite(min_delta, "min_delta", low=0)
        self.restore_best = restore_best
        self._asked = False
        """Whether the next value of the step is that of an epoch."""

    @property
    def sign(self) -> float:  # type: ignore[override]
        """-1 for metrics whose lowest value is the best."""
        return -1.0 if _LOWER.search(self.metric) else 1.0

    @property
    def margin(self) -> float:  # type: ignore[override]
        """See ``min_delta``."""
        return self.min_delta

    @property
    def restores(self) -> bool:  # type: ignore[override]
        """See ``restore_best``."""
        return self.restore_best

    @property
    def waits(self) -> int:  # type: ignore[override]
        """See ``patience``."""
        return self.patience

    @property
    def what(self) -> str:
        """The plugin and what it watches, for messages."""
        name = type(self).__name__
        return f"{name} watches metric {self.metric!r} of stream {self.validation!r}"

    # --------------------------------------------------------------- checks
    def check_compatible(self, strategy: Any) -> None:
        """Raise where it can never act."""
        given = vars(strategy)["train_epochs"]
        epochs = max(given) if isinstance(given, Sequence) else given
        if epochs < 2:
            raise ValueError(
                f"{type(self).__name__} chooses among the epochs of an experience, but "
                "train_epochs=1; give more (with a budget the number of equal parts "
                "it is cut into), or leave it out."
            )
        if not self.restore_best and self.patience >= epochs - 1:
            raise ValueError(
                f"With patience={self.patience}, {epochs} epochs and "
                f"restore_best=False {type(self).__name__} can never act; choose a "
                f"patience below {epochs - 1}, or restore_best=True."
            )

    def check_benchmark(self, benchmark: Any) -> None:
        """Raise if a step has no validation data."""
        for experience in benchmark.train_stream:
            self._found(experience)

    def check_evaluations(self, strategy: Any, streams: Sequence[str]) -> None:
        """Raise if the metric is not measured, where that can be known."""
        require_measured(strategy, self.metric, self.what)

    # ------------------------------------------------------------ measuring
    def _forget(self) -> None:
        super()._forget()
        self._asked = False

    def _measure(self, strategy: Any) -> None:
        self._asked = True
        own = self._experiences(strategy)
        if _evaluated_anyway(strategy, own):
            return
        strategy.evaluates_for = "search"
        try:
            strategy.eval(own)
        finally:
            strategy.evaluates_for = None

    def note_values(
        self,
        strategy: Any,
        experience: Any,
        group: Sequence[Any],
        values: Mapping[str, Any],
    ) -> None:
        """Decide when the epoch's value has come."""
        if not self._asked or stream_of(group) != self.validation:
            return
        self._asked = False
        found = [
            step_value(values, self.metric, part, what=self.what)
            for part in self._found(experience.logging())
        ]
        self._decide(strategy, sum(found) / len(found))

    def evaluation_failed(self, strategy: Any) -> None:
        """Wait for no value."""
        self._asked = False


def _evaluated_anyway(strategy: Any, own: Sequence[Any]) -> bool:
    """Whether the strategy evaluates some experiences after the running epoch."""
    for plugin in strategy.plugins:
        if not isinstance(plugin, PeriodicEval) or plugin.peval_mode != "epoch":
            continue
        number = strategy.clock.train_exp_epochs
        if plugin.eval_every > 0 and number % plugin.eval_every == 0:
            for group in strategy._eval_streams:
                known = {id(e.dataset) for e in group}
                if stream_of(group) == stream_of(own):
                    return all(id(e.dataset) in known for e in own)
    return False


def _moving(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters that are trained, and buffers."""
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [*named, *model.named_buffers()]


def _factors(model: torch.nn.Module) -> dict[str, float]:
    """Decay that growing token tables have not applied yet, by module."""
    return {
        name: float(module.factor)
        for name, module in model.named_modules()
        if isinstance(module, ExpandableTokenEmbedding)
    }
