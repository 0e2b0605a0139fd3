"""State of metrics, of the evaluator that holds them, and of its loggers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_clip.common.plain import as_number, is_plain

_PACKAGES = ("avalanche.evaluation", "avalanche_clip.evaluation")
_STATE, _FIELDS, _SET, _FLOATS = "__state_dict__", "__fields__", "__set__", "__floats__"
_DEEPEST = 12


class _Skip:
    """Marks values that are not plain data."""


def object_state(obj: Any, depth: int = 0) -> Any:
    """Plain data inside a metric, found by walking its attributes.

    Objects with ``state_dict`` and those of Avalanche's and our evaluation
    packages are looked into, at the top level those of any class; what else is
    not plain (models, loggers, functions) is skipped.

    :param obj: a metric.
    :param depth: of the recursion; 0 for the metric itself.
    """
    if isinstance(obj, np.generic):
        return obj.item()
    if isinstance(obj, (bool, int, float, str, type(None))):
        return obj
    if isinstance(obj, Tensor):
        return obj.detach().cpu().clone()
    if depth > _DEEPEST:
        return _Skip
    if isinstance(obj, Mapping):
        return _parts(obj, depth)
    if isinstance(obj, (list, tuple, set, frozenset)):
        values = [object_state(v, depth + 1) for v in obj]
        if any(v is _Skip for v in values):
            return _Skip
        if isinstance(obj, (set, frozenset)):
            return {_SET: values}
        if len(values) > 8 and all(type(v) is float for v in values):
            # A curve over many iterations: no Python object per value.
            return {_FLOATS: torch.tensor(values, dtype=torch.float64)}
        return values if isinstance(obj, list) else tuple(values)
    if isinstance(obj, torch.nn.Module):
        return _Skip
    if callable(getattr(obj, "state_dict", None)):
        return {_STATE: obj.state_dict()}
    known = depth == 0 or type(obj).__module__.startswith(_PACKAGES)
    if known and hasattr(obj, "__dict__"):
        return {_FIELDS: _parts(vars(obj), depth)}
    return _Skip


def _parts(values: Mapping[Any, Any], depth: int) -> dict[Any, Any]:
    states = {k: object_state(v, depth + 1) for k, v in values.items()}
    return {k: v for k, v in states.items() if v is not _Skip and is_plain(k)}


def apply_object_state(obj: Any, state: Any) -> Any:
    """Put :func:`object_state` back; returns the value to store.

    :raises ValueError: if an object that the state describes is not there.
    """
    if isinstance(state, list) and isinstance(obj, list) and len(obj) == len(state):
        return [apply_object_state(o, s) for o, s in zip(obj, state, strict=True)]
    if isinstance(state, (list, tuple)):
        return type(state)(apply_object_state(None, s) for s in state)
    if not isinstance(state, Mapping):
        return state
    if _FLOATS in state:
        values = state[_FLOATS].tolist()
        return tuple(values) if isinstance(obj, tuple) else values
    if _SET in state:
        return set(state[_SET])
    if _STATE in state or _FIELDS in state:
        if obj is None:
            raise ValueError(
                "A metric of the stored run holds an object that the metrics of the "
                "resumed one lack; give the metric state_dict() and load_state_dict()."
            )
        if _STATE in state:
            obj.load_state_dict(state[_STATE])
        for name, value in state.get(_FIELDS, {}).items():
            vars(obj)[name] = apply_object_state(vars(obj).get(name), value)
        return obj
    if not isinstance(obj, dict):
        return {k: apply_object_state(None, v) for k, v in state.items()}
    fresh = {k: apply_object_state(_child(obj, k), v) for k, v in state.items()}
    obj.clear()
    obj.update(fresh)
    return obj


def _child(container: Any, key: Any) -> Any:
    factory = getattr(container, "default_factory", None)
    if isinstance(container, defaultdict) and key not in container and factory:
        return factory()
    return container.get(key)


# ---------------------------------------------------------------- evaluator
def evaluator_state(plugin: Any) -> dict[str, Any]:
    """State of a stock ``EvaluationPlugin`` as plain data."""
    last = {k: _number(v) for k, v in plugin.last_metric_results.items()}
    return {
        "metrics": [object_state(m) for m in _kept(plugin)],
        "curves": _pack_curves(plugin.all_metric_results),
        "last": {k: v for k, v in last.items() if v is not None},
        "loggers": [
            {"class": type(log).__name__, "state": log.state_dict()}
            for log in plugin.loggers
            if _has_state(log)
        ],
    }


def set_evaluator_state(plugin: Any, state: dict[str, Any]) -> None:
    """Put back what :func:`evaluator_state` returned.

    Log files are cut back to where the stored run was. Other processes than the main
    one, and a user who takes away a logger, may have fewer loggers; they are matched
    by class and order.

    :raises ValueError: if there are other metrics.
    """
    metrics = _kept(plugin)
    if len(metrics) != len(state["metrics"]):
        raise ValueError(
            f"The checkpoint has {len(state['metrics'])} metrics, the evaluator "
            f"{len(metrics)}; build it with the same metrics."
        )
    for metric, stored in zip(metrics, state["metrics"], strict=True):
        apply_object_state(metric, stored)
    plugin.all_metric_results.clear()
    plugin.all_metric_results.update(_unpack_curves(state["curves"]))
    plugin.last_metric_results = dict(state["last"])
    left = list(state["loggers"])
    for log in filter(_has_state, plugin.loggers):
        entry = next((e for e in left if e["class"] == type(log).__name__), None)
        if entry is not None:
            left.remove(entry)
            log.load_state_dict(entry["state"])


def _kept(plugin: Any) -> list[Any]:
    """Metrics that have a state."""
    return [m for m in plugin.metrics if not getattr(m, "stateless", False)]


def _has_state(log: Any) -> bool:
    """Whether a logger, which may be anyone's, can be cut back."""
    names = ("state_dict", "load_state_dict")
    return all(callable(getattr(log, name, None)) for name in names)


def _pack_curves(curves: Mapping[str, Any]) -> dict[str, Any]:
    """Put all curves of plain floats into two tensors: many small ones are slow."""
    packed, other = {}, {}
    for name, (steps, values) in curves.items():
        numbers = [_number(v) for v in values]
        if all(type(v) is float for v in numbers):
            packed[name] = (steps, numbers)
        elif all(v is not None for v in numbers):
            other[name] = [list(steps), numbers]
    pairs = list(packed.values())
    return {
        "order": list(curves),
        "names": list(packed),
        "lengths": [len(y) for _, y in pairs],
        "steps": torch.tensor([n for x, _ in pairs for n in x], dtype=torch.int64),
        "values": torch.tensor([v for _, y in pairs for v in y], dtype=torch.float64),
        "other": other,
    }


def _unpack_curves(state: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
    parts = (state[name].split(state["lengths"]) for name in ("steps", "values"))
    found = {
        name: (x.tolist(), y.tolist())
        for name, x, y in zip(state["names"], *parts, strict=True)
    }
    found.update({k: (list(x), list(y)) for k, (x, y) in state["other"].items()})
    return {name: found[name] for name in state["order"] if name in found}


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _number(v) for k, v in value.items()}
    value = as_number(value)
    return value if isinstance(value, (bool, int, float, str)) else None
