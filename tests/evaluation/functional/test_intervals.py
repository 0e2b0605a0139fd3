"""Intervals of shares against hand-computed cases and a slow bootstrap."""

import math

import numpy as np
import pytest

from avalanche_clip.evaluation.functional import (
    bootstrap_interval,
    resampled_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    "hits, total, low, high",
    [
        # Newcombe, Statistics in Medicine 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_wilson__published_cases(hits, total, low, high):
    found = wilson_interval(hits, total)
    assert found == pytest.approx((low, high), abs=6e-5)


def test_wilson__its_ends_solve_the_equation():
    # The ends are the shares from which the observed one is z deviations away.
    for share in wilson_interval(7, 50):
        away = abs(0.14 - share) / math.sqrt(share * (1 - share) / 50)
        assert away == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize("hits, total", [(-1, 3), (4, 3), (0, 0)])
def test_wilson__no_share_is_refused(hits, total):
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(hits, total)


def test_bootstrap__one_group_of_two_by_hand():
    # Two items, one a hit: means 0, 0.5 and 1 with chances 1/4, 1/2 and 1/4.
    assert bootstrap_interval([[0, 1]]) == (0.0, 1.0)
    assert bootstrap_interval([[0, 1]], level=0.4) == (0.5, 0.5)
    # Nothing varies, whatever the sizes: the mean over groups, not over items.
    assert bootstrap_interval([[1, 1, 1], [0]]) == (0.5, 0.5)


def test_bootstrap__equals_drawing_items_one_by_one():
    generator = np.random.default_rng(1)
    hits = [generator.random(40) < 0.2, generator.random(90) < 0.4]
    change = [generator.integers(-1, 2, 60), generator.integers(-1, 1, 30)]
    for groups in (hits, change):
        means = []
        for _ in range(10_000):
            drawn = [g[generator.integers(0, len(g), len(g))] for g in groups]
            means.append(np.mean([d.mean() for d in drawn]))
        slow = np.quantile(means, [0.025, 0.975])
        assert bootstrap_interval(groups) == pytest.approx(slow, abs=0.008)
        assert bootstrap_interval(groups) == bootstrap_interval(groups)


def test_resampled__of_a_mean_is_that_of_the_counts():
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    found = resampled_interval(lambda n: float(n @ values / n.sum()), 5, draws=4000)
    assert found == pytest.approx(bootstrap_interval([values]), abs=1e-9)
