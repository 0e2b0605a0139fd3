"""Report of a run as one HTML page that opens from disk."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip.common.files import write_text
from avalanche_clip.evaluation.functional import (
    exposed_accuracy,
    forgetting_per_task,
    transfer_average_last,
    transfer_per_task,
)
from avalanche_clip.evaluation.report import html, plots
from avalanche_clip.evaluation.report.results import (
    Matrix,
    cumulative_budget,
    load_results,
    main_metric,
    matrices,
    total_budget,
)
from avalanche_clip.evaluation.report.suites import suite_sections
from avalanche_clip.evaluation.report.summaries import (
    CLASS_INCREMENTAL,
    MULTI_DOMAIN,
    SI_BLURRY,
)

# Summaries in the order of their columns.
_KEY_VALUES = (
    "A_AUC A_Avg A_Last F_Last "
    "final average_recall recall_forgetting first_task_forgetting transfer average "
    "last seen unseen harmonic incremental_average incremental_last average_accuracy "
    "in_domain backward forward forgetting backward_transfer forward_transfer retention"
).split()
_EXPLANATION = (
    "In-domain, backward and forward are levels: the means of the diagonal, of the "
    "part below and of the part above it. Forgetting, backward transfer, forward "
    "transfer and retention are differences in percentage points."
)
_AT_POINTS = (
    "Final is the mean over the test sets at the last evaluation, average that over "
    "all evaluations after the stream began."
)
_PROTOCOLS = {
    MULTI_DOMAIN: (
        "Transfer, average and last are means over data sets: before a data set was "
        "learned (without the first), after every step, and after the last one. Seen "
        "and unseen are means over learned and future data sets, harmonic is their "
        "harmonic mean, each averaged over the steps."
    ),
    CLASS_INCREMENTAL: (
        "Incremental average and last count all test samples of the classes met so "
        "far as one test set, after every step and after the last one."
    ),
    SI_BLURRY: (
        "A_AUC, A_Avg and A_Last count all test samples of the classes met so far as "
        "one test set: at equal distances in samples, at the ends of tasks, and at the "
        "end. F_Last is the mean fall of a class below its best end of an earlier task."
    ),
}
_HEADLINES = (
    ("A_Last", "A_AUC", "A_Avg", "F_Last"),
    ("average_recall", "recall_forgetting", "first_task_forgetting"),
    ("transfer", "average", "last", "forgetting"),
    ("incremental_average", "incremental_last", "forgetting"),
    ("in_domain", "backward", "forward", "forgetting"),
    ("final", "average"),
)


# A table of scores: label, name of the metric and values of each row.
Scores = list[tuple[str, str, Any]]


def write_report(out_dir: str | Path) -> Path:
    """Write plots and ``report.html`` for the run in a folder.

    Reads ``results.json``. For the main metric of each stream it draws the
    matrix, the scores over time and the scores against the budget, as PNG files
    in the folder; the page holds them too and needs no other file.

    :param out_dir: folder of the run.
    :return: path of ``report.html``.
    :raises FileNotFoundError: if the folder has no ``results.json``.
    :raises ValueError: if that file holds no matrices.
    """
    folder = Path(out_dir)
    results = load_results(folder)
    streams = matrices(results)
    page = html.render(
        "report.html",
        title=f"{results.get('method', 'Run')}: continual run",
        lead=f"Seed {results.get('seed', 'unknown')}, {_shape_of(streams)}",
        results=results,
        cards=_cards(results, next(iter(streams.values()), {})),
        streams=[_stream(folder, results, *item) for item in streams.items()],
        suites=[(part, _draw_suite(folder, part)) for part in suite_sections(results)],
        data=_data(results.get("data", {})),
        budget=_budget(results),
        macs=total_budget(results),
        seconds=_total(results, "eval"),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def _shape_of(streams: Mapping[str, Mapping[str, Matrix]]) -> str:
    names = []
    for stream, metrics in streams.items():
        matrix = next(iter(metrics.values()))
        rows, columns = matrix.E.shape
        what = "steps" if matrix.by_step else "evaluations"
        names.append(f"{rows} {what} on {columns} test sets of stream “{stream}”")
    return ", ".join(names) or "no finished experience"


def _cards(results: Mapping[str, Any], metrics: Mapping[str, Matrix]) -> dict[str, str]:
    """Name -> value of what the page begins with."""
    if not metrics:
        return {}
    name = main_metric(metrics)
    summary = metrics[name].summary()
    fitting = [keys for keys in _HEADLINES if keys[0] in summary]
    shown = [key for keys in fitting[:1] for key in keys if key in summary]
    end = " %" if html.is_fraction(name) else ""
    values = {
        f"{name}, {key.replace('_', '-')}": html.score(summary[key], name) + end
        for key in shown
    }
    values["forward compute"] = html.quantity(total_budget(results), "MAC")
    values["training time"] = html.duration(_total(results, "train"))
    return values


def _total(results: Mapping[str, Any], kind: str) -> float:
    seconds = results.get("seconds", {}).get(kind)
    return float(np.sum(seconds)) if seconds else float("nan")


def _stream(
    folder: Path,
    results: Mapping[str, Any],
    stream: str,
    metrics: Mapping[str, Matrix],
) -> dict[str, Any]:
    """What the page shows about one stream."""
    name = main_metric(metrics)
    matrix = metrics[name]
    scores = [metric for metric in metrics if html.is_score(metric)]
    summaries = {metric: metrics[metric].summary() for metric in scores or metrics}
    keys = [k for k in _KEY_VALUES if any(k in s for s in summaries.values())]
    header = ["metric (%)" if scores else "metric"]
    used = {m.protocol for m in metrics.values() if m.protocol_values()}
    own = [text for protocol, text in _PROTOCOLS.items() if protocol in used]
    return {
        "stream": stream,
        "name": name,
        "labels": matrix.labels,
        "metrics": metrics,
        "summary_header": header + [key.replace("_", " ") for key in keys],
        "summary": [
            (metric, metric, [summary.get(key) for key in keys])
            for metric, summary in summaries.items()
        ],
        "explanation": " ".join([*own, _EXPLANATION if matrix.by_step else _AT_POINTS]),
        "tasks": _per_task(name, matrix),
        "languages": _per_language(name, matrix),
        "images": _draw(folder, results, stream, name, matrix),
    }


def _draw(
    folder: Path, results: Mapping[str, Any], stream: str, name: str, matrix: Matrix
) -> list[Path]:
    """Write the three figures of a metric."""
    percent = html.is_fraction(name)
    end = html.file_name(f"{stream}_{name}")
    sides = {**matrix.looks(), "percent": percent}
    points = matrix.points or range(len(matrix.E))
    unit, spent = cumulative_budget(results, points)
    over_time, names = matrix.E, matrix.labels
    scores = {"all test sets": matrix.E.mean(axis=1)}
    if matrix.online is not None:
        line = exposed_accuracy(matrix.E, matrix.counts)
        scores, over_time = {"classes so far": line}, line[:, None]
        names = ["classes so far"]
    if matrix.by_step and matrix.E.shape[0] <= matrix.E.shape[1]:
        seen = [row[: i + 1].mean() for i, row in enumerate(matrix.E)]
        scores["test sets of trained steps"] = np.array(seen)
    figures = {
        "matrix": plots.plot_matrix(
            matrix.E, title=f"{name} on stream {stream}", **sides
        ),
        "over_time": plots.plot_over_time(
            over_time,
            title=f"{name} over time",
            ylabel=name,
            **{**sides, "labels": names},
        ),
        "budget": plots.plot_budget_curve(
            spent,
            scores,
            labels=matrix.row_labels,
            title=f"{name} against budget",
            xlabel=unit,
            ylabel=f"mean of {name}",
            percent=percent,
        ),
    }
    return [
        plots.save_figure(figure, folder / f"{kind}_{end}.png")
        for kind, figure in figures.items()
    ]


def _draw_suite(folder: Path, section: Mapping[str, Any]) -> list[Path]:
    """Write the figures of a suite, numbered: file names may not tell them apart."""
    return [
        plots.save_figure(
            group.figure(),
            folder / f"suite_{html.file_name(f'{group.suite}_{group.name}')}_{k}.png",
        )
        for k, group in enumerate(section["groups"])
    ]


def _per_task(name: str, matrix: Matrix) -> Scores:
    """Transfer, average and last of each data set, in a stream of domains."""
    if matrix.protocol != MULTI_DOMAIN or not matrix.protocol_values():
        return []
    means = transfer_average_last(matrix.E)
    rows: Scores = [
        (key, name, [*row, means[key]])
        for key, row in transfer_per_task(matrix.E).items()
    ]
    if matrix.before is not None:
        first = [*matrix.before, matrix.before.mean()]
        rows.insert(0, ("before the stream", name, first))
    return rows


def _per_language(name: str, matrix: Matrix) -> tuple[list[str], Scores] | None:
    """What became of each language, in a stream of them: header and rows."""
    if "average_recall" not in matrix.protocol_values():
        return None
    E, before = matrix.E, matrix.before
    size = min(E.shape)
    columns: dict[str, np.ndarray] = {
        **({} if before is None else {"before": before[:size]}),
        "when learned": np.diagonal(E),
        "best since": np.array([E[j:, j].max() for j in range(size)]),
        "last": E[-1, :size],
        "forgotten": forgetting_per_task(E)[-1, :size],
    }
    rows: Scores = [
        (matrix.labels[j], name, [column[j] for column in columns.values()])
        for j in range(size)
    ]
    # The last language has nothing to forget yet; it does not enter that mean.
    means = [
        (column[:-1] if key == "forgotten" and size > 1 else column).mean()
        for key, column in columns.items()
    ]
    return [name, *columns], [*rows, ("mean", name, means)]


def _data(data: Mapping[str, Any]) -> list[tuple[str, list[str], list[str]]]:
    """Stream, header and numbers of samples."""
    found = []
    for stream, counts in data.get("counts", {}).items():
        labels = data.get("labels", {}).get(stream, [])
        if len(labels) != len(counts):
            labels = range(1, len(counts) + 1)
        row = [f"{int(count):,}" for count in (*counts, sum(counts))]
        found.append((stream, ["", *map(str, labels), "sum"], row))
    return found


def _budget(
    results: Mapping[str, Any],
) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Header and rows of what each step cost."""
    seconds = results.get("seconds", {}).get("train", [])
    samples = results.get("samples") or []
    macs = results.get("macs", {}).get("macs") or []
    kinds = list(dict.fromkeys(k for row in macs if isinstance(row, dict) for k in row))
    header = ["step", "training samples", *(f"MACs, {kind}" for kind in kinds), "time"]
    rows = []
    for step, (drawn, spent, time) in enumerate(zip_longest(samples, macs, seconds), 1):
        kinds_spent = spent if isinstance(spent, dict) else {}
        cells = [
            html.quantity(drawn),
            *(html.quantity(kinds_spent.get(kind)) for kind in kinds),
            html.duration(time),
        ]
        rows.append((str(step), cells))
    return header, rows
