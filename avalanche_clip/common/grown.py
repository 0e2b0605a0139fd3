"""Old values of a model, also in tensors that have grown since."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def corner(*tensors: Tensor) -> tuple[slice, ...]:
    """Return where the part that all tensors have lies in each of them.

    :param tensors: of as many dimensions each; rows are added at the end.

    >>> corner(torch.zeros(3, 2), torch.zeros(5, 1))
    (slice(0, 3, None), slice(0, 1, None))
    """
    sizes = zip(*(tensor.shape for tensor in tensors), strict=True)
    return tuple(slice(0, min(size)) for size in sizes)


def overlay(tensor: Tensor, old: Tensor) -> Tensor:
    """Return a copy of a tensor with ``old`` in its upper left corner.

    :param tensor: of the new shape.
    :param old: of as many dimensions, usually smaller; cut where it is larger.
    """
    grown, keep = tensor.detach().clone(), corner(tensor, old)
    grown[keep] = old[keep].to(grown)
    return grown


def fit_moment(value: Any, parameter: Tensor) -> Any:
    """Pad a moment with zeros to the shape of a grown parameter."""
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    if value.shape == parameter.shape or value.dim() != parameter.dim():
        return value
    return overlay(torch.zeros_like(parameter, dtype=value.dtype), value)


def aligned(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> tuple[Any, Any]:
    """Pair tensors of a name; of a grown one the part that both have.

    :return: two lists of tensors of equal shapes and types, those of the first
        being views of ``left``.
    """
    ours, theirs = [], []
    for name, value in left.items():
        other = right.get(name)
        if other is None or other.dim() != value.dim():
            continue
        block = corner(value, other)
        ours.append(value.detach()[block])
        theirs.append(other.detach()[block].to(value.dtype))
    return ours, theirs


def clones(model: nn.Module, *, trainable: bool = False) -> dict[str, Tensor]:
    """Copy what a model holds, by name.

    :param model: whose state dictionary is copied; parts that store nothing are the
        training's, not the model's.
    :param trainable: only the parameters that are trained.
    """
    named: dict[str, Tensor] = model.state_dict()
    if trainable:
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        named = {name: value for name, value in named.items() if name in trained}
    return {name: value.detach().clone() for name, value in named.items()}
