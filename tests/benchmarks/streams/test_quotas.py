"""Replay quotas and the hash-based choice of samples."""

from fractions import Fraction

import numpy as np
import pytest

from avalanche_clip.benchmarks import replay_quotas
from avalanche_clip.benchmarks.streams.quotas import keep_smallest, sample_priorities
from tests.refused import refused

PUBLISHED = [
    (8, 4, [2, 2, 4], [2, 3, 3]),
    (8, 5, [1, 1, 2, 4], [2, 2, 2, 2]),
    (8, 7, [0, 0, 1, 1, 2, 4], [1, 1, 1, 1, 2, 2]),
    (10, 4, [2, 3, 5], [3, 3, 4]),
    (10, 5, [1, 1, 3, 5], [2, 2, 3, 3]),
    (64, 5, [8, 8, 16, 32], [16, 16, 16, 16]),
    (64, 7, [2, 2, 4, 8, 16, 32], [10, 10, 11, 11, 11, 11]),
    (7, 1, [], []),
    (7, 2, [7], [7]),
    (7, 3, [3, 4], [3, 4]),
    (0, 4, [0, 0, 0], [0, 0, 0]),
]


@pytest.mark.parametrize(("total", "step", "exp", "equal"), PUBLISHED)
def test_replay_quotas__cases(total, step, exp, equal):
    assert replay_quotas(total, step, "exp") == exp
    assert replay_quotas(total, step, "equal") == equal


def shares(total, step, kind):
    """Exact quotas by the formulas, oldest first."""
    if kind == "equal":
        return [Fraction(total, step - 1)] * (step - 1)
    last = [Fraction(total, 2 ** (step - k)) for k in range(2, step)]
    return [Fraction(total, 2 ** (step - 2)), *last]


@pytest.mark.parametrize("kind", ["exp", "equal"])
def test_replay_quotas__sum_rounding_and_nesting(kind):
    for total in [*range(0, 130), 399]:
        before = []
        for step in range(2, 16):
            counts = replay_quotas(total, step, kind)
            exact = shares(total, step, kind)
            assert sum(counts) == total and len(counts) == step - 1
            assert all(abs(c - e) < 1 for c, e in zip(counts, exact))
            assert all(type(c) is int for c in counts)
            # A step's share never grows, so that buffers can be nested.
            assert all(new <= old for new, old in zip(counts, before))
            before = counts


def test_replay_quotas__large_numbers_are_exact():
    counts = replay_quotas(10**18 + 1, 40, "exp")
    assert sum(counts) == 10**18 + 1
    assert replay_quotas(np.int64(8), np.int64(4), "exp") == [2, 2, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 3, "exp"), "total=-1"),
        ((2.5, 3, "exp"), "total=2.5"),
        ((8, 0, "exp"), "step=0"),
        ((8, "3", "exp"), "step='3'"),
        ((8, 3, "linear"), "'linear'"),
    ],
)
def test_replay_quotas__bad_arguments_raise(arguments, message):
    refused(message, replay_quotas, *arguments)


def test_sample_priorities__never_change():
    # Published runs depend on these numbers: a changed hash changes every buffer.
    ids = np.array([0, 1, 2, 1911, -1])
    assert sample_priorities(ids, 0, 0).tolist() == [
        2558736989570252433,
        3400964856525257824,
        12865742008072950574,
        18203440265942698406,
        13186015209599246682,
    ]
    assert sample_priorities(ids, 42, 3).tolist() == [
        3233633249810115081,
        6717522985872898827,
        16908140964753355758,
        9292234274086009074,
        12075788892631996675,
    ]


def test_sample_priorities__depend_on_id_seed_and_step_only():
    ids = np.arange(1000)
    order = np.random.default_rng(0).permutation(1000)
    whole = sample_priorities(ids, 1, 2)
    assert np.array_equal(sample_priorities(ids[order], 1, 2), whole[order])
    assert np.array_equal(sample_priorities(ids[:3].astype(np.int32), 1, 2), whole[:3])
    assert len(np.unique(whole)) == 1000
    for other in (sample_priorities(ids, 2, 2), sample_priorities(ids, 1, 3)):
        assert not np.intersect1d(whole, other).size
    assert sample_priorities(ids[:2], np.int64(-1), 0).dtype == np.uint64


def test_keep_smallest__is_nested_and_handles_edges():
    priorities = sample_priorities(np.arange(50), 0, 0)
    chosen = [set(keep_smallest(priorities, n).tolist()) for n in range(60)]
    assert [len(c) for c in chosen] == [*range(51), *[50] * 9]
    assert all(small <= large for small, large in zip(chosen, chosen[1:]))
    assert keep_smallest(np.array([3, 1, 1, 0], np.uint64), 2).tolist() == [1, 3]
    assert keep_smallest(np.empty(0, np.uint64), 2).tolist() == []
    refused("count=-1", keep_smallest, priorities, -1)
