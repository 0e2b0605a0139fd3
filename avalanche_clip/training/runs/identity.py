"""What a run is, and where another one differs from it."""

from __future__ import annotations

import inspect
import math
import reprlib
from collections.abc import Sequence
from typing import Any

from avalanche_clip.training.templates.order import WORKER_OPTIONS
from avalanche_clip.training.runs.record import plugin_settings, strategy_arguments

# What may change, or is compared apart from the settings.
_APART = ("device", "loader", "plugins", "eval_mb_size", "seed")
_MOST = 3
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100
_short.maxlist = _short.maxtuple = 8


def run_identity(
    strategy: Any,
    config: dict[str, Any],
    data: dict[str, Any],
    streams: Sequence[str],
    evaluate_at: Any,
    method: str | None,
) -> dict[str, Any]:
    """What a resumed run must have in common with the stored one, as plain data.

    Where it runs and how it loads data may change.

    :param strategy: trained before or not.
    :param config: of the strategy.
    :param data: from :func:`data_summary`.
    :param streams: names of the streams that are evaluated.
    :param evaluate_at: when they are, see :class:`EvaluationPoints`.
    :param method: name of the method; default the strategy's class.
    """
    settings = {**strategy_arguments(strategy), **config}
    settings = {k: v for k, v in settings.items() if k not in _APART}
    optimizer = settings["optimizer"]
    settings["optimizer"] = {**optimizer, "groups": _groups(optimizer["groups"])}
    settings["options"] = _options(strategy, config["loader"])
    return _as_stored(
        {
            "method": method or type(strategy).__name__,
            "seed": strategy.seed,
            "streams": list(streams),
            "evaluate_at": evaluate_at,
            "data": data["hash"],
            "experiences": data["experiences"],
            "transforms": data["transforms"],
            "settings": {**settings, "plugins": plugin_settings(strategy)},
        }
    )


def _groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Groups of the constructor's optimiser, with the rates before any schedule."""
    kept = [g for g in groups if str(g.get("owner", "rule")).startswith("rule")]
    found = [{**g, "lr": g.get("initial_lr", g["lr"])} for g in kept]
    return [{k: v for k, v in g.items() if k != "initial_lr"} for g in found]


def _options(strategy: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Options of ``train`` that count, those at their default included."""
    takes = inspect.signature(strategy.make_train_dataloader).parameters
    named = {k: p.default for k, p in takes.items() if p.default is not p.empty}
    return {k: v for k, v in {**named, **given}.items() if k not in WORKER_OPTIONS}


def _as_stored(value: Any) -> Any:
    """What JSON gives back of plain data; numbers that are not finite as text.

    Numbers of numpy and of tensors count as Python's.
    """
    if isinstance(value, dict):
        return {str(k): _as_stored(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_stored(v) for v in value]
    if callable(getattr(value, "item", None)) and getattr(value, "ndim", 1) == 0:
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def differences(stored: Any, have: Any, where: str = "") -> list[str]:
    """Say where two nested values of plain data differ, at most three places each.

    :param stored: the one of the stored run.
    :param have: the one of this run.
    :param where: dotted key of both.
    :return: one sentence per place, with its dotted key and both values.

    >>> differences({"groups": [{"lr": 0.1}]}, {"groups": [{"lr": 0.2}]})
    ['groups.0.lr is 0.1 there and 0.2 here']
    """
    left, right = _children(stored), _children(have)
    if left is not None and right is not None:
        found = []
        keys = [*left, *[k for k in right if k not in left]]
        if isinstance(stored, list) and len(left) != len(right):
            found.append(f"{where} has {len(left)} parts there and {len(right)} here")
            keys = [k for k in left if k in right]
        for key in keys:
            place = f"{where}.{key}" if where else key
            found += differences(
                left.get(key, _MISSING), right.get(key, _MISSING), place
            )
        return found[:_MOST] if where else found
    same_kind = type(stored) is type(have) or _numbers(stored, have)
    if same_kind and stored == have:
        return []
    return [f"{where} is {_said(stored)} there and {_said(have)} here"]


class _Missing:
    """Stands for a value that one of two mappings does not have."""


_MISSING = _Missing()


def _children(value: Any) -> dict[str, Any] | None:
    """Parts of a mapping, or of a list of mappings."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list) and any(isinstance(v, (dict, list)) for v in value):
        return {str(i): v for i, v in enumerate(value)}
    return None


def _numbers(*values: Any) -> bool:
    return all(type(v) in (int, float) for v in values)


def _said(value: Any) -> str:
    return "missing" if value is _MISSING else _short.repr(value)
