"""One whole run: train on a stream, evaluate over time, write the folder."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.logging import TensorboardLogger

from avalanche_clip import distributed
from avalanche_clip.benchmarks.prepare import require_prepared
from avalanche_clip.checkpointing import read_state
from avalanche_clip.evaluation._results import MAIN_METRIC, main_metric
from avalanche_clip.evaluation._summaries import is_result, stream_summary
from avalanche_clip.evaluation.loggers import MetricsCSVLogger
from avalanche_clip.evaluation.report import write_report
from avalanche_clip.training.agreement import agree_on_run
from avalanche_clip.training.plugins.checkpoint import (
    CheckpointPlugin,
    checkpoints,
    newest_state,
    remove_leftovers,
)
from avalanche_clip.training.resume import restore_state
from avalanche_clip.training.run_info import (
    data_summary,
    metric_results,
    nominal_units,
    plugin_settings,
    reset_metrics,
    revision,
    strategy_config,
    versions,
    write_json,
)

logger = logging.getLogger(__name__)

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
        """Main metric after each experience on each experience of stream 1.

        Mean R@1, or the accuracy of strategies on class names.
        """
        return self._main()["E"]

    @property
    def before(self) -> np.ndarray:
        """Main metric of the model before the stream."""
        return self._main()["before"]

    def _main(self) -> dict[str, np.ndarray]:
        metrics = next(iter(self.matrices.values()))
        return metrics[main_metric(metrics)]

    def matrix(self, metric: str, stream: str | None = None) -> np.ndarray:
        """Matrix ``E`` of any metric.

        :param metric: for example ``"image_to_text_R@1"``.
        :param stream: default the first evaluated stream.
        """
        name = stream or next(iter(self.matrices))
        return self.matrices[name][metric]["E"]


@distributed.guarded("run_stream()")
def run_stream(
    strategy: Any,
    benchmark: Any,
    out_dir: str | Path,
    *,
    streams: Sequence[str] = ("test",),
    resume: bool = False,
    checkpoint_iterations: int | None = 100,
    method: str | None = None,
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
        :func:`retrieval_plugin_metrics`, or ``accuracy_metrics(experience=True)``
        on class names (as by default). Its own :class:`CheckpointPlugin`, if it
        has one, is used.
    :param benchmark: prepared with the strategy's model.
    :param out_dir: folder of the run.
    :param streams: names of the streams to evaluate.
    :param resume: go on with the run in ``out_dir``; starts anew when there is
        none. The strategy must be built as it was then.
    :param checkpoint_iterations: also write a checkpoint after so many
        iterations inside an experience; None for between experiences only.
    :param method: name of the method in reports and comparisons; default the
        strategy's class. Name combinations of plugins.
    :param train_options: passed to ``train`` and ``eval`` (``num_workers``,
        ``multiprocessing_context``, ...).
    :return: matrices, summaries and cost.
    :raises RankError: when another process is about to make another run, fails, ends
        or does not answer in time.
    :raises ValueError: for an unknown stream, an unprepared benchmark, one
        that a plugin's ``check_benchmark`` refuses, a folder that holds a run
        when ``resume`` is False, or another run than this one when it is True.
    """
    if isinstance(streams, str):
        streams = (streams,)
    given = {"out_dir": str(out_dir), "streams": list(streams), "resume": resume}
    given |= {"checkpoint_iterations": checkpoint_iterations, "method": method}
    agree_on_run(strategy, benchmark, given)
    unknown = [s for s in streams if s not in benchmark.streams]
    if unknown or not streams:
        raise ValueError(
            f"streams {unknown or list(streams)} are not in the benchmark, which has "
            f"{sorted(benchmark.streams)}."
        )
    for name in ("train", *streams):
        for experience in benchmark.streams[name]:
            require_prepared(experience.dataset)
    for plugin in strategy.plugins:
        if hasattr(plugin, "check_benchmark"):
            plugin.check_benchmark(benchmark)
    run = _Run(strategy, benchmark, Path(out_dir), tuple(streams), train_options)
    run.identity["method"] = method or run.identity["method"]
    run.open(resume, checkpoint_iterations)
    try:
        start = run.load() if resume else 0
        if not run.done:
            reset_metrics(strategy)
        run.evaluate_missing(start)
        for index in range(start, len(benchmark.train_stream)):
            run.train(index)
            run.evaluate(index + 1)
        return run.finish()
    except Exception:
        run.forget()
        raise
    finally:
        run.close()


