"""The leaderboard's table: as text, as a page of the documentation, and as data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import write_figures
from leaderboard_rows import Row

import avalanche_clip
from avalanche_clip.common.files import write_json, write_text
from avalanche_clip.common.plain import strict

COLUMNS = {
    "score": "score",
    "zero_shot": "zero-shot kept",
    "macs": "GMACs",
    "seconds": "seconds",
    "memory": "peak MiB",
    "trainable": "trainable",
}
DIGITS = {"score": 1, "zero_shot": 1}
"""Those shown with their spread; others are means in whole numbers."""
SCORES = {
    "time": "mean of in-domain and backward recall (R@1, both directions)",
    "domain": "mean of MTIL's Average and Last (accuracy among a group's names)",
    "language": "average recall after the last language (R@1, both directions)",
}


def write_table(
    rows: Sequence[Row],
    streams: Sequence[str],
    found: Sequence[tuple[Any, Mapping[str, Any]]],
    failed: Mapping[str, str],
    config: Mapping[str, Any],
    base: str,
    out: Path,
) -> str:
    """Write the table into ``out``; return it as text.

    Files: ``tables.txt``, ``leaderboard.rst``, ``all.json``; and for each stream
    ``<stream>/figures.json`` and ``<stream>/comparison.html``.

    :param rows: methods of the table.
    :param found: cells and what was found.
    :param failed: cell -> why it could not be made.
    :param config: of all methods.
    :param base: content hash of the weights that training starts from.
    """
    lines = [
        line(row, stream, [f for c, f in found if _is(c, row, stream)])
        for stream in streams
        for row in rows
    ]
    lines.sort(key=lambda x: (streams.index(x["stream"]), -x["score"]["mean"]))
    note = about(config, streams)
    text = "\n\n".join([as_text(lines, streams), "\n".join(note), *_gaps(failed)])
    write_text(out / "tables.txt", text + "\n")
    write_text(out / "leaderboard.rst", as_page(lines, note, failed))
    cells = [
        {
            "stream": cell.facts["stream"],
            "method": cell.row.name,
            "seed": cell.facts["seed"],
            "settings": cell.facts["method"],
            **kept,
        }
        for cell, kept in found
    ]
    content = {
        "config": dict(config),
        "base": base,
        "package": avalanche_clip.__version__,
        "rows": lines,
        "cells": cells,
        "missing": dict(failed),
    }
    write_json(out / "all.json", strict(content), checksum=True)
    for stream in streams:
        own = [(c, kept) for c, kept in found if c.facts["stream"] == stream]
        _compare(out / stream, [c for c, _ in own])
        _figures(out / stream, own, {**config, "base": base, "stream": stream})
    return text


def line(row: Row, stream: str, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One line of the table: mean and spread over seeds, or why there is none.

    :param found: of the seeds.
    """
    from avalanche_clip.evaluation.report.comparison import spread

    reason = "" if stream in row.streams else row.why or f"not for stream {stream}"
    if found and "reason" in found[0]:
        reason = found[0]["reason"]
    measured = [{**f["figures"], **f["cost"]} for f in found if "figures" in f]
    values = {
        name: spread([m[name] for m in measured]) if measured else (math.nan, math.nan)
        for name in (dict.fromkeys([*COLUMNS, *(measured[0] if measured else ())]))
    }
    return {
        "stream": stream,
        "method": row.name,
        "seeds": len(measured),
        "reason": reason,
        **{
            name: {"mean": mean if measured else -math.inf, "deviation": deviation}
            for name, (mean, deviation) in values.items()
        },
    }


def about(config: Mapping[str, Any], streams: Sequence[str]) -> list[str]:
    """What the figures mean."""
    from avalanche_clip.benchmarks.datasets import HeldOutIcons

    updates = ", ".join(f"{config['iterations'][s]} ({s})" for s in streams)
    return [
        f"Base: {config['model']} with weights {config['pretrained']}. Updates of "
        f"{config['train_mb_size']} per step of the stream: {updates}.",
        "Percent, mean ± standard deviation over seeds; tests are drawings in a style "
        "never trained on.",
        *(f"Score on stream {stream}: {SCORES[stream]}." for stream in streams),
        f"Zero-shot kept: held-out icons told apart by {len(HeldOutIcons())} names "
        "after the stream; the line of Zero-shot has it before.",
        "GMACs: training, teachers and searches. Seconds: of one core, tests included. "
        "Peak MiB: of the whole process, most of which are the libraries. Trainable: "
        "numbers that train in the largest step.",
    ]


