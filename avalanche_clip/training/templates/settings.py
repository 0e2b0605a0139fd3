"""Settings of a strategy and its plugins, as plain data."""

from __future__ import annotations

import copy
import hashlib
import inspect
from typing import Any

from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip.common.fingerprint import bit_sums
from avalanche_clip.common.plain import as_stored, kept_arguments
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.training.templates.contract import MethodPlugin, PluginContract
from avalanche_clip.training.templates.own_plugins import is_stock


def strategy_settings(strategy: Any) -> dict[str, Any]:
    """Settings of a strategy and of its plugins, as plain data.

    They are those that it was built with, whether it was trained since or not.
    Plugins that say they are stateless are left out.

    :param strategy: a strategy of this package.
    """
    # Class names have a loss function, and the criterion that uses it is a method.
    loss = getattr(strategy, "loss_function", strategy._criterion)
    kind = loss if inspect.isfunction(loss) else type(loss)
    criterion = {"class": kind.__qualname__}
    if hasattr(loss, "__dict__") and not inspect.isfunction(loss):
        criterion |= kept_arguments(loss)
    budget, model = strategy.compute, strategy.model
    prompts = strategy.given_prompts
    limits = ("iterations", "samples", "macs")
    settings = {
        "strategy": type(strategy).__name__,
        **kept_arguments(strategy),
        "budget": {name: getattr(budget, name) for name in limits},
        "optimizer": _optimizer(strategy),
        "criterion": criterion,
        "model": getattr(model, "config", type(model).__name__),
        "class_prompts": None if prompts is None else prompts.fingerprint(),
        "pretrained": getattr(model, "pretrained", None),
        "plugins": _plugins(strategy),
    }
    return copy.deepcopy(as_stored(settings))


def _optimizer(strategy: Any) -> dict[str, Any]:
    """The optimiser as it was built, and the group of each parameter."""
    built = strategy.groups.built
    return {
        "class": type(strategy.optimizer).__name__,
        "groups": [{k: v for k, v in g.items() if k != "names"} for g in built],
        "group of": {name: k for k, g in enumerate(built) for name in g["names"]},
    }


def _plugins(strategy: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for contract in strategy.contracts:
        measures = isinstance(contract.wrapped, EvaluationPlugin)
        if not contract.stateless and not measures:
            name = f"{len(found)} {type(contract.wrapped).__name__}"
            built = [s for plugin, s in strategy.built_plugins if plugin is contract]
            found[name] = built[0] if built else contract.identity()
    return found


def start_weights(strategy: Any) -> str | None:
    """Hash the pretrained weights that a strategy began with, one reduction each.

    They are those of the architecture, as they were before training: what is attached
    beside them may be drawn anew by who goes on.

    :param strategy: trained before or not.
    :return: None without pretrained weights, which may be drawn anew too, and for
        models that are no dual encoders.
    """
    if strategy.in_training or strategy.clock.train_iterations:
        known: str | None = strategy.start_weights
        return known
    model = strategy.model
    if not isinstance(model, DualEncoder) or model.pretrained is None:
        return None
    plain = {f"clip.{name}" for name in model.plain_shapes}
    sums = bit_sums(item for item in model._tensors_of(None) if item[0] in plain)
    return hashlib.sha256(repr(sorted(sums.items())).encode()).hexdigest()[:32]


def note_built(strategy: Any) -> None:
    """Remember the settings of plugins before training changes their attributes.

    And the weights that the model has then.

    An attribute may be setting and counter in one, which is stored and restored. Of
    our methods with a ``state_dict`` of their own it is not known whether they do so.

    :param strategy: about to train, or to be put where a stored run was.
    """
    if strategy.clock.train_iterations == 0:
        strategy.built_plugins = []
        strategy.start_weights = start_weights(strategy)
    known = [id(plugin) for plugin, _ in strategy.built_plugins]
    for contract in strategy.contracts:
        stored = type(contract).state_dict is MethodPlugin.state_dict
        foreign = isinstance(contract, PluginContract)
        foreign = foreign and not is_stock(contract.wrapped)
        if (stored or foreign) and id(contract) not in known:
            settings = copy.deepcopy(contract.identity())
            strategy.built_plugins.append((contract, settings))
