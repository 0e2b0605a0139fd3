"""Reading of the ``results.json`` of a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip.evaluation.functional import (
    continual_summary,
    multilingual_summary,
    time_transfer,
)

MAIN_METRIC = "mean_R@1"
RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class Matrix:
    """Results of one metric on one stream: rows after each step, and before."""

    E: np.ndarray
    before: np.ndarray | None
    labels: list[str]
    steps: list[str] = field(default_factory=list)
    protocol: str | None = None

    @property
    def row_labels(self) -> list[str]:
        """Names of the trained steps: their own, else the test sets', else numbers."""
        rows, columns = self.E.shape
        if len(self.steps) >= rows:
            return self.steps[:rows]
        if rows <= columns:
            return self.labels[:rows]
        return [str(number) for number in range(1, rows + 1)]

    def summary(self) -> dict[str, float]:
        """Levels (if the matrix is square) and differences over the stream."""
        rows, columns = self.E.shape
        values = time_transfer(self.E) if rows == columns else {}
        if rows <= columns:
            values |= continual_summary(self.E, self.before)
        if self.protocol == "multilingual":
            values |= multilingual_summary(self.E)
        return values


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
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist; pass the folder of a finished run."
            )
        results = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(results, dict) or not results.get("matrices"):
        raise ValueError(
            f"The results in {source if not isinstance(source, Mapping) else 'a dict'} "
            "hold no matrices; pass the results.json of a run."
        )
    return results


def matrices(results: Mapping[str, Any]) -> dict[str, dict[str, Matrix]]:
    """Return stream -> metric -> matrix.

    :param results: content of ``results.json``.
    :return: float64 matrices; null becomes NaN.
    """
    found: dict[str, dict[str, Matrix]] = {}
    all_labels = results.get("data", {}).get("labels", {})
    steps = [str(label) for label in all_labels.get("train", [])]
    for stream, metrics in results["matrices"].items():
        for metric, parts in metrics.items():
            E = np.array(parts["E"], dtype=np.float64)
            if E.ndim != 2 or E.size == 0:
                continue  # a run that was stopped before its first experience
            before = parts.get("before")
            labels = [str(label) for label in all_labels.get(stream, [])]
            if len(labels) != E.shape[1]:
                labels = [str(number) for number in range(1, E.shape[1] + 1)]
            row = None if before is None else np.array(before, dtype=np.float64)
            protocol = results.get("data", {}).get("protocol")
            found.setdefault(stream, {})[metric] = Matrix(
                E, row, labels, steps, protocol
            )
    return found


def main_metric(metrics: Mapping[str, Any]) -> str:
    """Return the metric that plots show: mean R@1, else the first recall.

    :param metrics: names of the metrics of a stream.
    :return: one of them.
    """
    recalls = [name for name in metrics if "R@" in name or name.startswith("acc")]
    return next(
        (n for n in (MAIN_METRIC, *recalls) if n in metrics), next(iter(metrics))
    )


def cumulative_budget(
    results: Mapping[str, Any], steps: int
) -> tuple[str, list[float]]:
    """Return what was spent up to the end of each step.

    :param results: content of ``results.json``.
    :param steps: number of trained steps.
    :return: name of the unit, MACs or else samples or steps, and the sums.
    """
    rows = results.get("macs", {}).get("macs")
    if isinstance(rows, list) and len(rows) >= steps:
        spent = [sum(r.values()) if isinstance(r, Mapping) else r for r in rows[:steps]]
        name = "forward compute (MACs)"
    elif len(results.get("samples") or []) >= steps:
        spent, name = results["samples"][:steps], "training samples"
    else:
        spent, name = [1] * steps, "steps"
    return name, np.cumsum(np.array(spent, dtype=np.float64)).tolist()


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
        return float(cumulative_budget(results, len(rows))[1][-1]) if rows else 0.0
    return math.nan


__all__ = [
    "MAIN_METRIC",
    "RESULTS_FILE",
    "Matrix",
    "cumulative_budget",
    "load_results",
    "main_metric",
    "matrices",
    "total_budget",
]
