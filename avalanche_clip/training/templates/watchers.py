"""Stock plugins that watch values of evaluations in training, made to act or refused.

Checked against avalanche-lib 0.6.0, whose early stopping takes the newest value of
any experience, and whose scheduler the loss of whatever was evaluated first. Here a
value belongs to a step if it was measured on the experience of the same index of the
watched stream, in an evaluation made while the step is trained, the one before its
first epoch included.
"""

from __future__ import annotations

import logging
import math
import re
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from avalanche.evaluation import GenericPluginMetric
from avalanche.training.plugins import EarlyStoppingPlugin, LRSchedulerPlugin
from avalanche.training.templates.base_sgd import PeriodicEval

from avalanche_clip.common.checks import did_you_mean
from avalanche_clip.evaluation.functional import retrieval_metrics
from avalanche_clip.evaluation.metrics import RetrievalMetric
from avalanche_clip.training.templates.contract import PluginContract, repair_once

logger = logging.getLogger(__name__)

_REST = re.compile(r"(?:/Task(?P<task>\d+))?(?:/Exp(?P<exp>\d+))?")


def validates(strategy: Any, benchmark: Any) -> bool:
    """Whether a whole run evaluates each step on its part of stream ``valid``."""
    return bool(strategy.eval_every >= 0 and "valid" in benchmark.streams)


def check_run(strategy: Any, benchmark: Any) -> None:
    """Raise if what a whole run evaluates in training fits neither data nor plugins.

    :raises ValueError: if a watching plugin can never act, or if stream ``valid`` is
        shorter than the training stream.
    """
    strategy.check_setup()
    given = validates(strategy, benchmark)
    for contract in strategy.contracts:
        contract.check_evaluations(strategy, ["valid"] if given else [])
    steps = len(benchmark.train_stream)
    strategy.plan.check_stream(steps)
    if given and len(benchmark.streams["valid"]) < steps:
        raise ValueError(
            f"eval_every={strategy.eval_every} evaluates each step on its own part of "
            f"stream 'valid', which has {len(benchmark.streams['valid'])} experiences "
            f"for {steps} steps; give it one per step, or use eval_every=-1."
        )
    if strategy.eval_every >= 0 and not given:
        logger.warning(
            "eval_every=%d has no effect: the benchmark has no stream 'valid' to "
            "evaluate in training (split_validation makes one).",
            strategy.eval_every,
        )


class _Watcher(PluginContract):
    """A plugin that acts on evaluations in training."""

    what: Any
    """The plugin and what it watches, for messages."""
    watches: Any = True
    """Whether it watches anything."""
    ends: Any = False
    """Whether it also acts on an evaluation at the end of an experience."""

    def __init__(self, plugin: Any):
        super().__init__(plugin)
        for cls, name, new in _REPAIRS:
            repair_once(cls, name, new)

    def check_evaluations(self, strategy: Any, streams: Sequence[str]) -> None:
        """Raise where none is made, or not in time."""
        if not self.watches:
            return
        periodic = [p for p in strategy.plugins if isinstance(p, PeriodicEval)]
        every = periodic[0].eval_every if periodic else strategy.eval_every
        mode = periodic[0].peval_mode if periodic else "epoch"
        if every < 0 or (not self.ends and (every == 0 or mode == "experience")):
            raise ValueError(
                f"{self.what}, but with eval_every={every} and peval_mode={mode!r} "
                "none is made between the epochs of an experience, so that it can "
                "never act; build the strategy with eval_every=1, or leave the plugin "
                "out."
            )
        if not streams:
            raise ValueError(
                f"{self.what}, but nothing is evaluated in training: give eval_streams "
                "to train(), or to run_stream a benchmark with a stream 'valid' "
                "(split_validation makes one)."
            )

    def _streams(self, visited: Mapping[str, Any]) -> Sequence[str]:
        """Names of the streams that it watches."""
        return list(visited)

    def check_step(
        self, strategy: Any, experience: Any, groups: Sequence[Sequence[Any]]
    ) -> None:
        """Raise if the running experience has no counterpart in a watched stream."""
        index = index_of(experience)
        visited = {stream_of(g): [index_of(e) for e in g] for g in groups if g}
        seen = any(index in visited.get(n, ()) for n in self._streams(visited))
        if self.watches and not seen:
            raise ValueError(
                f"{self.what}, but experience {index} of it is not evaluated while "
                f"step {index} is trained (there are {visited}), so that it can never "
                "act there; give the experience with the index of the step as "
                "eval_streams to train()."
            )
        for group in groups if self.watches and hasattr(experience, "merged") else ():
            watched = stream_of(group) in self._streams(visited) and len(group) > 1
            if watched and len(experience.merged) > 1:
                raise ValueError(
                    f"{self.what}, and would read the value of its first experience "
                    "alone, but the step that is trained is the union of "
                    f"{len(experience.merged)}; give merge_experiences(stream) as "
                    "eval_streams to train()."
                )


