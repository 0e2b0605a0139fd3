import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from avalanche_clip.evaluation.report import plots
from avalanche_clip.evaluation.report.plots import Spread

E = np.array([[0.5, 0.1, 0.0], [0.4, 0.6, math.nan]])


def texts(figure):
    return [text.get_text() for ax in figure.axes for text in ax.texts]


def test_plot_matrix__cells_show_percent_and_before_stands_apart():
    figure = plots.plot_matrix(E, before=[0.012, 0.0, 1.0], labels=list("abc"))
    shown = texts(figure)
    assert shown[:3] == ["1.2", "0.0", "100.0"]
    assert shown[3:] == ["50.0", "10.0", "0.0", "40.0", "60.0", "–"]
    sides = [[t.get_text() for t in ax.get_yticklabels()] for ax in figure.axes[:2]]
    assert sides == [["before"], ["after a", "after b"]]
    assert len(figure.axes[1].patches) == 2


def test_plot_matrix__other_units_and_missing_values():
    assert texts(plots.plot_matrix([[12.34]], percent=False)) == ["12.3"]
    assert texts(plots.plot_matrix(np.full((2, 2), math.nan))) == ["–"] * 4
    assert texts(plots.plot_matrix(np.zeros((2, 40)))) == []


def test_plot_over_time__one_line_per_test_set_and_the_mean():
    figure = plots.plot_over_time(E, before=np.zeros(3), ylabel="R@1")
    (ax,) = figure.axes
    lines = [line.get_label() for line in ax.lines if line.get_label()[0] != "_"]
    assert lines == ["mean", "1", "2", "3"]
    assert ax.lines[1].get_ydata().tolist() == [0, 50, 40]
    assert ax.get_ylabel() == "R@1 (%)"
    (ax,) = plots.plot_over_time(np.zeros((3, 1)), kind="task").axes
    assert ax.lines[0].get_label() == "1"  # no mean of one
    assert ax.get_ylim() == (0, 1)


def test_plot_budget__mean_and_spread_of_each_method():
    figure = plots.plot_budget({"a": [(1, 0.1), (1, 0.3)], "b": [(2, 0.5)]})
    (ax,) = figure.axes
    means = [tuple(box[0].get_xydata()[0]) for box in ax.containers]
    assert means == [(1, pytest.approx(20)), (2, 50)]


def test_plot_budget__wide_ranges_are_logarithmic():
    figure = plots.plot_budget({"a": [(1e9, 0.1)], "b": [(1e12, 0.5)]})
    assert figure.axes[0].get_xscale() == "log"


def test_plot_comparison__negative_and_missing_values():
    scores = {
        "a": {"in_domain": Spread(0.5, 0.1), "transfer": Spread(-0.2, math.nan)},
        "b": {"in_domain": Spread(0.4, 0.1)},
    }
    figure = plots.plot_comparison(scores)
    assert texts(figure) == ["50.0", "-20.0", "40.0"]
    shown = {text for text, _ in drawn_texts(figure)}
    assert {"in domain", "transfer", "a", "b"} <= shown


def test_plot_budget_curve__needs_one_score_per_step():
    assert isinstance(plots.plot_budget_curve([1, 2], {"a": [0.1, 0.2]}), Figure)
    with pytest.raises(
        ValueError, match="scores of 'a' of shape .3,.*2,.*one per step"
    ):
        plots.plot_budget_curve([1, 2], {"a": [0.1, 0.2, 0.3]})


