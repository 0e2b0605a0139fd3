"""Figures of spatial disorder: how features turn over a run.

Drawn in the style of :mod:`avalanche_clip.evaluation.report.plots`, whose
``save_figure`` writes them. All angles are in degrees.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from avalanche_clip.common.checks import require_array, require_some
from avalanche_clip.evaluation.functional import rotation_angles, topology_change
from avalanche_clip.evaluation.functional._inputs import ArrayLike, as_float64_array
from avalanche_clip.evaluation.report.drawing import (
    INK,
    SOFT,
    add_legend,
    add_title,
    draw_runs,
    look,
    name_ticks,
    names_of,
    new_figure,
    style,
)

Curves = Mapping[str, ArrayLike]


class Panel(NamedTuple):
    """One part of :func:`plot_disorder`: a heading and the values it shows."""

    title: str
    keys: tuple[str, ...]


PANELS = (
    Panel("Inter-modal deviation", ("imd_mean",)),
    Panel("Rotation", ("image_rotation_mean", "text_rotation_mean")),
    Panel("Topology change", ("image_topology_change", "text_topology_change")),
)

_DASHES = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_NUM_BINS = 40
_MODALITIES = ("image", "text")


def plot_disorder(
    curves: Mapping[str, Curves],
    *,
    panels: Sequence[Panel | tuple[str, Sequence[str]]] = PANELS,
    labels: Sequence[str] | None = None,
    title: str = "",
    ylabel: str = "degrees",
) -> Figure:
    """Draw scalars of spatial disorder over the experiences, one line per method.

    Methods differ in colour and marker, the values of one panel in the dashes
    of their lines. Several runs of a method become their mean with a band of
    one standard deviation. Missing values (NaN) leave gaps.

    :param curves: method -> name of the value -> K values, or ``(runs, K)``;
        for example ``{"Mod-X": metric.result()["initial"]}`` of a
        :class:`SpatialDisorderMetric`.
    :param panels: headings and names of the values to show.
    :param labels: names of the experiences, K strings; numbers from 1 if None.
    :param title: shown above.
    :param ylabel: unit of the values.
    :return: the figure.
    :raises ValueError: if there is no method or panel, a value is missing, or
        lengths differ.
    """
    require_some(curves, "methods")
    require_some(panels, "panels")
    parts = [Panel(heading, tuple(keys)) for heading, keys in panels]
    runs = {
        method: {key: _runs(method, key, values) for p in parts for key in p.keys}
        for method, values in curves.items()
    }
    steps = _steps(runs)
    names = names_of(labels, steps)
    figure = new_figure(min(2.2 + 2.9 * len(parts), 15), 3.9)
    axes = figure.subplots(1, len(parts), squeeze=False)[0]
    for ax, panel in zip(axes, parts):
        style(ax)
        for number, method in enumerate(runs):
            for key, dash in zip(panel.keys, cycle(_DASHES)):
                named = {"label": method} if key == panel.keys[0] else {}
                draw_runs(ax, runs[method][key], number, linestyle=dash, **named)
        _finish_steps(ax, names, figure.get_figwidth() / len(parts))
        ax.set_title(panel.title, color=INK, loc="left")
        if len(panel.keys) > 1:
            _explain_dashes(ax, panel)
    axes[0].set_ylabel(ylabel)
    if len(runs) > 1:
        add_legend(figure, *axes[0].get_legend_handles_labels())
    add_title(figure, title)
    return figure


def plot_angle_histograms(
    v_old: ArrayLike,
    t_old: ArrayLike,
    v_new: ArrayLike,
    t_new: ArrayLike,
    *,
    title: str = "",
) -> Figure:
    """Draw how far vectors turned and how the angles between them changed.

    Left the rotation angles of all samples, right the absolute changes of the
    angles between two samples of one modality; images against texts, with the
    means as vertical lines. If the two histograms on the left lie apart, the
    modalities turn by different amounts (inter-modal deviation); if those on
    the right stay near 0, they turn as a whole.

    :param v_old: image features before, ``(N, D)``; the arguments are those of
        :func:`spatial_disorder`.
    :param t_old: text features before.
    :param v_new: image features after.
    :param t_new: text features after.
    :param title: shown above.
    :return: the figure.
    :raises ValueError: as in :func:`spatial_disorder`.
    """
    pairs = ((v_old, v_new), (t_old, t_new))
    figure = new_figure(9.2, 3.9)
    for ax, heading, things, angles in zip(
        figure.subplots(1, 2),
        ("Rotation of single vectors", "Change of angles between samples"),
        ("samples", "pairs"),
        (rotation_angles, topology_change),
        strict=True,
    ):
        values = [angles(*pair).abs().cpu().numpy() for pair in pairs]
        _draw_histograms(ax, values)
        ax.set_title(heading, color=INK, loc="left")
        ax.set_ylabel(f"share of {things} (%)")
    add_title(figure, title)
    return figure


# ------------------------------------------------------------------------ lines
def _runs(method: str, key: str, values: Curves) -> np.ndarray:
    if key not in values:
        raise ValueError(
            f"{method!r} has no value {key!r}; it has {sorted(map(str, values))}."
        )
    array = as_float64_array(key, values[key])
    array = array[None] if array.ndim == 1 else array
    give = "or one value per experience"
    require_array(array, f"{key} of {method!r}", "runs experiences", give=give)
    return array


def _steps(runs: Mapping[str, Mapping[str, np.ndarray]]) -> int:
    lengths = {m: x.shape[1] for m, values in runs.items() for x in values.values()}
    every = {x.shape[1] for values in runs.values() for x in values.values()}
    if len(every) > 1:
        raise ValueError(
            f"Lines of different lengths given: {lengths}; pass one value per "
            "experience, NaN where there is none."
        )
    return every.pop()


def _finish_steps(ax: Axes, names: list[str], room: float) -> None:
    name_ticks(ax, names, room)
    ax.set_xlim(-0.3, len(names) - 0.7)
    if ax.dataLim.y0 >= 0:
        ax.set_ylim(bottom=0)
    ax.set_xlabel("after experience")


def _explain_dashes(ax: Axes, panel: Panel) -> None:
    """Name the lines of a panel by what their keys do not share."""
    words = [key.split("_") for key in panel.keys]
    shared = set(words[0]).intersection(*words[1:])
    names = [
        " ".join(w for w in key if w not in shared) or " ".join(key) for key in words
    ]
    handles = [
        Line2D([], [], color=SOFT, linewidth=1.6, linestyle=dash)
        for _, dash in zip(names, cycle(_DASHES))
    ]
    _leave_room(ax)
    ax.legend(
        handles,
        names,
        frameon=False,
        handlelength=2.6,
        loc="upper left",
        ncols=min(len(names), 3),
    )


def _leave_room(ax: Axes) -> None:
    """Raise the upper limit, so that a legend covers no line."""
    low, high = ax.get_ylim()
    ax.set_ylim(top=high + 0.16 * (high - low))


# ------------------------------------------------------------------- histograms
def _draw_histograms(ax: Axes, parts: list[np.ndarray]) -> None:
    """Draw one filled outline per modality, and its mean."""
    style(ax)
    top = max((float(values.max()) for values in parts if values.size), default=0.0)
    edges = np.linspace(0, top if top > 0 else 1.0, _NUM_BINS + 1)
    for number, (name, values) in enumerate(zip(_MODALITIES, parts)):
        if not values.size:
            continue
        colour, _ = look(number)
        shares = 100 * np.histogram(values, edges)[0] / values.size
        mean = float(values.mean())
        label = f"{name}, mean {mean:.1f}°"
        ax.stairs(shares, edges, color=colour, fill=True, alpha=0.25, linewidth=0)
        ax.stairs(shares, edges, color=colour, linewidth=1.6, label=label)
        mark = ax.vlines(mean, 0, shares.max(), color=colour, linewidth=1.4)
        mark.set_linestyle((0, (4, 2)))
    ax.set_xlim(0, edges[-1])
    ax.set_ylim(bottom=0)
    ax.set_xlabel("degrees")
    if any(values.size for values in parts):
        _leave_room(ax)
        ax.legend(frameon=False, loc="upper right")
