"""Style and building blocks of the figures: one width, one size of text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, MaxNLocator

from avalanche_clip.common.checks import require_length

# Okabe and Ito's palette, distinct under all common colour deficiencies, and four more.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#B8A900",
    "#6A3D9A",
    "#8C564B",
    "#8A8A8A",
    "#A50F35",
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

INK = "#222222"
SOFT = "#767676"
GRID = "#E3E3E3"
MISSING = "#EDEDED"
CELL_LIMIT = 16
LINE_LIMIT = 12
"""More lines cannot be told apart by colour and marker."""

WIDTH = 4.9
"""Inches of a figure that a page shows as it is, and a phone at two thirds."""
SIZE = 10.0
"""Points of all text."""
LETTER, ROW = 0.085, 0.19
"""Inches that a letter and a line of text take."""
_TURN = 35
_LONGEST = 24


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of that many inches, with its own Agg canvas."""
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one axes in our style."""
    figure = new_figure(width, height)
    ax = figure.add_subplot()
    style(ax)
    return figure, ax


def finish(
    figure: Figure, ax: Axes, title: str, xlabel: str, ylabel: str, things: str = ""
) -> None:
    """Write labels and title, and the legend, of ``things``, below the axes."""
    ax.set(xlabel=xlabel, ylabel=ylabel)
    handles, names = ax.get_legend_handles_labels()
    if handles:
        add_legend(figure, handles, names, things)
    add_title(figure, title)


def add_legend(
    figure: Figure, handles: Sequence[Any], names: Sequence[str], things: str = ""
) -> None:
    """Put a legend below everything, in as many columns as fit side by side."""
    names = [shorten(name, 34) for name in names]
    legend = figure.legend(
        handles,
        names,
        title=things or None,
        loc="outside lower left",
        ncols=_legend_columns(names, figure.get_figwidth()),
        columnspacing=1.0,
        handlelength=1.8,
        alignment="left",
        frameon=False,
    )
    legend.get_title().set_color(SOFT)


def lines_height(names: Sequence[str], ticks: Sequence[str]) -> float:
    """Height of a figure of lines, with its legend and the names of its points."""
    names = [shorten(name, 34) for name in (*names, "chance")]
    rows = -(-len(names) // _legend_columns(names, WIDTH)) + 1
    turned = min(max(map(len, ticks)), _LONGEST) * LETTER * np.sin(np.radians(_TURN))
    return float(2.7 + turned + ROW * rows)


def _legend_columns(names: Sequence[str], width: float) -> int:
    column = 0.55 + LETTER * max(map(len, names))
    return max(1, min(len(names), int(width / column)))


def shorten(name: str, longest: int = _LONGEST) -> str:
    """Cut a name that would fill a figure."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def names_of(
    labels: Sequence[str] | None, size: int, what: str = "labels"
) -> list[str]:
    """Return one name per column or row: those given, or numbers from 1."""
    if labels is None:
        return [str(number) for number in range(1, size + 1)]
    require_length(labels, size, what, "step or test set")
    return [str(label) for label in labels]


def name_ticks(ax: Axes, names: Sequence[str], room: float | None = None) -> None:
    """Write names below an axes, turned, cut and left out so that none overlap.

    The last name is always there.

    :param ax: with one place per name, from 0.
    :param names: what to write.
    :param room: width of the axes in inches; default that of the whole figure.
    """
    figure: Any = ax.figure
    each = ((room or figure.get_figwidth()) - 0.9) / len(names)
    shown = [shorten(name) for name in names]
    widest = LETTER * (max(map(len, shown)) + 1)
    flat = widest <= each or max(map(len, shown)) <= 4
    needed = widest if flat else ROW / np.sin(np.radians(_TURN))
    places = range(len(names))[:: -max(1, int(np.ceil(needed / each)))][::-1]
    looks: dict[str, Any] = {"rotation": 0, "ha": "center"}
    if not flat:
        looks = {"rotation": _TURN, "ha": "right", "rotation_mode": "anchor"}
    ax.set_xticks(list(places), [shown[place] for place in places], **looks)


