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
from avalanche_clip.training.templates.plan import Plan, learning_rate

ITERATIONS = 1001
"""Updates per experience: the published 1000, and the one at learning rate 0."""
WARMUP = 100
LEARNING_RATE = 1e-5
LABEL_SMOOTHING = 0.2
"""Of the cross-entropy over class names in MTIL."""

_LENGTHS = ("budget_iterations", "budget_samples", "budget_macs", "train_epochs")


class MTILTraining:
    """Mix into a template: the optimisation of MTIL, whatever the method.

    AdamW without weight decay; a warm-up and a cosine in each experience, the
    last of whose updates has learning rate zero (so 1000 published iterations
    are ``budget_iterations=1001``, the default); batches of 64.

    :param lr: learning rate, or one per experience (MTIL: 1e-5, but 5e-5 for
        Aircraft and MNIST); default 1e-5. Not with ``optimizer``.
    :param optimizer: replaces AdamW, with its own learning rate.
    :param kwargs: see :class:`CLIPTemplate`.
    :raises ValueError: for a rate that is not positive, or ``lr`` beside an
        ``optimizer``.
    """

    clock: Any
    experience_index: int
    optimizer: Any
    plan: Plan
    planned_iterations: int
    schedule: str | None

    def __init__(
        self,
        *,
        lr: float | Sequence[float] | None = None,
        optimizer: Optimizer | Callable[..., Optimizer] | None = None,
        **kwargs: Any,
    ):
        if optimizer is not None and lr is not None:
            raise ValueError("Give lr or an optimizer with its own rate, not both.")
        self.learning_rates = _rates(LEARNING_RATE if lr is None else lr)
        self._own_rates = optimizer is None
        if optimizer is None:
            optimizer = partial(
                torch.optim.AdamW, lr=self.learning_rates[0], weight_decay=0.0
            )
        if not isinstance(optimizer, Optimizer):
            kwargs.setdefault("param_groups", one_group)
        if not any(kwargs.get(name) is not None for name in _LENGTHS):
            kwargs["budget_iterations"] = ITERATIONS
        defaults = {
            "train_mb_size": 64,
            "schedule": "cosine",
            "warmup_iterations": WARMUP,
            "later_warmup_iterations": kwargs.get("warmup_iterations", WARMUP),
        }
        options: Any = {"optimizer": optimizer, **defaults, **kwargs}
        super().__init__(**options)

    def _set_learning_rate(self) -> None:
        several = self._own_rates and len(self.learning_rates) > 1
        if several and self.clock.train_exp_iterations == 0:
            rate = self._rate_of_experience()
            for group in self.optimizer.param_groups:
                # Other rates are those of plugins' own groups.
                if group.get("initial_lr", group["lr"]) in self.learning_rates:
                    group["initial_lr"] = group["lr"] = rate
        if self.schedule != "cosine":
            super()._set_learning_rate()  # type: ignore[misc]
            return
        warmup = self.plan.warmup
        last = max(self.planned_iterations - 1, warmup + 1)
        step = min(self.clock.train_exp_iterations, last)
        for group in self.optimizer.param_groups:
            base = float(group["initial_lr"])
            group["lr"] = learning_rate("cosine", step, last, base=base, warmup=warmup)

    def _rate_of_experience(self) -> float:
        if self.experience_index >= len(self.learning_rates):
            raise ValueError(
                f"There are {len(self.learning_rates)} learning rates, but this is "
                f"experience number {self.experience_index + 1}; give one per "
                "experience."
            )
        return self.learning_rates[self.experience_index]


class FineTuning(MTILTraining, ContrastiveTemplate):
    """MTIL's optimisation without a method: give the plugins of a baseline.

    On image-text pairs the logit scale is trained, unless a plugin freezes it
    (:class:`FrozenLogitScalePlugin`; those of :func:`zscl_variants` do).

    :param kwargs: see :class:`MTILTraining` and :class:`ContrastiveTemplate`.
    """


class ClassNameFineTuning(MTILTraining, ClassNameTemplate):
    """The same on images with class names, as in MTIL: all but the scale is trained.

    :param label_smoothing: of the cross-entropy (MTIL 0.2).
    :param train_logit_scale: whether to train the logit scale too.
    :param plugins: those of the method.
    :param kwargs: see :class:`MTILTraining` and :class:`ClassNameTemplate`.
    """

    def __init__(
        self,
        *,
        label_smoothing: float = LABEL_SMOOTHING,
        train_logit_scale: bool = False,
        plugins: Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        chosen = list(plugins or [])
        frozen = any(isinstance(p, FrozenLogitScalePlugin) for p in chosen)
        if not (train_logit_scale or frozen):
            chosen.append(FrozenLogitScalePlugin())
        super().__init__(label_smoothing=label_smoothing, plugins=chosen, **kwargs)


def _rates(lr: Any) -> tuple[float, ...]:
    rates = (lr,) if isinstance(lr, Real) else tuple(lr)
    wanted = f"lr={lr} must be a positive number, or one per experience; one rate"
    if not rates:
        raise ValueError(f"{wanted} is needed.")
    return tuple(as_finite(rate, wanted, above=0) for rate in rates)
