"""Processes that stay in step, or all stop with words.

Each meets the others at named places (:func:`exchange`): before a training, in
each step, at its end. Messages go over a gloo group of their own, on the CPU, so
that a rank that is elsewhere is told from one that is lost.
"""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor

DEFAULT_TIMEOUT = 1800.0
"""Seconds that processes wait for each other, unless told otherwise."""

_PLACE, _INLINE = 120, 1000
_HEAD = 4 * _PLACE + _INLINE + 200  # bytes of a message: place, flag, size, content
_SHOWN = 160  # characters of a value in a message
_BACKEND_WORDS = ("gloo", "nccl", "processgroup", "connection closed by peer")


class RankError(RuntimeError):
    """Another process differs, has failed, is gone, or is elsewhere in the run."""


class _State:
    """The group for messages, which belongs to one default group."""

    world: Any = None
    group: Any = None
    meetings = 0
    asked = False
    stopping = False


# ---------------------------------------------------------------------- stopping
def ask_to_stop(asked: bool = True) -> None:
    """Note that this process is to stop, which the others learn when they next meet.

    :param asked: False takes it back, on all processes.
    """
    _State.asked = asked
    _State.stopping = asked and _State.stopping


def asked_to_stop() -> bool:
    """Tell whether this process is to stop."""
    return _State.asked


def stopping() -> bool:
    """Tell whether all are to stop: one was asked to before they last met."""
    return _State.stopping if is_distributed() else _State.asked


# --------------------------------------------------------------------- the group
def require_joined() -> None:
    """Raise in a process that was started as one of several but runs alone.

    :raises RuntimeError: if ``WORLD_SIZE`` is above 1 and no process group runs.
    """
    count = os.environ.get("WORLD_SIZE", "").strip()
    started = int(count) if count.isdigit() else 1
    if started > 1 and not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            f"WORLD_SIZE={started}: this is rank {os.environ.get('RANK', '?')} of "
            f"{started} processes (torchrun), but they have not been joined, so each "
            "would run alone and write over the others' files. Call "
            "avalanche_clip.distributed.init_distributed() at the beginning of the "
            "script, before the model and the strategy are made. For runs that are "
            "meant to be apart, delete WORLD_SIZE from os.environ."
        )


def is_distributed() -> bool:
    """Tell whether a process group of more than one process is running.

    :raises RuntimeError: see :func:`require_joined`.
    """
    if not (dist.is_available() and dist.is_initialized()):
        require_joined()
        return False
    return dist.get_world_size() > 1


