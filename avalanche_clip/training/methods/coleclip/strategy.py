"""CoLeCLIP as a strategy, with the values of the authors' scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from avalanche_clip.training.methods.coleclip.plugin import QUANTILE, CoLeCLIPPlugin
from avalanche_clip.training.templates import optim
from avalanche_clip.training.templates.class_name import ClassNameTemplate

COLECLIP_EPOCHS = {
    **{"Aircraft": 20, "Caltech101": 10, "CIFAR100": 2, "DTD": 35, "EuroSAT": 3},
    **{"Flowers": 63, "Food": 1, "MNIST": 2, "OxfordPet": 18, "StanfordCars": 8},
    "SUN397": 1,
}
"""Published epochs of the data sets of MTIL, in either order."""


def coleclip_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """Adam at the constant rate of the authors' scripts."""
    return torch.optim.Adam(groups, lr=1e-3)


class CoLeCLIP(ClassNameTemplate):
    """Task prompts and a vocabulary of class names, for streams of open domains.

    Template plus :class:`CoLeCLIPPlugin`: a constant rate, batches of 128, a new
    optimiser in each task. The authors' epochs have the small last batch, too:
    ``train(..., drop_last=False)``.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`; its text tower needs
        residual attention blocks, with prompts its image tower too.
    :param alpha: see :class:`CoLeCLIPPlugin`.
    :param quantile: see :class:`CoLeCLIPPlugin`.
    :param stage_boundary: see :class:`CoLeCLIPPlugin`.
    :param num_prompts: see :class:`CoLeCLIPPlugin`.
    :param peft: see :class:`CoLeCLIPPlugin`.
    :param peft_options: see :class:`CoLeCLIPPlugin`.
    :param template_policy: see :class:`CoLeCLIPPlugin`.
    :param eval_label_space: ``"open"`` (default) or ``"own"``: without or with the
        identity of the data set; see :class:`ClassNameTemplate` for others.
    :param plugins: further plugins.
    :param kwargs: see :class:`ClassNameTemplate`. Without ``optimizer``: Adam with
        learning rate 1e-3 and no weight decay.
    :raises ValueError: see :class:`CoLeCLIPPlugin`.

    >>> from avalanche_clip import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji-vit")
    >>> strategy = CoLeCLIP(model=model, evaluator=None)
    >>> [len(group["params"]) for group in strategy.optimizer.param_groups]
    [13]
    """

    _default_optimizer = staticmethod(coleclip_optimizer)
    _default_groups = staticmethod(optim.one_group)
    own_defaults = {"label_space": "own"}

    def __init__(
        self,
        *,
        model: nn.Module,
        alpha: float | None = 0.1,
        quantile: float = QUANTILE,
        stage_boundary: float | None = 0.5,
        num_prompts: int = 1,
        peft: str = "lora",
        peft_options: Mapping[str, Any] | None = None,
        template_policy: str = "joint",
        eval_label_space: str = "open",
        plugins: Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        own: dict[str, Any] = {"quantile": quantile, "stage_boundary": stage_boundary}
        own |= {"num_prompts": num_prompts, "template_policy": template_policy}
        own |= {"peft": peft, "peft_options": peft_options}
        self.coleclip = CoLeCLIPPlugin(alpha, **own)
        plugins = [*(plugins or ()), self.coleclip]
        spaces = {"label_space": "own", "eval_label_space": eval_label_space}
        super().__init__(model=model, plugins=plugins, **{**spaces, **kwargs})
