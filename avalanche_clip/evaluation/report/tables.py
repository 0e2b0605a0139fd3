"""Tables of comparisons: values with their spread, and settings that differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from avalanche_clip.evaluation.report import html
from avalanche_clip.evaluation.report.plots import Spread
from avalanche_clip.evaluation.report.results import Matrix
from avalanche_clip.evaluation.report.words import LOWER_IS_BETTER, clearly_best

Runs = dict[str, list[dict[str, Any]]]
"""Method -> results of its runs."""
SpreadTable = tuple[list[str], list[tuple[str, list[tuple[float, float, bool]]]]]
"""Header, and the label and (mean, deviation, best) of the cells of each row."""


def spread(values: Sequence[float]) -> Spread:
    """Return mean and sample standard deviation; NaN deviation for one value.

    :param values: one value per seed.
    :return: both, NaN if a value is NaN.

    >>> spread([1.0, 3.0]).mean, round(spread([1.0, 3.0]).deviation, 4)
    (2.0, 1.4142)
    """
    data = np.asarray(values, dtype=np.float64)
    deviation = float(data.std(ddof=1)) if len(data) > 1 else math.nan
    return Spread(float(data.mean()), deviation)


def summary_table(
    summaries: Mapping[str, Mapping[str, Spread]], references: Sequence[str] = ()
) -> SpreadTable:
    """Table of the summaries that a method has, with the best of each marked."""
    found = summaries.values()
    every = next(iter(found))
    own = [row for method, row in summaries.items() if method not in references]
    shown = own or list(found)
    keys = [k for k in every if any(math.isfinite(row[k].mean) for row in shown)]
    # Of a square matrix it is the final score by another name.
    if all(row.get("average_accuracy") == row["final"] for row in shown):
        keys.remove("average_accuracy")
    rows = {method: [values[k] for k in keys] for method, values in summaries.items()}
    lower = [None if key == "before" else key in LOWER_IS_BETTER for key in keys]
    names = [key.replace("_", " ") for key in keys]
    return _with_best(names, rows, lower, references)


def last_table(
    methods: Mapping[str, list[Matrix]],
    references: Sequence[str] = (),
    *,
    best: bool = True,
) -> SpreadTable:
    """Table of the last row of each method, with the best of each test set marked."""
    rows = {
        method: [spread(column) for column in np.stack([m.E[-1] for m in runs]).T]
        for method, runs in methods.items()
    }
    labels = next(iter(methods.values()))[0].labels
    return _with_best(labels, rows, [False if best else None] * len(labels), references)


def _with_best(
    columns: list[str],
    rows: Mapping[str, list[Spread]],
    lower: list[Any],
    references: Sequence[str] = (),
) -> SpreadTable:
    """Mark what is clearly the best of each column; nothing where None is asked."""
    own = [method for method in rows if method not in references]
    marked = set()
    for number, small in enumerate(lower):
        cells = [rows[method][number] for method in own]
        top = None if small is None else clearly_best(cells, lower=small)
        if top is not None:
            marked.add((own[top], number))
    return ["method", *columns], [
        (
            f"{method} (reference)" if method in references else method,
            [(*cell, (method, k) in marked) for k, cell in enumerate(cells)],
        )
        for method, cells in rows.items()
    ]


def differences(runs: Runs) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    """Header and rows of the settings in which methods differ."""
    found: dict[str, dict[str, str]] = {}
    for method, results in runs.items():
        for result in results:
            parts = {k: result.get(k, {}) for k in ("config", "versions")}
            config = dict(parts.pop("config"))
            config.pop("seed", None)
            plugins = config.pop("plugins", None) or []
            config |= {f"plugin {p.get('class', k)}": p for k, p in enumerate(plugins)}
            for name, value in html.flat("", {**config, **parts}):
                cells = found.setdefault(name, {})
                texts = dict.fromkeys([*cells.get(method, "").split(" / "), str(value)])
                cells[method] = " / ".join(filter(None, texts))
    rows = [
        (name, [cells.get(method, "–") for method in runs])
        for name, cells in found.items()
        if len({cells.get(method) for method in runs}) > 1
    ]
    return (["setting", *runs], rows) if rows else None
