import math
import resource

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.evaluation.functional import (
    ROTATION_BINS,
    TOPOLOGY_BINS,
    angle_histogram,
    retrieval_metrics,
    rotation_angles,
    self_angles,
    spatial_disorder,
    topology_change,
)

FIXED = {
    "image_rotation_mean",
    "text_rotation_mean",
    "imd_mean",
    "imd_gap",
    "imd_tv",
    "image_topology_change",
    "text_topology_change",
}


def at(*degrees):
    turns = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([turns.cos(), turns.sin()], dim=1)


def unit(n, d, seed, dtype=torch.float64, common=0.0):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, d, generator=generator, dtype=torch.float64) + common
    return F.normalize(rows, dim=-1).to(dtype)


def orthogonal(d, seed):
    return torch.linalg.qr(unit(d, d, seed))[0]


def snapshots(n=9, d=4, dtype=torch.float64):
    old = [unit(n, d, seed, dtype) for seed in (0, 1)]
    new = [
        F.normalize(x + 0.4 * unit(n, d, 7 + i, dtype), dim=-1)
        for i, x in enumerate(old)
    ]
    return [*old, *new]


# ------------------------------------------------- an independent slow version
def slow_angle(u, w):
    u, w = (np.asarray(x, dtype=np.longdouble) for x in (u, w))
    u, w = u / np.sqrt((u * u).sum()), w / np.sqrt((w * w).sum())
    cross = np.sqrt(max((u * u).sum() * (w * w).sum() - (u @ w) ** 2, 0))
    return math.degrees(math.atan2(cross, u @ w))


def slow_shares(values, edges):
    counts, _ = np.histogram(values, bins=edges)
    return counts / len(values)


def slow_disorder(v_old, t_old, v_new, t_new):
    n = len(v_old)
    result, turns = {}, {}
    for name, old, new in (("image", v_old, v_new), ("text", t_old, t_new)):
        turns[name] = [slow_angle(old[a], new[a]) for a in range(n)]
        result[f"{name}_rotation_mean"] = np.mean(turns[name])
        result[f"{name}_rotation_median"] = np.median(turns[name])
        result[f"{name}_rotation_std"] = np.std(turns[name])
        shares = slow_shares(turns[name], ROTATION_BINS)
        for k, key in enumerate(("0_15", "15_20", "20_25", "25_30", "30_180")):
            result[f"{name}_rotation_share_{key}"] = shares[k]
        changes = [
            slow_angle(new[a], new[b]) - slow_angle(old[a], old[b])
            for a in range(n)
            for b in range(a + 1, n)
        ]
        result[f"{name}_topology_change"] = np.mean(np.abs(changes))
        result[f"{name}_topology_signed_mean"] = np.mean(changes)
        result[f"{name}_topology_p95"] = np.percentile(np.abs(changes), 95)
        shares = slow_shares(np.abs(changes), TOPOLOGY_BINS)
        for k, key in enumerate(("0_5", "5_10", "10_15", "15_20", "20_180")):
            result[f"{name}_topology_share_{key}"] = shares[k]
        u, _, w = np.linalg.svd(old.T @ new)
        rest = np.sqrt((((old @ (u @ w)) - new) ** 2).sum(1))
        result[f"{name}_procrustes_residual"] = np.sqrt((rest**2).mean())
        turns[name + "_map"] = u @ w
    difference = np.array(turns["image"]) - np.array(turns["text"])
    result["imd_mean"] = np.mean(np.abs(difference))
    result["imd_gap"] = abs(np.mean(turns["image"]) - np.mean(turns["text"]))
    shares = [slow_shares(turns[name], ROTATION_BINS) for name in ("image", "text")]
    result["imd_tv"] = sum(abs(p - q) for p, q in zip(*shares)) / 2

    def change(a, b):
        return slow_angle(v_new[a], t_new[b]) - slow_angle(v_old[a], t_old[b])

    cross = np.array([[change(a, b) for b in range(n)] for a in range(n)])
    result["cross_modal_diagonal_change"] = np.mean(np.diag(cross))
    off = [abs(cross[a, b]) for a in range(n) for b in range(n) if a != b]
    result["cross_modal_off_diagonal_change"] = np.mean(off)
    result["desynchronisation"] = np.mean(
        [slow_angle(row @ turns["image_map"], row @ turns["text_map"]) for row in v_old]
    )
    return result


