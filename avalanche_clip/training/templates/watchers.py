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
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from avalanche.evaluation import GenericPluginMetric
from avalanche.training.plugins import EarlyStoppingPlugin, LRSchedulerPlugin

from avalanche_clip.common.checks import did_you_mean
from avalanche_clip.evaluation.functional import retrieval_metrics
from avalanche_clip.evaluation.metrics import RetrievalMetric

logger = logging.getLogger(__name__)

_REST = re.compile(r"(?:/Task(?P<task>\d+))?(?:/Exp(?P<exp>\d+))?")


def watchers(strategy: Any) -> list[Any]:
    """Plugins that act on values of evaluations in training."""
    return [p for p in strategy.plugins if _early(p) or _by_validation(p)]


def _early(plugin: Any) -> bool:
    return isinstance(plugin, EarlyStoppingPlugin)


def _by_validation(plugin: Any) -> bool:
    return isinstance(plugin, LRSchedulerPlugin) and plugin.metric == "val_loss"


def watched_stream(plugin: EarlyStoppingPlugin) -> str:
    """Name of the stream whose values an early stopping reads."""
    return str(plugin.val_stream_name).split("/")[0].removesuffix("_stream")


# -------------------------------------------------------------------- checking
def check_watchers(strategy: Any, evaluated: Iterable[str]) -> None:
    """Raise if a watching plugin can never act.

    :param strategy: about to be trained.
    :param evaluated: names of the streams that are evaluated in training.
    :raises ValueError: naming the metric, the stream or ``eval_every``, and what to
        do.
    """
    streams = list(evaluated)
    for plugin in strategy.plugins:
        if isinstance(plugin, LRSchedulerPlugin):
            _check_scheduler(plugin, strategy)
        if not (_early(plugin) or _by_validation(plugin)):
            continue
        _check_period(plugin, strategy)
        if not streams:
            raise ValueError(
                f"{_what(plugin)}, but nothing is evaluated in training: give "
                "eval_streams to train(), or to run_stream a benchmark with a stream "
                "'valid' (split_validation makes one)."
            )
        if _early(plugin):
            _check_stream(plugin, streams)
            _check_metric(plugin, strategy)


def validates(strategy: Any, benchmark: Any) -> bool:
    """Whether a whole run evaluates each step on its part of stream ``valid``."""
    return bool(strategy.eval_every >= 0 and "valid" in benchmark.streams)


def check_run(strategy: Any, benchmark: Any) -> None:
    """Raise if what a whole run evaluates in training fits neither data nor plugins.

    :raises ValueError: see :func:`check_watchers`; or if stream ``valid`` is shorter
        than the training stream.
    """
    strategy.check_setup()
    given = validates(strategy, benchmark)
    check_watchers(strategy, ["valid"] if given else [])
    steps = len(benchmark.train_stream)
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


def _what(plugin: Any) -> str:
    name = type(plugin).__name__
    if _early(plugin):
        return (
            f"{name} watches metric {plugin.metric_name!r} of stream "
            f"{watched_stream(plugin)!r}"
        )
    return f"{name}(metric='val_loss') watches the loss of evaluations in training"


def _check_period(plugin: Any, strategy: Any) -> None:
    periodic = _periodic(strategy)
    every = strategy.eval_every if periodic is None else periodic.eval_every
    mode = "epoch" if periodic is None else periodic.peval_mode
    # The scheduler also steps at the end, which counts if it is not reset there.
    ends = _by_validation(plugin) and not plugin.reset_scheduler
    if every < 0 or (not ends and (every == 0 or mode == "experience")):
        raise ValueError(
            f"{_what(plugin)}, but with eval_every={every} and peval_mode={mode!r} "
            "none is made between the epochs of an experience, so that it can never "
            "act; build the strategy with eval_every=1, or leave the plugin out."
        )


def _periodic(strategy: Any) -> Any:
    return next((p for p in strategy.plugins if hasattr(p, "_peval")), None)


def _check_stream(plugin: EarlyStoppingPlugin, streams: Sequence[str]) -> None:
    if watched_stream(plugin) not in streams:
        raise ValueError(
            f"{_what(plugin)}, which is not evaluated in training: that are "
            f"{sorted(streams)}. Give its experiences as eval_streams to train(), or "
            f"watch one of these (run_stream evaluates 'valid' alone)."
            f"{did_you_mean(watched_stream(plugin), streams)}"
        )


def _check_metric(plugin: EarlyStoppingPlugin, strategy: Any) -> None:
    """Raise where it is known without an evaluation that there is no such metric."""
    found = [_emitted(metric) for metric in strategy.evaluator.metrics]
    names = sorted({n for some in found if some is not None for n in some})
    if None not in found and plugin.metric_name not in names:
        raise ValueError(_no_metric(plugin, names))


def _no_metric(plugin: EarlyStoppingPlugin, names: Sequence[str]) -> str:
    return (
        f"{_what(plugin)}, but the strategy's evaluator measures no such metric in "
        f"evaluations: there are {list(names)}. Put it into the EvaluationPlugin, or "
        f"watch one of these.{did_you_mean(plugin.metric_name, names)}"
    )


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


def _check_scheduler(plugin: LRSchedulerPlugin, strategy: Any) -> None:
    own = getattr(plugin.scheduler, "optimizer", strategy.optimizer)
    if own is not strategy.optimizer:
        raise ValueError(
            f"The scheduler of {type(plugin).__name__} belongs to another optimiser "
            "than the strategy's, whose learning rate it would never change. Build the "
            "scheduler with the optimiser object that is given to the strategy."
        )


