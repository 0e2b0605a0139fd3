"""Take back what a failed run did to a strategy."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avalanche_clip.common.randomness import rng_state, set_rng_state

# Data, files and machinery: they are not the strategy's state.
_LEFT = (
    "avalanche.benchmarks",
    "avalanche.logging",
    "avalanche_clip.benchmarks",
    "avalanche_clip.evaluation.loggers",
    "builtins",
    "concurrent",
    "enum",
    "functools",
    "io",
    "logging",
    "matplotlib",
    "multiprocessing",
    "pathlib",
    "PIL",
    "tensorboard",
    "threading",
    "torch._dynamo",
    "torch.distributed",
    "torch.fx",
    "torch.utils",
    "wandb",
    "weakref",
)
_ATOMS = (type(None), bool, int, float, complex, str, bytes, type)


@contextmanager
def undone_on_error(strategy: Any) -> Iterator[None]:
    """Put a strategy back as it was if what follows fails or is interrupted.

    Weights, modules, optimiser, plugins, metrics, counters, modes and random
    generators come back in place, so that objects which others hold stay the same;
    what loggers wrote stays written. Meanwhile the host's memory holds a copy of
    the weights and of the plugins' tensors.

    :param strategy: any object.
    """
    remembered = _Remembered(strategy)
    try:
        yield
    except BaseException:
        remembered.put_back()
        raise


@contextmanager
def undone(strategy: Any) -> Iterator[None]:
    """Put a strategy back as it was after what follows, whether it fails or not.

    :param strategy: see :func:`undone_on_error`.
    """
    remembered = _Remembered(strategy)
    try:
        yield
    finally:
        remembered.put_back()


_GENERATORS: dict[type, tuple[Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    torch.Generator: (torch.Generator.get_state, torch.Generator.set_state),
    random.Random: (random.Random.getstate, random.Random.setstate),
    np.random.RandomState: (
        np.random.RandomState.get_state,
        np.random.RandomState.set_state,
    ),
    np.random.BitGenerator: (
        lambda bits: bits.state,
        lambda bits, state: setattr(bits, "state", state),
    ),
}
"""How the state of a generator of random numbers is read and put back."""


class _Remembered:
    """The contents of all mutable objects that an object refers to."""

    def __init__(self, root: Any):
        self.seen: dict[int, Any] = {}  # holds the objects, so that ids stay theirs
        self.undo: list[Callable[[], None]] = []
        self.device = "cuda" if torch.cuda.is_initialized() else "cpu"
        self.rng = rng_state(self.device)
        waiting = [root]
        while waiting:
            value = waiting.pop()
            if not isinstance(value, _ATOMS) and id(value) not in self.seen:
                self.seen[id(value)] = value
                waiting.extend(self._remember(value))

    def put_back(self) -> None:
        """Give every object the contents that it had."""
        with torch.no_grad():
            for undo in self.undo:
                undo()
        set_rng_state(self.rng, self.device)

    def _remember(self, value: Any) -> list[Any]:
        """Note the contents of one object; return what it refers to."""
        parts: list[Any] = []
        if hasattr(value, "to_local"):  # the part of a tensor that processes share out
            value = value.to_local()
        if isinstance(value, Tensor):
            self._note(_undo_tensor(value))
        elif isinstance(value, np.ndarray):
            self._note(_undo_array(value))
        elif isinstance(value, np.random.Generator):
            parts = [value.bit_generator]
        elif isinstance(value, tuple(_GENERATORS)):
            self._note(_undo_generator(value))
        elif isinstance(value, (dict, list, set, deque)):
            self._note(_undo_container(value))
        if isinstance(value, dict):
            parts = [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple, set, frozenset, deque)):
            parts = [*value]
        fields = getattr(value, "__dict__", None)
        if type(fields) is dict and _has_state(type(value)):  # type: ignore[arg-type]
            self._note(_undo_container(fields))
            parts += fields.values()
        return parts

    def _note(self, undo: Callable[[], None] | None) -> None:
        if undo is not None:
            self.undo.append(undo)


@lru_cache(4096)
def _has_state(kind: type) -> bool:
    if issubclass(kind, (Tensor, np.ndarray)):
        return False
    if issubclass(kind, nn.Module):
        return True
    is_data = hasattr(kind, "__getitem__") and hasattr(kind, "__len__")
    if is_data and not issubclass(kind, (dict, list, tuple, deque)):
        return False
    return not any(f"{kind.__module__}.".startswith(f"{left}.") for left in _LEFT)


def _undo_container(value: Any) -> Callable[[], None]:
    """How a dict, list, set or deque gets back the same items in the same order."""
    items = list(value.items()) if isinstance(value, dict) else list(value)

    def undo() -> None:
        now = list(value.items()) if isinstance(value, dict) else list(value)
        if len(now) == len(items) and all(map(_same, now, items)):
            return
        value.clear()
        if isinstance(value, dict):  # a counter's update() would count the items
            for key, item in items:
                value[key] = item
        else:
            getattr(value, "update" if isinstance(value, set) else "extend")(items)

    return undo


def _same(left: Any, right: Any) -> bool:
    if type(left) is tuple and type(right) is tuple and len(left) == len(right):
        return all(a is b for a, b in zip(left, right))
    return left is right


def _undo_tensor(value: Tensor) -> Callable[[], None] | None:
    strided = value.layout is torch.strided and not value.is_meta
    if value.grad_fn is not None or value.is_inference() or not strided:
        return None  # the result of a step, not state
    needs, gradient = value.requires_grad, value.grad
    content = value.detach().to("cpu", copy=True)
    device = value.device

    def undo() -> None:
        before = content.to(device)
        if value.shape != before.shape or value.dtype != before.dtype:
            value.data = before
        elif not torch.equal(value.detach(), before):
            value.detach().copy_(before)
        if value.requires_grad != needs:
            value.requires_grad_(needs)
        value.grad = gradient

    return undo


def _undo_array(value: np.ndarray) -> Callable[[], None] | None:
    if not value.flags.writeable or isinstance(value, np.memmap):
        return None
    content = value.copy()
    return lambda: np.copyto(value, content)


def _undo_generator(value: Any) -> Callable[[], None]:
    get, put = next(v for k, v in _GENERATORS.items() if isinstance(value, k))
    state = get(value)
    return lambda: put(value, state)
