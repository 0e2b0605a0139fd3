"""Take back what a failed run did to a strategy."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


class _Remembered:
    """The contents of all mutable objects that an object refers to."""

    def __init__(self, root: Any):
        self.seen: dict[int, Any] = {}  # holds the objects, so that ids stay theirs
        self.undo: list[Callable[[], None]] = []
        self.device = _device()
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
        if isinstance(value, Tensor):
            self.undo.append(_undo_tensor(value))
        elif isinstance(value, np.ndarray):
            self.undo.append(_undo_array(value))
        elif isinstance(value, torch.Generator):
            state = value.get_state()
            self.undo.append(lambda: _set_state(value, state))
        elif isinstance(value, random.Random):
            drawn = value.getstate()
            self.undo.append(lambda: value.setstate(drawn))
        elif isinstance(value, (np.random.Generator, np.random.RandomState)):
            self.undo.append(_undo_numpy(value))
        elif isinstance(value, (dict, list, set, deque)):
            self.undo.append(_undo_container(value))
        if isinstance(value, dict):
            return [*value.keys(), *value.values(), *_attributes(self, value)]
        if isinstance(value, (list, tuple, set, frozenset, deque)):
            return [*value, *_attributes(self, value)]
        return _attributes(self, value)


def _attributes(remembered: _Remembered, value: Any) -> list[Any]:
    """Note the attributes of an object with state, and return their values."""
    fields = getattr(value, "__dict__", None)
    if type(fields) is not dict or not _has_state(value):
        return []
    remembered.undo.append(_undo_container(fields))
    return list(fields.values())


def _has_state(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return False
    if isinstance(value, nn.Module):
        return True
    kind = type(value)
    is_data = hasattr(kind, "__getitem__") and hasattr(kind, "__len__")
    if is_data and not isinstance(value, (dict, list, tuple, deque)):
        return False
    return not any(
        kind.__module__ == left or kind.__module__.startswith(left + ".")
        for left in _LEFT
    )


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


def _undo_tensor(value: Tensor) -> Callable[[], None]:
    strided = value.layout is torch.strided and not value.is_meta
    if value.grad_fn is not None or value.is_inference() or not strided:
        return _nothing  # the result of a step, not state
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


def _undo_array(value: np.ndarray) -> Callable[[], None]:
    if not value.flags.writeable or isinstance(value, np.memmap):
        return _nothing
    content = value.copy()
    return lambda: np.copyto(value, content)


def _undo_numpy(value: Any) -> Callable[[], None]:
    legacy = isinstance(value, np.random.RandomState)
    state = value.get_state() if legacy else value.bit_generator.state

    def undo() -> None:
        if legacy:
            value.set_state(state)
        else:
            value.bit_generator.state = state

    return undo


def _device() -> torch.device:
    """The GPU in use, or the CPU."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def _set_state(generator: torch.Generator, state: Tensor) -> None:
    generator.set_state(state)


def _nothing() -> None:
    """There is nothing to undo."""
