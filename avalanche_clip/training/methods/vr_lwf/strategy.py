"""VR-LwF as a strategy: learning without forgetting by replayed vocabulary.

Source: Ding et al., arXiv 2207.09248 (2022); values of the re-implementation
for the multi-domain benchmark of Zheng et al., ICCV 2023 (arXiv 2303.06628).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from avalanche_clip.training.methods.tic import Sequential
from avalanche_clip.training.methods.vr_lwf.plugin import VocabularyReplayPlugin
from avalanche_clip.training.templates import optim


def vr_lwf_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW with the values of the multi-domain experiments, without decay."""
    return torch.optim.AdamW(groups, lr=1e-5, betas=(0.9, 0.999), weight_decay=0.0)


class VRLwF(Sequential):
    """Sequential training that keeps similarities to random sentences.

    The logit scale is frozen. The source trains 1,000 iterations per experience
    (``budget_iterations=1000``) and warms up in each (``warmup_iterations=100,
    later_warmup_iterations=100``); that is left to the user, since the warm-up
    must fit into the budget. Label smoothing has no counterpart for pairs.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`.
    :param optimizer: default AdamW with learning rate 1e-5 and, unless
        ``param_groups`` are given, no weight decay.
    :param param_groups: see :class:`CLIPTemplate`.
    :param train_mb_size: pairs per step and process.
    :param num_texts: pseudo texts.
    :param image_weight: weight of the term over texts.
    :param text_weight: weight of the term over images; 0 is the paper's form.
    :param replay: further settings of :class:`VocabularyReplayPlugin`, by name.
    :param kwargs: see :class:`Sequential`.
    """

    _default_optimizer = staticmethod(vr_lwf_optimizer)
    _default_groups = staticmethod(optim.one_group)

    def __init__(
        self,
        *,
        model: nn.Module,
        train_mb_size: int = 64,
        num_texts: int = 1000,
        image_weight: float = 1.0,
        text_weight: float = 1.0,
        replay: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        self._vocabulary = VocabularyReplayPlugin(
            num_texts=num_texts,
            image_weight=image_weight,
            text_weight=text_weight,
            **(replay or {}),
        )
        super().__init__(model=model, train_mb_size=train_mb_size, **kwargs)

    def _own_plugins(self) -> list[Any]:
        return [self._vocabulary]
