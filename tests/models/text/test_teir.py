"""TEIR's two kernels: P4 and P5 of the paper's properties, and odd input."""

import pytest
import torch

from avalanche_clip.models import teir_init_, teir_scale
from avalanche_clip.models.text.teir import draw_normal_, table_moments
from tests.refused import refused


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("shift", [0.0, 1.0, 300.0])
def test_table_moments__equal_the_slow_version(dtype, shift):
    generator = torch.Generator().manual_seed(0)
    table = (torch.randn(2000, 7, generator=generator) * 0.5 + shift).to(dtype)
    exact = table.double()
    mean, std = table_moments(table)
    assert mean == pytest.approx(exact.mean().item(), rel=1e-6, abs=1e-7)
    assert std == pytest.approx(exact.std().item(), rel=1e-5)


def test_teir_init__draws_like_the_whole_table():
    generator = torch.Generator().manual_seed(1)
    old = torch.randn(500, 64, generator=generator) * 0.013 + 0.002
    new = teir_init_(torch.empty(3000, 64), old, generator)
    mean, std = table_moments(old)
    count = new.numel()
    assert abs(new.mean().item() - mean) < 5 * std / count**0.5
    assert abs(new.std().item() - std) < 5 * std / (2 * count) ** 0.5
    # neither per dimension nor per row
    assert new.mean(0).std() < 10 * std / 3000**0.5


def test_teir_init__in_place_without_graph_also_for_parameters():
    rows = torch.nn.Parameter(torch.zeros(2, 3))
    assert teir_init_(rows, torch.nn.Parameter(torch.eye(3))) is rows
    assert rows.is_leaf and rows.grad_fn is None and rows.abs().sum() > 0


def test_draw_normal__large_blocks_do_not_depend_on_threads():
    drawn = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        generator = torch.Generator().manual_seed(3)
        drawn.append(draw_normal_(torch.empty(2100, 512), 1.0, 2.0, generator))
        torch.set_num_threads(before)
    assert torch.equal(*drawn)
    assert drawn[0].mean().item() == pytest.approx(1.0, abs=0.02)
    assert drawn[0].std().item() == pytest.approx(2.0, abs=0.02)
    halves = drawn[0].tensor_split(2)
    assert not torch.equal(halves[0][:9], halves[1][:9])


ONES, NAN, INF = torch.ones(4, 3), torch.ones(4, 3), torch.ones(4, 3)
NAN[1, 2], INF[1, 2] = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("new", "old", "match"),
    [
        (torch.empty(2, 3), torch.ones(4, 5), "given"),
        (torch.empty(3), ONES, "given"),
        (torch.empty(2, 3), torch.ones(3), "shape"),
        (torch.empty(2, 1), torch.ones(1, 1), "at least 2"),
        (torch.empty(2, 3), NAN, "not finite"),
        (torch.empty(2, 3), INF, "not finite"),
        (torch.empty(2, 3, dtype=torch.int64), ONES, "int64"),
    ],
)
def test_teir_init__wrong_tables_raise(new, old, match):
    refused(match, teir_init_, new, old)


EXPECTED = [
    [1 / 2, 1 / 2, 0, 0, 0, 0, 1, 0],
    [1 / 3, 0, 0, 0, 0, 0, 1 / 2, 0, 1, 1],
    [1 / 4, 1 / 3, 0, 0, 0, 0, 0, 1, 1 / 2, 0, 1],
]


def test_teir_scale__three_tasks_of_the_paper():
    used = [{0, 1, 4, 5, 6}, {0, 4, 6, 8, 9}, {0, 1, 5, 7, 8, 10}]
    earlier: dict[int, int] = {}
    for size, ids, expected in zip((8, 10, 11), used, EXPECTED, strict=True):
        occurs = torch.tensor([k in ids for k in range(size)])
        clip = torch.arange(size) < 6
        special = torch.tensor([k in (4, 5) for k in range(size)])
        counts = torch.tensor([earlier.get(k, 0) for k in range(size)])
        scale = teir_scale(occurs, clip, counts, special)
        torch.testing.assert_close(scale, torch.tensor(expected))
        exact = teir_scale(occurs, clip, counts.double(), special)
        assert exact.dtype == torch.float64
        assert exact.tolist() == pytest.approx(expected, abs=1e-15)
        for k in ids:
            earlier[k] = earlier.get(k, 0) + 1
    following = {k: 1 + (k < 6) + earlier.get(k, 0) for k in (0, 1, 6, 7, 8, 9, 10)}
    assert list(following.values()) == [5, 4, 3, 2, 3, 2, 2]


@pytest.mark.parametrize(
    ("flags", "counts", "match"),
    [
        (torch.ones(3), torch.zeros(4), "length"),
        (torch.ones(1, 3), torch.zeros(1, 3), "length"),
        (torch.ones(2), [1, 2], "earlier_tasks is .*, a list; give a tensor"),
    ],
)
def test_teir_scale__wrong_input_raises(flags, counts, match):
    refused(match, teir_scale, flags, flags, counts, flags)


@pytest.mark.parametrize("unit", [1e-22, 1e20])
def test_table_moments__squares_may_leave_float32(unit):
    table = torch.tensor([[1.0, -1.0], [3.0, 0.25]]) * unit
    mean, std = table_moments(table)
    assert mean == pytest.approx(table.double().mean().item(), rel=1e-6)
    assert std == pytest.approx(table.double().std().item(), rel=1e-6)


def test_teir_init__fills_views_and_nothing():
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(3000, 16, generator=generator)
    block = torch.full((500, 32), 7.0)
    teir_init_(block[:, ::2], old, generator)
    assert (block[:, 1::2] == 7.0).all()
    assert block[:, ::2].std().item() == pytest.approx(1.0, abs=0.05)
    assert teir_init_(torch.empty(0, 16), old, generator).shape == (0, 16)


def test_teir_scale__flags_may_be_any_numbers():
    scale = teir_scale(*(torch.tensor([k]) for k in (7, 5, 1)), torch.tensor([0]))
    assert scale.tolist() == pytest.approx([1 / 3])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("place", range(4))
def test_teir_scale__numbers_that_are_no_counts_are_refused(value, place):
    given = [torch.ones(3) for _ in range(4)]
    given[place][1] = value
    names = ("occurs", "is_clip_token", "earlier_tasks", "is_special")
    refused(names[place], teir_scale, *given)
