"""ZSCL as a strategy, and its baselines as lists of plugins.

Source: Zheng et al., "Preventing Zero-Shot Transfer Degradation in Continual
Learning of Vision-Language Models", ICCV 2023 (arXiv 2303.06628), with the
values of their code for the MTIL benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from avalanche_clip.training.methods.mtil_training import LABEL_SMOOTHING, MTILTraining
from avalanche_clip.training.methods.vr_lwf.plugin import VocabularyReplayPlugin
from avalanche_clip.training.methods.weight_averaging import WeightAveragingPlugin
from avalanche_clip.training.methods.weight_consolidation import (
    WeightConsolidationPlugin,
)
from avalanche_clip.training.methods.zscl.distillation import (
    ReferenceDistillationPlugin,
)
from avalanche_clip.training.templates.class_name import ClassNameTemplate
from avalanche_clip.training.templates.contrastive import ContrastiveTemplate
from avalanche_clip.training.templates.distillation import FrozenLogitScalePlugin

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
