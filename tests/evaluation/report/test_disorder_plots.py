import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.evaluation.functional import rotation_angles, spatial_disorder
from avalanche_clip.evaluation.report.disorder_plots import (
    PANELS,
    Panel,
    plot_angle_histograms,
    plot_disorder,
)
from avalanche_clip.evaluation.report.plots import save_figure

KEYS = [key for panel in PANELS for key in panel.keys]


def curves(value=1.0, steps=3):
    return {key: [value * (k + 1) for k in range(steps)] for key in KEYS}


def unit(n, d, seed):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, d, generator=generator), dim=-1)


def test_panels__show_values_that_exist():
    assert set(KEYS) <= spatial_disorder(*[torch.eye(2)] * 4).keys()


def test_plot_disorder__one_line_per_method_and_value():
    figure = plot_disorder({"a": curves(), "b": curves(2.0)}, title="t")
    assert [len(ax.lines) for ax in figure.axes] == [2, 4, 4]
    assert [ax.get_title(loc="left") for ax in figure.axes] == [p[0] for p in PANELS]
    first, second = figure.axes[1].lines[:2]
    assert (
        first.get_color() == second.get_color() != figure.axes[1].lines[2].get_color()
    )
    assert first.get_linestyle() != second.get_linestyle()
    assert figure.axes[0].lines[1].get_ydata().tolist() == [2, 4, 6]
    names = [t.get_text() for t in figure.axes[1].get_legend().get_texts()]
    assert names == ["image", "text"]
    (methods,) = figure.legends
    assert [t.get_text() for t in methods.get_texts()] == ["a", "b"]


def test_plot_disorder__runs_become_mean_and_band():
    runs = {key: np.array([[1.0, 2.0], [3.0, 6.0]]) for key in KEYS}
    (ax, *_) = plot_disorder({"a": runs}, labels=["2010", "2014"]).axes
    assert ax.lines[0].get_ydata().tolist() == [2, 4]
    (band,) = ax.collections
    assert band.get_paths()[0].vertices[:, 1].max() == pytest.approx(4 + math.sqrt(8))
    assert [t.get_text() for t in ax.get_xticklabels()] == ["2010", "2014"]


def test_plot_disorder__own_panels_missing_and_negative_values():
    values = {"x": [math.nan, -1.0, 2.0]}
    figure = plot_disorder({"a": values}, panels=[("X", ["x"])])
    (ax,) = figure.axes
    assert ax.get_ylim()[0] < -1 and not figure.legends and ax.get_legend() is None
    panel = Panel("X", ("x", "x"))
    assert len(plot_disorder({"a": values}, panels=[panel]).axes[0].lines) == 2


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ({}, {}, "at least one"),
        ({"a": curves()}, {"panels": []}, "at least one"),
        ({"a": {"imd_mean": [1]}}, {}, "'a' has no value 'image_rotation_mean'"),
        ({"a": curves(), "b": curves(steps=2)}, {}, "different lengths"),
        ({"a": curves()}, {"labels": ["1"]}, "1 labels given, 3"),
        ({"a": {k: [] for k in KEYS}}, {}, r"shape \(1, 0\)"),
    ],
)
def test_plot_disorder__wrong_input_raises(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        plot_disorder(arguments, **options)


def test_plot_angle_histograms__shares_add_up_and_means_are_right():
    parts = [unit(30, 5, seed) for seed in range(4)]
    figure = plot_angle_histograms(*parts)
    for ax in figure.axes:
        outlines = [p for p in ax.patches if not p.get_fill()]
        assert len(outlines) == 2
        for outline in outlines:
            assert outline.get_data().values.sum() == pytest.approx(100)
    mean = rotation_angles(parts[0], parts[2]).mean().item()
    label = figure.axes[0].get_legend().get_texts()[0].get_text()
    assert label == f"image, mean {mean:.1f}°"


def test_plot_angle_histograms__no_change_one_pair_and_wrong_input(tmp_path):
    same = [unit(6, 4, 0), unit(6, 4, 1)]
    figure = plot_angle_histograms(*same, *same)
    assert save_figure(figure, tmp_path / "a.png").stat().st_size > 1000
    one = plot_angle_histograms(*[unit(1, 4, seed) for seed in range(4)])
    assert not one.axes[1].patches
    with pytest.raises(ValueError, match="shape"):
        plot_angle_histograms(*same, unit(5, 4, 0), same[1])
