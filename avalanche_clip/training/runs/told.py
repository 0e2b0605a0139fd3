"""What a run says while it goes on: bars, and one line per row of ``E``."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
from avalanche.logging import BaseLogger, TextLogger
from torch import Tensor
from tqdm import tqdm

from avalanche_clip import distributed
from avalanche_clip.common.checks import as_size, require_choice
from avalanche_clip.common.progress import bar, say, silenced
from avalanche_clip.evaluation.functional import continual_summary
from avalanche_clip.evaluation.report import results as report
from avalanche_clip.evaluation.report.html import duration, is_fraction, score
from avalanche_clip.training.runs.progress import ProgressPlugin


class Told:
    """What is shown of a run.

    :param verbose: 0: nothing; 1: a line on standard output per row of ``E``, bars of
        what takes long, and nothing of loggers that print; 2: what these print, and
        bars.
    """

    def __init__(self, verbose: int):
        as_size(verbose, "verbose", least=0)
        require_choice("verbose", verbose, (0, 1, 2))
        self.verbose = verbose
        self.watcher: _Watcher | None = None
        self._line = ""

    @contextmanager
    def of(self, strategy: Any) -> Iterator[None]:
        """Show what the strategy does inside the context."""
        evaluator = strategy.evaluator
        with silenced() if self.verbose == 0 else nullcontext():
            if self.verbose < 2:
                evaluator.loggers = [x for x in evaluator.loggers if not _prints(x)]
            if self.verbose == 1 and distributed.is_main_process():
                self.watcher = _Watcher(strategy)
                evaluator.loggers = [*evaluator.loggers, self.watcher]
            try:
                yield
            finally:
                if self.watcher is not None:
                    self.watcher.close()

    @contextmanager
    def evaluating(self, run: Any, row: int, due: list[Any]) -> Iterator[None]:
        """Show the evaluation of experiences."""
        if self.watcher is None:
            yield
            return
        name = "before the stream" if row == 0 else f"after {_label(run, row - 1)}"
        total = sum(len(experience.dataset) for experience in due)
        with bar(f"evaluating {name}", total, unit="image") as self.watcher.evaluation:
            yield

    def row(self, run: Any, row: int) -> None:
        """Say what came out of a row of ``E``, the last one's at the end."""
        if self.watcher is None or row == 0:
            return
        number, steps = run.points.steps[row - 1] + 1, len(run.data["counts"]["train"])
        loss = self.watcher.loss()
        parts = [f"loss {loss:.3f}"] if math.isfinite(loss) else []
        parts += _scores(run, row)
        parts.append(_spent(run, row))
        where = f"step {number}/{steps} [{_label(run, row - 1)}]"
        parts.append(f"{_left(run, number, steps, row)} left")
        self._line = f"{run.identity['method']}, {where}: {', '.join(parts)}"
        if row < len(run.points.steps):
            say(self._line, sys.stdout)

    def end(self, run: Any) -> None:
        """Say the last line, and where the report is."""
        if self._line:
            where = run.folder.path / "report.html"
            say(f"{self._line}; report in {where}", sys.stdout)


class _Watcher(BaseLogger):
    """Bars of the run's training and evaluation, and the mean loss of its steps."""

    def __init__(self, strategy: Any):
        super().__init__()
        plugins = strategy.plugins
        self.own_bar = not any(isinstance(p, ProgressPlugin) for p in plugins)
        self.plugin = ProgressPlugin(leave=False)
        self.evaluation: tqdm | None = None
        self._forget()

    def _forget(self) -> None:
        self._sum: Tensor | float = 0.0
        self._count = 0

    def log_single_metric(self, name: str, value: Any, x_plot: int) -> None:
        """Ignore metrics."""

    def before_training_epoch(self, strategy: Any, values: Any, **kwargs: Any) -> None:
        """Open the bar of a step."""
        if self.own_bar:
            self.plugin.before_training_epoch(strategy)

    def after_training_iteration(
        self, strategy: Any, values: Any, **kwargs: Any
    ) -> None:
        """Move it, and remember the loss, for which nothing waits."""
        self._sum = self._sum + strategy.loss.detach().float().sum()
        self._count += 1
        self.plugin.after_training_iteration(strategy)

    def after_training_exp(self, strategy: Any, values: Any, **kwargs: Any) -> None:
        """Close it."""
        self.plugin.after_training_exp(strategy)

    def after_eval_iteration(self, strategy: Any, values: Any, **kwargs: Any) -> None:
        """Move the bar of an evaluation of the run."""
        if self.evaluation is not None:
            self.evaluation.update(len(strategy.mbatch[1]))

    def close(self) -> None:
        """Close what an error left open."""
        self.plugin.after_training_exp(None)

    def loss(self) -> float:
        """Mean loss of the iterations since the last call; NaN if there were none."""
        mean = float(self._sum) / self._count if self._count else math.nan
        self._forget()
        return mean


def _prints(log: Any) -> bool:
    """Whether a logger writes to the standard output or error."""
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return isinstance(log, TextLogger) and any(log.file is one for one in streams)


def _label(run: Any, index: int) -> str:
    step = run.points.steps[index]
    return str(run.data["labels"]["train"][step])


def _scores(run: Any, row: int) -> list[str]:
    """Main metric of the first stream, and what was forgotten of it so far."""
    metrics = run.rows[run.streams[0]]
    metric = report.main_metric(metrics)
    rows = np.array(metrics[metric][: row + 1], dtype=np.float64)
    before, now = rows[0], rows[-1]
    known = ~np.isnan(now)
    if not known.any():
        return [f"{metric} –"]
    found = f"{metric} {_value(now[known].mean(), metric)}"
    if not np.isnan(before).any():
        found += f" (before {_value(before.mean(), metric)})"
    return [found, f"forgetting {_value(_forgetting(run, rows), metric)}"]


def _value(value: Any, metric: str) -> str:
    text = score(float(value), metric)
    return f"{text} %" if is_fraction(metric) and text != "–" else text


def _forgetting(run: Any, rows: np.ndarray) -> float:
    """How far results are below their best earlier ones; NaN after one row.

    Where test sets are those of the steps it is what the summary of the run has.
    """
    if len(rows) < 3:
        return math.nan
    steps = len(run.benchmark.streams["train"])
    if run.points.at == "steps" and steps <= rows.shape[1] and not run.met:
        return continual_summary(rows[1:], rows[0])["forgetting"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of columns without a value
        return float(np.nanmean(np.nanmax(rows[:-1], axis=0) - rows[-1]))


def _spent(run: Any, row: int) -> str:
    done = run.points.steps[row - 1] + 1
    first = run.points.steps[row - 2] + 1 if row > 1 else 0
    seconds = sum(run.seconds["train"][first:done]) + run.seconds["eval"][row]
    return duration(seconds)


def _left(run: Any, done: int, steps: int, row: int) -> str:
    """Time that the rest takes if it goes on as it went so far."""
    train, evaluation = run.seconds["train"], run.seconds["eval"]
    rows = len(run.points.steps) - row
    rest = (steps - done) * sum(train) / len(train)
    return duration(rest + rows * sum(evaluation) / len(evaluation))
