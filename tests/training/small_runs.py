"""Small whole runs that can be killed, for the tests of resuming."""

from __future__ import annotations

import csv
import json
import os
import signal
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_clip.benchmarks.items.scenario import make_scenario
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.training import run_stream, supervised
from avalanche_clip.training.runs.checkpoint_plugin import checkpoints
from avalanche_clip.training.templates import ContrastiveTemplate
from tests.forks import context
from tests.helpers import (
    assert_same_weights,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
)

SIZES = (16, 20, 24)


class Interrupted(RuntimeError):
    """Raised instead of a kill inside a process."""


class StopPlugin(SupervisedPlugin):
    """Stop at a training or an evaluation iteration of the whole run."""

    stateless = True

    def __init__(self, train=None, evaluation=None, kill=False, writing=False):
        super().__init__()
        self.train, self.evaluation, self.kill = train, evaluation, kill
        self.evaluated = 0
        if writing:
            self._kill_while_writing(writing)

    def stop(self):
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise Interrupted

    def after_update(self, strategy, **kwargs):
        if strategy.clock.train_iterations == self.train:
            self.stop()

    def after_eval_iteration(self, strategy, **kwargs):
        self.evaluated += 1
        if self.evaluated == self.evaluation:
            self.stop()

    def _kill_while_writing(self, number):
        """Stop in the middle of the file of checkpoint ``number``."""
        save, calls = torch.save, []

        def broken(state, file):
            calls.append(1)
            if len(calls) == number:
                file.write(b"half a checkpoint")
                file.flush()
                self.stop()
            save(state, file)

        torch.save = broken


def evaluator(*metrics, loggers=()):
    from avalanche.evaluation.metrics import loss_metrics

    plugin = quiet_evaluator(
        [
            retrieval_plugin_metrics(ks=(1,), summary=("mean_R@1",)),
            loss_metrics(epoch=True, experience=True),
            *metrics,
        ]
    )
    plugin.loggers = list(loggers)
    return plugin


def first_steps(benchmark, count):
    """The same benchmark with fewer steps; others keep their data."""
    cut = {name: list(stream)[:count] for name, stream in benchmark.streams.items()}
    return make_scenario(cut, like=benchmark)


def build(
    method="Sequential", stop=None, *, model=None, extra=(), steps=None, **options
):
    """A strategy and its benchmark, or the first steps of it."""
    model_options = {"dropout": 0.2, "noise": 0.1, **(model or {})}
    net = stub_model(**model_options)
    benchmark = stub_benchmark(SIZES, model=net)
    benchmark = first_steps(benchmark, steps) if steps else benchmark
    cls = getattr(supervised, method, None) or ContrastiveTemplate
    defaults = {
        "train_mb_size": 8,
        "eval_mb_size": 4,
        "seed": 3,
        "evaluator": evaluator(),
        "budget_iterations": 5,
    }
    if method == "ContrastiveEWC":
        defaults["fisher_batch_size"] = 8
    if method == "CumulativeExp":
        defaults["buffer_size"] = 10
    settings = {**defaults, **options}
    epochs = settings.get("train_epochs", 1)
    if (isinstance(epochs, list) or epochs > 1) and "budget_iterations" not in options:
        settings.pop("budget_iterations")
    plugins = [*extra, *([stop] if stop else [])]
    return cls(model=net, plugins=plugins, **settings), benchmark


def go(out, method="Sequential", stop=None, resume=False, report=False, run=None, **kw):
    """One run; returns the strategy and the result.

    Plots take longer than the run, so they are left out unless asked for.
    """
    # Left-over random numbers of earlier tests must not matter.
    torch.manual_seed(0 if stop is None else 99)
    strategy, benchmark = build(method, StopPlugin(**(stop or {})), **kw)
    options = {"streams": ("test", "valid"), "checkpoint_iterations": 2, **(run or {})}
    written = mock.patch("avalanche_clip.training.runs.stream.write_report")
    with written if not report else warnings.catch_warnings():
        result = run_stream(strategy, benchmark, out, resume=resume, **options)
    return strategy, result


def cut(folder, train=9):
    """A run that stopped in its second experience, after two checkpoints of it."""
    with pytest.raises(Interrupted):
        go(folder, stop={"train": train})
    assert len(checkpoints(folder / "checkpoints")) == 3


def go_quietly(arguments):
    """Entry of a child process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    go(**arguments)


def kill(out, stop, **arguments):
    """Start a run in another process that ends by SIGKILL; returns the process."""
    content = {"out": str(out), "stop": {**stop, "kill": True}, **arguments}
    process = context().Process(target=go_quietly, args=(content,))
    process.start()
    return process


def csv_without_times(out):
    with open(Path(out) / "metrics.csv", newline="") as file:
        return [row[1:] for row in csv.reader(file)]


def assert_same_runs(left, right):
    """Fail unless two runs ended bit for bit alike, files included."""
    (left_strategy, left_result), (right_strategy, right_result) = left, right
    assert_same_weights(left_strategy.model, right_strategy.model)
    assert left_result.matrices.keys() == right_result.matrices.keys()
    for stream, metrics in left_result.matrices.items():
        for name, parts in metrics.items():
            other = right_result.matrices[stream][name]
            np.testing.assert_array_equal(parts["E"], other["E"], name)
            np.testing.assert_array_equal(parts["before"], other["before"], name)
    found = [
        json.loads((r.out_dir / "results.json").read_text()) for _, r in (left, right)
    ]
    for key in ("matrices", "summary", "samples", "compute", "data", "config"):
        assert found[0][key] == found[1][key], key
    assert csv_without_times(left_result.out_dir) == csv_without_times(
        right_result.out_dir
    )
    assert [len(v) for v in left_result.results["seconds"].values()] == [
        len(v) for v in right_result.results["seconds"].values()
    ]
    clocks = [vars(s.clock) for s, _ in (left, right)]
    assert clocks[0] == clocks[1]
