"""One whole run: train on a stream, evaluate over time, write the folder."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.logging import TensorboardLogger

from avalanche_clip import distributed
from avalanche_clip.checkpointing import load_state, read_state
from avalanche_clip.evaluation.functional import continual_summary, time_transfer
from avalanche_clip.evaluation.loggers import MetricsCSVLogger
from avalanche_clip.training.plugins.checkpoint import (
    CheckpointPlugin,
    latest_checkpoint,
)
from avalanche_clip.training.run_info import (
    data_summary,
    revision,
    strategy_config,
    versions,
)

logger = logging.getLogger(__name__)

MAIN_METRIC = "mean_R@1"
_NAME = re.compile(
    r"^(?P<metric>.+)/eval_phase/(?P<stream>.+)_stream/(?:Task\d+/)?Exp(?P<exp>\d+)$"
)

Rows = dict[str, dict[str, list[list[float]]]]
"""stream -> metric -> rows over time; row 0 is before the first experience."""


@dataclass(frozen=True)
class RunResult:
    """What a run found.

    ``matrices[stream][metric]["E"][i, j]`` is the value after experience ``i``
    on experience ``j`` of the stream, ``...["before"][j]`` that of the model
    before the stream.
    """

    method: str
    out_dir: Path
    matrices: dict[str, dict[str, dict[str, np.ndarray]]]
    summary: dict[str, Any]
    compute: dict[str, Any]
    results: dict[str, Any] = field(repr=False)

    @property
    def E(self) -> np.ndarray:
        """Mean R@1 after each experience on each experience of stream 1."""
        return self._main()["E"]

    @property
    def before(self) -> np.ndarray:
        """Mean R@1 of the model before the stream."""
        return self._main()["before"]

    def _main(self) -> dict[str, np.ndarray]:
        metrics = next(iter(self.matrices.values()))
        return metrics.get(MAIN_METRIC) or next(iter(metrics.values()))

    def matrix(self, metric: str, stream: str | None = None) -> np.ndarray:
        """Matrix ``E`` of any metric.

        :param metric: for example ``"image_to_text_R@1"``.
        :param stream: default the first evaluated stream.
        """
        name = stream or next(iter(self.matrices))
        return self.matrices[name][metric]["E"]


def run_stream(
    strategy: Any,
    benchmark: Any,
    out_dir: str | Path,
    *,
    streams: Sequence[str] = ("test",),
    resume: bool = False,
    checkpoint_iterations: int | None = 100,
    **train_options: Any,
) -> RunResult:
    """Train on ``benchmark.train_stream`` and evaluate before and after each step.

    Writes into ``out_dir``: ``results.json``, ``metrics.csv``, TensorBoard
    events, plots, ``report.html`` and ``checkpoints/``. A run that was killed
    goes on from its newest checkpoint with ``resume=True``; on the CPU it then
    ends with the same weights and matrices as an uninterrupted one. With
    several processes all evaluate and the main one writes. A strategy with
    ``eval_every`` is evaluated in training on its step of stream ``valid``.

    :param strategy: a strategy of this package whose evaluator holds
        :func:`retrieval_plugin_metrics` (as by default).
    :param benchmark: prepared with the strategy's model.
    :param out_dir: folder of the run.
    :param streams: names of the streams to evaluate.
    :param resume: go on with the run in ``out_dir``; starts anew when there is
        none.
    :param checkpoint_iterations: also write a checkpoint after so many
        iterations inside an experience; None for between experiences only.
    :param train_options: passed to ``train`` and ``eval`` (``num_workers``,
        ``multiprocessing_context``, ...).
    :return: matrices, summaries and cost.
    :raises ValueError: for an unknown stream, an unprepared benchmark, or a
        folder that holds a run when ``resume`` is False.
    """
    out = Path(out_dir)
    unknown = [s for s in streams if s not in benchmark.streams]
    if unknown or not streams:
        raise ValueError(
            f"streams {unknown or list(streams)} are not in the benchmark, which has "
            f"{sorted(benchmark.streams)}."
        )
    run = _Run(strategy, benchmark, out, tuple(streams), train_options)
    run.open(resume, checkpoint_iterations)
    start = run.load() if resume else 0
    run.evaluate_missing(start)
    for index in range(start, len(benchmark.train_stream)):
        run.train(index)
        run.evaluate(index + 1)
    return run.finish()


class _Run:
    """State of :func:`run_stream`, kept in ``run_state.json``."""

    def __init__(
        self,
        strategy: Any,
        benchmark: Any,
        out: Path,
        streams: tuple[str, ...],
        options: dict[str, Any],
    ):
        self.strategy = strategy
        self.benchmark = benchmark
        self.out = out
        self.streams = streams
        self.options = options
        self.rows: Rows = {}
        self.done = 0
        self._begin: float | None = None
        self._spent = 0.0
        strategy.checkpoint_extra = self._extra
        self.seconds: dict[str, list[float]] = {"train": [], "eval": []}
        self.identity = {
            "method": type(strategy).__name__,
            "seed": strategy.seed,
            "streams": list(streams),
            "data": data_summary(benchmark)["hash"],
        }

    @property
    def state_path(self) -> Path:
        return self.out / "run_state.json"

    def open(self, resume: bool, checkpoint_iterations: int | None) -> None:
        """Check the folder, and add loggers and checkpoints to the strategy."""
        folder = self.out / "checkpoints"
        if not resume and (self.state_path.exists() or latest_checkpoint(folder)):
            raise ValueError(
                f"{self.out} already holds a run. Pass resume=True to go on with it, "
                "or another out_dir."
            )
        plugins = self.strategy.plugins
        if not any(isinstance(p, CheckpointPlugin) for p in plugins):
            plugins.append(
                CheckpointPlugin(folder, every_iterations=checkpoint_iterations)
            )
        if distributed.is_main_process():
            self.out.mkdir(parents=True, exist_ok=True)
            self.csv = MetricsCSVLogger(self.out / "metrics.csv")
            evaluator = self.strategy.evaluator
            board = TensorboardLogger(str(self.out / "tensorboard"))
            evaluator.loggers = [*evaluator.loggers, self.csv, board]
        distributed.barrier()

    def load(self) -> int:
        """Go back to the newest checkpoint; return the next experience."""
        stored: dict[str, Any] = {}
        if self.state_path.exists():
            stored = json.loads(self.state_path.read_text())
            if stored["identity"] != self.identity:
                raise ValueError(
                    f"{self.out} holds the run {stored['identity']}, which is not "
                    f"{self.identity}; resume with the same method, seed, streams and "
                    "data."
                )
            self.rows, self.done = stored["rows"], stored["done"]
            self.seconds = stored["seconds"]
        newest = latest_checkpoint(self.out / "checkpoints")
        if newest is None:
            self._cut_csv(stored.get("csv_rows", 0))
            return 0
        index = load_state(self.strategy, newest, self.benchmark)
        state = read_state(newest)
        self._spent = float(state["extra"].get("train_seconds", 0.0))
        if not state["inside"]:
            self._spent = 0.0
        rows = int(state["extra"].get("csv_rows", 0))
        if self.done == index + 1:  # the evaluation after that checkpoint is there
            rows = max(rows, stored.get("csv_rows", 0))
        self._cut_csv(rows)
        logger.info("Resumed from %s at experience %d.", newest.name, index)
        return index

    def _cut_csv(self, rows: int) -> None:
        if distributed.is_main_process():
            self.csv.truncate_to(min(rows, self.csv.num_rows))

    def _extra(self) -> dict[str, Any]:
        """What checkpoints hold of the run itself."""
        extra: dict[str, Any] = {}
        if self._begin is not None:
            extra["train_seconds"] = self._spent + time.perf_counter() - self._begin
        if distributed.is_main_process():
            extra["csv_rows"] = self.csv.num_rows
        return extra

    def evaluate_missing(self, start: int) -> None:
        """Evaluate the stored model if that was interrupted."""
        if self.done == 0 and start == 0 and self.strategy._pending is None:
            self.evaluate(0)
        elif self.done < start + 1 and self.strategy._pending is None:
            if self.done != start:
                raise ValueError(
                    f"{self.state_path.name} has {self.done} evaluations, but the "
                    f"checkpoint is at experience {start}: rows would be missing. "
                    "Start the run anew in another folder."
                )
            self.evaluate(start)

    def train(self, index: int) -> None:
        """Train one experience."""
        self._begin = time.perf_counter()
        experience = self.benchmark.train_stream[index]
        self.strategy.train(
            experience, eval_streams=self._validation(index), **self.options
        )
        del self.seconds["train"][index:]
        self.seconds["train"].append(self._extra()["train_seconds"])
        self._begin, self._spent = None, 0.0

    def _validation(self, index: int) -> list[Any]:
        """What a strategy with ``eval_every`` is evaluated on in training.

        The step's own part of stream ``valid``, which early stopping watches;
        never a stream that is reported.
        """
        if self.strategy.eval_every < 0 or "valid" not in self.benchmark.streams:
            return []
        return [[self.benchmark.streams["valid"][index]]]

    def evaluate(self, row: int) -> None:
        """Evaluate all streams; row 0 is before the first experience."""
        begin = time.perf_counter()
        for name in self.streams:
            stream = self.benchmark.streams[name]
            values = self.strategy.eval(stream, **self.options)
            table = _read_row(values, name, len(stream))
            if not table:
                raise ValueError(
                    f"Evaluating stream {name!r} gave no per-experience metric; put "
                    "retrieval_plugin_metrics() into the strategy's EvaluationPlugin."
                )
            for metric, numbers in table.items():
                rows = self.rows.setdefault(name, {}).setdefault(metric, [])
                del rows[row:]
                rows.append(numbers)
        self.done = row + 1
        del self.seconds["eval"][row:]
        self.seconds["eval"].append(time.perf_counter() - begin)
        self.store()

    def store(self) -> None:
        """Write ``run_state.json``, atomically."""
        if not distributed.is_main_process():
            return
        state = {
            "identity": self.identity,
            "rows": self.rows,
            "done": self.done,
            "seconds": self.seconds,
            "csv_rows": self.csv.num_rows,
        }
        _write_json(self.state_path, state)

    def finish(self) -> RunResult:
        """Write results, plots and the report."""
        matrices = {
            stream: {
                metric: {"before": np.asarray(rows[0]), "E": np.asarray(rows[1:])}
                for metric, rows in metrics.items()
            }
            for stream, metrics in self.rows.items()
        }
        compute = self.strategy.compute.report(self._macs())
        summary = {s: _summaries(m) for s, m in matrices.items()}
        results = {
            "method": self.identity["method"],
            "seed": self.strategy.seed,
            "config": strategy_config(self.strategy, self.options),
            "versions": versions(),
            "revision": revision(),
            "data": data_summary(self.benchmark),
            "samples": compute["samples"],
            "compute": compute,
            "macs": {k: v for k, v in compute.items() if "macs" in k},
            "seconds": self.seconds,
            "matrices": _plain(matrices),
            "summary": summary,
        }
        if distributed.is_main_process():
            from avalanche_clip.evaluation.report import write_report

            _write_json(self.out / "results.json", results)
            write_report(self.out)
        distributed.barrier()
        return RunResult(
            method=results["method"],
            out_dir=self.out,
            matrices=matrices,
            summary=summary,
            compute=compute,
            results=results,
        )

    def _macs(self) -> dict[str, int] | None:
        macs = getattr(self.strategy.model, "macs", None)
        return macs() if callable(macs) else None


def _read_row(values: dict[str, Any], stream: str, size: int) -> dict[str, list[float]]:
    """Collect the per-experience values of one stream from metric names."""
    table: dict[str, list[float]] = {}
    for name, value in values.items():
        match = _NAME.match(name)
        if match and match["stream"] == stream and isinstance(value, (int, float)):
            row = table.setdefault(match["metric"], [float("nan")] * size)
            if int(match["exp"]) < size:
                row[int(match["exp"])] = float(value)
    return table


def _summaries(metrics: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Transfer levels and differences of the recall matrices of a stream."""
    found = {}
    for metric, parts in metrics.items():
        E, before = parts["E"], parts["before"]
        if "R@" not in metric or E.shape[0] != E.shape[1]:
            continue
        found[metric] = {**time_transfer(E), **continual_summary(E, before)}
    return found


def _plain(matrices: dict[str, Any]) -> dict[str, Any]:
    return {
        stream: {
            metric: {k: v.tolist() for k, v in parts.items()}
            for metric, parts in metrics.items()
        }
        for stream, metrics in matrices.items()
    }


def _write_json(path: Path, content: Any) -> None:
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, path)


__all__ = ["MAIN_METRIC", "RunResult", "run_stream"]
