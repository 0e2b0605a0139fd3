"""Intervals of shares: of one share, and of means over groups of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

DRAWS = 10_000


class Interval(NamedTuple):
    """Lower and upper end."""

    low: float
    high: float


def wilson_interval(hits: int, total: int, level: float = 0.95) -> Interval:
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
    groups: Sequence[npt.ArrayLike], level: float = 0.95, seed: int = 0
) -> Interval:
    """Return the percentile interval of the mean over groups of their means.

    Values are drawn anew within each group: items are what is random, groups are as
    they are. Paired differences of two models on the same items may be given.

    :param groups: values of the items of each group, of few distinct values (hits,
        or differences of hits): their counts are drawn, which is the same.
    :param seed: of the :data:`DRAWS` draws.
    """
    generator = np.random.default_rng(seed)
    total = np.zeros(DRAWS)
    for group in groups:
        values, counts = np.unique(np.asarray(group, np.float64), return_counts=True)
        size = int(counts.sum())
        drawn = generator.multinomial(size, counts / size, DRAWS)
        total += drawn @ values / size
    ends = np.quantile(total / len(groups), [(1 - level) / 2, (1 + level) / 2])
    return Interval(*ends.tolist())