@pytest.mark.parametrize("n, d", [(9, 4), (30, 5), (2, 2)])
def test_spatial_disorder__equals_the_slow_version(n, d):
    parts = snapshots(n, d)
    found = spatial_disorder(*parts)
    slow = slow_disorder(*(x.numpy() for x in parts))
    assert found.keys() == slow.keys() >= FIXED
    assert all(type(value) is float for value in found.values())
    for key, value in slow.items():
        assert found[key] == pytest.approx(value, abs=1e-9), key


def test_spatial_disorder__bands_do_not_change_the_result(monkeypatch):
    from avalanche_clip.evaluation.functional import _angles

    parts = snapshots(23, 6)
    whole = spatial_disorder(*parts)
    monkeypatch.setattr(_angles, "_ANGLES_PER_BAND", 23 * 4)
    monkeypatch.setattr(_angles, "_ROWS_PER_BLOCK", 5)
    banded = spatial_disorder(*parts)
    for key, value in whole.items():
        assert banded[key] == pytest.approx(value, abs=1e-11), key


# ------------------------------------------------------------ hand-made cases
def test_spatial_disorder__case_i_of_the_specification():
    v, t = at(0, 50, 120), at(8, 44, 131)
    v_new, t_new = at(30, 80, 150), at(18, 54, 141)
    found = spatial_disorder(v, t, v_new, t_new)
    assert found["image_rotation_mean"] == pytest.approx(30, abs=1e-12)
    assert found["text_rotation_mean"] == pytest.approx(10, abs=1e-12)
    for name in ("image", "text"):
        assert found[f"{name}_topology_change"] < 1e-12
        assert found[f"{name}_procrustes_residual"] < 1e-12
        assert found[f"{name}_rotation_std"] < 1e-12
    assert found["imd_mean"] == pytest.approx(20, abs=1e-12)
    assert found["imd_gap"] == pytest.approx(20, abs=1e-12)
    assert found["imd_tv"] == 1.0
    own = [rotation_angles(v, t).tolist(), rotation_angles(v_new, t_new).tolist()]
    assert own[0] == pytest.approx([8, 6, 11])
    assert own[1] == pytest.approx([12, 26, 9])
    assert found["cross_modal_diagonal_change"] == pytest.approx(22 / 3)
    assert found["desynchronisation"] == pytest.approx(20, abs=1e-11)
    before, after = (
        retrieval_metrics(v, t, ks=(1,)),
        retrieval_metrics(v_new, t_new, ks=(1,)),
    )
    keys = ("image_to_text_R@1", "text_to_image_R@1")
    assert [before[k] for k in keys] == [1, 1]
    assert [after[k] for k in keys] == pytest.approx([1, 2 / 3])


def test_angle_histogram__bins_are_half_open_and_the_last_is_closed():
    edges = torch.tensor([0.0, 15.0, 20.0, 25.0, 30.0, 180.0])
    assert angle_histogram(edges).tolist() == pytest.approx([1 / 6] * 4 + [2 / 6])
    just_below = torch.nextafter(edges[1:-1].double(), torch.tensor(0.0).double())
    assert angle_histogram(just_below).tolist() == [0.25] * 4 + [0]
    values = np.random.default_rng(0).uniform(0, 30, 500)
    expected = np.histogram(values, TOPOLOGY_BINS)[0] / 500
    found = angle_histogram(values, TOPOLOGY_BINS)
    assert found.tolist() == pytest.approx(expected.tolist())
    outside = angle_histogram([-1.0, 1.0, 200.0, 180.0], TOPOLOGY_BINS)
    assert outside.tolist() == [0.25, 0, 0, 0, 0.25]


def test_angle_histogram__no_values_and_wrong_input():
    assert angle_histogram(torch.empty(0)).isnan().all()
    with pytest.raises(ValueError, match="increasing"):
        angle_histogram([1.0], (0, 5, 5))
    with pytest.raises(ValueError, match="NaN in 1"):
        angle_histogram([1.0, math.nan])


# --------------------------------------------------------- rotations as a whole


def test_spatial_disorder__different_maps_keep_topology_and_lose_retrieval():
    v = unit(40, 6, 0)
    t = F.normalize(v + 0.1 * unit(40, 6, 1), dim=-1)
    turns = orthogonal(6, 2), orthogonal(6, 3)
    found = spatial_disorder(v, t, v @ turns[0], t @ turns[1])
    for name in ("image", "text"):
        assert found[f"{name}_topology_change"] < 1e-11
        assert found[f"{name}_procrustes_residual"] < 1e-11
    assert found["desynchronisation"] > 30
    assert found["cross_modal_off_diagonal_change"] > 5
    before = retrieval_metrics(v, t)["mean_R@1"]
    after = retrieval_metrics(v @ turns[0], t @ turns[1])["mean_R@1"]
    assert after < before / 2


