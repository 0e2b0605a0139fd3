"""ZSCL as a strategy, and its baselines as lists of plugins.

Source: Zheng et al., "Preventing Zero-Shot Transfer Degradation in Continual
Learning of Vision-Language Models", ICCV 2023 (arXiv 2303.06628), with the
values of their code for the MTIL benchmark.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from avalanche_clip.training.methods.mtil_training import (
    ClassNameFineTuning,
    FineTuning,
)
from avalanche_clip.training.methods.vr_lwf.plugin import VocabularyReplayPlugin
from avalanche_clip.training.methods.weight_averaging import WeightAveragingPlugin
from avalanche_clip.training.methods.weight_consolidation import (
    WeightConsolidationPlugin,
)
from avalanche_clip.training.methods.zscl.distillation import (
    ReferenceDistillationPlugin,
)
from avalanche_clip.training.templates.distillation import FrozenLogitScalePlugin
from avalanche_clip.training.templates.options import further_options

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


def zscl_plugins(
    reference_images: Any,
    reference_texts: Any,
    distillation_weight: float = 1.0,
    consolidation_weight: float = 1.0,
    averaging_interval: int | None = 100,
    plugin_options: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Make the plugins of ZSCL, whatever the data; arguments as in :class:`ZSCL`.

    :return: :class:`ReferenceDistillationPlugin` first.
    """
    weights = dict.fromkeys(("image_weight", "text_weight"), distillation_weight)
    options: dict[str, Any] = {**weights, **(plugin_options or {})}
    distillation = ReferenceDistillationPlugin(
        reference_images, reference_texts, **options
    )
    made: list[Any] = [distillation, WeightConsolidationPlugin(consolidation_weight)]
    if averaging_interval is not None:
        made.append(WeightAveragingPlugin("we", interval=averaging_interval))
    if not distillation.train_logit_scale:
        made.append(FrozenLogitScalePlugin())
    return made


class ZSCLTraining:
    """Takes the settings of :class:`ZSCL`, and adds its plugins."""

    former_options = "reference_options"

    def __init__(
        self,
        *,
        model: nn.Module,
        reference_images: Any,
        reference_texts: Any,
        distillation_weight: float = 1.0,
        consolidation_weight: float = 1.0,
        averaging_interval: int | None = 100,
        plugin_options: Mapping[str, Any] | None = None,
        reference_options: Mapping[str, Any] | None = None,
        plugins: Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        plugin = ReferenceDistillationPlugin
        taken = ("reference_images", "reference_texts")
        former = reference_options
        further = further_options(self, plugin, plugin_options, taken, former)
        given: Any = distillation_weight, consolidation_weight, averaging_interval
        given = (reference_images, reference_texts, *given, further)
        own = zscl_plugins(*given)
        self.distillation = own[0]
        trained: Any = super()
        trained.__init__(model=model, plugins=[*own, *(plugins or [])], **kwargs)


class ZSCL(ZSCLTraining, FineTuning):
    """Keep the zero-shot model's answers on reference data, and its weights near.

    On streams of image-text pairs. Adds :class:`ReferenceDistillationPlugin`,
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
    :param plugin_options: further options of :class:`ReferenceDistillationPlugin`.
    :param plugins: further plugins.
    :param kwargs: see :class:`FineTuning`.
    """


class ClassNameZSCL(ZSCLTraining, ClassNameFineTuning):
    """ZSCL as published: on images with class names (MTIL, class-incremental).

    Takes what :class:`ZSCL` takes.

    :param kwargs: see :class:`ClassNameFineTuning`, but for ``train_logit_scale``,
        which is one of the ``plugin_options``.
    """

    sets = ("train_logit_scale",)

    def __init__(
        self,
        *,
        plugin_options: Mapping[str, Any] | None = None,
        reference_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ):
        if "train_logit_scale" in kwargs:
            raise TypeError(
                "ClassNameZSCL takes no train_logit_scale of its own; use "
                "plugin_options={'train_logit_scale': True}, formerly "
                "reference_options={'train_logit_scale': True}."
            )
        plugin = ReferenceDistillationPlugin
        former = reference_options
        further = further_options(self, plugin, plugin_options, (), former)
        kwargs["train_logit_scale"] = further.get("train_logit_scale", False)
        super().__init__(plugin_options=further, **kwargs)


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
    first: dict[str, Any] = {"teach_first_experience": teach_first_experience}
    reference = partial(ReferenceDistillationPlugin, batch_size=batch_size, **first)
    zero_shot = partial(reference, reference_images, reference_texts, teacher="initial")
    ensemble = partial(WeightAveragingPlugin, "we", interval=interval)
    random_strings = partial(
        VocabularyReplayPlugin,
        text_length=text_length,
        distill_batch="separate",
        distill_batch_size=batch_size,
        **first,
    )
    rows: dict[str, list[Callable[[], Any]]] = {
        "continual-ft": [],
        "wc": [WeightConsolidationPlugin],
        "we": [ensemble],
        "wise-ft": [partial(WeightAveragingPlugin, "wise", alpha=0.8)],
        "lwf": [partial(reference, "current", "current", teacher="previous")],
        "lwf-vr": [random_strings],
        "zscl*": [zero_shot, ensemble],
        "zscl": [zero_shot, WeightConsolidationPlugin, ensemble],
    }
    return {name: partial(_with_frozen_scale, parts) for name, parts in rows.items()}


def _with_frozen_scale(parts: list[Callable[[], Any]]) -> list[Any]:
    return [make() for make in (*parts, FrozenLogitScalePlugin)]