def check_step(strategy: Any, experience: Any, groups: Sequence[Sequence[Any]]) -> None:
    """Raise if the running experience has no counterpart in a watched stream.

    :param experience: about to be trained.
    :param groups: what is evaluated in training, one group per stream.
    :raises ValueError: naming the experience and the stream.
    """
    index = _index(experience)
    visited = {_name(group): [_index(e) for e in group] for group in groups if group}
    for plugin in watchers(strategy):
        names = [watched_stream(plugin)] if _early(plugin) else list(visited)
        if not any(index in visited.get(name, ()) for name in names):
            raise ValueError(
                f"{_what(plugin)}, but experience {index} of it is not evaluated while "
                f"step {index} is trained (there are {visited}), so that it can never "
                "act there; give the experience with the index of the step as "
                "eval_streams to train()."
            )


def _index(experience: Any) -> int:
    return int(experience.logging().current_experience)


def _name(group: Sequence[Any]) -> str:
    return str(group[0].origin_stream.name)


# -------------------------------------------------------------------- watching
def forget_values(strategy: Any) -> None:
    """Let plugins forget what was measured for another step."""
    for plugin in strategy.plugins:
        if _early(plugin):
            plugin.own_value = None


def note_values(
    strategy: Any, experience: Any, group: Sequence[Any], values: Mapping[str, Any]
) -> None:
    """Give plugins the values that belong to the step that is trained.

    :param experience: that is being trained, or about to be.
    :param group: experiences of one stream that have been evaluated.
    :param values: what this evaluation has measured, by name.
    :raises ValueError: if the watched metric is not among the values.
    """
    index = _index(experience)
    own = next((e for e in group if _index(e) == index), None)
    for plugin in strategy.plugins:
        if (
            own is not None
            and _early(plugin)
            and watched_stream(plugin) == _name(group)
        ):
            plugin.own_value = _value(plugin, own, index, values)


def _value(
    plugin: EarlyStoppingPlugin, experience: Any, index: int, values: Mapping[str, Any]
) -> float:
    stream, _, rest = str(plugin.val_stream_name).partition("/")
    start = f"{plugin.metric_name}/eval_phase/{stream.removesuffix('_stream')}_stream"
    found = {}
    for name, value in values.items():
        place = name.removeprefix(start)
        match = _REST.fullmatch(place)
        if not name.startswith(start) or match is None:
            continue
        if place.startswith(f"/{rest}" if rest else "") and isinstance(
            value, (int, float)
        ):
            found[match["task"], match["exp"]] = float(value)
    # Measured on the experience alone, else on the stream that it is a part of.
    mine = {k: v for k, v in found.items() if k[1] is not None and int(k[1]) == index}
    mine = mine or {k: v for k, v in found.items() if k[1] is None}
    tasks = {int(t) for t in getattr(experience, "task_labels", ())}
    if len(mine) > 1:
        mine = {k: v for k, v in mine.items() if k[0] and int(k[0]) in tasks}
    if len(mine) > 1:
        raise ValueError(
            f"{_what(plugin)}, of which there are several values for experience "
            f"{index}, one per task ({sorted(str(k[0]) for k in mine)}); name one as "
            "val_stream_name='<stream>_stream/Task<number>'."
        )
    if not mine:
        measured = {n.split("/eval_phase/")[0] for n in values if "/eval_phase/" in n}
        raise ValueError(_no_metric(plugin, sorted(measured)))
    return next(iter(mine.values()))


# --------------------------------------------------------------------- repairs
def repair_early_stopping(cls: Any) -> None:
    """Let early stopping decide once for each value of the running step."""
    stock = cls._update_best
    if getattr(stock, "repaired", False):
        return

    def update_best(self: Any, strategy: Any) -> Any:
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

    update_best.repaired = True  # type: ignore[attr-defined]
    cls._update_best = update_best


def repair_scheduler(cls: Any) -> None:
    """Let a scheduler by validation loss see that of the running step alone."""
    iteration, end = cls.after_eval_iteration, cls.after_eval
    begins, ends = cls.before_training_exp, cls.after_training_exp
    if getattr(end, "repaired", False):
        return

    def after_eval_iteration(self: Any, strategy: Any, **kwargs: Any) -> None:
        step = getattr(strategy, "training_experience", self)
        if step is None:
            return  # not in training, even if an earlier one was interrupted
        if step is self or _index(step) == _index(strategy.experience):
            iteration(self, strategy, **kwargs)

    def after_eval(self: Any, strategy: Any, **kwargs: Any) -> None:
        ours = hasattr(strategy, "training_experience")
        if ours and self.metric == "val_loss" and not self.rolling_metric.weight:
            return  # nothing that belongs to the step was evaluated
        if ours and getattr(self, "step_over", False):
            self.rolling_metric.reset()
            return  # the scheduler has been reset for the next step
        end(self, strategy, **kwargs)

    def before_training_exp(self: Any, strategy: Any, **kwargs: Any) -> None:
        self.step_over = False
        begins(self, strategy, **kwargs)

    def after_training_exp(self: Any, strategy: Any, **kwargs: Any) -> None:
        ends(self, strategy, **kwargs)
        self.step_over = self.reset_scheduler

    def evaluation_failed(self: Any, strategy: Any) -> None:
        if self.metric == "val_loss":
            self.rolling_metric.reset()

    after_eval.repaired = True  # type: ignore[attr-defined]
    cls.after_eval_iteration, cls.after_eval = after_eval_iteration, after_eval
    cls.before_training_exp = before_training_exp
    cls.after_training_exp = after_training_exp
    cls.evaluation_failed = evaluation_failed
