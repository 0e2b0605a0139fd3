"""Reading of the ``results.json`` of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip.common.checks import existing_file, require_type
from avalanche_clip.common.files import CHECKSUM, read_json
from avalanche_clip.evaluation.functional import continual_summary, time_transfer
from avalanche_clip.evaluation.functional.intervals import Interval, wilson_interval
from avalanche_clip.evaluation.report.summaries import (
    BOTH_SPACES,
    MULTILINGUAL,
    is_result,
    online_summary,
    protocol_summary,
)

MAIN_METRIC = "mean_R@1"
RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class Matrix:
    """Results of one metric on one stream, over time and before the stream.

    ``counts`` are the items of each test set. ``points`` are the indices of the
    training steps behind the rows, None for a row after each step. ``per_task``: rows
    lie at the ends of tasks. ``online``: what results of Si-Blurry have beside it,
    which are NaN before a class has occurred. ``chance``: score of guessing on each
    test set, for the last model.
    """

    E: np.ndarray
    before: np.ndarray | None
    labels: list[str]
    steps: list[str] = field(default_factory=list)
    protocol: str | None = None
    counts: list[int] | None = None
    space: str | None = None
    points: list[int] | None = None
    per_task: bool = False
    online: Mapping[str, Any] | None = None
    chance: np.ndarray | None = None

    @property
    def by_step(self) -> bool:
        """Whether there is a row for each of the steps that test sets are of."""
        each = self.points is None or self.per_task
        return each and not self.joint and self.online is None

    @property
    def joint(self) -> bool:
        """Whether there was one training only, for several test sets.

        Nothing can then be said of earlier and later steps.
        """
        rows, columns = self.E.shape
        return rows == 1 < columns and self.protocol != MULTILINGUAL

    @property
    def row_labels(self) -> list[str]:
        """Names of the trained steps: their own, else the test sets', else numbers."""
        rows, columns = self.E.shape
        if self.points is not None:
            known = dict(enumerate(self.steps))
            return [known.get(step, str(step + 1)) for step in self.points]
        if len(self.steps) >= rows:
            return self.steps[:rows]
        if rows <= columns:
            return self.labels[:rows]
        return [str(number) for number in range(1, rows + 1)]

    def looks(self) -> dict[str, Any]:
        """What figures of the matrix show beside it."""
        return {
            "before": self.before,
            "labels": self.labels,
            "row_labels": self.row_labels,
            "diagonal": self.by_step,
        }

    def mean_chance(self) -> float:
        """Score of guessing, mean over test sets; NaN if it is not known."""
        return math.nan if self.chance is None else float(np.mean(self.chance))

    def with_before(self) -> np.ndarray:
        """All rows, the one before the stream first, NaN if that is unknown."""
        unknown = np.full_like(self.E[0], math.nan)
        return np.vstack([unknown if self.before is None else self.before, self.E])

    def over_time(self) -> np.ndarray:
        """Mean over test sets before the stream, NaN if unknown, and after each row."""
        return self.with_before().mean(axis=1)

    def lost(self) -> np.ndarray:
        """How far earlier test sets are below their best earlier result that is known.

        Empty unless test sets are those of the steps.
        """
        rows, columns = self.E.shape
        if not self.by_step or not 1 < rows <= columns:
            return np.empty(0)
        first = self.E[:0] if self.before is None else self.before[None]
        old = np.vstack([first, self.E[:-1]])[:, : rows - 1]
        return np.fmax.reduce(old, axis=0) - self.E[-1, : rows - 1]

    def intervals(self) -> list[Interval] | None:
        """95 % intervals of the last row, from the numbers of test items.

        Those of Wilson of shares of that many items; of the mean of two directions,
        which are shares of the same items, they are too wide if anything.
        """
        fits = (self.E[-1] <= 1).all() and (self.E[-1] >= 0).all()
        if self.counts is None or not fits or min(self.counts) < 1:
            return None
        pairs = zip(self.E[-1], map(int, self.counts), strict=True)
        return [wilson_interval(value * n, n) for value, n in pairs]

    def summary(self) -> dict[str, float]:
        """Levels (if the matrix is square) and differences over the stream.

        Of fewer test sets than steps, such as one of all steps, levels only.
        """
        rows, columns = self.E.shape
        if not self.by_step:
            return self._levels() | self.protocol_values()
        values = time_transfer(self.E) if rows == columns else {}
        if rows <= columns:
            values |= continual_summary(self.E, self.before)
        return (values or self._levels()) | self.protocol_values()

    def stored_summary(self) -> dict[str, float]:
        """What ``results.json`` holds, ``final`` and ``average`` in any case.

        A stream whose experiences are not the trained steps (a gallery), and a run
        that was not evaluated after each step, have no transfer between steps: there
        ``final`` is the mean of the last row and ``average`` that of all rows.
        """
        square = self.E.shape[0] == self.E.shape[1]
        return self._levels() | (self.summary() if square else self.protocol_values())

    def _levels(self) -> dict[str, float]:
        E = self.E if self.online is None else self.E[:, ~np.isnan(self.E[-1])]
        mean = np.mean if self.online is None else np.nanmean
        return {"average": float(mean(E)), "final": float(E[-1].mean())}

    def protocol_values(self) -> dict[str, float]:
        """Summaries that belong to the protocol of the benchmark."""
        if self.online is not None:
            return online_summary(self.E, self.counts, self.space, self.online)
        if not self.by_step:
            return {}
        return protocol_summary(self.E, self.protocol, self.counts, self.space)