def rank() -> int:
    """Number of this process, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def group_timeout() -> float:
    """Seconds that the processes of the running group wait for each other."""
    for kind in ("cuda", "cpu"):
        with suppress(Exception):  # a group may know one kind only
            backend = dist.group.WORLD._get_backend(torch.device(kind))  # type: ignore[union-attr]
            return float(backend.options._timeout.total_seconds())
    return DEFAULT_TIMEOUT


def control_group() -> Any:
    """The group for messages; all processes must ask for it together."""
    world = dist.group.WORLD
    if _State.world is not world:
        wait = timedelta(seconds=group_timeout())
        _State.group = dist.new_group(backend="gloo", timeout=wait)
        _State.world = world
    return _State.group


# -------------------------------------------------------------------- exchanging
def exchange(place: str, value: Any = None) -> list[Any]:
    """Give every process the values of all.

    :param place: where in the run this is, the same on each process.
    :param value: anything that can be pickled.
    :return: the values by rank; one process gets its own back.
    :raises RankError: if a process is at another place, or does not answer.
    """
    return _exchange(place, value, failed=False)


def _exchange(place: str, value: Any, failed: bool) -> list[Any]:
    if not is_distributed():
        return [value]
    content = pickle.dumps(value)
    inline = content if len(content) <= _INLINE else b""
    head = pickle.dumps((place[:_PLACE], failed, _State.asked, len(content), inline))
    with guarded(place):
        group = control_group()
        heads = [pickle.loads(row) for row in _gather_bytes(head, _HEAD, group)]
        _State.meetings += 1
        _require_together(heads)
        _State.stopping = any(asked for _, _, asked, *_ in heads)
        found = [inline for *_, inline in heads]
        if not all(found):
            found = _gather_bytes(content, max(size for *_, size, _ in heads), group)
    return [pickle.loads(part) for part in found]  # what follows is not read


def _gather_bytes(own: bytes, size: int, group: Any) -> list[bytes]:
    row = torch.zeros(size, dtype=torch.uint8)
    row[: len(own)] = torch.frombuffer(bytearray(own), dtype=torch.uint8)
    rows: list[Tensor] = [torch.empty_like(row) for _ in range(world_size())]
    dist.all_gather(rows, row, group=group)
    return [part.numpy().tobytes() for part in rows]


def _require_together(heads: list[tuple[str, bool, bool, int, bytes]]) -> None:
    """Raise unless all processes are at the same place."""
    places = [place for place, *_ in heads]
    other = next((k for k, place in enumerate(places) if place != places[0]), None)
    if other is None:
        return
    for number, (place, failed, *_, text) in enumerate(heads):
        if failed and number != rank():
            raise RankError(f"rank {number} stopped in {place}: {pickle.loads(text)}")
    raise RankError(
        f"The processes are out of step: rank 0 is at {places[0]!r}, rank {other} at "
        f"{places[other]!r}. All must make the same calls with the same data and "
        "settings, stop training at the same step, and not go on after an error that "
        "only one of them has met."
    )


@contextmanager
def together(place: str) -> Iterator[None]:
    """Do something on each process; an error of one of them stops all.

    :param place: where in the run this is.
    :raises RankError: on the others, with the error of the one that failed.
    """
    error: Exception | None = None
    try:
        yield
    except RankError:
        raise  # the others know
    except Exception as failure:
        error = failure
    if not is_distributed():
        if error is not None:
            raise error
        return
    text = None if error is None else _describe(error)
    try:
        found = _exchange(place, text, failed=error is not None)
    except RankError as lost:
        raise (error or lost) from None
    if error is not None:
        raise error
    for number, text in enumerate(found):
        if text is not None:
            raise RankError(f"rank {number} stopped in {place}: {text}")


def _describe(error: BaseException) -> str:
    text = f"{type(error).__name__}: {error}".encode(errors="backslashreplace")
    return text[: _INLINE - 100].decode(errors="ignore")


# --------------------------------------------------------------------- comparing
def agree(
    place: str,
    facts: Callable[[], Mapping[str, Any]],
    detail: Callable[[str], Any] | None = None,
) -> None:
    """Stop all processes if they do not say the same.

    :param place: where in the run this is.
    :param facts: makes what is compared: values with a useful ``repr``, the most
        telling first. Not called in a single process.
    :param detail: called with the key of a hash that differs, on all processes;
        returns a sequence in which the first difference is looked for.
    :raises RankError: naming the first key that differs, with both values.
    """
    if not is_distributed():
        return
    with together(place):
        own = {key: repr(value) for key, value in facts().items()}
    digest = hash_of(repr(sorted(own.items())).encode("utf-8", "backslashreplace"))
    if len(set(exchange(f"{place}, comparing", digest))) == 1:
        return
    found = exchange(f"{place}, telling", own)
    keys = list(dict.fromkeys(key for one in found for key in one))
    key, other = next(
        (key, number)
        for key in keys
        for number, one in enumerate(found)
        if one.get(key) != found[0].get(key)
    )
    values = [found[number].get(key, "absent") for number in (0, other)]
    if detail is not None:
        with together(place):
            mine = detail(key)
        rows = exchange(f"{place}, details", mine)
        if rows[0] is not None and rows[other] is not None:
            key, values = _first_difference(key, values, rows[0], rows[other])
    raise RankError(
        f"The processes differ in {key} at {place}: {_shown(*values)} on rank 0, "
        f"{_shown(*values[::-1])} on rank {other}. All must run the same script on the "
        "same data with the same settings, seed and initial weights."
    )


def hash_of(content: Any) -> str:
    """Short hash of bytes or of an array."""
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _first_difference(
    key: str, values: list[str], left: Any, right: Any
) -> tuple[str, list[str]]:
    """Where two sequences of one length differ first, and what is there."""
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        unequal = (left != right) & ~((left != left) & (right != right))  # not NaN
        rows = np.flatnonzero(unequal).tolist()[:1]
    else:
        pairs = enumerate(zip(left, right, strict=False))
        rows = [row for row, (a, b) in pairs if a != b][:1]
    for row in rows:
        return f"{key}, row {row}", [str(left[row]), str(right[row])]
    return key, values


def _shown(text: str, other: str) -> str:
    """A value, cut to the part where it differs from the other."""
    if len(text) <= _SHOWN:
        return text
    pairs = enumerate(zip(text, other, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), 0)
    start = max(0, at - _SHOWN // 2)
    return f"...{text[start : start + _SHOWN]}..."


# ------------------------------------------------------------------------ errors
@contextmanager
def guarded(place: str) -> Iterator[None]:
    """Turn the backend's errors into ours, and let the others know of own ones.

    :param place: where in the run this is.
    :raises RankError: if another process has failed or does not answer.
    """
    try:
        yield
    except RankError:
        raise
    except BaseException as error:
        if not (dist.is_available() and dist.is_initialized()):
            raise
        if _from_backend(error):
            raise RankError(_lost(place)) from error
        _report(place, error)
        raise


def _from_backend(error: BaseException) -> bool:
    if isinstance(error, dist.DistError):
        return True
    text = str(error).lower()
    return type(error) is RuntimeError and any(w in text for w in _BACKEND_WORDS)


def _lost(place: str) -> str:
    told = _reports()
    return (
        f"rank {dist.get_rank()} of {dist.get_world_size()} has lost another rank at "
        f"{place}: it failed, ended early, or did not answer within "
        f"{group_timeout():g} s. {told or 'No rank has told an error.'} Look at the "
        "first error in the output of the other ranks, and whether all have equally "
        "many steps. If they are only slow, give a longer init_distributed(timeout="
        "...)."
    )


def _key(number: int) -> str:
    return f"avalanche_clip/error/{number}"


def _report(place: str, error: BaseException) -> None:
    """Leave a note for the others: nobody waits for it."""
    if dist.get_world_size() == 1:
        return
    text = f"{_State.meetings}|{_describe(error)} (at {place})"
    with suppress(Exception):
        c10d._get_default_store().set(_key(dist.get_rank()), text)


def _reports() -> str:
    """What other processes have noted since they were last seen."""
    found = []
    with suppress(Exception):  # it ends with the process that holds it
        store = c10d._get_default_store()
        for number in range(dist.get_world_size()):
            if number != dist.get_rank() and store.check([_key(number)]):
                at, _, text = store.get(_key(number)).decode().partition("|")
                if int(at) >= _State.meetings - 1:  # else it was survived
                    found.append(f"rank {number} has told: {text}.")
    return " ".join(found)