class SchedulerContract(_Watcher):
    """A scheduler's, by validation loss or not."""

    keeps_per_weight_state = False  # type: ignore[assignment]
    sets_learning_rate = True

    @property
    def what(self) -> str:
        """The plugin and what it watches."""
        name = type(self.wrapped).__name__
        return f"{name}(metric='val_loss') watches the loss of evaluations in training"

    @property
    def watches(self) -> bool:
        """Whether it watches anything."""
        return bool(self.wrapped.metric == "val_loss")

    @property
    def ends(self) -> bool:
        """It also steps at the end, which counts if it is not reset there."""
        return not self.wrapped.reset_scheduler

    def check_evaluations(self, strategy: Any, streams: Sequence[str]) -> None:
        """Raise for another optimiser's scheduler; see :class:`_Watcher`."""
        own = getattr(self.wrapped.scheduler, "optimizer", strategy.optimizer)
        if own is not strategy.optimizer:
            raise ValueError(
                f"The scheduler of {type(self.wrapped).__name__} belongs to another "
                "optimiser than the strategy's, whose learning rate it would never "
                "change. Build the scheduler with the optimiser object that is given "
                "to the strategy."
            )
        super().check_evaluations(strategy, streams)

    def check_extension(self, strategy: Any, steps: int) -> None:
        """Raise if one schedule goes over the whole stream."""
        if not self.wrapped.reset_scheduler:
            raise ValueError(
                f"{type(self.wrapped).__name__}(reset_scheduler=False) has one "
                f"schedule over the whole stream, planned for {steps} steps. Use "
                "reset_scheduler=True, or start another run in another folder."
            )

    def evaluation_failed(self, strategy: Any) -> None:
        """Forget what a failed evaluation has measured."""
        if self.watches:
            self.wrapped.rolling_metric.reset()


class EarlyStoppingContract(_Watcher):
    """Stock early stopping's, which is told the values of the running step."""

    chooses_weights = True  # type: ignore[assignment]

    @property
    def stream(self) -> str:
        """Name of the stream whose values it reads."""
        return str(self.wrapped.val_stream_name).split("/")[0].removesuffix("_stream")

    @property
    def what(self) -> str:
        """The plugin and what it watches."""
        return (
            f"{type(self.wrapped).__name__} watches metric "
            f"{self.wrapped.metric_name!r} of stream {self.stream!r}"
        )

    def check_evaluations(self, strategy: Any, streams: Sequence[str]) -> None:
        """Raise also without the stream, or the metric where that can be known."""
        super().check_evaluations(strategy, streams)
        if self.stream not in streams:
            raise ValueError(
                f"{self.what}, which is not evaluated in training: that are "
                f"{sorted(streams)}. Give its experiences as eval_streams to train(), "
                "or watch one of these (run_stream evaluates 'valid' alone)."
                f"{did_you_mean(self.stream, streams)}"
            )
        require_measured(strategy, self.wrapped.metric_name, self.what)

    def _streams(self, visited: Mapping[str, Any]) -> Sequence[str]:
        return [self.stream]

    def forget_values(self) -> None:
        """Forget what was measured for another step."""
        self.wrapped.own_value = None

    def note_values(
        self,
        strategy: Any,
        experience: Any,
        group: Sequence[Any],
        values: Mapping[str, Any],
    ) -> None:
        """Take the value that belongs to the step that is trained."""
        index = index_of(experience)
        own = next((e for e in group if index_of(e) == index), None)
        if own is not None and self.stream == stream_of(group):
            rest = "".join(str(self.wrapped.val_stream_name).partition("/")[1:])
            name = self.wrapped.metric_name
            found = step_value(values, name, own, what=self.what, rest=rest)
            self.wrapped.own_value = found


def require_measured(strategy: Any, metric: str, what: str) -> None:
    """Raise if the evaluator has no such metric in evaluations.

    :param metric: name without phase, stream and experience.
    :param what: the plugin and what it watches, for the message.
    :raises ValueError: unless there are metrics whose names are not known before.
    """
    found = [_emitted(metric) for metric in strategy.evaluator.metrics]
    names = sorted({n for some in found if some is not None for n in some})
    if None not in found and metric not in names:
        raise ValueError(_no_metric(metric, names, what))


def _no_metric(metric: str, names: Sequence[str], what: str) -> str:
    return (
        f"{what}, but the strategy's evaluator measures no such metric in "
        f"evaluations: there are {list(names)}. Put it into the EvaluationPlugin, "
        f"or watch one of these.{did_you_mean(metric, names)}"
    )


