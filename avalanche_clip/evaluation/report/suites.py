"""What suites found in a run, as the tables and lines of reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from avalanche_clip.evaluation.report import html, plots
from avalanche_clip.evaluation.report.results import Matrix, step_labels
from avalanche_clip.evaluation.suites.suite import metrics_only

MOST_LINES = 12
"""More tasks are drawn as a heat map."""


@dataclass(frozen=True)
class SuiteGroup:
    """Values of a suite that one figure shows.

    One metric over several tasks, or several metrics of the only task, either all
    shares or none.

    :param name: of the metric, or of the task.
    :param cells: (task, metric) of each column of the matrix.
    """

    suite: str
    name: str
    cells: list[tuple[str, str]]
    matrix: Matrix

    @property
    def one_metric(self) -> bool:
        """Whether columns are tasks, so that their mean has a meaning."""
        return len({metric for _, metric in self.cells}) == 1

    @property
    def percent(self) -> bool:
        """Whether values are fractions."""
        return html.is_fraction(self.cells[0][1])

    def figure(self) -> Figure:
        """Lines over the evaluation points; of many tasks a heat map."""
        looks: dict[str, Any] = {**self.matrix.looks(), "percent": self.percent}
        title = f"{self.suite}: {self.name}"
        if len(self.cells) > MOST_LINES:
            return plots.plot_matrix(self.matrix.E, title=title, **looks)
        kind, name = ("task", self.name) if self.one_metric else ("metric", "")
        return plots.plot_over_time(
            self.matrix.E, title=title, ylabel=name, kind=kind, **looks
        )


@dataclass(frozen=True)
class SuiteSection:
    """A suite of one run.

    :param header: names of the evaluation points.
    :param main: rows of the table that is shown: label, metric, values.
    :param others: those of the table behind it.
    :param missing: data sets that were not there -> what is wanted where.
    """

    name: str
    header: list[str]
    main: list[tuple[str, str, list[float]]]
    others: list[tuple[str, str, list[float]]]
    groups: list[SuiteGroup]
    missing: Mapping[str, str]


def suite_sections(results: Mapping[str, Any]) -> list[SuiteSection]:
    """What the suites of a run found, and what they lacked.

    The first metric of a task is its main one. Of a suite with one task all metrics
    are shown.

    :param results: content of ``results.json``.
    """
    missing = results.get("suites_missing", {})
    return [
        _section(results, name, rows, missing.get(name, {}))
        for name, rows in results.get("suites", {}).items()
    ]


def _section(
    results: Mapping[str, Any],
    name: str,
    rows: Mapping[str, Any],
    missing: Mapping[str, str],
) -> SuiteSection:
    tasks: dict[str, dict[str, float]] = {}
    for row in rows.values():
        for task, metrics in row.items():
            tasks.setdefault(task, {}).update(metrics)
    every = [(task, metric) for task, metrics in tasks.items() for metric in metrics]
    main = [(task, m) for task, metrics in tasks.items() for m in metrics_only(metrics)]
    if len(tasks) > 1:
        main = list({cell[0]: cell for cell in reversed(main)}.values())[::-1]
    table = {cell: _values(rows, [cell])[:, 0] for cell in every}
    made = [
        SuiteGroup(name, title, cells, _matrix(results, rows, cells, labels))
        for title, cells, labels in _grouped(main)
        if len(rows) > 1  # else the run was stopped before its first step
    ]
    labels = made[0].matrix.row_labels if made else []
    before = [row for row in rows if not row.isdigit()]
    return SuiteSection(
        name,
        ["", *before, *[f"after {label}" for label in labels]],
        _lines(table, main),
        _lines(table, [cell for cell in every if cell not in main]),
        made,
        missing,
    )


def _lines(
    table: Mapping[tuple[str, str], np.ndarray], cells: Iterable[tuple[str, str]]
) -> list[tuple[str, str, list[float]]]:
    return [(f"{cell[0]}, {cell[1]}", cell[1], table[cell].tolist()) for cell in cells]


def _grouped(
    cells: Sequence[tuple[str, str]],
) -> list[tuple[str, list[tuple[str, str]], list[str]]]:
    """Name, columns and their labels of each group of main values."""
    tasks = {task for task, _ in cells}
    groups: dict[Any, list[tuple[str, str]]] = {}
    for task, metric in cells:
        key = metric if len(tasks) > 1 else html.is_fraction(metric)
        groups.setdefault(key, []).append((task, metric))
    if len(tasks) > 1:
        return [
            (key, found, [task for task, _ in found]) for key, found in groups.items()
        ]
    return [(found[0][0], found, [m for _, m in found]) for found in groups.values()]


def _values(rows: Mapping[str, Any], cells: Sequence[tuple[str, str]]) -> np.ndarray:
    """One row per evaluation, NaN where a value is missing."""
    found = [
        [row.get(task, {}).get(metric) for task, metric in cells]
        for row in rows.values()
    ]
    return np.array(found, dtype=np.float64).reshape(len(rows), len(cells))


def _matrix(
    results: Mapping[str, Any],
    rows: Mapping[str, Any],
    cells: Sequence[tuple[str, str]],
    labels: list[str],
) -> Matrix:
    later = {name: row for name, row in rows.items() if name.isdigit()}
    first = {name: row for name, row in rows.items() if not name.isdigit()}
    steps, points = step_labels(results)
    points = list(range(len(later))) if points is None else points
    before = _values(first, cells)[0] if first else None
    return Matrix(_values(later, cells), before, labels, steps, points=points)
