"""Mod-X as a strategy.

Source: Ni et al., ICML 2023 (Mod-X, arXiv 2305.07437), and the authors' code.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from avalanche_clip.training.plugins.off_diagonal_alignment import (
    OffDiagonalAlignmentPlugin,
)
from avalanche_clip.training.supervised.tic import Sequential


class ModX(Sequential):
    """Sequential training with the off-diagonal alignment term.

    The paper trains each phase with AdamW at a peak rate of 5e-4, a linear
    warm-up over 20 % of the steps and a cosine to zero; give both warm-ups
    (``warmup_iterations``, ``later_warmup_iterations``) as a fifth of the
    budget for its schedule.

    :param alpha: weight of the term (paper: 20 at a batch of 280).
    :param alignment: further options of :class:`OffDiagonalAlignmentPlugin`.
    :param kwargs: see :class:`Sequential`.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        alpha: float = 20.0,
        alignment: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self._alignment = OffDiagonalAlignmentPlugin(alpha, **(alignment or {}))
        super().__init__(model=model, **kwargs)

    def _own_plugins(self) -> list[Any]:
        return [self._alignment]


__all__ = ["ModX"]