# ----------------------------------------------------------------------- forms
def cells_of(found: Mapping[str, Any]) -> list[str]:
    """The figures of a line as words."""
    words = []
    for name in COLUMNS:
        mean, deviation = found[name]["mean"], found[name]["deviation"]
        mean = mean / 1e9 if name == "macs" else mean
        word = f"{mean:.{DIGITS.get(name, 0)}f}"
        if name in DIGITS and not math.isnan(deviation):
            word += f" ± {deviation:.{DIGITS[name]}f}"
        words.append(word)
    return words


def as_text(lines: Sequence[Mapping[str, Any]], streams: Sequence[str]) -> str:
    """The table as plain text, a block per stream."""
    width = max(len(found["method"]) for found in lines) + 2
    texts = []
    for stream in streams:
        head = f"{stream:<{width}}" + "".join(f"{c:>16}" for c in COLUMNS.values())
        texts += [head, "-" * len(head)]
        for found in lines:
            if found["stream"] != stream:
                continue
            words = cells_of(found) if found["seeds"] else None
            shown = (
                "".join(f"{word:>16}" for word in words)
                if words
                else f"  - {found['reason'] or 'missing'}"
            )
            texts.append(f"{found['method']:<{width}}{shown}")
        texts.append("")
    return "\n".join(texts).rstrip()


def as_page(
    lines: Sequence[Mapping[str, Any]],
    note: Sequence[str],
    failed: Mapping[str, str],
) -> str:
    """The table as a page of the documentation."""
    rows = [["stream", "method", *COLUMNS.values()]]
    reasons = []
    for found in lines:
        if found["seeds"]:
            rows.append([found["stream"], found["method"], *cells_of(found)])
            continue
        rows.append([found["stream"], found["method"], *["–"] * len(COLUMNS)])
        why = found["reason"] or "missing"
        reasons.append(f"* {found['method']} on stream {found['stream']}: {why}")
    table = ["   * - " + "\n     - ".join(row) for row in rows]
    parts = [
        "Leaderboard\n===========",
        "``python experiments/leaderboard.py`` (after ``--search``): every method on "
        "three streams, at equal budgets.",
        *note,
        ".. list-table::\n   :header-rows: 1\n\n" + "\n".join(table),
    ]
    if reasons:
        parts += ["No result, and why:", "\n".join(reasons)]
    return "\n\n".join([*parts, *_gaps(failed)]) + "\n"


def _gaps(failed: Mapping[str, str]) -> list[str]:
    if not failed:
        return []
    return ["Missing: " + "; ".join(f"{k} ({v})" for k, v in failed.items())]


# --------------------------------------------------------------------- helpers
def _is(cell: Any, row: Row, stream: str) -> bool:
    return cell.row.name == row.name and cell.facts["stream"] == stream


def _figures(
    out: Path, found: Sequence[tuple[Any, Mapping[str, Any]]], facts: dict[str, Any]
) -> None:
    """Write the figures of each seed, of methods that have all."""
    seeds = sorted({cell.facts["seed"] for cell, _ in found})
    lines: dict[str, dict[int, dict[str, float]]] = {}
    for cell, kept in found:
        if "figures" in kept:
            figures = {**kept["figures"], **kept["cost"]}
            lines.setdefault(cell.row.name, {})[cell.facts["seed"]] = figures
    whole = {m: [r[s] for s in seeds] for m, r in lines.items() if len(r) == len(seeds)}
    if whole:
        write_figures(whole, out, {**facts, "seeds": seeds})


def _compare(out: Path, cells: Sequence[Any]) -> None:
    """Write the comparison of the runs of a stream; a single training has no time."""
    from avalanche_clip.evaluation.report.comparison import write_comparison

    folders = [c.folder / "run" for c in cells if not c.row.joint]
    runs = [folder for folder in folders if (folder / "results.json").is_file()]
    if runs:
        write_comparison(out, runs)
