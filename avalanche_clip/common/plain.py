"""Plain data: nested containers of numbers, texts and tensors."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Path = tuple[Any, ...]
_NONE = object()
_LONG = 100
_ATOMS = (bool, int, float, str, type(None))


def mapped(
    value: Any,
    leaf: Callable[[Any, Path], Any],
    *,
    mark: Any = _NONE,
    key: Callable[[Any, Path], Any] | None = None,
) -> Any:
    """Rebuild nested dicts, lists and tuples with other leaves.

    Subclasses of these containers become dicts, lists and tuples.

    :param value: nested data.
    :param leaf: called with each leaf and its path, keys and indices, in order.
    :param mark: dicts with this key are leaves.
    :param key: called with each key that is not of a type of Python's numbers and
        texts, and the path of its dict; returns the new one.

    >>> mapped({"a": (1, [2])}, lambda leaf, path: leaf + 1)
    {'a': (2, [3])}
    """

    def walk(value: Any, path: Path) -> Any:
        kind = type(value)
        if kind in _ATOMS:  # nearly all values are: spare them the slow questions
            return leaf(value, path)
        if kind is dict or isinstance(value, Mapping):
            if mark in value:
                return leaf(value, path)
            return {
                k if key is None or type(k) in _ATOMS else key(k, path): walk(
                    v, (*path, k)
                )
                for k, v in value.items()
            }
        if isinstance(value, (list, tuple)):
            items = [walk(v, (*path, i)) for i, v in enumerate(value)]
            return items if isinstance(value, list) else tuple(items)
        return leaf(value, path)

    return walk(value, ())


def strict(value: Any) -> Any:
    """Replace NaN and infinity by null, which strict JSON readers accept.

    >>> strict({"E": [0.5, float("nan")]})
    {'E': [0.5, None]}
    """

    def finite(leaf: Any, path: Path) -> Any:
        return None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf

    return mapped(value, finite)


def as_stored(value: Any) -> Any:
    """What JSON gives back of plain data; numbers that are not finite as text.

    Numbers of numpy and of tensors count as Python's.
    """
    if isinstance(value, dict):
        return {str(k): as_stored(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_stored(v) for v in value]
    value = as_number(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def is_plain(value: Any) -> bool:
    """Whether a value is a number, text, bool or None, or is nested of them."""
    if isinstance(value, Mapping):
        keys = all(isinstance(key, _ATOMS) for key in value)
        return keys and all(map(is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return isinstance(value, _ATOMS)


def as_number(value: Any) -> Any:
    """A tensor or NumPy value that holds one number, as that number."""
    one = hasattr(value, "item") and (getattr(value, "shape", None) in ((), (1,)))
    return value.item() if one else value


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

    def leaf(value: Any, path: Path, what: str = "") -> Any:
        if type(value) in _ATOMS:
            return value
        if isinstance(value, Tensor):
            if value.requires_grad or type(value) is not Tensor:
                value = value.detach()
            if value.untyped_storage().nbytes() > value.numel() * value.element_size():
                value = value.clone(memory_format=torch.contiguous_format)
            return value
        if isinstance(value, np.generic):
            value = value.item()
        for kind in (str, bool, int, float):
            if isinstance(value, kind):
                return kind(value)
        place = where + "".join(f"[{part!r}]" for part in path)
        raise TypeError(
            f"{what}{place} is a {type(value).__module__}.{type(value).__qualname__}; "
            "checkpoints hold tensors, numbers, strings, and dicts, lists and tuples "
            "of them. Convert it in state_dict()."
        )

    def of_keys(value: Any, path: Path) -> Any:
        return mapped(value, lambda part, _: leaf(part, path, "a key of "))

    return mapped(value, leaf, key=of_keys)


def device_paths(value: Any) -> list[list[Any]]:
    """Paths of the tensors in plain data that are not on the CPU."""
    found: list[list[Any]] = []

    def note(leaf: Any, path: Path) -> None:
        if isinstance(leaf, Tensor) and leaf.device.type != "cpu":
            found.append(list(path))

    mapped(value, note)
    return found


def moved(value: Any, device: torch.device, paths: list[list[Any]] | None) -> Any:
    """Move tensors in plain data to a device.

    :param value: the data.
    :param device: where to.
    :param paths: of the tensors, see :func:`device_paths`; None for all of floating
        point.
    """
    chosen = None if paths is None else {tuple(path) for path in paths}

    def move(leaf: Any, path: Path) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        wanted = leaf.is_floating_point() if chosen is None else path in chosen
        return leaf.to(device) if wanted else leaf

    return mapped(value, move)


def kept_arguments(thing: Any) -> dict[str, Any]:
    """Arguments of the constructors of an object that it has kept as plain data."""
    kind: Any = type(thing)
    names = _argument_names(kind)
    have = {k: getattr(v, "identity", v) for k, v in vars(thing).items() if k in names}
    plain = {k: as_number(v) for k, v in sorted(have.items())}
    return {k: _brief(v) for k, v in plain.items() if is_plain(v)}


@cache
def _argument_names(kind: Any) -> frozenset[str]:
    """Names of the arguments of the constructors of a class and its bases."""
    made = [vars(cls)["__init__"] for cls in kind.__mro__ if "__init__" in vars(cls)]
    return frozenset(
        name for init in made for name in inspect.signature(init).parameters
    )


def _brief(value: Any) -> Any:
    """A long list, such as one of captions, as its length and a hash."""
    if not isinstance(value, (list, tuple)) or len(value) <= _LONG:
        return value
    digest = hashlib.sha256(repr(list(value)).encode("utf-8", "backslashreplace"))
    return f"{len(value)} values, {digest.hexdigest()[:16]}"
