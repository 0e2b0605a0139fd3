"""Comparison of several methods over several seeds, as one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip.common.checks import (
    require_choice,
    require_distinct,
    require_some,
)
from avalanche_clip.common.files import write_json, write_text
from avalanche_clip.common.plain import strict
from avalanche_clip.evaluation.report import html, plots
from avalanche_clip.evaluation.report.plots import Spread
from avalanche_clip.evaluation.report.results import (
    Matrix,
    load_results,
    main_metric,
    matrices,
    total_budget,
)
from avalanche_clip.evaluation.report.suites import SuiteGroup, suite_sections
from avalanche_clip.evaluation.report.tables import (
    Runs,
    differences,
    last_table,
    spread,
    summary_table,
)
from avalanche_clip.evaluation.report.words import describe_methods

_REFERENCES = ("Joint", "ClassNameJoint")
"""Strategies that others are measured by: they do not compete."""
_BARS = ("final", "A_Last", "forgetting", "recall_forgetting", "F_Last")


def write_comparison(
    out_dir: str | Path,
    results: Sequence[Mapping[str, Any] | str | Path],
    *,
    metric: str | None = None,
) -> Path:
    """Compare the runs of several methods: mean and spread over seeds.

    Suites that all runs have scored are compared, too. A value is marked as the best
    only if it is better than all others by twice the deviation of the difference; runs
    that were trained once on all steps, as by :class:`Joint`, are references, which do
    not compete.

    Writes ``comparison.html`` (self-contained), ``comparison.json`` with all
    means, deviations and single values, and PNG plots: methods over time, bars of the
    end and of forgetting, final score against budget, and the mean matrix of each
    method. Files are replaced at once; the JSON holds its checksum.

    :param out_dir: folder to write to; made if missing.
    :param results: one entry per run: the content of ``results.json``, its
        path, or the folder of the run. Runs with the same ``method`` are
        repetitions and need different seeds.
    :param metric: metric of plots and matrices; default mean R@1, or the first
        recall.
    :return: path of ``comparison.html``.
    :raises FileNotFoundError: if a path does not exist.
    :raises ValueError: if there is no run, a method occurs twice with one seed,
        the runs share no stream and score, or their test sets differ in number.
    """
    folder = Path(out_dir)
    runs = _group([load_results(source) for source in results])
    tables = _collect(runs)
    names = {stream: metric or main_metric(table) for stream, table in tables.items()}
    for stream, name in names.items():
        require_choice("metric", name, tables[stream])
    folder.mkdir(parents=True, exist_ok=True)
    counts = sorted({len(rows) for rows in runs.values()})
    seeds = "–".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    lead = f"{len(runs)} methods, {seeds} {'seed' if seeds == '1' else 'seeds'} each"
    lead += "; mean ± standard deviation over seeds" if counts[-1] > 1 else ""
    content = {
        s: {m: _stored(methods) for m, methods in t.items()} for s, t in tables.items()
    }
    write_json(folder / "comparison.json", strict(content), checksum=True)
    streams = [
        _stream(folder, runs, stream, names[stream], metrics)
        for stream, metrics in tables.items()
    ]
    page = html.render(
        "comparison.html",
        title="Comparison of methods",
        sentence=streams[0]["sentence"],
        lead=lead,
        streams=streams,
        settings=differences(runs),
        suites=_suites(folder, runs),
        runs=_run_rows(runs),
        hashes=sorted(
            {str(r.get("data", {}).get("hash")) for rows in runs.values() for r in rows}
        ),
    )
    path = folder / "comparison.html"
    write_text(path, page)
    return path


# score (not rank or tie share) -> method -> matrices of its runs
Tables = dict[str, dict[str, list[Matrix]]]


def text_table(lines: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """Format figures of methods as plain text, mean and deviation over seeds.

    :param lines: per method one row of figures by name for each seed; the names
        of the first row are the columns.
    :return: a header, a rule and a line per method; a dash where a figure is NaN,
        and no deviation of a single seed.

    >>> print(text_table({"lwf": [{"old": 2.0}, {"old": 4.0}]}))
    method              old
    -----------------------
    lwf            3.0 ±1.4
    """
    columns = list(next(iter(lines.values()))[0])
    width = max(len(name) for name in ("method", *lines)) + 1
    head = f"{'method':<{width}}" + "".join(f"{name:>16.15}" for name in columns)
    rows = [head, "-" * len(head)]
    for method, found in lines.items():
        row = f"{method:<{width}}"
        for column in columns:
            mean, deviation = spread([figures[column] for figures in found])
            cell = "-" if math.isnan(mean) else f"{mean:.1f}"
            cell += "" if math.isnan(deviation) else f" ±{deviation:.1f}"
            row += f"{cell:>16}"
        rows.append(row)
    return "\n".join(rows)


def _group(results: list[dict[str, Any]]) -> Runs:
    require_some(results, "results")
    runs: Runs = {}
    for result in results:
        runs.setdefault(str(result.get("method", "unnamed")), []).append(result)
    for method, rows in runs.items():
        what = f"seeds of {method!r} (pass runs once, name variants of a method)"
        require_distinct([str(row.get("seed")) for row in rows], what)
    return runs


def _collect(runs: Runs) -> dict[str, Tables]:
    """Return stream -> metric -> method -> matrices, for what all runs have."""
    every = {method: [matrices(row) for row in rows] for method, rows in runs.items()}
    flat = [tables for rows in every.values() for tables in rows]
    collected: dict[str, Tables] = {}
    for stream, metrics in flat[0].items():
        for metric in metrics:
            everywhere = all(metric in tables.get(stream, {}) for tables in flat)
            if not (everywhere and html.is_score(metric)):
                continue
            found = [tables[stream][metric] for tables in flat]
            shapes = [f"{m.E.shape} at steps {m.points or 'all'}" for m in found]
            # A joint training has one row on any stream.
            several = {s for s, m in zip(shapes, found) if len(m.E) > 1}
            # Of Si-Blurry each seed may have another stream: its values compare.
            online = all(m.online is not None for m in found)
            differ = len(several) > 1 or len({m.E.shape[1] for m in found}) > 1
            if differ and not online:
                raise ValueError(
                    f"Matrices of {metric!r} on stream {stream!r} have shapes "
                    f"{sorted(set(shapes))}; compare finished runs on the same "
                    "benchmark, with the same evaluate_at."
                )
            collected.setdefault(stream, {})[metric] = {
                method: [tables[stream][metric] for tables in rows]
                for method, rows in every.items()
            }
    if not collected:
        raise ValueError("The runs share no stream and score; nothing to compare.")
    return collected


def _values(methods: Mapping[str, list[Matrix]]) -> dict[str, dict[str, list[float]]]:
    """Return method -> name of the value -> that of each run, NaN where it has none."""
    runs = {m: [_summary(matrix) for matrix in rows] for m, rows in methods.items()}
    keys = dict.fromkeys(k for rows in runs.values() for row in rows for k in row)
    return {
        method: {key: [row.get(key, math.nan) for row in rows] for key in keys}
        for method, rows in runs.items()
    }


def _summary(matrix: Matrix) -> dict[str, float]:
    """Values of a run, those that every run has first."""
    before, end = matrix.before, matrix.E[-1]
    first = {
        "before": math.nan if before is None else float(before.mean()),
        "final": float((end if matrix.online is None else end[~np.isnan(end)]).mean()),
    }
    return first | matrix.summary()


def _summaries(methods: Mapping[str, list[Matrix]]) -> dict[str, dict[str, Spread]]:
    """Return method -> name of the value -> mean and deviation."""
    return {
        method: {key: spread(numbers) for key, numbers in values.items()}
        for method, values in _values(methods).items()
    }


def _stored(methods: Mapping[str, list[Matrix]]) -> dict[str, Any]:
    """Return means, deviations and single values of all summaries as plain data."""
    return {
        method: {k: {**spread(v)._asdict(), "runs": v} for k, v in values.items()}
        for method, values in _values(methods).items()
    }


def _stream(
    folder: Path, runs: Runs, stream: str, name: str, metrics: Tables
) -> dict[str, Any]:
    """What the page shows about one stream."""
    percent = html.is_fraction(name)
    methods = metrics[name]
    summaries = _summaries(methods)
    references = _references(runs, methods)
    end = html.file_name(f"{stream}_{name}")
    images = []
    if (figure := _over_time(methods, references, name, stream)) is not None:
        images.append(plots.save_figure(figure, folder / f"over_time_{end}.png"))
    shown = {
        method: {
            key: values[key]
            for key in _BARS
            if key in values and math.isfinite(values[key].mean)
        }
        for method, values in summaries.items()
    }
    bars = plots.plot_comparison(
        shown,
        title=f"{name} at the end of stream {stream}",
        ylabel=name,
        percent=percent,
    )
    images.append(plots.save_figure(bars, folder / f"comparison_{end}.png"))
    points = _budget_points(runs, methods)
    if points:
        figure = plots.plot_budget(
            points,
            title=f"{name} of the last model against budget",
            xlabel="forward compute (MACs)",
            ylabel=f"mean of {name}",
            percent=percent,
        )
        images.append(plots.save_figure(figure, folder / f"budget_{end}.png"))
    means: list[Any] = []
    alike = _alike(methods)
    for method, rows in methods.items() if alike else ():
        mean = _mean_matrix(rows)
        heat = plots.plot_matrix(
            mean.E,
            **mean.looks(),
            title=f"{method}: {name}, "
            + ("one run" if len(rows) == 1 else f"mean of {len(rows)} runs"),
            percent=percent,
        )
        path = folder / f"matrix_{html.file_name(method)}_{end}.png"
        if path in [drawn for _, drawn, _ in means]:  # "a+b" and "a b"
            path = path.with_stem(f"{path.stem}_{len(means)}")
        means.append((method, plots.save_figure(heat, path), mean))
    return {
        "stream": stream,
        "name": name,
        "sentence": _sentence(name, summaries, references),
        "summary": summary_table(summaries, references),
        "images": images,
        "last": last_table(methods, references) if alike else None,
        "known": _known(methods) if alike else [],
        "means": means,
        "others": {
            other: summary_table(_summaries(rows), references)
            for other, rows in metrics.items()
            if other != name
        },
    }


def _references(runs: Runs, methods: Mapping[str, list[Matrix]]) -> list[str]:
    """Methods that were trained once on all steps; none if that is all."""
    found = [m for m in methods if all(map(_once, runs[m]))]
    return found if len(found) < len(methods) else []


def _once(results: Mapping[str, Any]) -> bool:
    named = results.get("config", {}).get("strategy") in _REFERENCES
    return bool(results.get("joint", named))  # which earlier versions did not say


def _sentence(
    name: str, summaries: Mapping[str, Mapping[str, Spread]], references: list[str]
) -> str:
    missing = Spread(math.nan, math.nan)
    key = "A_Last" if any("A_Last" in row for row in summaries.values()) else "final"
    lost = next((k for k in _BARS[2:] if any(k in r for r in summaries.values())), "")
    return describe_methods(
        name,
        {m: row[key] for m, row in summaries.items()},
        {m: row.get(lost, missing) for m, row in summaries.items()},
        [row["before"].mean for row in summaries.values()],
        references,
    )


def _over_time(
    methods: Mapping[str, list[Matrix]], references: list[str], name: str, stream: str
) -> Any:
    """Draw the mean over test sets of each method, if all have the same points.

    A reference of one training is a level.
    """
    once = {m for m in references if all(len(r.E) == 1 for r in methods[m])}
    once |= {m for m, rows in methods.items() if all(r.joint for r in rows)}
    every = {m: rows for m, rows in methods.items() if m not in once}
    found = [matrix for rows in every.values() for matrix in rows]
    if not found or any(m.row_labels != found[0].row_labels for m in found):
        return None
    if any(m.online is not None for m in found):
        return None  # The mean over classes of each time is no score.
    lines = {m: np.stack([r.over_time() for r in rows]) for m, rows in every.items()}
    start = 0 if any(np.isfinite(line[:, 0]).all() for line in lines.values()) else 1
    levels = {
        m: float(np.mean([matrix.E[-1].mean() for matrix in methods[m]]))
        for m in references
        if m not in every
    }
    return plots.plot_methods(
        {m: line[:, start:] for m, line in lines.items()},
        ["before", *found[0].row_labels][start:],
        title=f"Mean of {name} over the test sets of stream {stream}",
        ylabel=name,
        percent=html.is_fraction(name),
        levels={**levels, "chance": found[0].mean_chance()},
    )


def _known(methods: Mapping[str, list[Matrix]]) -> list[tuple[str, list[float]]]:
    """Rows of what is the same for all: test items, chance, scores before."""
    found = [matrix for rows in methods.values() for matrix in rows]
    rows = []
    for label in ("counts", "chance", "before"):
        values = [getattr(matrix, label) for matrix in found]
        known = all(value is not None for value in values)
        if known and all(np.array_equal(value, values[0]) for value in values):
            rows.append((label, list(values[0])))
    return rows


def _suites(folder: Path, runs: Runs) -> list[dict[str, Any]]:
    """What the page shows of the suites that all runs have scored alike."""
    found = {m: [_by_key(row) for row in rows] for m, rows in runs.items()}
    flat = [groups for rows in found.values() for groups in rows]
    shown = []
    for number, (key, first) in enumerate(flat[0].items()):
        if not all(key in groups for groups in flat):
            continue
        methods = {m: [g[key].matrix for g in groups] for m, groups in found.items()}
        end = html.file_name(f"{first.suite}_{first.name}")
        path = folder / f"suite_{end}_{number}.png"
        metric = first.cells[0][1]
        best = first.one_metric and html.is_score(metric)
        shown.append(
            {
                "title": f"{first.suite}: {first.name}",
                "metric": metric,
                "table": last_table(methods, best=best),
                "image": _suite_figure(path, first, methods),
            }
        )
    return shown


def _by_key(results: Mapping[str, Any]) -> dict[Any, SuiteGroup]:
    """What the suites of a run found, by suite and what is shown of it."""
    groups = [g for part in suite_sections(results) for g in part["groups"]]
    return {(group.suite, group.name, *group.cells): group for group in groups}


def _suite_figure(
    path: Path, group: SuiteGroup, methods: Mapping[str, list[Matrix]]
) -> Path | None:
    """Draw each method over time, if all have the same evaluation points.

    Its mean over tasks, or the main metric of the only task.
    """
    found = [matrix for rows in methods.values() for matrix in rows]
    labels = found[0].row_labels
    if any(m.row_labels != labels or m.before is None for m in found):
        return None
    what = group.name if group.one_metric else group.cells[0][1]
    parts = slice(None) if group.one_metric else slice(1)
    lines = {
        name: np.stack([m.with_before()[:, parts].mean(axis=1) for m in rows])
        for name, rows in methods.items()
    }
    figure = plots.plot_methods(
        lines,
        ["before", *labels],
        title=f"{group.suite}: {what}",
        ylabel=what,
        percent=group.percent,
    )
    return plots.save_figure(figure, path)


def _alike(methods: Mapping[str, list[Matrix]]) -> bool:
    """Whether runs on Si-Blurry had the same classes, evaluated at the same steps."""
    found = [m for rows in methods.values() for m in rows if m.online is not None]
    return len({(*m.labels, *(m.points or ()), len(m.E)) for m in found}) < 2


def _mean_matrix(rows: list[Matrix]) -> Matrix:
    before = [matrix.before for matrix in rows if matrix.before is not None]
    return Matrix(
        np.mean([matrix.E for matrix in rows], axis=0),
        np.mean(before, axis=0) if len(before) == len(rows) else None,
        rows[0].labels,
        rows[0].steps,
        points=rows[0].points,
        per_task=rows[0].per_task,
        online=rows[0].online,
    )


def _budget_points(
    runs: Runs, methods: Mapping[str, list[Matrix]]
) -> dict[str, list[tuple[float, float]]]:
    points = {}
    for method, rows in runs.items():
        scores = [_summary(matrix)["final"] for matrix in methods[method]]
        pairs = zip(map(total_budget, rows), scores, strict=True)
        finite = [pair for pair in pairs if all(map(math.isfinite, pair))]
        if finite:
            points[method] = finite
    return points


def _run_rows(runs: Runs) -> list[tuple[str, list[str]]]:
    rows = []
    for method, results in runs.items():
        budgets = [total_budget(result) for result in results]
        seconds = [
            sum(r.get("seconds", {}).get("train") or [math.nan]) for r in results
        ]
        cells = [
            ", ".join(str(result.get("seed")) for result in results),
            html.quantity(float(np.mean(budgets)), "MAC"),
            html.duration(float(np.mean(seconds))),
            ", ".join(sorted({_commit(result) for result in results})),
        ]
        rows.append((method, cells))
    return rows


def _commit(result: Mapping[str, Any]) -> str:
    revision = result.get("revision") or {}
    if not isinstance(revision, Mapping):
        return str(revision)[:12]
    commit = str(revision.get("commit") or revision.get("revision") or "unknown")[:12]
    return f"{commit} (changed)" if revision.get("dirty") else commit
