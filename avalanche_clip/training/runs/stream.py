"""One whole run: train on a stream, evaluate over time, write the folder."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.content import data_summary, stream_sizes
from avalanche_clip.benchmarks.items.prepare import require_prepared
from avalanche_clip.benchmarks.items.scenario import whole_data
from avalanche_clip.benchmarks.streams.merged import counterparts, merge_experiences
from avalanche_clip.common.checks import (
    as_texts,
    did_you_mean,
    require_choice,
    require_distinct,
)
from avalanche_clip.common.files import write_json
from avalanche_clip.common.plain import mapped, strict
from avalanche_clip.common.rollback import undone_on_error
from avalanche_clip.evaluation.metrics._values import bare_model
from avalanche_clip.evaluation.metrics.label_spaces import both_spaces
from avalanche_clip.evaluation.report import results as report
from avalanche_clip.evaluation.report import summaries
from avalanche_clip.evaluation.report.page import write_report
from avalanche_clip.evaluation.suites.suite import Suite
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.training.runs.checkpoint_plugin import as_kept
from avalanche_clip.training.runs.extension import (
    EXTEND,
    add_columns,
    count_columns,
    points_then,
)
from avalanche_clip.training.runs.folder import RunFolder
from avalanche_clip.training.runs.identity import run_identity
from avalanche_clip.training.runs.observed import Observed
from avalanche_clip.training.runs.plugin_state import collect
from avalanche_clip.training.runs.points import (
    EvaluationPoints,
    arrivals,
    evaluation_points,
    task_ends,
)
from avalanche_clip.training.runs.record import (
    metric_results,
    model_macs,
    nominal_units,
    read_row,
    reset_metrics,
    revision,
    run_config,
    versions,
)
from avalanche_clip.training.runs.result import RunResult
from avalanche_clip.training.runs.resume import restore_state
from avalanche_clip.training.runs.source import Source, preparation
from avalanche_clip.training.runs.stopping import stopped_by_sigterm
from avalanche_clip.training.runs.suites import RunSuites
from avalanche_clip.training.runs.told import Told
from avalanche_clip.training.templates.agreement import agree_on_run
from avalanche_clip.training.templates.options import check_keywords
from avalanche_clip.training.templates.watchers import check_run, validates

logger = logging.getLogger(__name__)

Rows = dict[str, dict[str, list[list[float]]]]
"""stream -> metric -> rows over time; row 0 is before the first experience."""


@stopped_by_sigterm()
@distributed.guarded("run_stream()")
def run_stream(
    strategy: Any,
    benchmark: Any,
    out_dir: str | Path,
    *,
    streams: Sequence[str] = ("test",),
    resume: bool | str = False,
    checkpoint_iterations: int | None = 100,
    keep_steps: int | str = 2,
    start_from: str | Path | tuple[str | Path, int | str] | None = None,
    prepare_on: AvalancheDataset | None = None,
    method: str | None = None,
    evaluate_at: str | Mapping[str, int] | Sequence[int] = "steps",
    final_streams: Sequence[str] = (),
    suites: Sequence[Suite] = (),
    verbose: int = 1,
    **train_options: Any,
) -> RunResult:
    """Train on ``benchmark.train_stream`` and evaluate before and after each step.

    Writes into ``out_dir``: ``results.json``, ``metrics.csv``, TensorBoard
    events, plots, ``report.html``, ``checkpoints/`` and, of a :class:`DualEncoder`,
    ``model/``, which :func:`create_dual_encoder` loads. A run that was killed
    goes on from its newest checkpoint with ``resume=True``; on the CPU it then
    ends with the same weights and matrices as an uninterrupted one. With
    several processes all evaluate and the main one writes. A strategy with
    ``eval_every`` is evaluated in training on its step of stream ``valid``. A
    :class:`Joint` strategy trains once, on the whole stream: ``E`` has one row.

    One run at a time works in a folder, which it locks. What counts on resuming is
    the newest checkpoint that can be used; it says which run it is of, and a lost or
    damaged ``run_state.json``, ``metrics.csv`` or ``results.json`` is written again.
    If the call fails or is interrupted, the strategy is put back as it was before,
    weights included (the host's memory holds a copy of them meanwhile), and the
    folder keeps what was written. SIGTERM saves and ends the process with status 0.

    :param strategy: a strategy of this package whose evaluator holds
        :func:`retrieval_plugin_metrics`, or ``accuracy_metrics(experience=True)``
        on class names (as by default), where :func:`label_space_metrics` is added.
        Its own :class:`CheckpointPlugin` is used.
    :param benchmark: prepared with the strategy's model.
    :param out_dir: folder of the run.
    :param streams: names of the streams to evaluate.
    :param resume: go on with the run in ``out_dir``; starts anew when there is
        none. The strategy must be built as it was then. ``"extend"`` also goes on
        with a run over the first steps of ``benchmark``, and ends as a run over all
        of them would, had it not stopped: rows of ``E`` stay, and models that are
        kept are evaluated on the further test sets; other entries of these are NaN,
        and null in ``results.json``. All but the number of steps must be the same.
    :param checkpoint_iterations: also write a checkpoint after so many
        iterations inside an experience; None for between experiences only.
    :param keep_steps: of how many of the latest evaluated steps the models are kept,
        or ``"all"`` (with the model before the stream), see
        :func:`create_dual_encoder`.
    :param start_from: folder of another run, or ``(folder, step)``: begin with the
        model after that step, by default the last one kept. Weights, growth and
        branches are taken, no state of optimiser or plugins. What the strategy trains
        stays as it is: branches that none of its plugins has made are frozen. Needed
        again on resuming.
    :param prepare_on: data that plugins are prepared on before the first step, in
        place of its own (:meth:`MethodPlugin.prepare`): EWC measures importances.
    :param method: name of the method in reports and comparisons; default the
        strategy's class. Name combinations of plugins.
    :param evaluate_at: after which steps to evaluate, and to write the checkpoints
        between steps: ``"steps"`` for each; ``{"samples": n}`` for each step that
        passes a multiple of ``n`` samples of the stream, which an online stream of
        many small steps needs; with ``"task_ends": True`` in the mapping also (or
        only) at the ends of tasks; or a list of indices of steps. The model before
        the stream and the one after the last step are always evaluated. See
        :func:`evaluation_points`. On a Si-Blurry benchmark only the test sets whose
        classes have occurred are; cells of ``E`` of the others are NaN.
    :param final_streams: names of streams to evaluate before the stream and after
        its last step only, such as zero-shot tests: their ``E`` has one row.
    :param suites: scored at each evaluation, on their own data: ``results.json`` holds
        ``["suites"][name][row][task][metric]`` with rows ``"before"``, ``"0"``, ...
        as in ``E``. What a suite keeps of an earlier run is forgotten. Plugins that
        choose what images pass do so for those of suites, or refuse these.
    :param verbose: 1: one line per row of ``E`` on standard output (mean loss since the
        last line, mean and forgetting of the main metric of the first stream, time
        spent and left), and bars of what takes long on standard error; loggers that
        print there stay quiet. 2: what these print, and bars. 0: nothing.
    :param train_options: passed to ``train`` and ``eval`` (``num_workers``, ...).
    :return: matrices, summaries and cost.
    :raises OSError: if the disk cannot hold the checkpoints, before anything is written
        (also a ValueError), or is full later.
    :raises SystemExit: after SIGTERM, at the next step or batch of an evaluation.
    :raises RankError: when another process is about to make another run, fails, ends
        or does not answer in time.
    :raises ValueError: for an unknown stream, an unprepared benchmark, one that a
        plugin's ``check_benchmark`` refuses, a folder that another run is at work in,
        or that holds a run when ``resume`` is False, or another run than this one when
        it is not. ``"extend"`` is also refused for fewer steps, and where results or
        the plan depend on their number: a schedule over the whole stream, values per
        step for fewer steps, the label space ``"all"`` with further classes, a union.
    """
    require_choice("resume", resume, (False, True, EXTEND))
    as_kept(keep_steps)
    out = Path(out_dir).expanduser()
    own = inspect.signature(run_stream).parameters
    check_keywords("run_stream", train_options, strategy, own)
    told = Told(verbose)
    streams = (streams,) if isinstance(streams, str) else streams
    given: dict[str, Any] = {"out_dir": str(out_dir), "resume": resume}
    given |= {"streams": list(streams), "final_streams": list(final_streams)}
    given |= {"method": method, "evaluate_at": evaluate_at}
    given["checkpoint_iterations"] = checkpoint_iterations
    given |= {"keep_steps": keep_steps, "start_from": start_from and str(start_from)}
    with distributed.together("opening the run to start from"):
        source = None if start_from is None else Source(start_from, out)
    if prepare_on is not None:
        given["prepare_on"] = preparation(strategy, prepare_on)
    attached = RunSuites(suites)
    given["suites"] = attached.identity()
    agree_on_run(strategy, benchmark, given)
    with distributed.together("merging the training stream"):
        benchmark = strategy.as_trained(benchmark)
    named = [*streams, *as_texts(final_streams, "final_streams", least=0)]
    require_distinct(named, "streams and final_streams")
    unknown = [s for s in named if s not in benchmark.streams]
    if unknown or not streams:
        raise ValueError(
            f"streams {unknown or list(streams)} are not in the benchmark, which has "
            f"{sorted(benchmark.streams)}.{did_you_mean(unknown, benchmark.streams)}"
        )
    sizes = stream_sizes(benchmark.train_stream)
    ends = task_ends(benchmark.train_stream)
    points = evaluation_points(evaluate_at, sizes, ends)
    for name in ("train", *named):
        for dataset in whole_data(benchmark.streams[name]):
            captions = strategy.reads_captions
            require_prepared(dataset, strategy.model, captions=captions)
    with undone_on_error(strategy):
        strategy.check_setup()  # of plugins that were appended, too
        for contract in strategy.contracts:
            contract.check_benchmark(benchmark)
        check_run(strategy, benchmark)
        attached.check(strategy, benchmark)
        collect(strategy)  # what cannot be stored is refused before all evaluations
        parts: list[Any] = [tuple(streams), tuple(final_streams), points, attached]
        parts += [train_options, told, source, prepare_on, method]
        run = _Run(strategy, benchmark, *parts)
        folder = RunFolder(out, strategy, run, checkpoint_iterations, keep_steps)
        with folder.opened(resume), told.of(strategy), both_spaces(strategy):
            return run.go(folder)


@dataclass(eq=False)
class _Run:
    """A run of :func:`run_stream`; checkpoints hold its state and its identity."""

    strategy: Any
    benchmark: Any
    streams: tuple[str, ...]
    final: tuple[str, ...]
    """Streams that are evaluated before the first and after the last step only."""
    points: EvaluationPoints
    suites: RunSuites
    options: dict[str, Any]
    told: Told
    source: Source | None
    prepare_on: Any
    method: InitVar[str | None]
    rows: Rows = field(default_factory=dict)
    done: int = 0
    """Number of evaluations, the one before the stream included."""
    seconds: dict[str, list[float]] = field(
        default_factory=lambda: {"train": [], "eval": []}
    )
    next: int = 0
    """Experience to train next, or in training."""
    _begin: float | None = None
    _spent: float = 0.0
    folder: RunFolder = field(init=False)
    observed: Observed = field(init=False)

    def __post_init__(self, method: str | None) -> None:
        self.data = data_summary(self.benchmark)
        self.joint = hasattr(self.benchmark.train_stream[0], "merged")
        self.identity = run_identity(
            self.strategy, self.data, self.streams, self.points.at, self.options, method
        )
        if self.final:
            self.identity["final_streams"] = list(self.final)
        if self.suites.suites:
            self.identity["suites"] = self.suites.identity()
        if self.source is not None:
            self.identity["start_from"] = self.source.facts
        if self.prepare_on is not None:
            self.identity["prepare_on"] = preparation(self.strategy, self.prepare_on)
        streams = self.benchmark.streams
        # Also where the stream is merged to one step.
        blurry = str(self.data["protocol"]).startswith(summaries.SI_BLURRY)
        names = self.streams if blurry else ()
        met = {name: arrivals(streams["train"], streams[name]) for name in names}
        self.met = {name: steps for name, steps in met.items() if steps is not None}
        """Stream of Si-Blurry -> the step in which each of its test sets counts."""
        if self.met:
            space = getattr(self.strategy, "eval_label_space", None)
            summaries.warn_of_gaps(space, getattr(self.benchmark, "task_sizes", ()))

    def go(self, folder: RunFolder) -> RunResult:
        """Train and evaluate from where the folder stands to the end."""
        self.folder = folder
        if self.source is not None:
            self.source.give(self.strategy)
        self.strategy.prepare_on = self.prepare_on
        self.observed = Observed(folder.path)
        evaluator = self.strategy.evaluator
        evaluator.loggers = [*evaluator.loggers, self.observed]
        start = self.load()
        if not self.done:
            reset_metrics(self.strategy)
            self.suites.begin()
        self.evaluate_missing(start)
        for index in range(start, len(self.benchmark.train_stream)):
            self.train(index)
            self.evaluate_missing(index + 1)
        return self.finish()

    # ------------------------------------------------------------- resuming
    def load(self) -> int:
        """Go back to the folder's checkpoint; return the next experience."""
        path = self.folder.found
        if path is None:
            return 0
        state = self.folder.take_state()
        own, stored = state["run"], state["identity"]
        # Not what was trained last: a strategy may have been trained before the run.
        index = self.next = int(own["next"])
        self.rows, self.done = own["rows"], own["done"]
        self.seconds = own["seconds"]
        # Rows after steps that are no points now: the end of a shorter stream.
        steps = own["steps"] if "steps" in own else points_then(self, stored).steps
        self.points = self.points.with_steps(steps, self.data["counts"]["train"])
        self.folder.checkpoints.points = self.points
        self.observed.restore(own.get("observed"))
        grown = stored["experiences"] != self.identity["experiences"]
        spent_then = add_columns(self, stored) if grown else None
        restore_state(self.strategy, state, self.benchmark, path)
        if spent_then is not None:
            count = partial(count_columns, self, spent_then)
            count()
            if state["inside"]:
                self.strategy._pending.then = count
        self.suites.load_state_dict(own.get("suites"))
        spent = float(own["train_seconds"])
        if state["inside"]:
            self._spent = spent
        elif len(self.seconds["train"]) < index:  # written at the end of train()
            self.seconds["train"].append(spent)
        logger.info("Resumed from %s at experience %d.", path.name, index)
        distributed.barrier()
        return index

    @property
    def named(self) -> tuple[str, ...]:
        """Streams that are evaluated."""
        return (*self.streams, *self.final)

    def state_dict(self) -> dict[str, Any]:
        """What checkpoints hold of the run itself."""
        ended = self._begin is not None and self.strategy.experience is None
        return {
            "next": self.next + ended,
            "rows": self.rows,
            "done": self.done,
            "steps": self.points.steps[: max(self.done - 1, 0)],
            "seconds": self.seconds,
            "suites": self.suites.state_dict(),
            "observed": self.observed.stored(),
            "train_seconds": 0.0 if self._begin is None else self._train_seconds(),
        }

    def _train_seconds(self) -> float:
        assert self._begin is not None
        return self._spent + time.perf_counter() - self._begin

    def evaluate_missing(self, start: int) -> None:
        """Evaluate the model before step ``start``, if it is due and was not."""
        row = self.points.before(start)
        if self.done <= row and self.strategy._pending is None:
            self.evaluate(row)

    # ---------------------------------------------------- training, evaluating
    def train(self, index: int) -> None:
        """Train one experience."""
        self.next, self._begin = index, time.perf_counter()
        step, watched = self.benchmark.train_stream[index], self._validation(index)
        self.strategy.train(step, eval_streams=watched, **self.options)
        del self.seconds["train"][index:]
        self.seconds["train"].append(self._train_seconds())
        self.next, self._begin, self._spent = index + 1, None, 0.0

    def _validation(self, index: int) -> list[Any]:
        """What a strategy with ``eval_every`` is evaluated on in training.

        The step's own part of stream ``valid``, which early stopping watches;
        never a stream that is reported.
        """
        if not validates(self.strategy, self.benchmark):
            return []
        streams = self.benchmark.streams
        own = counterparts(streams["train"][index], streams["valid"])
        return [[merge_experiences(own)] if len(own) > 1 else own]

    def evaluate(self, row: int) -> None:
        """Evaluate all streams; row 0 is before the first experience."""
        begin = time.perf_counter()
        ends = row in (0, len(self.points.steps))
        for name in (*self.streams, *(self.final if ends else ())):
            stream = self.benchmark.streams[name]
            known = self.rows.setdefault(name, {})
            due = self.due(name, row)
            if not due:
                continue
            table = self.measure(name, row, due)
            if not table:
                raise ValueError(
                    f"Evaluating stream {name!r} gave no per-experience metric; put "
                    "retrieval_plugin_metrics(), or accuracy_metrics(experience=True) "
                    "on class names, into the strategy's EvaluationPlugin."
                )
            missing = [float("nan")] * len(stream)
            for metric in [*known, *(m for m in table if m not in known)]:
                rows = known.setdefault(metric, [])
                # A metric may appear later than the first evaluation, or be absent.
                rows.extend(missing for _ in range(len(rows), row))
                rows[row:] = [table.get(metric, missing)]
        self.suites.evaluate(self.strategy, row)
        self.done = row + 1
        del self.seconds["eval"][row:]
        self.seconds["eval"].append(time.perf_counter() - begin)
        self.folder.checkpoints.save(self.strategy, "_eval")
        self.folder.checkpoints.stop_if_asked("after an evaluation")
        self.told.row(self, row)

    def measure(self, name: str, row: int, due: Any) -> dict[str, list[float]]:
        """Evaluate the model on experiences of a stream: metric -> row of ``E``."""
        evaluator = self.strategy.evaluator
        # What a metric said of an earlier model is no value of this one.
        before, evaluator.last_metric_results = evaluator.last_metric_results, {}
        with self.told.evaluating(self, row, due), self.observed.evaluating(row):
            values = self.strategy.eval(due, **self.options)
        evaluator.last_metric_results = {**before, **values}
        return read_row(values, name, len(self.benchmark.streams[name]))

    def due(self, name: str, row: int) -> Any:
        """What is evaluated of a stream: what has been met, of Si-Blurry."""
        stream = self.benchmark.streams[name]
        if name not in self.met:
            return stream
        step = self.points.steps[row - 1] if row else -1
        return [e for e, first in zip(stream, self.met[name]) if first <= step]

    def finish(self) -> RunResult:
        """Write results, plots and the report."""
        matrices = {
            stream: {
                metric: {
                    "before": np.asarray(rows[0]),
                    "E": np.asarray(rows[-1:] if stream in self.final else rows[1:]),
                }
                for metric, rows in metrics.items()
            }
            for stream, metrics in self.rows.items()
        }
        compute = self.strategy.compute.report(model_macs(self.strategy))
        compute["nominal_units"] = nominal_units(self.strategy)
        sizes = {name: len(self.benchmark.streams[name]) for name in self.named}
        online = {"streams": list(self.met), **self.points.online()}
        results = {
            "method": self.identity["method"],
            "seed": self.strategy.seed,
            "config": run_config(self.strategy, self.options),
            "versions": versions(),
            "revision": revision(),
            "data": self.data,
            "evaluations": self.points.record(),
            **({"final_streams": list(self.final)} if self.final else {}),
            **({} if self.source is None else {"start_from": self.source.record()}),
            **({"online": online} if self.met else {}),
            **({"joint": True} if self.joint else {}),
            "samples": compute["samples"],
            "compute": compute,
            "evaluation_cost": dict(self.strategy.compute.evaluation),
            "parameters": self.strategy.compute.parameters,
            "macs": {k: v for k, v in compute.items() if "macs" in k},
            "seconds": self.seconds,
            "matrices": mapped(matrices, lambda values, path: values.tolist()),
            "metrics": metric_results(self.strategy),
            **self.suites.results(),
            **self.observed.results(sizes, self.final),
        }
        stored = report.matrices(results)
        summary = results["summary"] = {
            stream: {
                metric: matrix.stored_summary()
                for metric, matrix in stored.get(stream, {}).items()
                if summaries.is_result(metric)
            }
            for stream in matrices
        }
        if distributed.is_main_process():
            write_json(self.folder.results_path, strict(results), checksum=True)
            write_report(self.folder.path)
            model = bare_model(self.strategy)
            if isinstance(model, DualEncoder):
                self.folder.save_model(model)
        distributed.barrier()
        self.told.end(self)
        return RunResult(
            method=results["method"],
            out_dir=self.folder.path,
            matrices=matrices,
            summary=summary,
            compute=compute,
            results=results,
        )
