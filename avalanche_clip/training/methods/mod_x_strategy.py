"""Mod-X as a strategy.

Source: Ni et al., ICML 2023 (Mod-X, arXiv 2305.07437), and the authors' code.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from avalanche_clip.training.methods.mod_x import OffDiagonalAlignmentPlugin
from avalanche_clip.training.methods.tic import Sequential
from avalanche_clip.training.templates import optim


def mod_x_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW with the values of the authors' scripts."""
    return torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.999), weight_decay=0.1)


class ModX(Sequential):
    """Sequential training with the off-diagonal alignment term.

    The authors' scripts train with batches of 280, the default here, a linear
    warm-up over 20 % of the steps of each phase and a cosine to zero; give both
    warm-ups (``warmup_iterations``, ``later_warmup_iterations``) as a fifth of the
    budget for that.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`.
    :param optimizer: default AdamW with their values: learning rate 5e-4, betas
        0.9 and 0.999, eps 1e-8 and, unless ``param_groups`` are given, weight
        decay 0.1 on matrices only (that restriction is OpenCLIP's).
    :param param_groups: see :class:`CLIPTemplate`.
    :param train_mb_size: pairs per step and process.
    :param alpha: weight of the term (20 at a batch of 280; as a sum over rows it
        weighs more in larger batches).
    :param alignment: further options of :class:`OffDiagonalAlignmentPlugin`.
    :param kwargs: see :class:`Sequential`.
    """

    _default_optimizer = staticmethod(mod_x_optimizer)
    _default_groups = staticmethod(partial(optim.clip_param_groups, weight_decay=0.1))

    def __init__(
        self,
        *,
        model: nn.Module,
        train_mb_size: int = 280,
        alpha: float = 20.0,
        alignment: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self._alignment = OffDiagonalAlignmentPlugin(alpha, **(alignment or {}))
        super().__init__(model=model, train_mb_size=train_mb_size, **kwargs)

    def _own_plugins(self) -> list[Any]:
        return [self._alignment]