def test_save_figure__equal_figures_give_equal_files(tmp_path):
    paths = [
        plots.save_figure(
            plots.plot_matrix(E, title="t"), tmp_path / "new" / f"{i}.png"
        )
        for i in range(2)
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Image.open(paths[0]) as image:
        assert image.width > 300


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: plots.plot_matrix([1, 2]), r"E of shape \(2,\)"),
        (lambda: plots.plot_matrix(E, before=[1]), r"before of shape \(1,\)"),
        (lambda: plots.plot_matrix(E, labels=["a"]), "1 labels given, 3"),
        (lambda: plots.plot_over_time(E, row_labels=["a"]), "1 row_labels given, 2"),
        (lambda: plots.plot_budget({}), "at least one"),
        (lambda: plots.plot_budget({"a": []}), "at least one"),
        (lambda: plots.plot_comparison({"a": {}}), "no value"),
    ],
)
def test_plots__refuse_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_plots__leave_pyplot_alone():
    code = (
        "import sys; from avalanche_clip.evaluation.report.plots import plot_matrix; "
        "plot_matrix([[1.0]]); assert 'matplotlib.pyplot' not in sys.modules; "
        "assert 'avalanche' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def drawn_texts(figure):
    """Texts that are seen, with their four corners in dots."""
    figure.canvas.draw()
    outside = set()
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low - 1e-9 <= tick.get_loc() <= high + 1e-9:
                    outside |= {tick.label1, tick.label2}
    for text in set(figure.findobj(Text)) - outside:
        if text.get_visible() and text.get_text().strip():
            turned = text.get_rotation()
            text.set_rotation(0)
            x0, y0, x1, y1 = text.get_window_extent().extents
            text.set_rotation(turned)
            corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
            if turned:  # about the point that the text is placed at
                angle, box = math.radians(turned), text.get_window_extent().extents
                turn = np.array([[math.cos(angle), math.sin(angle)]])
                turn = np.vstack([turn, [[-math.sin(angle), math.cos(angle)]]])
                corners = corners @ turn
                corners += np.array(box[:2]) - corners.min(axis=0)
            yield text.get_text(), corners


def apart(one, other):
    """Whether a line lies between two convex polygons."""
    for edges in (one, other):
        for a, b in zip(edges, np.roll(edges, -1, axis=0), strict=True):
            normal = np.array([a[1] - b[1], b[0] - a[0]])
            left, right = one @ normal, other @ normal
            if left.max() <= right.min() + 1e-6 or right.max() <= left.min() + 1e-6:
                return True
    return False


def every_figure(size, name):
    rng = np.random.default_rng(size)
    labels = [name.format(k) for k in range(size)]
    matrix, few = rng.random((size, size)), labels[:12]
    spread = [Spread(rng.random() - 0.5, 0.1) for _ in few]
    common = {"title": "mean_R@1 of all that is", "ylabel": "mean_R@1"}
    yield plots.plot_matrix(matrix, before=matrix[0], labels=labels, title="t")
    yield plots.plot_over_time(matrix, labels=labels, chance=0.1, **common)
    lines = {method: rng.random((2, size)) for method in few}
    yield plots.plot_methods(lines, labels, levels={"Joint": 0.5}, **common)
    scores = {m: {"final": s, "forgetting": s} for m, s in zip(few, spread)}
    yield plots.plot_comparison(scores, **common)
    yield plots.plot_budget({m: rng.random((2, 2)) for m in few}, **common)
    spent = np.cumsum(rng.random(size)) * 1e12
    yield plots.plot_budget_curve(spent, {"all": matrix[0]}, labels=labels, **common)
    yield plots.plot_panels({"loss": (range(size), matrix[0])}, ticks=labels)


@pytest.mark.parametrize(
    "size, name", [(1, "{}"), (6, "2016-2017, part {}"), (20, "a {} " + "x" * 50)]
)
def test_plots__texts_have_one_size_and_never_overlap(size, name):
    for figure in every_figure(size, name):
        shown = list(drawn_texts(figure))
        right, top = figure.canvas.get_width_height()
        for number, (text, corners) in enumerate(shown):
            assert (corners > -1.5).all() and (corners < [right + 2, top + 2]).all(), (
                text
            )
            crossed = [o for o, place in shown[:number] if not apart(corners, place)]
            assert not crossed, (text, crossed)
        sizes = {t.get_fontsize() for t in figure.findobj(Text) if t.get_text()}
        assert len(shown) > 2 and len(sizes) == 1
        assert figure.get_figwidth() < 10


def test_plot_methods__mean_band_and_levels():
    figure = plots.plot_methods({"a": [[0.1, 0.2], [0.3, 0.4]]}, ["x", "y"], levels={})
    (ax,) = figure.axes
    assert ax.lines[0].get_ydata().tolist() == pytest.approx([20, 30])
    assert len(ax.collections) == 1
    with pytest.raises(ValueError, match="values of 'a'"):
        plots.plot_methods({"a": [[0.1, 0.2]]}, ["x"])


def test_plot_over_time__many_test_sets_have_no_names():
    figure = plots.plot_over_time(np.ones((2, 13)))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["mean", "each test set"]
