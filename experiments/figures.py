"""Figures of a study over methods and seeds: a table to read, JSON to reckon with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_clip.common.files import write_json, write_text
from avalanche_clip.common.plain import strict

Lines = Mapping[str, Sequence[Mapping[str, float]]]
"""Method -> the figures of its runs by name, one entry per seed."""


def write_figures(
    lines: Lines,
    out: str | Path,
    facts: Mapping[str, Any],
    note: str = "",
    *,
    tables: Sequence[Sequence[str]] = (),
) -> str:
    """Write ``figures.txt`` and ``figures.json``; return the text.

    The JSON holds every single value: ``methods[method][figure]`` is a list, one value
    per seed, null where nothing was measured.

    :param lines: all with the same figures.
    :param out: folder; made if missing.
    :param facts: what all runs have in common: study, base, seeds, length.
    :param note: what the figures are, below the table.
    :param tables: names of the figures of each table; default one table with all.
    """
    from avalanche_clip.evaluation.report.comparison import text_table

    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    methods = {
        method: {name: [float(row[name]) for row in rows] for name in rows[0]}
        for method, rows in lines.items()
    }
    content = strict({"facts": dict(facts), "methods": methods})
    write_json(folder / "figures.json", content, checksum=True)
    shown = tables or [list(next(iter(lines.values()))[0])]
    parts = []
    for names in shown:
        part = {m: [{k: row[k] for k in names} for row in r] for m, r in lines.items()}
        parts.append(text_table(part))
    text = "\n\n".join(part for part in (*parts, note) if part)
    write_text(folder / "figures.txt", text + "\n")
    return text
