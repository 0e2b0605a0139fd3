"""Plain-data state of plugins, metrics and random generators."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_clip.training.templates.compatibility import in_order

Getter = Callable[[Any], dict[str, Any]]
Setter = Callable[[Any, dict[str, Any]], None]

_REGISTRY: dict[str, tuple[Getter, Setter]] = {}
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


def _in_order(strategy: Any) -> list[Any]:
    """Contracts of the plugins that have something to store."""
    contracts = {id(c.wrapped): c for c in strategy.contracts}
    found = [contracts[id(plugin)] for plugin in in_order(strategy.plugins)]
    return [contract for contract in found if not contract.stateless]


def collect(strategy: Any) -> list[dict[str, Any]]:
    """Collect the state of all plugins of a strategy, in order.

    :raises TypeError: for a plugin whose state cannot be known, or whose
        state is not plain data.
    """
    states = []
    for contract in _in_order(strategy):
        name = type(contract.wrapped).__name__
        registered = _registered(contract.wrapped)
        if registered is not None:
            state = registered[0](contract.wrapped)
        else:
            state = contract.state_dict()
        state = plain(state, f"the state of {name}")
        states.append({"class": name, "state": state, "device": _device_paths(state)})
    return states


def restore(
    strategy: Any, states: list[dict[str, Any]], *, stored_device: str = "cpu"
) -> None:
    """Give each plugin the state that :func:`collect` stored.

    Tensors that were on an accelerator go to the strategy's device.

    :param stored_device: type of the device of the stored run.
    :raises ValueError: if the plugins are others or in another order.
    """
    owners = _in_order(strategy)
    stored = [s["class"] for s in states]
    have = [type(contract.wrapped).__name__ for contract in owners]
    if stored != have:
        raise ValueError(
            f"The checkpoint has plugins {stored}, the strategy {have}; build it with "
            "the same plugins in the same order."
        )
    device = strategy.device
    for contract, entry in zip(owners, states, strict=True):
        registered = _registered(contract.wrapped)
        state = entry["state"]
        if device.type != "cpu":
            # A run that comes from the CPU says nothing about places.
            unknown = stored_device == "cpu" and registered is None
            chosen = None if unknown else {tuple(p) for p in entry["device"]}
            state = _moved(state, device, chosen, ())
        if registered is not None:
            registered[1](contract.wrapped, state)
        else:
            contract.load_state_dict(state)


def restore_data(strategy: Any, benchmark: Any) -> None:
    """Let replay plugins find their samples in the benchmark of a resumed run."""
    from avalanche_clip.training.runs.stock_plugin_state import restore_buffers

    for contract in strategy.contracts:
        contract.restore_data(benchmark)
        restore_buffers(contract.wrapped, strategy, benchmark)


# -------------------------------------------------------------------- plain data
def plain(value: Any, where: str = "the state") -> Any:
    """Reduce a value to what ``torch.load(weights_only=True)`` reads.

    NumPy numbers become Python's, subclasses of dict, list and tuple become
    these; a tensor that is a small view of a large one is copied, so that a
    file does not hold the large one.

    :param value: tensors, numbers, strings, and containers of them.
    :param where: place of the value, for the error.
    :raises TypeError: naming the place of anything else.

    >>> plain({"a": (np.float64(0.5), np.int64(3))})
    {'a': (0.5, 3)}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        if value.requires_grad or type(value) is not Tensor:
            value = value.detach()
        if value.untyped_storage().nbytes() > value.numel() * value.element_size():
            value = value.clone(memory_format=torch.contiguous_format)
        return value
    if isinstance(value, np.generic):
        return plain(value.item(), where)
    for kind in (str, bool, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {
            plain(k, f"a key of {where}"): plain(v, f"{where}[{k!r}]")
            for k, v in value.items()
        }
    if isinstance(value, (list, tuple)):
        items = [plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}; "
        "checkpoints hold tensors, numbers, strings, and dicts, lists and tuples of "
        "them. Convert it in state_dict()."
    )


def _children(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, (list, tuple)) else []


def _device_paths(value: Any, path: tuple[Any, ...] = ()) -> list[list[Any]]:
    """Places of the tensors that are not on the CPU."""
    if isinstance(value, Tensor):
        return [] if value.device.type == "cpu" else [list(path)]
    return [p for k, v in _children(value) for p in _device_paths(v, (*path, k))]


