"""Figures of a continual run, drawn without any global matplotlib state.

All functions return a :class:`matplotlib.figure.Figure` that no window and no
``pyplot`` knows; :func:`save_figure` writes it. Scores are fractions and are
shown in percent with one decimal unless ``percent=False``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from avalanche_clip.common.checks import require_array, require_some
from avalanche_clip.common.files import replacing
from avalanche_clip.evaluation.functional._inputs import ArrayLike, as_results, as_row
from avalanche_clip.evaluation.report.drawing import (
    INK,
    MISSING,
    SOFT,
    add_title,
    budget_axis,
    draw_cells,
    draw_line,
    finish,
    frame_diagonal,
    look,
    name_ticks,
    names_of,
    new_axes,
    new_figure,
    shared_limits,
    unit,
)


class Spread(NamedTuple):
    """Mean and standard deviation over seeds; the latter is NaN for one seed."""

    mean: float
    deviation: float


def plot_matrix(
    E: ArrayLike,
    *,
    before: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    diagonal: bool = True,
    title: str = "",
    percent: bool = True,
) -> Figure:
    """Draw the matrix of results as a heat map with its numbers.

    The row before the stream stands apart on top, the diagonal is framed, and
    missing (NaN) cells are grey.

    :param E: results, ``(K, J)``: row i after training step i, column j the
        test set of step j.
    :param before: results of the model before the stream, ``(J,)``.
    :param labels: names of the test sets, J strings; numbers from 1 if None.
    :param row_labels: names of the training steps, K strings; None: those of the
        first K test sets.
    :param diagonal: whether row i is the training step of test set i.
    :param title: shown above.
    :param percent: whether the values are fractions to be shown in percent.
    :return: the figure.
    :raises ValueError: if the shapes or the numbers of labels do not fit.
    """
    matrix, top, names, row_names = _parts(E, before, labels, row_labels, percent)
    rows, columns = matrix.shape
    blocks = [matrix] if top is None else [top[None], matrix]
    heights = [len(block) for block in blocks]
    figure = new_figure(
        min(2.4 + 0.72 * columns, 16), min(1.7 + 0.5 * (sum(heights) + 0.3), 14)
    )
    axes = figure.subplots(
        len(blocks), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    colours = colormaps["cividis"].copy()
    colours.set_bad(MISSING)
    limits = shared_limits(blocks)
    block_names = [row_names] if top is None else [["before"], row_names]
    for ax, block, side in zip(axes, blocks, block_names, strict=True):
        image = draw_cells(ax, block, colours, limits)
        ax.set_yticks(range(len(side)), side)
        ax.set_xticks([])
    bottom = axes[-1]
    name_ticks(bottom, names, max(map(len, names)) > 7, turn=35)
    bottom.set_xlabel("test set")
    if diagonal:
        frame_diagonal(bottom, min(rows, columns))
    bar = figure.colorbar(image, ax=list(axes), fraction=0.035, pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=9, colors=SOFT)
    bar.set_label("percent" if percent else "value", color=SOFT, fontsize=9)
    add_title(figure, title)
    return figure


def plot_over_time(
    E: ArrayLike,
    *,
    before: ArrayLike | None = None,
    labels: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    diagonal: bool = True,
    title: str = "",
    ylabel: str = "",
    percent: bool = True,
    kind: str = "test set",
) -> Figure:
    """Draw the score on each test set against the trained step.

    A filled marker shows the step that the test set belongs to; the thick grey
    line is the mean over all test sets, or tasks.

    :param E: results, ``(K, J)``.
    :param before: results of the model before the stream, ``(J,)``.
    :param labels: names of the test sets, J strings.
    :param row_labels: names of the training steps, K strings; None: those of the
        first K test sets.
    :param diagonal: whether row i is the training step of test set i.
    :param title: shown above.
    :param ylabel: name of the score.
    :param percent: whether the values are fractions to be shown in percent.
    :param kind: what the columns are.
    :return: the figure.
    :raises ValueError: if the shapes or the numbers of labels do not fit.
    """
    matrix, top, names, ticks = _parts(E, before, labels, row_labels, percent)
    values, offset = matrix, 0
    if top is not None:
        values, offset = np.vstack([top, matrix]), 1
        ticks.insert(0, "before")
    x = np.arange(len(values))
    figure, ax = new_axes(min(4.6 + 0.7 * len(values), 13), 4.4)
    if kind in ("test set", "task"):
        (line,) = ax.plot(x, values.mean(axis=1), color="#B0B0B0", label="mean")
        line.set(linewidth=5, solid_capstyle="round")
    for j, name in enumerate(names):
        colour, marker = draw_line(ax, x, values[:, j], j, 6, label=name)
        if diagonal and j < len(matrix):
            own = j + offset
            ax.plot(x[own], values[own, j], marker=marker, markersize=8, color=colour)
    name_ticks(ax, ticks, max(map(len, ticks)) > 8 or len(ticks) > 8)
    ax.set_xlim(-0.25, len(values) - 0.75)
    ax.set_ylim(bottom=0)
    finish(figure, ax, title, "trained step", unit(ylabel, percent), kind)
    return figure


def plot_budget(
    points: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str = "",
    xlabel: str = "training compute (MACs)",
    ylabel: str = "",
    percent: bool = True,
) -> Figure:
    """Draw score against budget for several methods.

    Each run is a small dot; a large marker with bars shows the mean and the
    standard deviation over the runs of a method.

    :param points: method -> (budget, score) of each of its runs.
    :param title: shown above.
    :param xlabel: name of the budget.
    :param ylabel: name of the score.
    :param percent: whether the scores are fractions to be shown in percent.
    :return: the figure.
    :raises ValueError: if there is no method or one has no run.
    """
    require_some(points, "methods")
    for name, runs in points.items():
        require_some(runs, f"runs of method {name!r}")
    figure, ax = new_axes(7.2, 4.6)
    means = []
    for number, (name, runs) in enumerate(points.items()):
        colour, marker = look(number)
        data = np.asarray(runs, dtype=np.float64) * (1.0, 100.0 if percent else 1.0)
        if len(data) > 1:
            ax.scatter(
                data[:, 0], data[:, 1], s=14, color=colour, alpha=0.45, linewidths=0
            )
        x, y = data.mean(axis=0)
        bars = data.std(axis=0, ddof=1) if len(data) > 1 else (0, 0)
        ax.errorbar(
            x,
            y,
            xerr=bars[0] or None,
            yerr=bars[1] or None,
            fmt=marker,
            color=colour,
            markersize=9,
            markeredgecolor="white",
            capsize=3,
            elinewidth=1.4,
            label=name,
        )
        means.append(x)
    if min(means) > 0 and max(means) / min(means) > 20:
        ax.set_xscale("log")
    else:
        budget_axis(ax, max(means) * 1.12)
    ax.margins(y=0.15)
    finish(figure, ax, title, xlabel, unit(ylabel, percent))
    return figure


def plot_budget_curve(
    budget: Sequence[float],
    scores: Mapping[str, Sequence[float]],
    *,
    labels: Sequence[str] | None = None,
    title: str = "",
    xlabel: str = "training compute (MACs)",
    ylabel: str = "",
    percent: bool = True,
) -> Figure:
    """Draw the scores of one run against the budget spent so far.

    :param budget: budget spent up to the end of each step, K numbers.
    :param scores: name of a line -> its K scores.
    :param labels: names of the steps, K strings.
    :param title: shown above.
    :param xlabel: name of the budget.
    :param ylabel: name of the score.
    :param percent: whether the scores are fractions to be shown in percent.
    :return: the figure.
    :raises ValueError: if a line has another number of scores than ``budget``.
    """
    x = np.asarray(budget, dtype=np.float64)
    names = names_of(labels, len(x))
    figure, ax = new_axes(7.2, 4.4)
    highest = np.full(len(x), -np.inf)
    for number, (name, line) in enumerate(scores.items()):
        y = np.asarray(line, dtype=np.float64) * (100.0 if percent else 1.0)
        require_array(y, f"scores of {name!r}", f"{len(x)}", give="one per step")
        colour, marker = look(number)
        ax.plot(x, y, color=colour, marker=marker, linewidth=1.8, label=name)
        highest = np.fmax(highest, y)
    for position, top, name in zip(x, highest, names, strict=True):
        if np.isfinite(top):
            note = ax.annotate(
                name, (position, top), xytext=(0, 9), textcoords="offset points"
            )
            note.set(ha="center", fontsize=8.5, color=SOFT)
            note.set_path_effects([withStroke(linewidth=3, foreground="white")])
    budget_axis(ax, x.max(initial=0) * 1.08)
    ax.margins(y=0.18)
    ax.set_ylim(bottom=0)
    finish(figure, ax, title, xlabel, unit(ylabel, percent))
    return figure


def plot_comparison(
    scores: Mapping[str, Mapping[str, Spread]],
    *,
    title: str = "",
    ylabel: str = "",
    percent: bool = True,
) -> Figure:
    """Draw grouped bars: one group per value, one bar per method.

    :param scores: method -> name of the value -> mean and deviation. Values
        that a method lacks leave a gap.
    :param title: shown above.
    :param ylabel: name of the axis.
    :param percent: whether the values are fractions to be shown in percent.
    :return: the figure.
    :raises ValueError: if there is no method or no value.
    """
    groups = list(dict.fromkeys(name for values in scores.values() for name in values))
    require_some(groups, "values of a method")
    scale = 100.0 if percent else 1.0
    width, missing = 0.82 / len(scores), Spread(np.nan, np.nan)
    figure, ax = new_axes(min(3 + 0.42 * len(groups) * (len(scores) + 1), 15), 4.4)
    for number, (method, values) in enumerate(scores.items()):
        spreads = [values.get(group, missing) for group in groups]
        means, errors = np.array(spreads).T * scale
        bars = ax.bar(
            np.arange(len(groups)) + (number - (len(scores) - 1) / 2) * width,
            means,
            width * 0.92,
            color=look(number)[0],
            label=method,
            yerr=np.nan_to_num(errors),
            error_kw={"ecolor": INK, "elinewidth": 1.1, "capsize": 2.5},
        )
        if len(groups) * len(scores) <= 40:
            for note in ax.bar_label(bars, fmt="%.1f", padding=3, fontsize=8):
                if not note.get_text():  # of a gap
                    note.remove()
    ax.axhline(0, color=SOFT, linewidth=0.8)
    ax.set_xticks(range(len(groups)), [group.replace("_", " ") for group in groups])
    ax.margins(y=0.12)
    finish(figure, ax, title, "", unit(ylabel, percent))
    return figure


def save_figure(figure: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Write a figure as PNG.

    :param figure: the figure.
    :param path: file to write, replaced at once; missing folders are created.
    :param dpi: dots per inch.
    :return: the path.
    """
    with replacing(path) as temporary:
        # the time of writing would make equal figures different files
        figure.savefig(temporary, dpi=dpi, format="png", metadata={"Software": None})
    return Path(path)


def _parts(
    E: ArrayLike,
    before: ArrayLike | None,
    labels: Sequence[str] | None,
    row_labels: Sequence[str] | None,
    percent: bool,
) -> tuple[np.ndarray, np.ndarray | None, list[str], list[str]]:
    """Matrix, row before it, names of the test sets and of the models."""
    scale = 100.0 if percent else 1.0
    give = "one row per trained step and one column per test set"
    matrix = as_results("E", E, "K J", give) * scale
    rows, columns = matrix.shape
    top = None if before is None else as_row("before", before, columns) * scale
    names = names_of(labels, columns)
    if row_labels is None and rows <= columns:
        row_labels = names[:rows]
    models = [f"after {name}" for name in names_of(row_labels, rows, "row_labels")]
    return matrix, top, names, models
