"""ZSCL as a strategy, and its baselines as lists of plugins.

Source: Zheng et al., "Preventing Zero-Shot Transfer Degradation in Continual
Learning of Vision-Language Models", ICCV 2023 (arXiv 2303.06628), with the
values of their code for the MTIL benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from avalanche_clip.common.checks import as_finite
from avalanche_clip.training.methods.weight_averaging import WeightAveragingPlugin
from avalanche_clip.training.methods.weight_consolidation import (
    WeightConsolidationPlugin,
)
from avalanche_clip.training.methods.zscl.distillation import (
    FrozenLogitScalePlugin,
    ReferenceDistillationPlugin,
)
from avalanche_clip.training.templates.class_name import ClassNameTemplate
from avalanche_clip.training.templates.contrastive import ContrastiveTemplate
from avalanche_clip.training.templates.optim import one_group
from avalanche_clip.training.templates.plan import Plan, learning_rate

ITERATIONS = 1001
"""Updates per experience: the published 1000, and the one at learning rate 0."""
WARMUP = 100
LEARNING_RATE = 1e-5
LABEL_SMOOTHING = 0.2
"""Of the cross-entropy over class names in MTIL."""

ZSCL_CLASS_INCREMENTAL: dict[str, Any] = {
    "distillation_weight": 5.0,
    "consolidation_weight": 0.0,
    "averaging_interval": 10,
    "lr": 7e-6,
    "warmup_iterations": 30,
    "train_epochs": 1,
    "train_mb_size": 128,
    "eval_label_space": "seen",
}
"""Arguments of the class-incremental form: ``ClassNameZSCL(model=model,
reference_images=..., reference_texts=..., **ZSCL_CLASS_INCREMENTAL)``. One epoch per
step, no consolidation. The rate is that of ImageNet-100; for TinyImageNet the authors
use 7.1e-6, and batches of 64 or 128."""

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


class ZSCLMethod:
    """Mix into a template: the method, whatever the data.

    Adds :class:`ReferenceDistillationPlugin`,
    :class:`WeightAveragingPlugin` and :class:`WeightConsolidationPlugin`. The
    starred variant of the paper is ``consolidation_weight=0``. The logit scale
    is not trained.

    :param model: a :class:`~avalanche_clip.models.DualEncoder`.
    :param reference_images: see :class:`ReferenceDistillationPlugin`.
    :param reference_texts: see :class:`ReferenceDistillationPlugin`.
    :param distillation_weight: of both distillation terms (MTIL 1, CIL 5).
    :param consolidation_weight: of the pull to the experience's start.
    :param averaging_interval: iterations between snapshots (MTIL 100, CIL 10),
        None for no averaging.
    :param reference_options: further arguments of
        :class:`ReferenceDistillationPlugin`.
    :param plugins: further plugins.
    :param kwargs: see the template.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        reference_images: Any,
        reference_texts: Any,
        distillation_weight: float = 1.0,
        consolidation_weight: float = 1.0,
        averaging_interval: int | None = 100,
        reference_options: dict[str, Any] | None = None,
        plugins: Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        weights = {
            "image_weight": distillation_weight,
            "text_weight": distillation_weight,
        }
        self.distillation = ReferenceDistillationPlugin(
            reference_images,
            reference_texts,
            **{**weights, **(reference_options or {})},
        )
        own: list[Any] = [
            self.distillation,
            WeightConsolidationPlugin(consolidation_weight),
        ]
        if averaging_interval is not None:
            own.append(WeightAveragingPlugin("we", interval=averaging_interval))
        if not self.distillation.train_logit_scale:
            own.append(FrozenLogitScalePlugin())
        options: Any = {"model": model, "plugins": [*own, *(plugins or [])], **kwargs}
        super().__init__(**options)


class ZSCL(ZSCLMethod, MTILTraining, ContrastiveTemplate):
    """Keep the zero-shot model's answers on reference data, and its weights near.

    On streams of image-text pairs.

    :param kwargs: see :class:`ZSCLMethod`, :class:`MTILTraining` and
        :class:`ContrastiveTemplate`.
    """


class ClassNameZSCL(ZSCLMethod, MTILTraining, ClassNameTemplate):
    """ZSCL as published: on images with class names (MTIL, class-incremental).

    :param label_smoothing: of the cross-entropy (MTIL 0.2).
    :param kwargs: see :class:`ZSCLMethod`, :class:`MTILTraining` and
        :class:`ClassNameTemplate`.
    """

    def __init__(self, *, label_smoothing: float = LABEL_SMOOTHING, **kwargs: Any):
        super().__init__(label_smoothing=label_smoothing, **kwargs)


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


def zscl_variants(
    reference_images: Any,
    reference_texts: Any,
    *,
    interval: int = 100,
    batch_size: int = 64,
    text_length: int = 10,
    teach_first_experience: bool | None = None,
) -> dict[str, Callable[[], list[Any]]]:
    """Return the methods of the paper's comparison, built from the same parts.

    Each value makes fresh plugins for one run of :class:`FineTuning` or
    :class:`ClassNameFineTuning` (or any template); none of them trains the logit scale.

    :param reference_images: of ZSCL, see :class:`ReferenceDistillationPlugin`.
    :param reference_texts: of ZSCL.
    :param interval: iterations between snapshots.
    :param batch_size: reference images per step.
    :param text_length: random ids per string of LwF-VR.
    :param teach_first_experience: see :class:`ReferenceDistillationPlugin`.
    :return: ``continual-ft``, ``wc``, ``we``, ``wise-ft``, ``lwf``, ``lwf-vr``
        (:class:`VocabularyReplayPlugin`), ``zscl*``, ``zscl``.
    """
    options: dict[str, Any] = {
        "batch_size": batch_size,
        "teach_first_experience": teach_first_experience,
    }

    def reference(images: Any, texts: Any, teacher: str) -> Any:
        return ReferenceDistillationPlugin(images, texts, teacher=teacher, **options)

    def ensemble() -> Any:
        return WeightAveragingPlugin("we", interval=interval)

    def zero_shot() -> Any:
        return reference(reference_images, reference_texts, "initial")

    def random_strings() -> list[Any]:
        # Imported here: only this row needs it.
        from avalanche_clip.training.methods.vr_lwf.plugin import VocabularyReplayPlugin

        return [
            VocabularyReplayPlugin(
                text_length=text_length,
                distill_batch="separate",
                distill_batch_size=batch_size,
                teach_first_experience=teach_first_experience,
            )
        ]

    rows: dict[str, Callable[[], list[Any]]] = {
        "continual-ft": lambda: [],
        "wc": lambda: [WeightConsolidationPlugin()],
        "we": lambda: [ensemble()],
        "wise-ft": lambda: [WeightAveragingPlugin("wise", alpha=0.8)],
        "lwf": lambda: [reference("current", "current", "previous")],
        "lwf-vr": random_strings,
        "zscl*": lambda: [zero_shot(), ensemble()],
        "zscl": lambda: [zero_shot(), WeightConsolidationPlugin(), ensemble()],
    }
    return {name: partial(_with_frozen_scale, make) for name, make in rows.items()}


def _with_frozen_scale(make: Callable[[], list[Any]]) -> list[Any]:
    return [*make(), FrozenLogitScalePlugin()]


def _rates(lr: Any) -> tuple[float, ...]:
    rates = (lr,) if isinstance(lr, Real) else tuple(lr)
    wanted = f"lr={lr} must be a positive number, or one per experience; one rate"
    if not rates:
        raise ValueError(f"{wanted} is needed.")
    return tuple(as_finite(rate, wanted, above=0) for rate in rates)