def _moved(
    value: Any, device: torch.device, chosen: set[Any] | None, path: tuple[Any, ...]
) -> Any:
    """Move the chosen tensors; None chooses all of floating point."""
    if isinstance(value, Tensor):
        move = value.is_floating_point() if chosen is None else path in chosen
        return value.to(device) if move else value
    if isinstance(value, dict):
        return {k: _moved(v, device, chosen, (*path, k)) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_moved(v, device, chosen, (*path, i)) for i, v in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return value


# ------------------------------------------------------------------ numbers
def number_fields(obj: Any) -> dict[str, float]:
    """Public numeric attributes of an object (the clock's counters)."""
    return {
        k: v
        for k, v in vars(obj).items()
        if not k.startswith("_") and type(v) in (int, float)
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
        "python": [version, torch.tensor(internal, dtype=torch.int64), gauss],
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
        # Only this process's device: the others belong to other processes.
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def apply_rng(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what :func:`plain_rng` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(
        (name, keys.numpy().astype(np.uint32), position, has_gauss, cached)
    )
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


# ------------------------------------------------------------------ metrics
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
    if depth > 12:
        return _Skip
    if isinstance(obj, Mapping):
        return {
            k: v
            for k, v in ((k, object_state(v, depth + 1)) for k, v in obj.items())
            if v is not _Skip and _is_plain_key(k)
        }
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
    if hasattr(obj, "__dict__") and (
        depth == 0 or type(obj).__module__.startswith(_PACKAGES)
    ):
        fields = {
            k: v
            for k, v in ((k, object_state(v, depth + 1)) for k, v in vars(obj).items())
            if v is not _Skip
        }
        return {_FIELDS: fields}
    return _Skip


_STATE, _FIELDS, _SET, _FLOATS = "__state_dict__", "__fields__", "__set__", "__floats__"


def _is_plain_key(key: Any) -> bool:
    if isinstance(key, tuple):
        return all(_is_plain_key(k) for k in key)
    return isinstance(key, (bool, int, float, str, type(None)))


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
            return obj
        for name, value in state[_FIELDS].items():
            vars(obj)[name] = apply_object_state(vars(obj).get(name), value)
        return obj
    if not isinstance(obj, dict):
        return {k: apply_object_state(None, v) for k, v in state.items()}
    fresh = {k: apply_object_state(_child(obj, k), v) for k, v in state.items()}
    obj.clear()
    obj.update(fresh)
    return obj


def _child(container: Any, key: Any) -> Any:
    if isinstance(container, defaultdict) and key not in container:
        factory = container.default_factory
        return factory() if factory is not None else None
    return container.get(key)


def _evaluator_state(plugin: Any) -> dict[str, Any]:
    return {
        "metrics": [object_state(m) for m in plugin.metrics],
        "curves": _pack_curves(plugin.all_metric_results),
        "last": {
            k: _number(v)
            for k, v in plugin.last_metric_results.items()
            if _number(v) is not None
        },
        "loggers": [
            {"class": type(log).__name__, "state": log.state_dict()}
            for log in plugin.loggers
            if callable(getattr(log, "state_dict", None))
        ],
    }


def _pack_curves(curves: Mapping[str, Any]) -> dict[str, Any]:
    """Put all curves of plain floats into two tensors: many small ones are slow."""
    packed: dict[str, list[Any]] = {"names": [], "lengths": [], "steps": [], "y": []}
    other = {}
    for name, (steps, values) in curves.items():
        numbers = [_number(v) for v in values]
        if all(type(v) is float for v in numbers) and all(
            type(x) is int for x in steps
        ):
            packed["names"].append(name)
            packed["lengths"].append(len(numbers))
            packed["steps"] += steps
            packed["y"] += numbers
        elif all(v is not None for v in numbers):
            other[name] = [list(steps), numbers]
    return {
        "names": packed["names"],
        "lengths": torch.tensor(packed["lengths"], dtype=torch.int64),
        "steps": torch.tensor(packed["steps"], dtype=torch.int64),
        "values": torch.tensor(packed["y"], dtype=torch.float64),
        "order": list(curves),
        "other": other,
    }


def _unpack_curves(state: Mapping[str, Any]) -> dict[str, tuple[list[Any], list[Any]]]:
    lengths = state["lengths"].tolist()
    steps = state["steps"].split(lengths)
    values = state["values"].split(lengths)
    found = {
        name: (x.tolist(), y.tolist())
        for name, x, y in zip(state["names"], steps, values, strict=True)
    }
    found.update({k: (list(x), list(y)) for k, (x, y) in state["other"].items()})
    return {name: found[name] for name in state["order"] if name in found}


def _number(value: Any) -> Any:
    if isinstance(value, np.generic) or (
        isinstance(value, Tensor) and value.numel() == 1
    ):
        return value.item()
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(k): _number(v) for k, v in value.items()}
    return None


def _set_evaluator_state(plugin: Any, state: dict[str, Any]) -> None:
    if len(plugin.metrics) != len(state["metrics"]):
        raise ValueError(
            f"The checkpoint has {len(state['metrics'])} metrics, the evaluator "
            f"{len(plugin.metrics)}; build it with the same metrics."
        )
    for metric, stored in zip(plugin.metrics, state["metrics"], strict=True):
        apply_object_state(metric, stored)
    plugin.all_metric_results.clear()
    plugin.all_metric_results.update(_unpack_curves(state["curves"]))
    plugin.last_metric_results = dict(state["last"])
    _set_loggers(plugin.loggers, state["loggers"])


def _set_loggers(loggers: Sequence[Any], stored: list[dict[str, Any]]) -> None:
    """Cut log files back to where the stored run was.

    Other processes than the main one, and a user who takes away a logger, may
    have fewer loggers; they are matched by class and order.
    """
    left = list(stored)
    for log in loggers:
        entry = next((e for e in left if e["class"] == type(log).__name__), None)
        if entry is None or not callable(getattr(log, "load_state_dict", None)):
            continue
        left.remove(entry)
        log.load_state_dict(entry["state"])


# ------------------------------------------------------------- stock plugins
def _register_stock() -> None:
    if _REGISTRY.get("__stock__"):
        return
    from avalanche_clip.training.runs.stock_plugin_state import register_all

    _REGISTRY["__stock__"] = (lambda p: {}, lambda p, s: None)
    register_all(register_plugin_state, _evaluator_state, _set_evaluator_state)
