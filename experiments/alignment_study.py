"""Figures, trade-offs and plots of the study of alignment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import Lines, frontier, kept_at, write_figures

Line = dict[str, float]
DISORDER = ("imd_mean", "image_rotation_mean", "text_rotation_mean")
KEPT = ("old", "later", "icons")
"""What is compared with fine-tuning where it learns as much."""
FINE_TUNING = "sequential"
BASE = "base"
"""Row of the model before the stream."""

NOTE = """\
recall at 1 in percent, mean of both directions, at the end of the stream. 2010: what
the base knew; old: mean over all earlier steps, 2010 included; new: each step right
after it was learned; later: steps not learned yet, mean over all models and steps;
icons: names of held-out icons, image to text; gallery: all emoji. Disorder in degrees,
end against the model before the stream; cost in plain steps' budgets. base: the model
before the stream, whose new are the same steps, not learned."""
GAINS = """\
old+, later+, icons+: what is kept more than by fine-tuning that learns as much (the
same new), on the line through the base and fine-tuning at all its learning rates."""


def run_line(result: Any) -> Line:
    """Figures of one run, recall in percent and angles in degrees."""
    stream, E = _steps(result, "E")
    base, icons = _column(result, "base", "E"), _icons(result, "E")
    line = _line(E, base[-1], icons[-1])
    if stream == "valid":
        return line
    curves = next(iter(result.results["metrics"].values()))
    total, plain = result.compute["total_macs"], result.compute["macs"][0]["train"]
    return {
        **line,
        "gallery": _column(result, "gallery", "E")[-1],
        **{key: curves["initial"][key][-1] for key in DISORDER},
        "cost": total / plain,
    }


def base_line(result: Any) -> Line:
    """The same figures of the model before the stream, which is never trained."""
    stream, before = _steps(result, "before")
    E = np.tile(before, (len(before), 1))
    base, icons = _column(result, "base", "before"), _icons(result, "before")
    line = _line(E, base[-1], icons[-1])
    if stream == "valid":
        return line
    gallery = _column(result, "gallery", "before")[-1]
    return {**line, "gallery": gallery, **dict.fromkeys((*DISORDER, "cost"), 0.0)}


def _line(E: np.ndarray, base: float, icons: float) -> Line:
    from avalanche_clip.evaluation.functional import time_transfer

    levels = time_transfer(E)
    return {
        "2010": float(base),
        "old": float(np.append(E[-1, :-1], base).mean()),
        "new": levels["in_domain"],
        "later": levels["forward"],
        "icons": float(icons),
    }


def _steps(result: Any, part: str) -> tuple[str, np.ndarray]:
    stream = "valid" if "valid" in result.matrices else "test"
    return stream, 100 * result.matrices[stream]["mean_R@1"][part]


def _column(result: Any, stream: str, part: str) -> np.ndarray:
    return 100 * result.matrices[stream]["mean_R@1"][part].reshape(-1)


def _icons(result: Any, part: str) -> np.ndarray:
    return 100 * result.matrices["icons"]["image_to_text_R@1"][part].reshape(-1)


def score(line: Line) -> float:
    """What settings are chosen by: the mean of what was old, new, and never shown."""
    return (line["old"] + line["new"] + line["icons"]) / 3


# ------------------------------------------------------------------- trade-offs
def family(method: str) -> str:
    """A method without its weights: ``mod-x:2+replay`` is ``mod-x+replay``."""
    return re.sub(r":[^+]+", "", method)


def with_gains(lines: Lines, bases: Sequence[Line]) -> dict[str, list[Line]]:
    """Add what methods keep more than fine-tuning does at equal learning.

    :param lines: method -> figures, one entry per seed; unchanged where fine-tuning
        was run at fewer than two learning rates.
    :param bases: figures of the base for each seed.
    """
    plain = [m for m in lines if family(m) == FINE_TUNING]
    found: dict[str, list[Line]] = {method: [] for method in lines}
    for method, rows in lines.items():
        for seed, (line, base) in enumerate(zip(rows, bases, strict=True)):
            curve = [base, *(lines[m][seed] for m in plain)]
            gains = {}
            for key in KEPT if len(plain) > 1 else ():
                points = [(point["new"], point[key]) for point in curve]
                more = line[key] - kept_at(points, line["new"])
                gains[f"{key}+"] = float("nan") if method in plain else more
            found[method].append({**line, **gains})
    return found


# ------------------------------------------------------------- tables and plots
def write_tables(
    lines: Lines, bases: Sequence[Line], out: Path, facts: Mapping[str, Any]
) -> str:
    """Write figures and trade-offs of methods; return them as text.

    :param lines: method -> figures, one entry per seed.
    :param bases: figures of the base for each seed.
    """
    full = with_gains(lines, bases)
    first = next(iter(full.values()))[0]
    gains = [key for key in first if key.endswith("+")]
    tables = [[key for key in first if key not in gains]]
    if gains:
        tables.append(["new", *KEPT, *gains])
    blank = dict.fromkeys(gains, np.nan)
    known = {BASE: [{**bases[0], **blank}]}
    note = f"{NOTE}\n{GAINS}" if gains else NOTE
    plot_tradeoff(full, bases, out / "tradeoff.png")
    return write_figures({**known, **full}, out, facts, note, tables=tables)


def plot_tradeoff(lines: Lines, bases: Sequence[Line], path: Path) -> None:
    """Draw what is kept against what is learned, one line per method."""
    from matplotlib.figure import Figure

    from avalanche_clip.evaluation.report.plots import save_figure

    groups: dict[str, list[Line]] = {}
    for method, rows in lines.items():
        groups.setdefault(family(method), []).append(_mean(rows))
    base = _mean(bases)
    figure = Figure(figsize=(5 * len(KEPT), 4.4), layout="constrained")
    for key, axes in zip(KEPT, figure.subplots(1, len(KEPT)), strict=True):
        axes.plot(base["new"], base[key], "k*", markersize=11, label=BASE)
        for number, (name, points) in enumerate(groups.items()):
            pairs = sorted((point["new"], point[key]) for point in points)
            style = f"-{'os^Dv'[number % 5]}"
            if name == FINE_TUNING:
                line = frontier([*pairs, (base["new"], base[key])])
                axes.plot(*zip(*line, strict=True), "k--", linewidth=1)
                style = "ko"
            axes.plot(*zip(*pairs, strict=True), style, markersize=5, label=name)
        axes.set_xlabel("new: steps right after they were learned, R@1 in percent")
        axes.set_title(key, loc="left", fontweight="bold")
        axes.grid(color="#E3E3E3", linewidth=0.8)
    axes.legend(frameon=False, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, path)


def _mean(rows: Sequence[Mapping[str, float]]) -> Line:
    return {key: float(np.mean([row[key] for row in rows])) for key in ("new", *KEPT)}


def plot_disorder_over_time(runs: Mapping[str, Sequence[Any]], out: Path) -> None:
    """Draw the measures of disorder over the experiences."""
    from avalanche_clip.evaluation.report.disorder_plots import PANELS, plot_disorder
    from avalanche_clip.evaluation.report.plots import save_figure

    labels = next(iter(runs.values()))[0].results["data"]["labels"]["train"]
    for reference in ("initial", "previous"):
        curves = {}
        for method, results in runs.items():
            rows = [next(iter(r.results["metrics"].values())) for r in results]
            keys = [key for panel in PANELS for key in panel.keys]
            curves[method] = {k: [row[reference][k] for row in rows] for k in keys}
        figure = plot_disorder(
            curves, labels=labels, title=f"Disorder against the {reference} model"
        )
        save_figure(figure, out / f"disorder_{reference}.png")
