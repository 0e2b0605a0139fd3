"""Join the many small tensors of a state into a few large ones, and back.

A file of hundreds of small tensors takes several times as long to write as one
of the same size that holds a few.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

LARGEST = 1 << 16
"""Bytes up to which a tensor is packed; larger ones need no second copy."""

_MARK = "__packed__"


def pack(state: Any) -> dict[str, Any]:
    """Replace small tensors by their place in one flat tensor per type.

    :param state: plain data; strings ``"__packed__"`` as a key are reserved.
    :return: ``{"tree", "flat"}``, readable with ``weights_only=True``.
    :raises ValueError: for a reserved key.
    """
    groups: dict[str, list[Tensor]] = {}
    sizes: dict[str, int] = {}
    known: dict[Any, Any] = {}
    kinds: dict[Any, str] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            return place(value)
        if isinstance(value, dict):
            if _MARK in value:
                raise ValueError(
                    f"The key {_MARK!r} of a state is reserved; rename it."
                )
            return {k: walk(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            items = [walk(v) for v in value]
            return items if isinstance(value, list) else tuple(items)
        return value

    def place(tensor: Tensor) -> Any:
        if (
            tensor.layout is not torch.strided
            or not tensor.numel()
            or tensor.numel() * tensor.element_size() > LARGEST
        ):
            return tensor
        shape = tuple(tensor.shape)
        # Tied weights are one tensor.
        same = (tensor.data_ptr(), shape, tensor.stride(), tensor.dtype, tensor.device)
        if same not in known:
            kind = kinds.get(same[-2:]) or kinds.setdefault(
                same[-2:], f"{tensor.dtype}, {tensor.device}"
            )
            start = sizes.get(kind, 0)
            flat = tensor if tensor.dim() == 1 else tensor.reshape(-1)
            groups.setdefault(kind, []).append(flat)
            sizes[kind] = start + tensor.numel()
            known[same] = {_MARK: [kind, start, tensor.numel(), list(shape)]}
        return known[same]

    tree = walk(state)
    return {"tree": tree, "flat": {k: torch.cat(v).cpu() for k, v in groups.items()}}


def unpack(packed: dict[str, Any]) -> Any:
    """Undo :func:`pack`; small tensors come back on the CPU.

    >>> unpack(pack({"a": [torch.arange(2), torch.ones(1)], "b": 3}))
    {'a': [tensor([0, 1]), tensor([1.])], 'b': 3}
    """
    flat = packed["flat"]

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            if _MARK in value:
                kind, start, count, shape = value[_MARK]
                return flat[kind][start : start + count].clone().view(shape)
            return {k: walk(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            items = [walk(v) for v in value]
            return items if isinstance(value, list) else tuple(items)
        return value

    return walk(packed["tree"])
