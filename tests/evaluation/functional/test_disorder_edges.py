"""Spatial disorder of angles on the edges of the bins, give or take rounding."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.evaluation.functional import (
    ROTATION_BINS,
    TOPOLOGY_BINS,
    spatial_disorder,
)


def at(*degrees):
    turns = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([turns.cos(), turns.sin()], dim=1)


def unit(n, d, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return F.normalize(rows, dim=-1).to(dtype)


def turned(rows, degrees):
    """Rows of even length, turned by an angle in each plane of two coordinates."""
    turn = math.radians(degrees)
    x, y = rows.double()[:, 0::2], rows.double()[:, 1::2]
    planes = (
        x * math.cos(turn) - y * math.sin(turn),
        x * math.sin(turn) + y * math.cos(turn),
    )
    return torch.stack(planes, dim=2).flatten(1).to(rows.dtype)


def ulps(degrees, steps):
    """The double so many steps of float32 away."""
    value = np.float32(degrees)
    for _ in range(abs(steps)):
        value = np.nextafter(value, np.float32(1000 * np.sign(steps)))
    return float(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("edge", ROTATION_BINS[1:-1])
@pytest.mark.parametrize("d", [2, 16, 512])
def test_disorder__angles_on_an_edge_are_in_the_upper_bin(edge, d, dtype):
    v, t = unit(40, d, 0, dtype), unit(40, d, 1, dtype)
    low = ROTATION_BINS.index(edge)
    key = f"rotation_share_{edge:g}_{ROTATION_BINS[low + 1]:g}"
    for image, text in ((0, 0), (-1, 1), (1, -1), (-1, -1)):
        found = spatial_disorder(
            v, t, turned(v, ulps(edge, image)), turned(t, ulps(edge, text))
        )
        assert found["imd_tv"] == 0
        assert found[f"image_{key}"] == found[f"text_{key}"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disorder__angles_beside_an_edge_are_where_they_are(dtype):
    v, t = unit(40, 16, 0, dtype), unit(40, 16, 1, dtype)
    found = spatial_disorder(v, t, turned(v, 19.99), turned(t, 20.01))
    assert found["imd_tv"] == 1
    assert (
        found["image_rotation_share_15_20"] == found["text_rotation_share_20_25"] == 1
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_disorder__opposite_and_equal_vectors_are_in_the_outer_bins(dtype):
    v, t = unit(40, 16, 0, dtype), unit(40, 16, 1, dtype)
    found = spatial_disorder(v, t, -3 * v, 2 * t)
    assert found["imd_tv"] == 1
    assert (
        found["image_rotation_share_30_180"] == found["text_rotation_share_0_15"] == 1
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("change", TOPOLOGY_BINS[1:-1])
def test_disorder__changes_of_topology_on_an_edge_are_in_the_upper_bin(change, dtype):
    # two groups of vectors that move apart: half of the pairs change by one angle
    old = torch.cat([at(*[10.0] * 3), at(*[50.0] * 3)]).to(dtype)
    new = torch.cat([at(*[30.0 - change / 3] * 3), at(*[70.0 + 2 * change / 3] * 3)])
    found = spatial_disorder(old, old, new.to(dtype), new.to(dtype))
    low = TOPOLOGY_BINS.index(change)
    key = f"image_topology_share_{change:g}_{TOPOLOGY_BINS[low + 1]:g}"
    assert found[key] == pytest.approx(9 / 15)
    assert found["image_topology_share_0_5"] == pytest.approx(6 / 15)
