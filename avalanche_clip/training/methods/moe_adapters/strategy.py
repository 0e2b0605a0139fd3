"""MoE-Adapters as a strategy, in its multi-domain and class-incremental forms.

Source: Yu et al., "Boosting Continual Learning of Vision-Language Models via
Mixture-of-Experts Adapters", CVPR 2024 (arXiv 2403.11549), with the values of
the authors' released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from avalanche_clip.models.moe.mixture import NUM_EXPERTS
from avalanche_clip.models.peft.attached import attachment
from avalanche_clip.training.methods.moe_adapters.plugin import MoEAdaptersPlugin
from avalanche_clip.training.methods.mtil_training import MTILTraining, smoothing_of
from avalanche_clip.training.templates.class_name import ClassNameTemplate
from avalanche_clip.training.templates.options import further_options

LEARNING_RATE = 1e-3

MTIL_RATES: dict[str, tuple[float, ...]] = {
    "full": (5e-3, 1e-3, 5e-3, 1e-3, 1e-4, 1e-3, 1e-3, 1e-4, 1e-3, 1e-3, 1e-3),
    "few-shot": (8e-3, 5e-4, 2e-4, 5e-3, 1e-3, 1e-3, 1e-2, 1e-4, 1e-2, 1e-2, 1e-2),
}
"""Published learning rates of the data sets of MTIL in Order I; none are published
for Order II."""

CLASS_INCREMENTAL: dict[str, Any] = {
    "num_experts": 2,
    "top_k": 2,
    "selector": None,
    "plugin_options": {"shared_router": True, "freeze": False},
    "lr": 1e-3,
    "warmup_iterations": 30,
    "label_smoothing": 0.0,
    "train_epochs": 1,
    "train_mb_size": 128,
    "eval_label_space": "seen",
}
"""Arguments of the class-incremental form: ``MoEAdapters(model=model,
**CLASS_INCREMENTAL)``. Two experts that are always active and never frozen, one
router for all steps, no selector; one epoch per step, and training over the classes
of the step only. The authors use batches of 64 for steps of two classes."""


class MoEAdapters(MTILTraining, ClassNameTemplate):
    """Mixtures of experts beside every block, a router per domain, selected by image.

    Template plus :class:`MoEAdaptersPlugin`. The model gets its adapters here,
    unless it has some already, and is frozen. For streams of image-text pairs
    give the plugin to any contrastive strategy:
    ``Sequential(model=model, plugins=[MoEAdaptersPlugin(...)])``.

    :param model: a :class:`~avalanche_clip.models.DualEncoder` with
        transformer towers.
    :param reference_images: what the selector takes for unfamiliar (MTIL:
        TinyImageNet), see :class:`MoEAdaptersPlugin`.
    :param selector: ``"model"``, ``"alexnet"``, an :class:`AutoSelector`, or None
        for none.
    :param num_experts: experts per block; the published 22 are ``top_k`` per
        domain of MTIL.
    :param top_k: experts kept per row.
    :param bottleneck: hidden width of an expert.
    :param adapter_options: further options of :func:`attach_moe_adapters`.
    :param plugin_options: further arguments of :class:`MoEAdaptersPlugin`.
    :param lr: one learning rate (default 1e-3), or one per experience, such as
        ``MTIL_RATES["full"]``.
    :param optimizer: see :class:`MTILTraining`.
    :param label_smoothing: see :class:`ClassNameFineTuning`.
    :param plugins: further plugins; what they measure at the end of an experience
        still has a trainable router.
    :param kwargs: see :class:`ClassNameTemplate`; defaults as in
        :class:`MTILTraining`.
    :raises ValueError: see :class:`MoEAdaptersPlugin`.
    """

    own_defaults = {"lr": LEARNING_RATE}

    def __init__(
        self,
        *,
        model: nn.Module,
        reference_images: Any = None,
        selector: Any = "model",
        num_experts: int = NUM_EXPERTS,
        top_k: int = 2,
        bottleneck: int = 64,
        adapter_options: Mapping[str, Any] | None = None,
        plugin_options: Mapping[str, Any] | None = None,
        label_smoothing: float | None = None,
        plugins: Sequence[Any] | None = None,
        **kwargs: Any,
    ):
        sizes = {"num_experts": num_experts, "top_k": top_k, "bottleneck": bottleneck}
        options = {**sizes, **(adapter_options or {})}
        adapters = attachment(model, "moe_adapters")
        if adapters is not None:
            _check_options(adapters, options)
        taken, plugin = ("adapters", "selector", "reference_images"), MoEAdaptersPlugin
        further = further_options(self, plugin, plugin_options, taken)
        self.moe = plugin(
            options if adapters is None else None,
            selector=selector,
            reference_images=reference_images,
            **further,
        )
        if kwargs.get("lr") is None and kwargs.get("optimizer") is None:
            kwargs["lr"] = LEARNING_RATE
        smoothing, plugins = smoothing_of(label_smoothing, kwargs), plugins or []
        super().__init__(
            model=model,
            label_smoothing=smoothing,
            plugins=[*plugins, self.moe],
            **kwargs,
        )


def _check_options(adapters: Any, options: dict[str, Any]) -> None:
    """Raise ValueError if a model's adapters are not those asked for.

    Values equal to the defaults are not taken as asked for.
    """
    defaults = {"num_experts": NUM_EXPERTS, "top_k": 2, "bottleneck": 64}
    have = {"towers": list(adapters.towers), **adapters.adapters()[0].options()}
    for name, value in options.items():
        if name == "towers":
            value = [value] if isinstance(value, str) else list(value)
        if value not in (have.get(name), defaults.get(name)):
            raise ValueError(
                f"The model has adapters with {name}={have.get(name)!r}, but {value!r} "
                "was given; leave it out, or detach the old ones "
                "(model.moe_adapters.detach())."
            )
