"""Learning-rate schedules as pure functions of the iteration.

Source: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226): warm-up in the
first time step only, a cosine to zero in every step from the same maximum.
"""

from __future__ import annotations

import math

from avalanche_clip.common.checks import require_choice

SCHEDULES = ("constant", "cosine", "const-cosine")


def cosine_lr(step: int, total: int, warmup: int, base: float) -> float:
    """Linear warm-up, then a cosine to zero.

    :param step: index of the optimiser step in the experience, from 0.
    :param total: planned steps of the experience.
    :param warmup: steps of warm-up, less than ``total``.
    :param base: maximum learning rate.
    :return: ``base (s+1)/w`` while ``s < w``, then
        ``base/2 (1 + cos(pi (s-w)/(n-w)))``.

    >>> cosine_lr(0, 4500, 500, 5e-4), cosine_lr(2500, 4500, 500, 5e-4)
    (1e-06, 0.00025)
    """
    if step < warmup:
        return base * (step + 1) / warmup
    return base / 2 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def learning_rate(
    kind: str,
    step: int,
    total: int,
    *,
    base: float,
    warmup: int = 0,
    decay_fraction: float = 0.2,
) -> float:
    """Learning rate of one optimiser step.

    :param kind: ``"constant"`` (after the warm-up), ``"cosine"``, or
        ``"const-cosine"``: constant for the trunk, then a cosine to zero over
        the last ``decay_fraction`` of the steps.
    :param step: index in the experience, ``0 <= step < total``.
    :param total: planned steps.
    :param base: maximum learning rate.
    :param warmup: steps of linear warm-up.
    :param decay_fraction: share of decay steps of ``"const-cosine"``.
    :return: the rate, ``>= 0``.
    :raises ValueError: for another kind.
    """
    if kind == "cosine":
        return cosine_lr(step, total, warmup, base)
    if step < warmup:
        return base * (step + 1) / warmup
    if kind == "constant":
        return base
    if kind == "const-cosine":
        trunk = trunk_steps(total, decay_fraction)
        if step < trunk:
            return base
        return cosine_lr(step - trunk, total - trunk, 0, base)
    require_choice("schedule", kind, SCHEDULES)
    raise AssertionError(kind)


def trunk_steps(total: int, decay_fraction: float) -> int:
    """Steps before the decay branch of ``"const-cosine"`` begins.

    >>> trunk_steps(100, 0.2)
    80
    """
    return total - max(1, round(decay_fraction * total))
