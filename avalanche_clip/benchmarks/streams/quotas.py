"""How many old samples of each time step a replay buffer may keep.

Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226), Cumulative-Exp
and Cumulative-Equal. The rounding and the hash-based choice are ours.
"""

from __future__ import annotations

import numpy as np

from avalanche_clip.common.checks import as_size, require_choice
from avalanche_clip.common.randomness import scramble


def replay_quotas(total: int, step: int, kind: str) -> list[int]:
    """Split a replay budget over the earlier time steps.

    ``"equal"`` gives every earlier step ``total / (step - 1)``. ``"exp"``
    halves what is kept whenever a step is added: ``total / 2`` for the step
    just finished, then a quarter, and so on; the two oldest share equally.
    Fractions are rounded down and the units left over go to the largest
    fractional parts, ties to the more recent step, so the sum is ``total``.

    :param total: samples the buffer may hold, ``>= 0``.
    :param step: number of the step about to be trained, counted from 1.
    :param kind: ``"exp"`` or ``"equal"``.
    :return: ``step - 1`` counts, oldest step first; empty for ``step == 1``.
    :raises ValueError: for a negative total, a step below 1 or another kind.

    >>> replay_quotas(8, 4, "exp"), replay_quotas(8, 4, "equal")
    ([2, 2, 4], [2, 3, 3])
    """
    total, earlier = as_size(total, "total", least=0), as_size(step, "step") - 1
    require_choice("kind", kind, ("exp", "equal"))
    if earlier == 0:
        return []
    # Exact integer arithmetic: share k is total * weight_k / denominator.
    if kind == "equal":
        weights, denominator = [1] * earlier, earlier
    else:
        exponents = [max(k, 1) for k in range(earlier)]
        weights = [2 ** (k - 1) for k in exponents]
        denominator = 2 ** (earlier - 1)
        if earlier == 1:
            weights, denominator = [1], 1
    counts = [total * w // denominator for w in weights]
    rests = [total * w % denominator for w in weights]
    order = sorted(range(earlier), key=lambda k: (-rests[k], -k))
    for k in order[: total - sum(counts)]:
        counts[k] += 1
    return counts


def sample_priorities(sample_ids: np.ndarray, seed: int, step: int) -> np.ndarray:
    """Give every sample a fixed pseudo-random priority in a step's buffer.

    Keeping the ``n`` smallest priorities gives nested choices: what is kept
    for a smaller ``n`` is part of what is kept for a larger one, whatever the
    order of the samples or the number of workers.

    :param sample_ids: int64, ``(N,)``.
    :param seed: seed of the run.
    :param step: index of the time step that the samples belong to.
    :return: uint64, ``(N,)``, equal inputs give equal values everywhere.
    """
    return scramble(seed, step, sample_ids)


def keep_smallest(priorities: np.ndarray, count: int) -> np.ndarray:
    """Return the positions of the ``count`` smallest priorities, ascending.

    Equal priorities are told apart by position. All positions are returned
    when there are fewer than ``count``.

    :raises ValueError: if ``count`` is negative.
    """
    count = as_size(count, "count", least=0)
    if count >= len(priorities):
        return np.arange(len(priorities))
    order = np.argsort(priorities, kind="stable")[:count]
    return np.sort(order)
