"""Methods of the study of alignment: their plugins, weights and sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from alignment_study import FINE_TUNING

METHODS = (FINE_TUNING, "mod-x", "lwf", "vr-lwf", "zscl", "replay")
# These change weights of attention blocks, which both towers must have.
LOW_RANK = ("lora", "c-clip")
SUMS = ("mod-x+replay", "mod-x+vr-lwf", "mod-x+zscl", "lwf+replay")
# Learning rates of fine-tuning; weights of the others at the rate that was chosen.
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
WEIGHTS: dict[str, tuple[float, ...]] = {
    "mod-x": (5.0, 20.0, 80.0),
    "lwf": (0.3, 1.0, 3.0),
    "vr-lwf": (1.0, 3.0, 10.0),
    "zscl": (0.01, 0.1, 1.0),
    "lora": (8.0, 32.0, 128.0),
    "c-clip": (8.0, 32.0, 128.0),
}


def build_plugins(config: Any, method: str) -> list[Any]:
    """Return the plugins of a method.

    :param config: settings; ``weights`` has those of the method's parts.
    :param method: its parts, joined by ``+``.
    """
    parts: dict[str, Callable[[Any, float], list[Any]]] = {
        "sequential": lambda config, weight: [],
        "mod-x": _mod_x,
        "lwf": _lwf,
        "vr-lwf": _vr_lwf,
        "zscl": _zscl,
        "replay": _replay,
        "lora": _lora,
        "c-clip": _c_clip,
    }
    names = [part.partition(":")[0] for part in method.split("+")]
    return [
        plugin
        for name in names
        for plugin in parts[name](
            config, config.weights[name] if name in WEIGHTS else 0
        )
    ]


def _mod_x(config: Any, weight: float) -> list[Any]:
    from avalanche_clip.training.plugins import OffDiagonalAlignmentPlugin

    return [OffDiagonalAlignmentPlugin(weight)]


def _lwf(config: Any, weight: float) -> list[Any]:
    from avalanche_clip.training.plugins import ContrastiveLwFPlugin

    # TiC's LwF does not teach the first step; here the base model is worth it.
    return [ContrastiveLwFPlugin(weight, teach_first_experience=True)]


def _vr_lwf(config: Any, weight: float) -> list[Any]:
    from avalanche_clip.training.plugins import VocabularyReplayPlugin

    return [VocabularyReplayPlugin(image_weight=weight, text_weight=weight)]


def _replay(config: Any, weight: float) -> list[Any]:
    from avalanche_clip.training.plugins import BudgetedReplayPlugin

    return [BudgetedReplayPlugin("exp", config.buffer_size)]


def _zscl(config: Any, weight: float) -> list[Any]:
    """ZSCL with the 2010 drawings and names as reference, unpaired."""
    from avalanche_clip.benchmarks.classic.tic_emoji import emoji_dataset
    from avalanche_clip.benchmarks.datasets import load_emoji_table
    from avalanche_clip.training.plugins import (
        ReferenceDistillationPlugin,
        WeightAveragingPlugin,
        WeightConsolidationPlugin,
    )

    table = load_emoji_table()
    known = np.flatnonzero(table.step == 0)
    return [
        ReferenceDistillationPlugin(
            emoji_dataset(("noto", "openmoji"), known),
            [table.names[k] for k in known],
        ),
        WeightConsolidationPlugin(weight),
        WeightAveragingPlugin("we", interval=config.averaging_interval),
    ]


def _lora(config: Any, weight: float) -> list[Any]:
    from avalanche_clip.training.plugins import LoRAPlugin

    return [LoRAPlugin(True, rank=16, alpha=weight, targets=("out", "mlp"))]


def _c_clip(config: Any, weight: float) -> list[Any]:
    """C-CLIP with one learning rate for both towers."""
    from avalanche_clip.training.plugins import (
        ContrastiveKnowledgeConsolidationPlugin,
        LoRAPlugin,
    )

    return [
        ContrastiveKnowledgeConsolidationPlugin(),
        LoRAPlugin(True, share=0.5, rank=16, alpha=weight, targets=("out", "mlp")),
    ]


def methods_for(model: str) -> tuple[str, ...]:
    """Names of the methods that a preset can be trained with."""
    return (*METHODS, *(LOW_RANK if model.endswith("vit") else ()))


def check_methods(methods: Sequence[str], model: str) -> None:
    """Raise for methods that there are not, and for values that would say nothing.

    :param model: the preset that is to be trained.
    """
    known = methods_for(model)
    for method in methods:
        parts = [part.partition(":") for part in method.split("+")]
        names = [name for name, _, _ in parts]
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(
                f"unknown method {', '.join(unknown)}; use {', '.join(known)}, and "
                f"with --model tiny-emoji-vit also {' and '.join(LOW_RANK)}"
            )
        if len(set(names)) < len(names) or (len(names) > 1 and FINE_TUNING in names):
            raise ValueError(
                f"{method!r}: a sum has each method once, and {FINE_TUNING} is a sum "
                "of none"
            )
        if set(LOW_RANK) <= set(names):
            raise ValueError(f"{method!r}: c-clip has a lora of its own")
        for name, colon, value in parts:
            if colon and name not in (FINE_TUNING, *WEIGHTS):
                raise ValueError(
                    f"in {method!r} {name} has no weight; these have one: "
                    f"{', '.join(WEIGHTS)}"
                )
            if colon and not _positive(value):
                raise ValueError(f"in {method!r} {value!r} must be a positive number")


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False