class _Run:
    """State of :func:`run_stream`; checkpoints hold it as their extra."""

    csv: MetricsCSVLogger
    checkpoints: CheckpointPlugin

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
        """Number of evaluations, the one before the stream included."""
        self.seconds: dict[str, list[float]] = {"train": [], "eval": []}
        self._begin: float | None = None
        self._spent = 0.0
        # Before training: schedules change the optimiser's learning rates.
        self.config = strategy_config(strategy, options)
        self.data = data_summary(benchmark)
        self.identity = {
            "method": type(strategy).__name__,
            "seed": strategy.seed,
            "streams": list(streams),
            "data": self.data["hash"],
            "transforms": self.data["transforms"],
            "settings": {
                **_settings(self.config),
                "plugins": plugin_settings(strategy),
            },
        }
        self._added: list[Any] = []
        self._loggers = list(strategy.evaluator.loggers)

    @property
    def state_path(self) -> Path:
        return self.out / "run_state.json"

    # ------------------------------------------------------ opening, closing
    def open(self, resume: bool, checkpoint_iterations: int | None) -> None:
        """Check the folder, and add loggers and checkpoints to the strategy."""
        plugins = self.strategy.plugins
        own = [p for p in plugins if isinstance(p, CheckpointPlugin)]
        self.checkpoints = (
            own[0]
            if own
            else CheckpointPlugin(
                self.out / "checkpoints", every_iterations=checkpoint_iterations
            )
        )
        folder = self.checkpoints.folder
        if not resume and (self.state_path.exists() or checkpoints(folder)):
            raise ValueError(
                f"{self.out} already holds a run. Pass resume=True to go on with it, "
                "or another out_dir."
            )
        if self.state_path.exists():
            self._check_identity(json.loads(self.state_path.read_text())["identity"])
        # Nobody may write before everybody has looked.
        distributed.barrier()
        if not own:
            plugins.append(self.checkpoints)
            self._added.append(self.checkpoints)
        self.strategy.checkpoint_extra = self._extra
        if distributed.is_main_process():
            self.out.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder)
            write_json(self.state_path, {"identity": self.identity})
            self.csv = MetricsCSVLogger(self.out / "metrics.csv")
            board = TensorboardLogger(str(self.out / "tensorboard"))
            self._writer = board.writer
            self.strategy.evaluator.loggers = [*self._loggers, self.csv, board]
        distributed.barrier()

    def close(self) -> None:
        """Take away what :meth:`open` added, so that the strategy can run again."""
        for plugin in self._added:
            self.strategy.plugins.remove(plugin)
        self.strategy.evaluator.loggers = self._loggers
        self.strategy.checkpoint_extra = None
        if distributed.is_main_process() and hasattr(self, "_writer"):
            self._writer.close()

    def forget(self) -> None:
        """Leave no trace of a run that failed before its first checkpoint."""
        if not self.done and not checkpoints(self.checkpoints.folder):
            if distributed.is_main_process():
                self.state_path.unlink(missing_ok=True)
                self.csv.path.unlink(missing_ok=True)

    def _check_identity(self, stored: dict[str, Any]) -> None:
        have = json.loads(json.dumps(self.identity))
        different = _differences(stored, have)
        if different:
            raise ValueError(
                f"{self.out} holds another run: {'; '.join(different)}. Resume with "
                "the same method, settings, seed, streams and data, or use another "
                "out_dir."
            )

    # ------------------------------------------------------------- resuming
    def load(self) -> int:
        """Go back to the newest checkpoint; return the next experience."""
        found = None
        if distributed.is_main_process():
            newest = newest_state(self.checkpoints.folder)
            found = None if newest is None else newest[0].name
        # All processes must take the same one.
        found = distributed.broadcast_object(found)
        if found is None:
            if checkpoints(self.checkpoints.folder):
                logger.warning("No checkpoint can be read; the run starts anew.")
            if distributed.is_main_process():
                self.csv.truncate_to(0)
            return 0
        if not distributed.is_main_process():
            newest = (
                self.checkpoints.folder / found,
                read_state(self.checkpoints.folder / found),
            )
        assert newest is not None
        state = newest[1]
        extra = state["extra"]
        if "rows" not in extra:
            raise ValueError(
                f"{newest[0]} was not written by run_stream; go on with load_state."
            )
        index = restore_state(self.strategy, state, self.benchmark)
        self.rows, self.done = extra["rows"], extra["done"]
        self.seconds = extra["seconds"]
        spent = float(extra.get("train_seconds", 0.0))
        if state["inside"]:
            self._spent = spent
        elif len(self.seconds["train"]) < index:  # written at the end of train()
            self.seconds["train"].append(spent)
        logger.info("Resumed from %s at experience %d.", found, index)
        distributed.barrier()
        return index

    def _extra(self) -> dict[str, Any]:
        """What checkpoints hold of the run itself."""
        extra = {"rows": self.rows, "done": self.done, "seconds": self.seconds}
        if self._begin is not None:
            extra["train_seconds"] = self._train_seconds()
        return extra

    def _train_seconds(self) -> float:
        assert self._begin is not None
        return self._spent + time.perf_counter() - self._begin

    def evaluate_missing(self, start: int) -> None:
        """Evaluate the stored model if that was interrupted."""
        if self.done < start + 1 and self.strategy._pending is None:
            self.evaluate(start)

    # ---------------------------------------------------- training, evaluating
    def train(self, index: int) -> None:
        """Train one experience."""
        self._begin = time.perf_counter()
        experience = self.benchmark.train_stream[index]
        self.strategy.train(
            experience, eval_streams=self._validation(index), **self.options
        )
        del self.seconds["train"][index:]
        self.seconds["train"].append(self._train_seconds())
        self._begin, self._spent = None, 0.0

    def _validation(self, index: int) -> list[Any]:
        """What a strategy with ``eval_every`` is evaluated on in training.

        The step's own part of stream ``valid``, which early stopping watches;
        never a stream that is reported.
        """
        streams = self.benchmark.streams
        if self.strategy.eval_every < 0 or "valid" not in streams:
            return []
        return [[streams["valid"][index]]]

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
                    "retrieval_plugin_metrics(), or accuracy_metrics(experience=True) "
                    "on class names, into the strategy's EvaluationPlugin."
                )
            for metric, numbers in table.items():
                rows = self.rows.setdefault(name, {}).setdefault(metric, [])
                # A metric may appear later than the first evaluation.
                rows.extend([float("nan")] * len(stream) for _ in range(len(rows), row))
                del rows[row:]
                rows.append(numbers)
        self.done = row + 1
        del self.seconds["eval"][row:]
        self.seconds["eval"].append(time.perf_counter() - begin)
        self.checkpoints.save(self.strategy, "_eval")

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
        compute["nominal_units"] = nominal_units(self.strategy)
        space = self.config.get("eval_label_space")
        summary = {
            s: _summaries(m, self.data, self.data["counts"][s], space)
            for s, m in matrices.items()
        }
        results = {
            "method": self.identity["method"],
            "seed": self.strategy.seed,
            "config": self.config,
            "versions": versions(),
            "revision": revision(),
            "data": self.data,
            "samples": compute["samples"],
            "compute": compute,
            "parameters": self.strategy.compute.parameters,
            "macs": {k: v for k, v in compute.items() if "macs" in k},
            "seconds": self.seconds,
            "matrices": _plain(matrices),
            "summary": summary,
            "metrics": metric_results(self.strategy),
        }
        if distributed.is_main_process():
            write_json(self.out / "results.json", results)
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


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that a resumed run must share.

    Where it runs and how it loads data may change; plugins compare their own
    state when it is loaded.
    """
    free = ("device", "loader", "plugins", "eval_mb_size")
    return {k: v for k, v in config.items() if k not in free}


def _differences(stored: Any, have: Any, where: str = "") -> list[str]:
    """Say where two nested dicts differ, at most five places."""
    if isinstance(stored, dict) and isinstance(have, dict):
        found = []
        for key in sorted({*stored, *have}):
            place = f"{where}.{key}" if where else key
            found += _differences(stored.get(key), have.get(key), place)
        return found[:5]
    if stored == have:
        return []
    return [f"{where} is {stored!r} there and {have!r} here"]


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


def _summaries(
    metrics: dict[str, dict[str, np.ndarray]],
    data: dict[str, Any],
    counts: Sequence[int],
    space: str | None,
) -> dict[str, Any]:
    """Summaries of the recalls and accuracies of a stream."""
    return {
        metric: stream_summary(
            parts["E"], parts["before"], data["protocol"], counts, space
        )
        for metric, parts in metrics.items()
        if is_result(metric) and parts["E"].ndim == 2 and parts["E"].size
    }


def _plain(matrices: dict[str, Any]) -> dict[str, Any]:
    return {
        stream: {
            metric: {k: v.tolist() for k, v in parts.items()}
            for metric, parts in metrics.items()
        }
        for stream, metrics in matrices.items()
    }


__all__ = ["MAIN_METRIC", "RunResult", "run_stream"]
