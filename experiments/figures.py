"""Figures of a study over methods and seeds: a table to read, JSON to reckon with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip.common.files import read_json, write_json, write_text
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
    per seed, null where nothing was measured. What a file of an earlier command held
    and this one does not is said: see :func:`say_what_goes`.

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
    say_what_goes(folder / "figures.json", methods, "methods")
    write_json(folder / "figures.json", content, checksum=True)
    shown = tables or [list(next(iter(lines.values()))[0])]
    parts = []
    for names in shown:
        part = {m: [{k: row[k] for k in names} for row in r] for m, r in lines.items()}
        parts.append(text_table(part))
    text = "\n\n".join(part for part in (*parts, note) if part)
    write_text(folder / "figures.txt", text + "\n")
    return text


def say_what_goes(path: Path, new: Mapping[str, Any], part: str = "") -> None:
    """Warn of what a file is about to lose: entries, or values of them (seeds).

    :param path: of a JSON file with a checksum, which may be missing.
    :param new: the entries that it will have.
    :param part: their key in the file; default its top.
    """
    try:
        kept = read_json(path, checksum=True)
        old = kept[part] if part else kept
    except (FileNotFoundError, ValueError, KeyError):
        return  # nothing that could be read is lost
    gone = [name for name in old if _size(new.get(name)) < _size(old[name])]
    if gone:
        logging.getLogger(__name__).warning(
            "%s held more of %s: this command replaces it. Runs that are done are "
            "not repeated; one command with all of them writes all figures.",
            path,
            ", ".join(gone),
        )


def _size(entry: Any) -> int:
    """Number of values of a method; 1 for any other entry, 0 for none."""
    if not entry:
        return 0
    first = next(iter(entry.values())) if isinstance(entry, Mapping) else None
    return len(first) if isinstance(first, list) else 1


# ------------------------------------------------------------------- trade-offs
def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both coordinates, in ascending order.

    >>> frontier([(1, 5), (2, 3), (1.5, 2), (3, 3)])
    [(1, 5), (3, 3)]
    """
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, reverse=True):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best[::-1]


def kept_at(points: Sequence[tuple[float, float]], learned: float) -> float:
    """What is kept by who learns ``learned``, on the line through the best points.

    :param points: pairs of learned and kept.
    :return: NaN if nobody learns as much; where all of the best learn more, what
        the first of them keeps.

    >>> kept_at([(0, 10), (4, 2), (1, 1)], 1)
    8.0
    """
    x, y = zip(*frontier(points), strict=True)
    return float(np.interp(learned, x, y, right=np.nan))