def draw_line(
    ax: Axes, x: Any, y: Any, number: int, size: float, **options: Any
) -> tuple[str, str]:
    """Draw a line with hollow markers; return its colour and marker."""
    colour, marker = look(number)
    (line,) = ax.plot(x, y, color=colour, linewidth=1.8, **options)
    line.set(marker=marker, markersize=size, markerfacecolor="white")
    return colour, marker


def budget_axis(ax: Axes, top: float) -> None:
    """Let an axis of large numbers begin at 0 and end at ``top``."""
    ax.set_xlim(0, top or 1)
    ax.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(EngFormatter())


def add_title(figure: Figure, title: str) -> None:
    """Write a title at the top left, and give all text its one size; call last."""
    if title:
        lines = textwrap.fill(title, int(figure.get_figwidth() / LETTER / 1.05))
        figure.suptitle(lines, x=0.01, ha="left", fontweight="bold", color=INK)
    for text in figure.findobj(Text):
        text.set_fontsize(SIZE)


def draw_runs(ax: Axes, runs: Any, number: int, **options: Any) -> None:
    """Draw the mean of runs ``(runs, points)`` in a band of a standard deviation."""
    x, mean = np.arange(runs.shape[1]), runs.mean(axis=0)
    colour, _ = draw_line(ax, x, mean, number, 5.5, **options)
    if len(runs) > 1:
        spread = runs.std(axis=0, ddof=1)
        ax.fill_between(
            x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0
        )


def look(number: int) -> tuple[str, str]:
    """Return colour and marker of a line or method by its number."""
    # the markers shift by one with each round, so that pairs stay distinct
    round_, position = divmod(number, len(COLOURS))
    return COLOURS[position], MARKERS[(position + round_) % len(MARKERS)]


def style(ax: Axes) -> None:
    """Set colours, spines and grid lines of an axes."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(SOFT)
    ax.grid(axis="y", color=GRID, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(colors=INK, length=3, labelsize=SIZE)


def unit(name: str, percent: bool) -> str:
    """Return the axis label with its unit."""
    if not percent:
        return name
    return f"{name} (%)" if name else "percent"


def shared_limits(blocks: list[np.ndarray]) -> Normalize:
    """Return one colour scale for several blocks, starting at 0 or below."""
    values = np.concatenate([block.ravel() for block in blocks])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return Normalize(0, 1)
    low, high = min(0.0, values.min()), values.max()
    return Normalize(low, high if high > low else low + 1)


def draw_cells(ax: Axes, block: np.ndarray, colours: Any, limits: Normalize) -> Any:
    """Draw a block as coloured cells with their numbers; NaN is grey."""
    image = ax.imshow(block, cmap=colours, norm=limits, aspect="auto")
    ax.tick_params(length=0, labelsize=SIZE, colors=INK)
    ax.spines[:].set_visible(False)
    rows, columns = block.shape
    ax.set_xticks(np.arange(columns - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(rows - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    if columns > CELL_LIMIT:
        return image  # numbers would overlap
    for (i, j), value in np.ndenumerate(block):
        missing = not np.isfinite(value)
        red, green, blue, _ = colours(limits(0.0 if missing else value))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        colour = SOFT if missing else ("white" if dark else INK)
        text = "–" if missing else f"{value:.1f}"
        ax.text(j, i, text, ha="center", va="center", color=colour, size=SIZE)
    return image


def frame_diagonal(ax: Axes, size: int) -> None:
    """Frame the first cells of the diagonal."""
    for i in range(size):
        frame = Rectangle((i - 0.47, i - 0.45), 0.94, 0.9)
        frame.set(fill=False, edgecolor="#D55E00", linewidth=1.6)
        ax.add_patch(frame)
