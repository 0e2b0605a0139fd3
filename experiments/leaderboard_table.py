"""The leaderboard's table: as text, as a page of the documentation, and as data."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import write_figures
from leaderboard_rows import Row

from avalanche_clip.common.files import write_text

COLUMNS = ("score", "zero-shot kept", "GMACs", "seconds", "peak MiB", "trainable k")
SCORES = {
    "time": "mean of in-domain and backward recall (R@1, both directions)",
    "domain": "mean of MTIL's Average and Last (accuracy among a group's names)",
    "language": "average recall after the last language (R@1, both directions)",
}
Found = Mapping[tuple[str, int], Mapping[str, Any]]
"""Method and seed -> what was found on one stream."""


def write_table(
    rows: Sequence[Row],
    streams: Sequence[str],
    seeds: Sequence[int],
    found: Sequence[tuple[Any, Mapping[str, Any]]],
    failed: Mapping[str, str],
    config: Mapping[str, Any],
    base: str,
    out: Path,
) -> str:
    """Write the table into ``out``; return it as text.

    Files: ``tables.txt``, ``leaderboard.rst``; and for each stream
    ``<stream>/figures.json`` with every single value, and ``<stream>/comparison.html``.

    :param rows: methods of the table.
    :param found: cells and what was found.
    :param failed: cell -> why it could not be made.
    :param config: of all methods.
    :param base: content hash of the weights that training starts from.
    """
    parts = []
    for stream in streams:
        cells = [pair for pair in found if pair[0].facts["stream"] == stream]
        own = {(c.row.name, c.facts["seed"]): kept for c, kept in cells}
        facts = {**config, "base": base, "stream": stream, "seeds": list(seeds)}
        lines = _lines(rows, seeds, own)
        parts.append(f"Stream {stream}")
        if lines:
            parts.append(
                write_figures(lines, out / stream, facts, tables=[list(COLUMNS)])
            )
        parts += _reasons(rows, stream, own)
        _compare(out / stream, [cell for cell, _ in cells])
    note = about(config, streams)
    gaps = [f"Missing: {cell} ({why})" for cell, why in failed.items()]
    text = "\n\n".join([*parts, *gaps])
    write_text(out / "tables.txt", "\n\n".join([text, *note]) + "\n")
    page = (
        "Leaderboard\n===========",
        "``python experiments/leaderboard.py`` (after ``--search``): every method on "
        "three streams, at equal budgets.",
        *note,
        "::",
        textwrap.indent(text, "   "),
    )
    write_text(out / "leaderboard.rst", "\n\n".join(page) + "\n")
    return "\n\n".join([text, *note])


def _lines(
    rows: Sequence[Row], seeds: Sequence[int], found: Found
) -> dict[str, list[dict[str, float]]]:
    """Figures of the methods that have some, best first, a dict for each seed.

    A method that lacks a seed has no mean, so that all means are over the same seeds.
    """
    lines = {}
    for row in rows:
        own = [figures(found.get((row.name, seed), {})) for seed in seeds]
        if any(own):
            blank = dict.fromkeys(max(own, key=len), math.nan)
            lines[row.name] = [values or blank for values in own]

    def score(method: str) -> float:
        mean = float(np.mean([values["score"] for values in lines[method]]))
        return -math.inf if math.isnan(mean) else mean

    return {name: lines[name] for name in sorted(lines, key=score, reverse=True)}


def figures(found: Mapping[str, Any]) -> dict[str, float]:
    """Figures of a cell in the units of the table; empty if it has none."""
    if "figures" not in found:
        return {}
    values, cost = dict(found["figures"]), found["cost"]
    return {
        "score": values.pop("score"),
        "zero-shot kept": values.pop("zero_shot"),
        "GMACs": cost["macs"] / 1e9,
        "seconds": cost["seconds"],
        "peak MiB": cost["memory"],
        "trainable k": cost["trainable"] / 1e3,
        **values,
    }


def _reasons(rows: Sequence[Row], stream: str, found: Found) -> list[str]:
    """Why methods have no result."""
    said = []
    for row in rows:
        own = [kept for (name, _), kept in found.items() if name == row.name]
        why = {kept["reason"]: None for kept in own if "reason" in kept}
        if stream not in row.streams:
            why = {row.why or f"not for stream {stream}": None}
        said += [f"No result of {row.name}: {reason}" for reason in why]
    return said


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
        "Peak MiB: of the whole process, most of which are the libraries. Trainable k: "
        "thousands of numbers that train in the largest step.",
    ]


def _compare(out: Path, cells: Sequence[Any]) -> None:
    """Write the comparison of the runs of a stream; a single training has no time."""
    from avalanche_clip.evaluation.report.comparison import write_comparison

    folders = [c.folder / "run" for c in cells if not c.row.joint]
    runs = [folder for folder in folders if (folder / "results.json").is_file()]
    if runs:
        write_comparison(out, runs)
