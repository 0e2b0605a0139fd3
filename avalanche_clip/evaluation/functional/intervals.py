"""Intervals of metrics: of one share, of means over groups of items, of the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

DRAWS = 10_000


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


def wilson_interval(hits: float, total: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of a share.

    Source: Wilson, JASA 1927.

    >>> tuple(round(end, 4) for end in wilson_interval(3, 20))
    (0.0524, 0.3604)
    """
    if not 0 <= hits <= total or total < 1:
        raise ValueError(f"{hits} hits of {total} are no share.")
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = hits / total, z * z / total
    middle = share + spread / 2
    half = math.sqrt(spread * (share * (1 - share) + spread / 4))
    return Interval(
        max(0.0, (middle - half) / (1 + spread)),
        min(1.0, (middle + half) / (1 + spread)),
    )


def bootstrap_interval(
    groups: Sequence[npt.ArrayLike],
    level: float = 0.95,
    seed: int = 0,
    draws: int = DRAWS,
) -> Interval:
    """Return the percentile interval of the mean over groups of their means.

    Values are drawn anew within each group: items are what is random, groups are as
    they are. Paired differences of two models on the same items may be given.

    :param groups: values of the items of each group, of few distinct values (hits,
        or differences of hits): their counts are drawn, which is the same.
    :param seed: of the draws.
    :param draws: how many there are.

    >>> bootstrap_interval([[0, 1], [1, 1]])
    Interval(low=0.5, high=1.0)
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(draws)
    for group in groups:
        values, counts = np.unique(np.asarray(group, np.float64), return_counts=True)
        size = int(counts.sum())
        drawn = generator.multinomial(size, counts / size, draws)
        total += drawn @ values / size
    return _percentiles(total / len(groups), level)


def resampled_interval(
    statistic: Callable[[npt.NDArray[np.int64]], float],
    size: int,
    level: float = 0.95,
    seed: int = 0,
    draws: int = 200,
) -> Interval:
    """Return the percentile bootstrap interval of any statistic of some items.

    :param statistic: its value when each item occurs as often as given, ``(size,)``.
    :param size: number of items.
    :param seed: of the draws.
    :param draws: how many there are.

    >>> resampled_interval(lambda counts: counts.sum() / 3, 3)
    Interval(low=1.0, high=1.0)
    """
    generator = np.random.default_rng(seed)
    found = [
        statistic(np.bincount(generator.integers(size, size=size), minlength=size))
        for _ in range(draws)
    ]
    return _percentiles(np.asarray(found), level)


def _percentiles(values: npt.NDArray[np.float64], level: float) -> Interval:
    ends = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(*ends.tolist())
