"""How MTIL trains, whatever the method, and fine-tuning by it.

Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628), values of their code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from avalanche_clip.training.templates.class_name import ClassNameTemplate
from avalanche_clip.training.templates.contrastive import ContrastiveTemplate
from avalanche_clip.training.templates.distillation import FrozenLogitScalePlugin
from avalanche_clip.training.templates.optim import GroupRule, one_group
from avalanche_clip.training.templates.plan import Plan, learning_rate

ITERATIONS = 1001
"""Updates per experience: the published 1000, and the one at learning rate 0."""
WARMUP = 100
LEARNING_RATE = 1e-5
LABEL_SMOOTHING = 0.2
"""Of the cross-entropy over class names in MTIL."""

_LENGTHS = ("budget_iterations", "budget_samples", "budget_macs", "train_epochs")


def mtil_optimizer(groups: list[dict[str, Any]]) -> Optimizer:
    """AdamW without weight decay."""
    return torch.optim.AdamW(groups, lr=LEARNING_RATE, weight_decay=0.0)


class MTILTraining:
    """The optimisation of MTIL, whatever the method; put it before a template.

    AdamW without weight decay; a warm-up and a cosine in each experience, the
    last of whose updates has learning rate zero (so 1000 published iterations
    are ``budget_iterations=1001``, the default); batches of 64.

    :param lr: learning rate, or one per experience (MTIL: 1e-5, but 5e-5 for
        Aircraft and MNIST); default 1e-5. Not with ``optimizer``.
    :param optimizer: replaces AdamW, with its own learning rate and weight decay.
    :param kwargs: of the template.
    :raises ValueError: for a rate that is not positive, or ``lr`` beside an
        ``optimizer``.
    """

    plan: Any
    own_defaults: Mapping[str, Any] = {
        "train_mb_size": 64,
        "schedule": "cosine",
        "warmup_iterations": WARMUP,
        "later_warmup_iterations": WARMUP,
        "lr": LEARNING_RATE,
        "budget_iterations": ITERATIONS,
    }
    _default_optimizer = staticmethod(mtil_optimizer)
    _default_groups: GroupRule | None = staticmethod(one_group)

    def __init__(
        self,
        *,
        lr: float | Sequence[float] | None = None,
        optimizer: Optimizer | Callable[..., Optimizer] | None = None,
        **kwargs: Any,
    ):
        options = {**MTILTraining.own_defaults, "optimizer": optimizer}
        options["later_warmup_iterations"] = kwargs.get("warmup_iterations", WARMUP)
        if any(kwargs.get(name) is not None for name in _LENGTHS):
            del options["budget_iterations"]
        else:
            kwargs.pop("budget_iterations", None)
        if lr is not None or optimizer is not None:
            options["lr"] = lr
        strategy: Any = super()
        strategy.__init__(**{**options, **kwargs})
        self.plan = _Plan(self)


class _Plan(Plan):
    """A cosine that ends at zero."""

    def set_learning_rate(self) -> None:
        """Set the rates of the coming step."""
        strategy, warmup = self.strategy, self.warmup
        if strategy.schedule != "cosine":
            super().set_learning_rate()
            return
        self.set_rates()
        last = max(self.iterations - 1, warmup + 1)
        step = min(strategy.clock.train_exp_iterations, last)
        for group in strategy.optimizer.param_groups:
            base = float(group["initial_lr"])
            group["lr"] = learning_rate("cosine", step, last, base=base, warmup=warmup)


class FineTuning(MTILTraining, ContrastiveTemplate):
    """MTIL's optimisation without a method: give the plugins of a baseline.

    On image-text pairs the logit scale is trained, unless a plugin freezes it
    (:class:`FrozenLogitScalePlugin`; those of :func:`zscl_variants` do).

    :param lr: see :class:`MTILTraining`.
    :param optimizer: see :class:`MTILTraining`.
    :param kwargs: see :class:`ContrastiveTemplate`.
    """


class ClassNameFineTuning(MTILTraining, ClassNameTemplate):
    """The same on images with class names, as in MTIL: all but the scale is trained.

    :param lr: see :class:`MTILTraining`.
    :param optimizer: see :class:`MTILTraining`.
    :param label_smoothing: of the cross-entropy; default MTIL's 0.2, and 0 with a
        ``criterion``.
    :param train_logit_scale: whether to train the logit scale too.
    :param plugins: those of the method.
    :param kwargs: see :class:`ClassNameTemplate`.
    """

    def __init__(
        self,
        *,
        label_smoothing: float | None = None,
        train_logit_scale: bool = False,
        plugins: Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        chosen = list(plugins or [])
        frozen = any(isinstance(p, FrozenLogitScalePlugin) for p in chosen)
        if not (train_logit_scale or frozen):
            chosen.append(FrozenLogitScalePlugin())
        smoothing = smoothing_of(label_smoothing, kwargs)
        super().__init__(label_smoothing=smoothing, plugins=chosen, **kwargs)


def smoothing_of(given: float | None, options: dict[str, Any]) -> float:
    """Label smoothing of a strategy: as given, else MTIL's with the cross-entropy.

    :param options: of the strategy; a ``criterion`` replaces the cross-entropy.
    """
    if given is not None:
        return given
    return LABEL_SMOOTHING if options.get("criterion") is None else 0.0
