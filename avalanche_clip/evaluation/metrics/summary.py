"""Summary of a metric over the whole run, after each evaluation."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue

from avalanche_clip.evaluation.functional import continual_summary, time_transfer
from avalanche_clip.evaluation.metrics._values import metric_values

Results = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]


class ResultSource(Protocol):
    """A metric that keeps its values per stream and experience."""

    stream_results: dict[str, dict[int, dict[str, float]]]


class ContinualSummary(PluginMetric[dict[str, dict[str, float]]]):
    """Forgetting, transfer and levels of one value over the stream.

    Each complete evaluation adds a row to a matrix per stream: row "before" if
    nothing was trained yet, else row i after the i-th training experience. A
    repeated evaluation replaces its row. After each one the values of
    :func:`continual_summary`, and as soon as every experience of the stream was
    trained also those of :func:`time_transfer`, are emitted as
    ``mean_R@1_forgetting/eval_phase/test_stream``. Column j belongs to the training
    experience with that index, in whatever order these were trained; averages count
    the trained ones only. Without such a column, or after training on several
    streams, there are no summaries. Experiences that were not evaluated are NaN and
    make the values they enter NaN. Evaluations nested in training (``eval_every``)
    show half-trained models and are left out.

    Memory: the matrices only.

    :param source: metric that provides the values, for example a
        :class:`RetrievalMetric`; it must come first in the list of metrics.
    :param key: name of the value, for example ``"mean_R@1"``.
    """

    def __init__(self, source: ResultSource, key: str = "mean_R@1") -> None:
        super().__init__()
        self.source = source
        self.key = key
        self._training = False
        self._lengths: dict[str, int] = {}
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        # stream -> number of experiences trained -> one value per experience
        self._rows: dict[str, dict[int, list[float]]] = {}
        # number of experiences trained -> stream and index of the last of them
        self._steps: dict[int, tuple[str, int]] = {}

    def add(self, stream: str, trained: int, row: list[float]) -> None:
        """Store the results of one evaluation.

        :param stream: name of the test stream.
        :param trained: number of experiences trained before, 0 for none.
        :param row: one value per experience of the stream.
        """
        self._rows.setdefault(stream, {})[trained] = row

    def grow(self, rows: Results, trained: Sequence[int]) -> None:
        """Take rows that have got further columns, for those that are known.

        :param rows: stream -> metric -> one row per evaluation, in order.
        :param trained: number of experiences trained before each of them.
        """
        for stream, known in self._rows.items():
            found = rows.get(stream, {}).get(self.key, ())
            wider = {n: list(row) for n, row in zip(trained, found, strict=False)}
            known.update({n: row for n, row in wider.items() if n in known})

    def matrix(self, stream: str) -> tuple[list[float] | None, list[list[float]]]:
        """Return what was collected on a stream.

        :param stream: name of the test stream.
        :return: the row before the stream, or None; and the rows after each
            training experience. A row that is missing between others is NaN, and
            so is the end of one from before the stream has grown.
        """
        found = self._rows.get(stream, {})
        width = max((len(row) for row in found.values()), default=0)
        rows = {k: [*row, *[math.nan] * (width - len(row))] for k, row in found.items()}
        missing = [math.nan] * width
        trained = range(1, max(rows, default=0) + 1)
        return rows.get(0), [rows.get(i, missing) for i in trained]

    def result(self) -> dict[str, dict[str, float]]:
        """Return the summaries of all streams with at least one trained row.

        :return: stream name -> name of the value -> value.
        """
        result = {}
        for stream in self._rows:
            before, matrix = self.matrix(stream)
            steps = self._columns(len(matrix))
            if not matrix or steps is None or max(steps) >= len(matrix[0]):
                continue
            result[stream] = continual_summary(matrix, before, steps)
            if len(set(steps)) == len(matrix[0]):
                result[stream] |= time_transfer(matrix, steps)
        return result

    def _columns(self, trained: int) -> list[int] | None:
        """Columns of the steps behind the rows; None if they are not known.

        Rows that were added by hand count as those of a stream in its order.
        """
        if not self._steps:
            return list(range(trained))
        known = [self._steps.get(number) for number in range(1, trained + 1)]
        steps = [step for step in known if step is not None]
        if len(steps) < len(known) or len({name for name, _ in steps}) > 1:
            return None
        return [index for _, index in steps]

    def state_dict(self) -> dict[str, Any]:
        """Return the collected rows as plain data."""
        return {
            "rows": copy.deepcopy(self._rows),
            "steps": {number: list(step) for number, step in self._steps.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        :param state: plain data; keys that JSON turned into strings are fine.
        """
        self._rows = {
            stream: {int(trained): list(row) for trained, row in rows.items()}
            for stream, rows in state["rows"].items()
        }
        self._steps = {
            int(number): (str(name), int(index))
            for number, (name, index) in state["steps"].items()
        }

    def before_training(self, strategy: Any) -> None:
        """Note that evaluations are nested from here on."""
        self._training = True

    def before_training_exp(self, strategy: Any) -> None:
        """Note which step the coming rows are about."""
        step = strategy.visits.current
        name = step.stream
        if other := strategy.visits.number_of(step):
            name = f"{name} ({other + 1})"  # a stream of another benchmark
        self._steps[strategy.clock.train_exp_counter + 1] = (name, step.place)

    def after_training(self, strategy: Any) -> None:
        """Note that evaluations show complete models from here on."""
        self._training = False

    def before_eval_exp(self, strategy: Any) -> None:
        """Note the length of the stream."""
        stream = strategy.experience.origin_stream
        self._lengths[stream.name] = len(stream)

    def after_eval(self, strategy: Any) -> list[MetricValue]:
        """Add a row for each evaluated stream and emit the summaries."""
        if self._training:
            return []
        for stream, results in self.source.stream_results.items():
            row = [math.nan] * self._lengths[stream]
            for index, values in results.items():
                row[index] = values[self.key]
            self.add(stream, strategy.clock.train_exp_counter, row)
        summaries = {
            f"{self.key}_{name}/eval_phase/{stream}_stream": value
            for stream, values in self.result().items()
            if stream in self.source.stream_results
            for name, value in values.items()
        }
        return metric_values(self, strategy, summaries, str)

    def __str__(self) -> str:
        return f"{self.key}_Summary"