def test_spatial_disorder__no_change_is_exactly_zero():
    v, t = unit(30, 5, 0, torch.float32), unit(30, 5, 1, torch.float32)
    found = spatial_disorder(v, t, v.clone(), t.clone())
    for name in ("image", "text"):
        assert found[f"{name}_rotation_mean"] == 0
        assert found[f"{name}_topology_change"] == 0
        assert found[f"{name}_rotation_share_0_15"] == 1
        assert found[f"{name}_topology_share_0_5"] == 1
        assert found[f"{name}_procrustes_residual"] < 1e-12
    assert found["imd_mean"] == found["imd_gap"] == found["imd_tv"] == 0
    assert found["cross_modal_off_diagonal_change"] == 0
    assert found["desynchronisation"] < 1e-11


# ----------------------------------------------------------------- exactness
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("d", [1, 2, 33, 512])
def test_angles__identical_is_exactly_0_and_opposite_exactly_180(dtype, d):
    rows = unit(50, d, 3, dtype)
    assert torch.equal(rotation_angles(rows, rows), torch.zeros(50).double())
    assert torch.equal(rotation_angles(rows, -rows), torch.full((50,), 180.0).double())
    pairs = torch.cat([rows[:1], rows[:1], -rows[:1], 4 * rows[:1]])
    expected = torch.tensor([[0.0, 0, 180, 0], [0, 0, 180, 0], [180, 180, 0, 180]])
    found = self_angles(pairs)
    assert torch.equal(found[:3], expected.double())


@pytest.mark.parametrize("tiny", [1e-3, 1e-6, 1e-9, 1e-12])
def test_angles__small_and_nearly_flat_angles_keep_their_digits(tiny):
    base = unit(1, 64, 0)
    side = F.normalize(unit(1, 64, 1) - (unit(1, 64, 1) @ base.T) * base, dim=-1)
    near = math.cos(tiny) * base + math.sin(tiny) * side
    expected = math.degrees(tiny)
    close = max(1e-9 * expected, 1e-13)
    assert rotation_angles(base, near).item() == pytest.approx(expected, abs=close)
    angles = self_angles(torch.cat([base, near, -near]))
    assert angles[0, 1].item() == pytest.approx(expected, abs=close)
    assert angles[0, 2].item() == pytest.approx(180 - expected, abs=1e-12)


def test_self_angles__collapsed_features_and_mixed_blocks():
    base = unit(1, 16, 0)
    rows = torch.cat(
        [base.expand(7, -1), -base, base + 1e-8 * unit(3, 16, 1), unit(12, 16, 2)]
    )
    slow = [[slow_angle(a, b) for b in rows.numpy()] for a in rows.numpy()]
    found = self_angles(rows)
    assert torch.equal(found[:7, :7], torch.zeros(7, 7).double())
    assert torch.equal(found[:7, 7], torch.full((7,), 180.0).double())
    # the slow version has half the digits near 0 and 180
    assert torch.allclose(
        found, torch.tensor(slow, dtype=torch.float64), rtol=0, atol=1e-6
    )
    assert torch.equal(found.diagonal(), torch.zeros(len(rows)).double())
    assert torch.allclose(found, found.T, rtol=0, atol=1e-12)


def test_topology_change__order_is_that_of_the_upper_triangle():
    old, new = unit(12, 5, 0), unit(12, 5, 1)
    full = self_angles(new) - self_angles(old)
    rows, columns = torch.triu_indices(12, 12, 1)
    assert torch.allclose(topology_change(old, new), full[rows, columns], atol=1e-11)


def test_spatial_disorder__float32_arrays_lengths_and_mixed_types():
    parts = snapshots(60, 8)
    exact = spatial_disorder(*parts)
    for changed in (
        [x.float() for x in parts],
        [x.float().numpy() for x in parts],
        [parts[0].float(), *parts[1:]],
        [x.float() * 17 for x in parts],
    ):
        found = spatial_disorder(*changed)
        for key, value in exact.items():
            assert found[key] == pytest.approx(value, abs=2e-5), key


