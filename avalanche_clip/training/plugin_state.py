"""Plain-data state of plugins, metrics and random generators."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

Getter = Callable[[Any], dict[str, Any]]
Setter = Callable[[Any, dict[str, Any]], None]

_REGISTRY: dict[str, tuple[Getter, Setter]] = {}
_STATELESS = ("PeriodicEval", "Clock")
_PACKAGES = ("avalanche.evaluation", "avalanche_clip.evaluation")


def register_plugin_state(cls: type, get: Getter, set: Setter) -> None:
    """Teach checkpoints to store a plugin class without ``state_dict``.

    :param cls: the plugin class; subclasses are covered too.
    :param get: ``get(plugin)`` returns plain data: tensors, numbers, strings,
        and dicts, lists and tuples of them.
    :param set: ``set(plugin, state)`` puts it back.
    """
    _REGISTRY[f"{cls.__module__}.{cls.__qualname__}"] = (get, set)


def _registered(plugin: Any) -> tuple[Getter, Setter] | None:
    _register_stock()
    for cls in type(plugin).__mro__:
        found = _REGISTRY.get(f"{cls.__module__}.{cls.__qualname__}")
        if found:
            return found
    return None


def collect(strategy: Any) -> list[dict[str, Any]]:
    """Collect the state of all plugins of a strategy, in order.

    :raises TypeError: for a plugin whose state cannot be known.
    """
    states = []
    for plugin in strategy.plugins:
        name = type(plugin).__name__
        if name in _STATELESS or getattr(plugin, "stateless", False):
            continue
        registered = _registered(plugin)
        if registered is not None:
            state = registered[0](plugin)
        elif callable(getattr(plugin, "state_dict", None)):
            state = plugin.state_dict()
        elif not vars(plugin):
            continue
        else:
            raise TypeError(
                f"{name} may have state ({sorted(vars(plugin))}), but no state_dict(): "
                "a resumed run would differ. Give it state_dict() and "
                "load_state_dict(), use register_plugin_state, or set stateless=True "
                "on it."
            )
        states.append({"class": name, "state": state})
    return states


def restore(strategy: Any, states: list[dict[str, Any]]) -> None:
    """Give each plugin the state that :func:`collect` stored.

    :raises ValueError: if the plugins are others or in another order.
    """
    owners = [
        p
        for p in strategy.plugins
        if type(p).__name__ not in _STATELESS
        and not getattr(p, "stateless", False)
        and (
            _registered(p) is not None
            or callable(getattr(p, "state_dict", None))
            or vars(p)
        )
    ]
    stored = [s["class"] for s in states]
    have = [type(p).__name__ for p in owners]
    if stored != have:
        raise ValueError(
            f"The checkpoint has plugins {stored}, the strategy {have}; build it with "
            "the same plugins in the same order."
        )
    for plugin, entry in zip(owners, states, strict=True):
        registered = _registered(plugin)
        if registered is not None:
            registered[1](plugin, entry["state"])
        else:
            plugin.load_state_dict(entry["state"])


# ------------------------------------------------------------------ numbers
def number_fields(obj: Any) -> dict[str, float]:
    """Public numeric attributes of an object (the clock's counters)."""
    return {
        k: v
        for k, v in vars(obj).items()
        if not k.startswith("_") and isinstance(v, (int, float))
    }


def apply_numbers(obj: Any, values: Mapping[str, Any]) -> None:
    """Set attributes stored by :func:`number_fields`."""
    for name, value in values.items():
        setattr(obj, name, value)


# ------------------------------------------------------------------- random
def plain_rng(device: torch.device) -> dict[str, Any]:
    """States of all generators as plain data."""
    version, internal, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def apply_rng(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what :func:`plain_rng` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(
        (name, keys.numpy().astype(np.uint32), position, has_gauss, cached)
    )
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state_all(state["cuda"])


# ------------------------------------------------------------------ metrics
def object_state(obj: Any, depth: int = 0) -> Any:
    """Plain data inside a metric, found by walking its attributes.

    What is not plain (models, loggers, functions) is skipped.
    """
    if isinstance(obj, (bool, int, float, str, type(None))):
        return obj
    if isinstance(obj, Tensor):
        return obj.detach().cpu().clone()
    if depth > 8:
        return _Skip
    if isinstance(obj, Mapping):
        return {
            k: v
            for k, v in ((k, object_state(v, depth + 1)) for k, v in obj.items())
            if v is not _Skip and isinstance(k, (bool, int, float, str, type(None)))
        }
    if isinstance(obj, (list, tuple)):
        values = [object_state(v, depth + 1) for v in obj]
        if any(v is _Skip for v in values):
            return _Skip
        return values if isinstance(obj, list) else tuple(values)
    if callable(getattr(obj, "state_dict", None)):
        return {"__state_dict__": obj.state_dict()}
    if type(obj).__module__.startswith(_PACKAGES):
        fields = {
            k: v
            for k, v in ((k, object_state(v, depth + 1)) for k, v in vars(obj).items())
            if v is not _Skip
        }
        return {"__fields__": fields}
    return _Skip


class _Skip:
    """Marks values that are not plain data."""


def apply_object_state(obj: Any, state: Any) -> Any:
    """Put :func:`object_state` back; returns the value to store."""
    if isinstance(state, Mapping) and "__state_dict__" in state:
        obj.load_state_dict(state["__state_dict__"])
        return obj
    if isinstance(state, Mapping) and "__fields__" in state:
        if obj is None or not hasattr(obj, "__dict__"):
            return obj
        for name, value in state["__fields__"].items():
            current = vars(obj).get(name)
            vars(obj)[name] = apply_object_state(current, value)
        return obj
    if isinstance(state, Mapping):
        if isinstance(obj, dict):
            fresh = {k: apply_object_state(_child(obj, k), v) for k, v in state.items()}
            obj.clear()
            obj.update(fresh)
            return obj
        return dict(state)
    if isinstance(state, list) and isinstance(obj, list) and len(obj) == len(state):
        return [apply_object_state(o, s) for o, s in zip(obj, state, strict=True)]
    return state


def _child(container: Any, key: Any) -> Any:
    if isinstance(container, defaultdict) and key not in container:
        factory = container.default_factory
        return factory() if factory is not None else None
    return container.get(key)


def _evaluator_state(plugin: Any) -> dict[str, Any]:
    return {
        "metrics": [object_state(m) for m in plugin.metrics],
        "all": {
            k: [list(v[0]), [_number(x) for x in v[1]]]
            for k, v in plugin.all_metric_results.items()
            if all(_number(x) is not None for x in v[1])
        },
        "last": {
            k: _number(v)
            for k, v in plugin.last_metric_results.items()
            if _number(v) is not None
        },
    }


def _number(value: Any) -> Any:
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (np.generic,)) or (
        isinstance(value, Tensor) and value.numel() == 1
    ):
        return value.item()
    if isinstance(value, dict):
        return {str(k): _number(v) for k, v in value.items()}
    return None


def _set_evaluator_state(plugin: Any, state: dict[str, Any]) -> None:
    for metric, stored in zip(plugin.metrics, state["metrics"], strict=True):
        apply_object_state(metric, stored)
    plugin.all_metric_results.clear()
    for name, (steps, values) in state["all"].items():
        plugin.all_metric_results[name] = (list(steps), list(values))
    plugin.last_metric_results = dict(state["last"])


# ------------------------------------------------------------- stock plugins
def _register_stock() -> None:
    if _REGISTRY.get("__stock__"):
        return
    from avalanche_clip.training.stock_plugin_state import register_all

    _REGISTRY["__stock__"] = (lambda p: {}, lambda p, s: None)
    register_all(register_plugin_state, _evaluator_state, _set_evaluator_state)


__all__ = [
    "apply_numbers",
    "apply_object_state",
    "apply_rng",
    "collect",
    "number_fields",
    "object_state",
    "plain_rng",
    "register_plugin_state",
    "restore",
]
