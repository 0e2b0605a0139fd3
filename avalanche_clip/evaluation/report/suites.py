"""What suites found in a run, as the tables and lines of reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from avalanche_clip.evaluation.report import html, plots
from avalanche_clip.evaluation.report.results import Matrix, step_labels
from avalanche_clip.evaluation.suites.suite import metrics_only

MOST_LINES = 12
"""More tasks are drawn as a heat map."""

Cell = tuple[str, str]
"""Task and metric."""


@dataclass(frozen=True)
class SuiteGroup:
    """Values of a suite that one figure shows.

    One metric over several tasks, or several metrics of the only task, either all
    fractions or none.

    :param name: of the metric if there is one, else of the task.
    :param cells: one for each column of the matrix.
    """

    suite: str
    name: str
    cells: list[Cell]
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
        looks["title"] = f"{self.suite}: {self.name}"
        if len(self.cells) > MOST_LINES:
            return plots.plot_matrix(self.matrix.E, **looks)
        kind, name = ("task", self.name) if self.one_metric else ("metric", "")
        return plots.plot_over_time(self.matrix.E, ylabel=name, kind=kind, **looks)


def suite_sections(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the suites of a run found, and what they lacked, for its page.

    The first metric of a task is its main one; of a suite with one task all are. There
    is no figure of a run that was stopped before its first step.

    :param results: content of ``results.json``.
    :return: of each suite its ``name``, :class:`SuiteGroup` of ``groups``, the
        ``header`` of both tables, rows of the ``main`` and of the ``others``, and data
        sets that were ``missing`` -> what is wanted where.
    """
    missing, found = results.get("suites_missing", {}), []
    for name, rows in results.get("suites", {}).items():
        tasks: dict[str, dict[str, float]] = {}
        for row in rows.values():
            for task, values in row.items():
                tasks.setdefault(task, {}).update(values)
        cells = [(task, m) for task, v in tasks.items() for m in metrics_only(v)]
        first = {task: (task, metric) for task, metric in reversed(cells)}
        main = cells if len(tasks) == 1 else list(first.values())[::-1]
        groups = _groups(name, results, rows, main) if len(rows) > 1 else []
        points = groups[0].matrix.row_labels if groups else []
        before = [row for row in rows if not row.isdigit()]
        tables = [main, [cell for cell in cells if cell not in main]]
        lines = [
            [(_label(c, tasks), c[1], _values(rows, [c])[:, 0]) for c in table]
            for table in tables
        ]
        found.append(
            {
                "name": name,
                "header": ["", *before, *(f"after {label}" for label in points)],
                "main": lines[0],
                "others": lines[1],
                "groups": groups,
                "missing": missing.get(name, {}),
            }
        )
    return found


def _label(cell: Cell, tasks: Mapping[str, Mapping[str, float]]) -> str:
    """Task, how many items it has, if that is known, and metric."""
    count = tasks[cell[0]].get("count")
    return f"{cell[0]}{'' if count is None else f' ({count:,.0f})'}, {cell[1]}"


def _groups(
    suite: str, results: Mapping[str, Any], rows: Mapping[str, Any], cells: list[Cell]
) -> list[SuiteGroup]:
    steps, points = step_labels(results)
    parts: dict[Any, list[Cell]] = {}
    several = len({task for task, _ in cells}) > 1
    for cell in cells:
        key = cell[1] if several else html.is_fraction(cell[1])
        parts.setdefault(key, []).append(cell)
    found = []
    for part in parts.values():
        after, before = (
            _values({k: v for k, v in rows.items() if k.isdigit() == later}, part)
            for later in (True, False)
        )
        matrix = Matrix(
            after,
            before[0] if len(before) else None,
            [task if several else metric for task, metric in part],
            steps,
            points=list(range(len(after))) if points is None else points,
        )
        name = part[0][1] if several or len(part) == 1 else part[0][0]
        found.append(SuiteGroup(suite, name, part, matrix))
    return found


def _values(rows: Mapping[str, Any], cells: Sequence[Cell]) -> np.ndarray:
    """One row per evaluation, NaN where a value is missing."""
    every = rows.values()
    found = [[row.get(task, {}).get(name) for task, name in cells] for row in every]
    return np.array(found, dtype=np.float64).reshape(len(rows), len(cells))
