"""How MTIL trains, whatever the method, and fine-tuning by it.

Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628), values of their code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch.optim import Optimizer

from avalanche_clip.common.checks import as_finite
from avalanche_clip.training.templates.class_name import ClassNameTemplate
from avalanche_clip.training.templates.contrastive import ContrastiveTemplate
from avalanche_clip.training.templates.distillation import FrozenLogitScalePlugin
from avalanche_clip.training.templates.optim import one_group
from avalanche_clip.training.templates.plan import (
    Plan,
    learning_rate,
    of_experience,
    require_per_experience,
)

ITERATIONS = 1001
"""Updates per experience: the published 1000, and the one at learning rate 0."""
WARMUP = 100
LEARNING_RATE = 1e-5
LABEL_SMOOTHING = 0.2
"""Of the cross-entropy over class names in MTIL."""

_LENGTHS = ("budget_iterations", "budget_samples", "budget_macs", "train_epochs")


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

    def __init__(
        self,
        *,
        lr: float | Sequence[float] | None = None,
        optimizer: Optimizer | Callable[..., Optimizer] | None = None,
        **kwargs: Any,
    ):
        if optimizer is not None and lr is not None:
            raise ValueError("Give lr or an optimizer with its own rate, not both.")
        rates = _rates(LEARNING_RATE if lr is None else lr)
        if kwargs.get("param_groups") is None and optimizer is None:
            kwargs["param_groups"] = one_group
        if not any(kwargs.get(name) is not None for name in _LENGTHS):
            kwargs["budget_iterations"] = ITERATIONS
        options: dict[str, Any] = {
            "optimizer": optimizer
            or partial(torch.optim.AdamW, lr=rates[0], weight_decay=0.0),
            "train_mb_size": 64,
            "schedule": "cosine",
            "warmup_iterations": WARMUP,
            "later_warmup_iterations": kwargs.get("warmup_iterations", WARMUP),
        }
        strategy: Any = super()
        strategy.__init__(**{**options, **kwargs})
        self.learning_rates = rates
        several = optimizer is None and len(rates) > 1
        self.plan = _Plan(self, rates if several else None)


class _Plan(Plan):
    """A rate per experience, and a cosine that ends at zero.

    :param rates: of the experiences; None for that of the optimiser.
    """

    def __init__(self, strategy: Any, rates: Sequence[float] | None):
        super().__init__(strategy)
        self.rates = rates

    def check_stream(self, steps: int) -> None:
        """Raise also if there are fewer rates than experiences."""
        super().check_stream(steps)
        if self.rates:
            require_per_experience(self.rates, steps, "learning rates")

    def set_learning_rate(self) -> None:
        """Set the rates of the coming step."""
        strategy, warmup = self.strategy, self.warmup
        groups = strategy.optimizer.param_groups
        if self.rates and strategy.clock.train_exp_iterations == 0:
            rate = of_experience(self.rates, strategy, "learning rates")
            for group in groups:
                # Other rates are those of plugins' own groups.
                if group.get("initial_lr", group["lr"]) in self.rates:
                    group["initial_lr"] = group["lr"] = rate
        if strategy.schedule != "cosine":
            super().set_learning_rate()
            return
        last = max(self.iterations - 1, warmup + 1)
        step = min(strategy.clock.train_exp_iterations, last)
        for group in groups:
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


def _rates(lr: Any) -> tuple[float, ...]:
    rates = (lr,) if isinstance(lr, Real) else tuple(lr)
    wanted = f"lr={lr} must be a positive number, or one per experience; one rate"
    if not rates:
        raise ValueError(f"{wanted} is needed.")
    return tuple(as_finite(rate, wanted, above=0) for rate in rates)