def load_results(source: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """Return the results of a run.

    :param source: the dict itself, the file, or the folder of the run.
    :return: the results.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if the file is no result of a run.
    """
    if isinstance(source, Mapping):
        results = dict(source)
    else:
        path = Path(source)
        path = path / RESULTS_FILE if path.is_dir() else path
        existing_file(path, "pass the folder of a finished run")
        results = read_json(path, dict)
        if CHECKSUM in results:  # earlier versions wrote none
            results = read_json(path, checksum=True, rewrite="finish the run again")
    name = source if not isinstance(source, Mapping) else "a dict"
    if not results.get("matrices"):
        raise ValueError(
            f"The results in {name} hold no matrices; pass the results.json of a run."
        )
    _check_matrices(results, f"The results in {name}")
    return results


def _check_matrices(results: Mapping[str, Any], place: str) -> None:
    """Raise ValueError unless matrices are stored as a run stores them."""
    streams = results["matrices"]
    tables: list[Any] = [*streams.values()] if isinstance(streams, Mapping) else [None]
    for table in tables:
        metrics: Mapping[str, Any] = table if isinstance(table, Mapping) else {"?": 0}
        for metric, parts in metrics.items():
            try:
                np.array(parts["E"], dtype=np.float64)
                np.array(parts.get("before"), dtype=np.float64)
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise ValueError(
                    f"{place} have no matrix of numbers under {metric!r} ({error}); "
                    "pass the results.json of a run."
                ) from error
    for key in ("data", "config"):
        what, give = f"{place}: what lies under {key!r}", "the results.json of a run"
        require_type(results.get(key, {}), Mapping, what, give, error=ValueError)


def matrices(results: Mapping[str, Any]) -> dict[str, dict[str, Matrix]]:
    """Return stream -> metric -> matrix.

    :param results: content of ``results.json``.
    :return: float64 matrices; null becomes NaN.
    """
    found: dict[str, dict[str, Matrix]] = {}
    data = results.get("data", {})
    all_labels, counts = data.get("labels", {}), data.get("counts", {})
    space = results.get("config", {}).get("eval_label_space")
    evaluations = results.get("evaluations", {"at": "steps"})
    steps, points = step_labels(results)
    per_task = evaluations["at"] == {"task_ends": True}
    final, online = results.get("final_streams", ()), results.get("online")
    last = [max(evaluations.get("steps") or [0])]
    for stream, metrics in results["matrices"].items():
        for metric, parts in metrics.items():
            E = np.array(parts["E"], dtype=np.float64)
            if E.ndim != 2 or E.size == 0:
                continue  # a run that was stopped before its first experience
            before = parts.get("before")
            labels = [str(label) for label in all_labels.get(stream, [])]
            if len(labels) != E.shape[1]:
                labels = [str(number) for number in range(1, E.shape[1] + 1)]
            sizes = counts.get(stream)
            own = online if online and stream in online["streams"] else None
            row = None if before is None else np.array(before, dtype=np.float64)
            guessed = results.get("chance", {}).get(stream, {}).get(metric)
            # Losses have no transfer or accuracy over classes.
            shown = is_result(metric)
            other = metric in BOTH_SPACES  # a protocol is one of the strategy's space
            named = shown and not other and stream not in final
            found.setdefault(stream, {})[metric] = Matrix(
                E,
                None if own else row,
                labels,
                steps,
                data.get("protocol") if named else None,
                sizes if shown and len(sizes or ()) == E.shape[1] else None,
                None if other else space,
                last if stream in final else points,
                per_task,
                own,
                None if guessed is None else np.array(guessed, dtype=np.float64),
            )
    return found


def step_labels(results: Mapping[str, Any]) -> tuple[list[str], list[int] | None]:
    """Names of the training steps, and those after which the run was evaluated.

    Of steps that are parts of one the names are samples of the stream.

    :param results: content of ``results.json``.
    :return: names, and indices, None for all.
    """
    labels = results.get("data", {}).get("labels", {}).get("train", [])
    steps = [str(label) for label in labels]
    evaluations = results.get("evaluations", {"at": "steps"})
    points = None if evaluations["at"] == "steps" else list(evaluations["steps"])
    if points is not None and len({*steps}) < len(steps):
        for step, count in zip(points, evaluations["samples"], strict=True):
            steps[step] = f"{count:,} samples"
    return steps, points


def main_metric(metrics: Mapping[str, Any]) -> str:
    """Return the metric that plots show: mean R@1, else a recall or accuracy.

    :param metrics: names of the metrics of a stream.
    :return: one of them.
    """
    recalls = [name for name in metrics if is_result(name)]
    return next(
        (n for n in (MAIN_METRIC, *recalls) if n in metrics), next(iter(metrics))
    )


def cumulative_budget(
    results: Mapping[str, Any], points: Sequence[int]
) -> tuple[str, list[float]]:
    """Return what was spent up to the end of some steps.

    :param results: content of ``results.json``.
    :param points: indices of the trained steps, ascending.
    :return: name of the unit, MACs or else samples or steps, and the sums.
    """
    steps = points[-1] + 1
    rows = results.get("macs", {}).get("macs")
    if isinstance(rows, list) and len(rows) >= steps:
        spent = [sum(r.values()) if isinstance(r, Mapping) else r for r in rows[:steps]]
        name = "forward compute (MACs)"
    elif len(results.get("samples") or []) >= steps:
        spent, name = results["samples"][:steps], "training samples"
    else:
        spent, name = [1] * steps, "steps"
    sums = np.cumsum(np.array(spent, dtype=np.float64))
    return name, sums[list(points)].tolist()


def total_budget(results: Mapping[str, Any]) -> float:
    """Return all MACs of a run, NaN where they are unknown.

    :param results: content of ``results.json``.
    :return: forward MACs, teacher and search passes included.
    """
    macs = results.get("macs", {})
    if "total_macs" in macs:
        return float(macs["total_macs"])
    rows = macs.get("macs")
    if isinstance(rows, list):
        last = [len(rows) - 1]
        return cumulative_budget(results, last)[1][0] if rows else 0.0
    return math.nan
