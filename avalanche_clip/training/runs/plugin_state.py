"""Plain-data state of the plugins of a strategy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from avalanche_clip.common.plain import device_paths, moved, plain
from avalanche_clip.training.runs.stock_plugin_state import STATES, restore_buffers
from avalanche_clip.training.templates.compatibility import in_order

Getter = Callable[[Any], dict[str, Any]]
Setter = Callable[[Any, dict[str, Any]], None]

_STATES: dict[type, tuple[Getter, Setter]] = dict(STATES)


def register_plugin_state(cls: type, get: Getter, set: Setter) -> None:
    """Teach checkpoints to store a plugin class without ``state_dict``.

    :param cls: the plugin class; subclasses are covered too.
    :param get: ``get(plugin)`` returns plain data: tensors, numbers, strings,
        and dicts, lists and tuples of them.
    :param set: ``set(plugin, state)`` puts it back.
    """
    _STATES[cls] = (get, set)


def _registered(plugin: Any) -> tuple[Getter, Setter] | None:
    return next((_STATES[c] for c in type(plugin).__mro__ if c in _STATES), None)


def _owners(strategy: Any) -> list[Any]:
    """Contracts of the plugins that have something to store, in running order."""
    contracts = {id(c.wrapped): c for c in strategy.contracts}
    found = [contracts[id(plugin)] for plugin in in_order(strategy.plugins)]
    return [contract for contract in found if not contract.stateless]


def _require_both(plugin: Any) -> None:
    """Raise for a state that would be stored and never put back."""
    have = hasattr(plugin, "state_dict"), hasattr(plugin, "load_state_dict")
    if have[0] != have[1]:
        names = ("state_dict", "load_state_dict")
        only, other = names if have[0] else names[::-1]
        raise TypeError(
            f"{type(plugin).__name__} has {only}() but no {other}(), so that nothing "
            "of it would come back in a resumed run; give it both, or neither if its "
            "attributes are plain."
        )


def collect(strategy: Any) -> list[dict[str, Any]]:
    """Collect the state of all plugins of a strategy, in order.

    :raises TypeError: for a plugin whose state cannot be known, or whose
        state is not plain data.
    """
    states = []
    for contract in _owners(strategy):
        name = type(contract.wrapped).__name__
        known = _registered(contract.wrapped)
        if not known:
            _require_both(contract.wrapped)
        state = known[0](contract.wrapped) if known else contract.state_dict()
        state = plain(state, f"the state of {name}")
        states.append({"state": state, "device": device_paths(state)})
    return states


def restore(
    strategy: Any, states: list[dict[str, Any]], *, stored_device: str = "cpu"
) -> None:
    """Give each plugin the state that :func:`collect` stored.

    Tensors that were on an accelerator go to the strategy's device.

    :param strategy: with the plugins of the stored run, see `strategy_identity`.
    :param stored_device: type of the device of the stored run.
    """
    for contract, entry in zip(_owners(strategy), states, strict=True):
        known, state = _registered(contract.wrapped), entry["state"]
        if strategy.device.type != "cpu":
            # A run that comes from the CPU says nothing about places.
            unknown = stored_device == "cpu" and known is None
            state = moved(state, strategy.device, None if unknown else entry["device"])
        if known:
            known[1](contract.wrapped, state)
        else:
            contract.load_state_dict(state)


def restore_data(strategy: Any, benchmark: Any) -> None:
    """Let replay plugins find their samples in the benchmark of a resumed run."""
    for contract in strategy.contracts:
        contract.restore_data(benchmark)
        restore_buffers(contract.wrapped, strategy, benchmark)