# --------------------------------------------------------------- not defined
def test_spatial_disorder__one_pair_has_no_pair_statistics():
    found = spatial_disorder(at(0), at(10), at(30), at(30))
    assert found["image_rotation_mean"] == pytest.approx(30)
    assert found["text_rotation_mean"] == pytest.approx(20)
    assert found["image_rotation_std"] == 0
    assert found["cross_modal_diagonal_change"] == pytest.approx(-10)
    undefined = {key for key, value in found.items() if math.isnan(value)}
    assert undefined == {
        key
        for key in found
        if "topology" in key
        or "procrustes" in key
        or key in ("desynchronisation", "cross_modal_off_diagonal_change")
    }
    assert len(topology_change(at(0), at(1))) == 0


SPLIT = ("image_procrustes_residual", "text_procrustes_residual", "desynchronisation")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_spatial_disorder__no_unique_map_gives_nan(dtype):
    few = spatial_disorder(*snapshots(4, 5, dtype))
    assert all(math.isnan(few[key]) for key in SPLIT)
    v, t, v_new, t_new = snapshots(50, 6, dtype)
    flat = unit(50, 5, 9, dtype) @ unit(5, 6, 10, dtype)  # rank 5 up to rounding
    for old, new in ((flat, v_new), (v, flat), (flat, flat)):
        found = spatial_disorder(old, t, new, t_new)
        assert math.isnan(found["image_procrustes_residual"])
        assert math.isnan(found["desynchronisation"])
        assert found["text_procrustes_residual"] > 0


def test_spatial_disorder__full_ranks_whose_product_is_singular_give_nan():
    # both have rank 2, their product has rank 1
    old = np.array([[1, 0], [1, 0], [0, 1]]) / 1.0
    new = np.array([[0, 1], [0, -1], [1, 0]]) / 1.0
    assert np.linalg.matrix_rank(old) == np.linalg.matrix_rank(new) == 2
    assert np.linalg.matrix_rank(old.T @ new) == 1
    found = spatial_disorder(old, old, new, old)
    assert math.isnan(found["image_procrustes_residual"])
    assert found["text_procrustes_residual"] == pytest.approx(0, abs=1e-12)


def test_spatial_disorder__anisotropic_features_have_a_map():
    # one strong common direction, as the features of trained models have
    parts = [unit(300, 64, seed, torch.float32, common=3.0) for seed in range(4)]
    found = spatial_disorder(*parts)
    for key, old, new in (("image", parts[0], parts[2]), ("text", parts[1], parts[3])):
        old, new = old.double(), new.double()
        u, _, w = torch.linalg.svd(old.T @ new)
        rest = (old @ (u @ w) - new).norm() / math.sqrt(300)
        assert found[f"{key}_procrustes_residual"] == pytest.approx(rest.item())


# ------------------------------------------------- angles on the edges of bins
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


# ------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: [p[0][:5], *p[1:]], r"v_old.*\(5, 4\)"),
        (lambda p: [p[0][:, :3], *p[1:]], r"\(9, 3\)"),
        (lambda p: [p[0][0], *p[1:]], r"v_old of shape \(4,\)"),
        (lambda p: [*p[:3], p[3][:0]], r"t_new of shape \(0, 4\)"),
        (lambda p: [p[0].half(), *p[1:]], "float16"),
        (lambda p: [p[0], p[1] * math.nan, *p[2:]], "t_old.*NaN"),
        (
            lambda p: [p[0], p[1], p[2] * (torch.arange(9) != 3)[:, None], p[3]],
            "v_new.*length 0 in row 3",
        ),
    ],
)
def test_spatial_disorder__wrong_input_raises(change, message):
    with pytest.raises(ValueError, match=message):
        spatial_disorder(*change(snapshots()))


def test_rotation_angles__other_shapes_raise():
    with pytest.raises(ValueError, match="same pairs"):
        rotation_angles(unit(3, 4, 0), unit(2, 4, 0))
    with pytest.raises(ValueError, match="same pairs"):
        topology_change(unit(3, 4, 0), unit(3, 5, 0))


def test_spatial_disorder__gradients_are_not_tracked():
    parts = [x.requires_grad_() for x in snapshots()]
    spatial_disorder(*parts)
    assert not rotation_angles(parts[0], parts[2]).requires_grad


def test_spatial_disorder__memory_is_far_below_n_n_d():
    n, d = 1500, 64
    parts = [unit(n, d, seed, torch.float32) for seed in range(4)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spatial_disorder(*parts)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < n * n * d * 8 / 8
