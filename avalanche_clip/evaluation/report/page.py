"""Report of a run as one HTML page that opens from disk."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from avalanche_clip.common.files import write_text
from avalanche_clip.evaluation.functional import (
    exposed_accuracy,
    forgetting_per_task,
    transfer_average_last,
    transfer_per_task,
)
from avalanche_clip.evaluation.functional.intervals import Interval
from avalanche_clip.evaluation.report import html, plots
from avalanche_clip.evaluation.report.results import (
    Matrix,
    cumulative_budget,
    load_results,
    main_metric,
    matrices,
    step_labels,
    total_budget,
)
from avalanche_clip.evaluation.report.suites import suite_sections
from avalanche_clip.evaluation.report.summaries import (
    CLASS_INCREMENTAL,
    MULTI_DOMAIN,
    SI_BLURRY,
    is_own,
)
from avalanche_clip.evaluation.report.words import describe_run

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
    ("forgetting",),
    ("final", "average"),
)


SHOWN = 12
"""Most examples of a stream that are shown."""
TIMES = 12
"""Most times at which they are: a page of paper is no wider."""

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
        sentence=_first_words(streams),
        lead=f"Seed {results.get('seed', 'unknown')}, {_shape_of(streams)}",
        results=results,
        cards=_cards(results, next(iter(streams.values()), {})),
        streams=[_stream(folder, results, *item) for item in streams.items()],
        losses=_losses(folder, results),
        own=_own_values(folder, results),
        examples=_examples(folder, results, streams),
        suites=[(part, _draw_suite(folder, part)) for part in suite_sections(results)],
        data=_data(results.get("data", {})),
        budget=_budget(results),
        macs=total_budget(results),
        seconds=_total(results, "eval"),
    )
    path = folder / "report.html"
    write_text(path, page)
    return path


def _first_words(streams: Mapping[str, Mapping[str, Matrix]]) -> str:
    """What the run found on its first stream."""
    for metrics in streams.values():
        name = main_metric(metrics)
        return describe_run(name, metrics[name])
    return "No experience was finished."


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
    matrix = metrics[name]
    levels = {"chance": matrix.mean_chance(), "before": matrix.over_time()[0]}
    if matrix.online is None:
        levels["final"] = float(matrix.E[-1].mean())
    levels |= {key: summary[key] for key in shown}
    values = {
        f"{name}, {key.replace('_', '-')}": html.score(level, name) + end
        for key, level in levels.items()
        if math.isfinite(level)
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
    for metric, summary in summaries.items():
        first = metrics[metric].before
        summary["chance"] = metrics[metric].mean_chance()
        summary["before"] = math.nan if first is None else float(np.mean(first))
    keys = [
        key
        for key in ("chance", "before", *_KEY_VALUES)
        if any(math.isfinite(s.get(key, math.nan)) for s in summaries.values())
    ]
    header = ["metric (%)" if scores else "metric"]
    used = {m.protocol for m in metrics.values() if m.protocol_values()}
    notes = [text for protocol, text in _PROTOCOLS.items() if protocol in used]
    notes += [_EXPLANATION] if "in_domain" in keys else []
    notes += [_AT_POINTS] if {"final", "average"} <= {*keys} else []
    return {
        "stream": stream,
        "name": name,
        "sentence": describe_run(name, matrix),
        "sets": _test_sets(name, matrix),
        "labels": matrix.labels,
        "metrics": metrics,
        "summary_header": header + [key.replace("_", " ") for key in keys],
        "summary": [
            (metric, metric, [summary.get(key) for key in keys])
            for metric, summary in summaries.items()
        ],
        "explanation": " ".join(notes),
        "tasks": _per_task(name, matrix),
        "languages": _per_language(name, matrix),
        "images": _draw(folder, results, stream, name, matrix),
        "own": [
            _save(folder, "over_time", stream, metric, _over_time(metric, matrix))
            for metric, matrix in metrics.items()
            if is_own(metric) and metric != name
        ],
    }


def _test_sets(name: str, matrix: Matrix) -> tuple[list[str], list[Any]]:
    """Header and rows of what became of each test set, and of their mean."""
    E, columns = matrix.E, matrix.E.shape[1]
    parts: dict[str, Any] = {}
    if matrix.counts is not None and len(matrix.counts) == columns:
        parts["items"] = [f"{n:,.0f}" for n in (*matrix.counts, sum(matrix.counts))]
    if matrix.chance is not None:
        parts["chance"] = _with_mean(matrix.chance, name)
    if matrix.before is not None:
        parts["before"] = _with_mean(matrix.before, name)
    if matrix.by_step and 1 < len(E) <= columns:
        parts["when trained"] = _with_mean([*np.diagonal(E), *E[-1, len(E) :]], name)
    parts["last"] = _with_mean(E[-1], name)
    if (ends := matrix.intervals()) is not None:
        half = np.array([(high - low) / 2 for low, high in ends])
        ends.append(Interval(*(E[-1].mean() + s * _norm(half) for s in (-1, 1))))
        parts["95 % interval"] = [
            "–".join(html.score(end, name) for end in pair) for pair in ends
        ]
    if matrix.before is not None:
        gains = E[-1] - matrix.before
        signs = [html.signed(gain, name) for gain in (*gains, gains.mean())]
        parts["gained"] = ["–" if sign.endswith("–") else sign for sign in signs]
    if len(lost := matrix.lost()):
        *each, mean = _with_mean(lost, name)
        parts["forgotten"] = [*each, *["–"] * (columns - len(lost)), mean]
    labels = [*matrix.labels, "all, mean"] if columns > 1 else matrix.labels
    rows = [
        (label, [column[k] for column in parts.values()])
        for k, label in enumerate(labels)
    ]
    return [f"{name}{html.unit(name)}", *parts], rows


def _with_mean(values: Any, name: str) -> list[str]:
    """A column of values, and their mean."""
    return [html.score(value, name) for value in (*values, np.mean(values))]


def _norm(half: np.ndarray) -> float:
    """Half the interval of a mean, of those of its independent parts."""
    return float(np.sqrt((half**2).sum()) / len(half))


def _over_time(name: str, matrix: Matrix) -> Figure:
    return plots.plot_over_time(
        matrix.E,
        title=f"{name} over time",
        ylabel=name,
        percent=html.is_fraction(name),
        chance=matrix.mean_chance(),
        **matrix.looks(),
    )


def _save(folder: Path, kind: str, stream: str, name: str, figure: Figure) -> Path:
    return plots.save_figure(
        figure, folder / f"{kind}_{html.file_name(f'{stream}_{name}')}.png"
    )


def _draw(
    folder: Path, results: Mapping[str, Any], stream: str, name: str, matrix: Matrix
) -> list[Path]:
    """Write the figures of a metric; of one test set no matrix."""
    percent = html.is_fraction(name)
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
        "over_time": plots.plot_over_time(
            over_time,
            title=f"{name} over time",
            ylabel=name,
            chance=matrix.mean_chance(),
            **{**sides, "labels": names},
        ),
    }
    if matrix.E.shape[1] > 1:
        figures["matrix"] = plots.plot_matrix(
            matrix.E, title=f"{name} on stream {stream}", **sides
        )
    figures |= {
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
    return [_save(folder, kind, stream, name, fig) for kind, fig in figures.items()]


def _losses(folder: Path, results: Mapping[str, Any]) -> Path | None:
    """Draw the loss and its terms over the iterations, if the run has kept them."""
    curve = results.get("losses")
    if not curve:
        return None
    steps, _ = step_labels(results)
    marks = {steps[k] if k < len(steps) else str(k + 1): x for k, x in curve["ends"]}
    lines = {name: (part["at"], part["mean"]) for name, part in curve["terms"].items()}
    figure = plots.plot_panels(
        lines, title="Training loss", xlabel="iteration", marks=marks
    )
    return plots.save_figure(figure, folder / "losses.png")


def _own_values(folder: Path, results: Mapping[str, Any]) -> list[Path]:
    """Draw what metrics put into the results: each list of numbers over time."""
    found = []
    for metric, values in results.get("metrics", {}).items():
        lines = {
            name: (range(1, len(value) + 1), np.array(value, dtype=np.float64))
            for name, value in html.flat("", values)
            if isinstance(value, list) and len(value) > 1 and all(map(_number, value))
        }
        if lines:
            figure = plots.plot_panels(lines, title=metric, xlabel="evaluation")
            path = folder / f"metric_{html.file_name(metric)}.png"
            found.append(plots.save_figure(figure, path))
    return found


def _number(value: Any) -> bool:
    return value is None or type(value) in (int, float)


def _examples(
    folder: Path, results: Mapping[str, Any], streams: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Stream, header and rows of pictures, and of what was found for them."""
    shown = []
    for stream, metrics in streams.items():
        times = ["before", *next(iter(metrics.values())).row_labels]
        places = np.linspace(0, len(times) - 1, min(len(times), TIMES))
        chosen = places.round().astype(int).tolist()
        rows = []
        for item in _varied(results.get("examples", {}).get(stream, [])):
            path = folder / (item["picture"] or ".")
            known = dict(enumerate(item["found"]))
            cells = [known.get(k) or (False, "–") for k in chosen]
            rows.append((path if path.is_file() else None, item["text"], cells))
        if rows:
            shown.append((stream, ["picture", *(times[k] for k in chosen)], rows))
    return shown


def _varied(items: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Choose items of each fate in turn: kept, lost, never known; in their order."""
    fates: dict[tuple[bool, ...], list[int]] = {}
    for k, item in enumerate(items):
        hits = [bool(cell and cell[0]) for cell in item["found"]]
        fates.setdefault((hits[-1], hits[0], any(hits)), []).append(k)
    turns = [k for turn in zip_longest(*fates.values()) for k in turn if k is not None]
    return [items[k] for k in sorted(turns[:SHOWN])]


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


def _data(data: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """Stream, and numbers of samples of its experiences."""
    found = []
    for stream, counts in data.get("counts", {}).items():
        labels = data.get("labels", {}).get(stream, [])
        if len(labels) != len(counts):
            labels = range(1, len(counts) + 1)
        names, numbers = [*map(str, labels), "sum"], [*counts, sum(counts)]
        texts = [[f"{int(number):,}"] for number in numbers]
        found.append((stream, list(zip(names, texts, strict=True))))
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
