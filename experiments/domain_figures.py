"""Figures of the study of emoji domains, and what methods keep at equal learning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from domain_study import domain_values, summary_line, write_study
from figures import Lines, kept_at, write_figures

FAR = 0.05
"""Zero-shot is far above chance where it is so much better."""
PLAIN, BASE = "fine-tuning", "zero-shot"
KEPT = ("transfer", "icons")

NOTE = f"""\
accuracy in percent, mean ± standard deviation over seeds; learned: of each domain right
after its training; known: transfer to domains where zero-shot is {100 * FAR:.0f} points
above chance; icons: held-out names, 2010: what the base was trained on, both at the
end; thousands: of numbers trained in the first domain. Rows of one adapter method are
one training, tested with other choices of routers: by DDAS per image and per batch, or
always the newest (no-ddas); own router: last, if each image came with that of its
domain."""
GAINS = """\
transfer+, icons+: what is kept more than by fine-tuning that learns as much, on the
line through zero-shot and fine-tuning at all its rates."""


def line(found: Mapping[str, Any]) -> dict[str, float]:
    """Figures of one run; those of a stream are NaN for joint training."""
    summary = summary_line(found["matrix"])
    own = {
        "transfer": summary["transfer"],
        "average": summary["average"],
        "last": summary["last"],
        "learned": 100 * float(np.diag(found["matrix"]).mean()),
        "known": 100 * known_transfer(found),
    }
    if found["joint"]:
        own = {key: v if key == "last" else float("nan") for key, v in own.items()}
    others = {"icons": "icons", "2010": "base", "own router": "own"}
    kept = {
        key: float("nan") if found[name] is None else 100 * found[name]
        for key, name in others.items()
    }
    return {**own, **kept, "thousands": found["trainable"] / 1000}


def known_transfer(found: Mapping[str, Any]) -> float:
    """Mean transfer over the domains where zero-shot is far above chance."""
    values = domain_values(found["matrix"])["transfer"][_far(found)]
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def _far(found: Mapping[str, Any]) -> np.ndarray:
    known: np.ndarray = np.asarray(found["before"]) >= np.add(found["chance"], FAR)
    return known


# ------------------------------------------------------------------- trade-offs
def with_gains(lines: Lines) -> dict[str, list[dict[str, float]]]:
    """Add what methods keep more than fine-tuning does at equal learning.

    Unchanged without zero-shot, or with fine-tuning at fewer than two rates.

    :param lines: method -> figures, one entry per seed.
    """
    plain = [m for m in lines if m.partition(":")[0] == PLAIN]
    found = {method: [dict(row) for row in rows] for method, rows in lines.items()}
    if BASE not in lines or len(plain) < 2:
        return found
    for method, rows in found.items():
        for seed, row in enumerate(rows):
            curve = [lines[m][seed] for m in (BASE, *plain)]
            for key in KEPT:
                points = [(point["learned"], point[key]) for point in curve]
                gain = row[key] - kept_at(points, row["learned"])
                row[f"{key}+"] = np.nan if method in (BASE, *plain) else gain
    return found


def write_tables(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], out: Path, facts: Mapping[str, Any]
) -> str:
    """Write figures, tables and plots over methods; return the text."""
    lines = {method: [line(found) for found in rows] for method, rows in runs.items()}
    first = next(iter(runs.values()))[0]
    domains = zip(
        first["labels"], first["before"], first["chance"], _far(first), strict=True
    )
    facts = {
        **facts,
        "domains": {
            label: {"zero_shot": 100 * float(a), "chance": 100 * c, "known": bool(k)}
            for label, a, c, k in domains
        },
    }
    full = with_gains(lines)
    gains = any(key.endswith("+") for key in next(iter(full.values()))[0])
    text = write_figures(full, out, facts, f"{NOTE}\n{GAINS}" if gains else NOTE)
    stream = {m: rows for m, rows in runs.items() if not rows[0]["joint"]}
    if not stream:
        return text
    return write_study([text], stream, {m: lines[m] for m in stream}, out)
