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
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from avalanche_clip.common.checks import require_array, require_some
from avalanche_clip.common.files import replacing
from avalanche_clip.evaluation.functional._inputs import ArrayLike, as_results, as_row
from avalanche_clip.evaluation.report.drawing import (
    CELL_LIMIT,
    INK,
    LETTER,
    LINE_LIMIT,
    MISSING,
    SIZE,
    SOFT,
    WIDTH,
    add_title,
    budget_axis,
    draw_cells,
    draw_line,
    draw_runs,
    finish,
    frame_diagonal,
    lines_height,
    look,
    name_ticks,
    names_of,
    new_axes,
    new_figure,
    shared_limits,
    shorten,
    style,
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
    row_names = [shorten(name) for name in row_names]
    side = LETTER * max(map(len, row_names))
    numbers = columns <= CELL_LIMIT
    wide = side + 0.95 + 0.45 * columns if numbers else 0.0
    figure = new_figure(max(WIDTH, wide), 1.4 + min(0.33 * (sum(heights) + 0.3), 8))
    axes = figure.subplots(
        len(blocks), 1, squeeze=False, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    colours = colormaps["cividis"].copy()
    colours.set_bad(MISSING)
    limits = shared_limits(blocks)
    block_names = [row_names] if top is None else [["before"], row_names]
    for ax, block, labelled in zip(axes, blocks, block_names, strict=True):
        image = draw_cells(ax, block, colours, limits)
        places = range(len(labelled))[:: -max(1, round(len(labelled) / 25))][::-1]
        ax.set_yticks(places, [labelled[place] for place in places])
        ax.set_xticks([])
    bottom = axes[-1]
    name_ticks(bottom, names, figure.get_figwidth() - side - 0.2)
    bottom.set_xlabel("test set")
    if diagonal:
        frame_diagonal(bottom, min(rows, columns))
    bar = figure.colorbar(image, ax=list(axes), fraction=0.035, pad=0.02, aspect=25)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=SIZE, colors=SOFT)
    bar.set_label("percent" if percent else "value", color=SOFT)
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
    chance: float | None = None,
) -> Figure:
    """Draw the score on each test set against the trained step.

    A filled marker shows the step that the test set belongs to; the thick grey
    line is the mean over several test sets, or tasks. Of more than twelve test sets the
    lines are thin and without names.

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
    :param chance: mean score of guessing, a dashed line.
    :return: the figure.
    :raises ValueError: if the shapes or the numbers of labels do not fit.
    """
    matrix, top, names, ticks = _parts(E, before, labels, row_labels, percent)
    values, offset = matrix, 0
    ticks = [tick.removeprefix("after ") for tick in ticks]
    if top is not None:
        values, offset = np.vstack([top, matrix]), 1
        ticks.insert(0, "before")
    x = np.arange(len(values))
    figure, ax = new_axes(WIDTH, lines_height(names[:LINE_LIMIT], ticks))
    if kind in ("test set", "task") and len(names) > 1:
        (line,) = ax.plot(x, values.mean(axis=1), color="#B0B0B0", label="mean")
        line.set(linewidth=5, solid_capstyle="round")
    for j, name in enumerate(names):
        if len(names) > LINE_LIMIT:
            (line,) = ax.plot(x, values[:, j], color=look(0)[0], linewidth=0.6)
            line.set(alpha=0.5, label="_" if j else f"each {kind}")
            continue
        colour, marker = draw_line(ax, x, values[:, j], j, 6, label=shorten(name))
        if diagonal and j < len(matrix):
            own = j + offset
            ax.plot(x[own], values[own, j], marker=marker, markersize=8, color=colour)
    _finish_steps(ax, ticks, {} if chance is None else {"chance": chance}, percent)
    finish(figure, ax, title, "trained step", unit(ylabel, percent), kind)
    return figure


