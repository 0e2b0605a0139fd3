"""What a run is, and where another one differs from it.

One record says it: checkpoints hold it, and who resumes, loads a state or trains in
several processes compares with it.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.content import experience_hashes
from avalanche_clip.common.plain import as_stored, is_plain
from avalanche_clip.common.state_files import CheckpointError
from avalanche_clip.training.templates.order import WORKER_OPTIONS
from avalanche_clip.training.templates.settings import (
    start_weights,
    strategy_settings,
)

_MOST = 3
_START, _BATCH = "start weights", "settings.train_mb_size"
_MISSING = object()  # a value that one of two mappings does not have
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100
_short.maxlist = _short.maxtuple = 8


def strategy_identity(strategy: Any) -> dict[str, Any]:
    """Seed, settings and start that a strategy shares with one that goes on for it.

    Where it runs does not count: ``train_mb_size`` is that of all processes together.
    The start is a hash of the pretrained weights: their name stays the same when a
    file, or what a package ships, is replaced.

    :param strategy: a strategy of this package.
    """
    settings = strategy_settings(strategy).items()
    kept = {k: v for k, v in settings if k not in ("eval_mb_size", "seed")}
    kept["train_mb_size"] *= distributed.world_size()
    found = {"seed": strategy.seed, "settings": kept}
    start = start_weights(strategy)
    return found if start is None else {**found, _START: start}


def run_identity(
    strategy: Any,
    data: dict[str, Any],
    streams: Sequence[str],
    evaluate_at: Any,
    options: dict[str, Any],
    method: str | None,
) -> dict[str, Any]:
    """What a resumed run must have in common with the stored one, as plain data.

    How it loads data may change.

    :param strategy: trained before or not.
    :param data: from :func:`data_summary`.
    :param streams: names of the streams that are evaluated.
    :param evaluate_at: when they are, see :class:`EvaluationPoints`.
    :param options: further arguments of ``train``.
    :param method: name of the method; default the strategy's class.
    """
    takes = inspect.signature(strategy.make_train_dataloader).parameters
    named = {k: p.default for k, p in takes.items() if p.default is not p.empty}
    given = [item for item in {**named, **options}.items() if is_plain(item[1])]
    return {
        "method": method or type(strategy).__name__,
        **strategy_identity(strategy),
        **as_stored(
            {
                "streams": streams,
                "evaluate_at": evaluate_at,
                "options": {k: v for k, v in given if k not in WORKER_OPTIONS},
                "data": data["hash"],
                "experiences": data["experiences"],
                "transforms": data["transforms"],
            }
        ),
    }


def require_same_strategy(
    stored: dict[str, Any], strategy: Any, benchmark: Any, where: Path
) -> None:
    """Raise unless a stored run can go on with a strategy and a benchmark.

    :param stored: identity in the checkpoint. Where it is that of a whole run, the
        training stream is compared too, as far as both go.
    :param strategy: that is to go on.
    :param benchmark: with the data of the stored run.
    :param where: file of the stored run, for the message.
    :raises CheckpointError: naming what differs.
    """
    have = strategy_identity(strategy)
    known = {key: stored[key] for key in have if key in stored}
    hashes = stored.get("experiences", {}).get("train", {})
    if hashes:
        now = experience_hashes(benchmark.streams["train"])
        both = [key for key in hashes if key in now]
        for side, values in ((known, hashes), (have, now)):
            side["experiences"] = {"train": {key: values[key] for key in both}}
    require_same(known, have, where)


def require_same(
    stored: dict[str, Any], have: dict[str, Any], where: Path, also: str = ""
) -> None:
    """Raise unless two identities are equal.

    :param stored: that of the stored run.
    :param have: that of this run.
    :param where: file or folder of the stored run, for the message.
    :param also: what else to do, for the message.
    :raises CheckpointError: naming what differs.
    """
    if different := run_differences(stored, have):
        raise CheckpointError(
            f"{where} holds another run: {'; '.join(different)}. Go on with the same "
            "method, settings, weights, plugins, seed, streams and data, or start "
            f"another run in another folder.{also}"
        )


def run_differences(stored: dict[str, Any], have: dict[str, Any]) -> list[str]:
    """Say where two identities differ, see :func:`differences`.

    Runs that were stored without a hash of their pretrained weights have any. Into how
    many parts a batch is cut does not count: fewer processes may need more of them.

    :param stored: that of the stored run.
    :param have: that of this run.
    """
    sides = [{k: v for k, v in one.items() if k != _START} for one in (stored, have)]
    for side in sides:
        settings = side.get("settings", {}).items()
        side["settings"] = {k: v for k, v in settings if k != "accumulation_steps"}
    found = [
        f"{told} (of all processes together)" if _BATCH in told else told
        for told in differences(sides[0], sides[1])
    ]
    starts = {one[_START] for one in (stored, have) if _START in one}
    if len(starts) > 1:
        name = have["settings"].get("pretrained")
        found.append(f"it began from other pretrained weights than {name!r} has now")
    return found


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
