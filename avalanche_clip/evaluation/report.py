"""Report of a run as one HTML page that opens from disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip._files import write_text
from avalanche_clip.evaluation import _html, _languages, plots
from avalanche_clip.evaluation._results import (
    Matrix,
    cumulative_budget,
    load_results,
    main_metric,
    matrices,
    total_budget,
)
from avalanche_clip.evaluation._summaries import CLASS_INCREMENTAL, MULTI_DOMAIN
from avalanche_clip.evaluation._tables import file_name, matrix_table
from avalanche_clip.evaluation.comparison import write_comparison
from avalanche_clip.evaluation.functional import (
    transfer_average_last,
    transfer_per_task,
)

_KEY_VALUES = (
    "average_recall",
    "recall_forgetting",
    "first_task_forgetting",
    "transfer",
    "average",
    "last",
    "seen",
    "unseen",
    "harmonic",
    "incremental_average",
    "incremental_last",
    "average_accuracy",
    "in_domain",
    "backward",
    "forward",
    "forgetting",
    "backward_transfer",
    "forward_transfer",
    "retention",
)
_EXPLANATION = (
    "In-domain, backward and forward are levels: the means of the diagonal, of the "
    "part below and of the part above it. Forgetting, backward transfer, forward "
    "transfer and retention are differences in percentage points."
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
}
_HEADLINES = (
    ("average_recall", "recall_forgetting", "first_task_forgetting"),
    ("transfer", "average", "last", "forgetting"),
    ("incremental_average", "incremental_last", "forgetting"),
    ("in_domain", "backward", "forward", "forgetting"),
)


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
    parts = []
    for position, (stream, metrics) in enumerate(streams.items()):
        name = main_metric(metrics)
        if position == 0:
            parts.append(_headline(results, name, metrics[name]))
        images = _draw(folder, results, stream, name, metrics[name])
        parts.append(_stream_section(stream, metrics, images))
    if not streams:
        parts.append(_html.section("Results", "<p>No experience was finished.</p>"))
    parts += [_data_section(results), _cost_section(results), _origin_section(results)]
    method = str(results.get("method", "Run"))
    lead = f"Seed {results.get('seed', 'unknown')}, {_shape_of(streams)}"
    path = folder / "report.html"
    page = _html.page(f"{method}: continual run", lead, *parts)
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


def _headline(results: Mapping[str, Any], name: str, matrix: Matrix) -> str:
    percent = _html.is_fraction(name)
    summary = matrix.summary()
    fitting = [keys for keys in _HEADLINES if keys[0] in summary]
    shown = [key for keys in fitting[:1] for key in keys if key in summary]
    end = " %" if percent else ""
    values = {
        f"{name}, {key.replace('_', '-')}": _html.number(summary[key], percent=percent)
        + end
        for key in shown
    }
    values["forward compute"] = _html.quantity(total_budget(results), "MAC")
    values["training time"] = _html.duration(_total(results, "train"))
    return _html.cards(values)


def _total(results: Mapping[str, Any], kind: str) -> float:
    seconds = results.get("seconds", {}).get(kind)
    return float(np.sum(seconds)) if seconds else float("nan")


def _draw(
    folder: Path, results: Mapping[str, Any], stream: str, name: str, matrix: Matrix
) -> list[Path]:
    """Write the three figures of a metric."""
    percent = _html.is_fraction(name)
    end = file_name(f"{stream}_{name}")
    sides: dict[str, Any] = {
        "before": matrix.before,
        "labels": matrix.labels,
        "row_labels": matrix.row_labels,
        "diagonal": matrix.by_step,
        "percent": percent,
    }
    heat = plots.plot_matrix(matrix.E, title=f"{name} on stream {stream}", **sides)
    lines = plots.plot_over_time(
        matrix.E, title=f"{name} over time", ylabel=name, **sides
    )
    points = matrix.points or range(len(matrix.E))
    unit, spent = cumulative_budget(results, points)
    scores = {"all test sets": matrix.E.mean(axis=1)}
    if matrix.by_step and matrix.E.shape[0] <= matrix.E.shape[1]:
        seen = [row[: i + 1].mean() for i, row in enumerate(matrix.E)]
        scores["test sets of trained steps"] = np.array(seen)
    budget = plots.plot_budget_curve(
        spent,
        scores,
        labels=matrix.row_labels,
        title=f"{name} against budget",
        xlabel=unit,
        ylabel=f"mean of {name}",
        percent=percent,
    )
    return [
        plots.save_figure(heat, folder / f"matrix_{end}.png"),
        plots.save_figure(lines, folder / f"over_time_{end}.png"),
        plots.save_figure(budget, folder / f"budget_{end}.png"),
    ]


def _stream_section(
    stream: str, metrics: Mapping[str, Matrix], images: list[Path]
) -> str:
    tables = [
        _html.details(f"{name}, all values", matrix_table(name, matrix))
        for name, matrix in metrics.items()
    ]
    return _html.section(
        f"Results on stream “{stream}”",
        _summary_table(metrics),
        f'<p class="note">{_explanation(metrics)}</p>',
        *_per_task(metrics),
        *_per_language(metrics),
        "<h3>Main metric</h3>",
        *(_html.image(path, path.stem.replace("_", " ")) for path in images),
        "<h3>Matrices</h3>",
        *tables,
    )


def _explanation(metrics: Mapping[str, Matrix]) -> str:
    used = {m.protocol for m in metrics.values() if m.protocol_values()}
    return " ".join([*(_PROTOCOLS[p] for p in _PROTOCOLS if p in used), _EXPLANATION])


def _per_task(metrics: Mapping[str, Matrix]) -> list[str]:
    """Transfer, average and last of each data set, for the main metric."""
    name = main_metric(metrics)
    matrix = metrics[name]
    if matrix.protocol != MULTI_DOMAIN or not matrix.protocol_values():
        return []
    percent = _html.is_fraction(name)
    values = transfer_per_task(matrix.E)
    means = transfer_average_last(matrix.E)
    rows = []
    if matrix.before is not None:
        cells = [_html.number(v, percent=percent) for v in matrix.before]
        mean = _html.number(float(matrix.before.mean()), percent=percent)
        rows.append(["before the stream", *cells, mean])
    for key, row in values.items():
        cells = [_html.number(float(v), percent=percent) for v in row]
        rows.append([key, *cells, _html.number(means[key], percent=percent)])
    table = _html.table([name, *matrix.labels, "mean"], rows)
    return ["<h3>Per data set</h3>", table]


def _per_language(metrics: Mapping[str, Matrix]) -> list[str]:
    """What became of each language, for the main metric of a stream of them."""
    name = main_metric(metrics)
    if "average_recall" not in metrics[name].protocol_values():
        return []
    note = f'<p class="note">{_languages.EXPLANATION}</p>'
    table = _languages.language_table(name, metrics[name])
    return ["<h3>Per language</h3>", note, table]


def _summary_table(metrics: Mapping[str, Matrix]) -> str:
    scores = [name for name in metrics if _html.is_score(name)]
    summaries = {name: metrics[name].summary() for name in scores or metrics}
    keys = [k for k in _KEY_VALUES if any(k in s for s in summaries.values())]
    rows = []
    for name, summary in summaries.items():
        percent = _html.is_fraction(name)
        cells = [_html.number(summary.get(key), percent=percent) for key in keys]
        rows.append([name, *cells])
    header = ["metric (%)" if scores else "metric"]
    return _html.table([*header, *(key.replace("_", " ") for key in keys)], rows)


def _data_section(results: Mapping[str, Any]) -> str:
    data = results.get("data", {})
    parts = []
    for stream, counts in data.get("counts", {}).items():
        labels = data.get("labels", {}).get(stream, [])
        if len(labels) != len(counts):
            labels = range(1, len(counts) + 1)
        row = ["samples", *(f"{int(count):,}" for count in counts), f"{sum(counts):,}"]
        parts.append(f"<h3>Stream “{_html.escape(stream)}”</h3>")
        parts.append(_html.table(["", *map(str, labels), "sum"], [row]))
    parts.append(f'<p class="note">Data hash {_html.escape(data.get("hash", "–"))}</p>')
    return _html.section("Data", *parts)


def _cost_section(results: Mapping[str, Any]) -> str:
    seconds = results.get("seconds", {})
    samples = results.get("samples") or []
    macs = results.get("macs", {}).get("macs") or []
    steps = max(len(samples), len(macs), len(seconds.get("train", [])))
    kinds = list(dict.fromkeys(k for row in macs if isinstance(row, dict) for k in row))
    header = ["step", "training samples", *(f"MACs, {kind}" for kind in kinds), "time"]
    rows = []
    for i in range(steps):
        spent = macs[i] if i < len(macs) and isinstance(macs[i], dict) else {}
        rows.append(
            [
                str(i + 1),
                _html.quantity(_item(samples, i)),
                *(_html.quantity(spent.get(kind)) for kind in kinds),
                _html.duration(_item(seconds.get("train", []), i)),
            ]
        )
    total = _html.quantity(total_budget(results), "MAC")
    evaluation = _html.duration(_total(results, "eval"))
    note = (
        f"Forward passes in total: {total}, teacher and search passes included. "
        f"Evaluation took {evaluation}."
    )
    return _html.section(
        "Budget", _html.table(header, rows), f'<p class="note">{note}</p>'
    )


def _item(values: list[float], index: int) -> float | None:
    return values[index] if index < len(values) else None


def _origin_section(results: Mapping[str, Any]) -> str:
    parts = []
    for title, key in (
        ("Configuration", "config"),
        ("Versions", "versions"),
        ("Revision", "revision"),
    ):
        value = results.get(key)
        if value:
            table = _html.facts(value if isinstance(value, dict) else {key: value})
            parts += [f"<h3>{title}</h3>", table]
    parts.append(f'<p class="note">Seed {_html.escape(results.get("seed", "–"))}</p>')
    return _html.section("How it was made", *parts)


__all__ = ["write_comparison", "write_report"]