def plot_methods(
    lines: Mapping[str, ArrayLike],
    ticks: Sequence[str],
    *,
    title: str = "",
    ylabel: str = "",
    percent: bool = True,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """Draw one line per method over time, the mean of its runs in a band.

    The band is one standard deviation wide to both sides.

    :param lines: method -> values of its runs, ``(runs, points)``.
    :param ticks: names of the points.
    :param title: shown above.
    :param ylabel: name of the value.
    :param percent: whether the values are fractions to be shown in percent.
    :param levels: name -> value of dashed lines, such as chance or a reference.
    :return: the figure.
    :raises ValueError: if there is no method, or a line has another number of points.
    """
    require_some(lines, "methods")
    figure, ax = new_axes(WIDTH, lines_height([*lines, *(levels or {})], ticks))
    for number, (name, runs) in enumerate(lines.items()):
        values = np.asarray(runs, dtype=np.float64) * (100.0 if percent else 1.0)
        require_array(values, f"values of {name!r}", f"runs {len(ticks)}")
        draw_runs(ax, values, number, label=shorten(name))
    _finish_steps(ax, ticks, levels or {}, percent)
    finish(figure, ax, title, "trained step", unit(ylabel, percent))
    return figure


def plot_panels(
    lines: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str = "",
    xlabel: str = "",
    ticks: Sequence[str] | None = None,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """Draw each line in a panel with its own scale, below each other.

    :param lines: name -> x and y.
    :param title: shown above.
    :param xlabel: what x is.
    :param ticks: names of the places 0, 1, ... of x.
    :param marks: name -> place on x of a vertical line.
    :return: the figure.
    :raises ValueError: if there is no line, or its x and y differ in length.
    """
    require_some(lines, "lines")
    figure = new_figure(WIDTH, 1.0 + 1.25 * len(lines))
    panels = figure.subplots(len(lines), 1, sharex=True, squeeze=False)[:, 0]
    for number, (ax, (name, (x, y))) in enumerate(zip(panels, lines.items())):
        x, values = np.asarray(x, np.float64), np.asarray(y, np.float64)
        require_array(values, f"values of {name!r}", f"{len(x)}", give="one per x")
        style(ax)
        few = {"marker": "o", "markersize": 4.0} if len(x) < 30 else {}
        (line,) = ax.plot(x, values, color=look(number)[0], linewidth=1.5)
        line.set(**few)
        for place in (marks or {}).values():
            ax.axvline(place, color=SOFT, linewidth=0.8, linestyle=(0, (2, 2)))
        ax.yaxis.set_major_locator(MaxNLocator(3))
        ax.set_title(shorten(name, 50), loc="left", color=INK)
    bottom = panels[-1]
    if ticks is not None:
        name_ticks(bottom, ticks)
    bottom.set_xlabel(xlabel)
    add_title(figure, title)
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
    figure, ax = new_axes(WIDTH, lines_height([*points], [""]))
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
    figure, ax = new_axes(WIDTH, 3.6)
    highest = np.full(len(x), -np.inf)
    for number, (name, line) in enumerate(scores.items()):
        y = np.asarray(line, dtype=np.float64) * (100.0 if percent else 1.0)
        require_array(y, f"scores of {name!r}", f"{len(x)}", give="one per step")
        colour, marker = look(number)
        ax.plot(x, y, color=colour, marker=marker, linewidth=1.8, label=name)
        highest = np.fmax(highest, y)
    end = x.max(initial=0) * 1.08 or 1.0
    free = np.inf
    for position, top, name in list(zip(x, highest, names, strict=True))[::-1]:
        half = LETTER * (len(shorten(name)) + 1) / 2 / (WIDTH - 0.9) * end
        centre = min(max(position, half), end - half)
        if np.isfinite(top) and centre + half <= free:
            note = ax.annotate(
                shorten(name), (centre, top), xytext=(0, 9), textcoords="offset points"
            )
            note.set(ha="center", color=SOFT)
            note.set_path_effects([withStroke(linewidth=3, foreground="white")])
            free = centre - half
    budget_axis(ax, end)
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
    """Draw lying bars: one group per value, one bar per method.

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
    missing, each = Spread(np.nan, np.nan), len(scores) + 1.4
    figure, ax = new_axes(WIDTH, 1.0 + 0.2 * len(groups) * each)
    starts = np.arange(len(groups)) * each
    for number, values in enumerate(scores.values()):
        spreads = [values.get(group, missing) for group in groups]
        means, errors = np.array(spreads).T * scale
        bars = ax.barh(
            starts + number + 1,
            means,
            0.8,
            color=look(number)[0],
            xerr=np.nan_to_num(errors),
            error_kw={"ecolor": INK, "elinewidth": 1.1, "capsize": 2.5},
        )
        for note in ax.bar_label(bars, fmt="%.1f", padding=3):
            if not note.get_text():  # of a gap
                note.remove()
    ax.axvline(0, color=SOFT, linewidth=0.8)
    ax.grid(visible=False, axis="y")
    ax.tick_params(axis="y", which="both", length=0)
    places = [start + k for start in starts for k in range(1, len(scores) + 1)]
    ax.set_yticks(places, [shorten(method) for method in scores] * len(groups))
    ax.set_yticks(starts, [group.replace("_", " ") for group in groups], minor=True)
    for heading in ax.get_yticklabels(minor=True):
        heading.set_fontweight("bold")
    ax.margins(x=0.22)
    ax.set_ylim(places[-1] + 0.7, -0.7)  # the first on top, below its heading
    finish(figure, ax, title, unit(ylabel, percent), "")
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


def _finish_steps(
    ax: Axes, ticks: Sequence[str], levels: Mapping[str, float], percent: bool
) -> None:
    """Name the points, and draw levels to compare with, such as chance."""
    dashes = ((0, (4, 3)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
    for number, (name, level) in enumerate(levels.items()):
        if np.isfinite(level):
            line = ax.axhline(level * (100.0 if percent else 1.0), label=name)
            line.set(color=INK, linewidth=1, linestyle=dashes[number % len(dashes)])
    name_ticks(ax, ticks)
    ax.set_xlim(-0.25, len(ticks) - 0.75)
    ax.margins(y=0.08)
    if ax.dataLim.y0 >= 0:
        # nothing but zeros would have a scale of its own noise
        ax.set_ylim(0, 1 if percent and ax.dataLim.y1 == 0 else None)


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