def step_value(
    values: Mapping[str, Any],
    metric: str,
    experience: Any,
    *,
    what: str,
    rest: str = "",
) -> float:
    """Value of a metric that belongs to one experience.

    :param values: what an evaluation of its stream measured, by name.
    :param metric: name without phase, stream and experience.
    :param experience: that was evaluated.
    :param what: the plugin and what it watches, for messages.
    :param rest: how the name goes on behind the stream (``"/Task001"``).
    :raises ValueError: if there is none, or several.
    """
    index = index_of(experience)
    start = f"{metric}/eval_phase/{experience.origin_stream.name}_stream"
    found = {}
    for name, value in values.items():
        place = name.removeprefix(start)
        match = _REST.fullmatch(place)
        known = name.startswith(start) and match and place.startswith(rest)
        if match and known and isinstance(value, (int, float)):
            found[match["task"], match["exp"]] = float(value)
    # Measured on the experience alone, else on the stream that it is a part of.
    mine = {k: v for k, v in found.items() if k[1] and int(k[1]) == index}
    mine = mine or {k: v for k, v in found.items() if k[1] is None}
    tasks = {int(t) for t in getattr(experience, "task_labels", ())}
    if len(mine) > 1:
        mine = {k: v for k, v in mine.items() if k[0] and int(k[0]) in tasks}
    if len(mine) > 1:
        raise ValueError(
            f"{what}, of which there are several values for experience {index}, one "
            f"per task ({sorted(str(k[0]) for k in mine)}); name one as "
            "val_stream_name='<stream>_stream/Task<number>'."
        )
    if not mine:
        parts = [name.partition("/eval_phase/") for name in values]
        names = sorted({n for n, at, _ in parts if at})
        raise ValueError(_no_metric(metric, names, what))
    return next(iter(mine.values()))


def index_of(experience: Any) -> int:
    """Place of an experience in its stream."""
    return int(experience.logging().current_experience)


def stream_of(group: Sequence[Any]) -> str:
    """Name of the stream of some experiences."""
    return str(group[0].origin_stream.name)


def _emitted(metric: Any) -> set[str] | None:
    """Names that a metric has in evaluations; None if they cannot be known."""
    if isinstance(metric, RetrievalMetric):
        return set(retrieval_metrics(torch.eye(1), torch.eye(1), ks=metric.ks))
    stock: Any = GenericPluginMetric
    packages: Any = type(metric)
    if not isinstance(metric, stock):
        return None
    if packages._package_result is not stock._package_result:
        return None
    return {str(metric)} if metric._mode == "eval" else set()


# --------------------------------------------------------------------- repairs
def _update_best(self: Any, stock: Any, strategy: Any) -> Any:
    """Decide once for each value of the running step."""
    if not hasattr(strategy, "training_experience"):  # of another package
        return stock(self, strategy)
    value, self.own_value = getattr(self, "own_value", None), None
    if value is None:
        return None
    first = self.best_val is None or math.isnan(self.best_val)
    if not first:
        gain = float(value - self.best_val)
        first = self.operator(gain, 0) and abs(gain) >= self.margin
    if first:
        self.best_state = deepcopy(strategy.model.state_dict())
        self.best_val = value
        self.best_step = self._get_strategy_counter(strategy)
        if self.verbose:
            sys.stdout.write(f"EarlyStopping: new best value: {value}\n")
    return self.best_val


def _after_eval_iteration(self: Any, stock: Any, strategy: Any, **kwargs: Any) -> None:
    """See the validation loss of the running step alone."""
    step = getattr(strategy, "training_experience", self)
    if step is None:
        return  # not in training, even if an earlier one was interrupted
    if step is self or index_of(step) == index_of(strategy.experience):
        stock(self, strategy, **kwargs)


def _after_eval(self: Any, stock: Any, strategy: Any, **kwargs: Any) -> None:
    ours = hasattr(strategy, "training_experience")
    if ours and self.metric == "val_loss" and not self.rolling_metric.weight:
        return  # nothing that belongs to the step was evaluated
    if ours and getattr(self, "step_over", False):
        self.rolling_metric.reset()
        return  # the scheduler has been reset for the next step
    stock(self, strategy, **kwargs)


def _before_training_exp(self: Any, stock: Any, strategy: Any, **kwargs: Any) -> None:
    self.step_over = False
    stock(self, strategy, **kwargs)


def _after_training_exp(self: Any, stock: Any, strategy: Any, **kwargs: Any) -> None:
    stock(self, strategy, **kwargs)
    self.step_over = self.reset_scheduler


_REPAIRS = (
    (EarlyStoppingPlugin, "_update_best", _update_best),
    (LRSchedulerPlugin, "after_eval_iteration", _after_eval_iteration),
    (LRSchedulerPlugin, "after_eval", _after_eval),
    (LRSchedulerPlugin, "before_training_exp", _before_training_exp),
    (LRSchedulerPlugin, "after_training_exp", _after_training_exp),
)
