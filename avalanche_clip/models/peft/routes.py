"""Which router serves which row of a batch."""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

SKIP = -1
"""Router id under which the mixture gives zeros."""


class RouterIds(NamedTuple):
    """Router ids per row, and which of them occur.

    :param ids: integer tensor, shape ``(B,)``.
    :param present: the different ids in ascending order.
    """

    ids: Tensor
    present: tuple[int, ...]


def parse_router(router: Any) -> int | RouterIds:
    """Check router ids and note which of them occur.

    :param router: an int, or an integer tensor of shape ``()`` or ``(B,)``;
        -1 skips the mixture.
    :return: an int if there is only one id, else ids per row.
    :raises TypeError: for another type.
    :raises ValueError: for another shape, or an id below -1.
    """
    if isinstance(router, RouterIds):
        return router
    if isinstance(router, Tensor) and router.ndim > 0:
        whole = not (router.is_floating_point() or router.is_complex())
        if not whole or router.dtype is torch.bool:
            raise TypeError(f"Router ids have type {router.dtype}; give a LongTensor.")
        if router.ndim != 1:
            raise ValueError(
                f"Router ids have shape {tuple(router.shape)}; give one per row, (B,)."
            )
        present = tuple(torch.unique(router).tolist())
        if present:
            _check_lowest(present[0])
        return RouterIds(router.detach().long(), present)
    try:
        if isinstance(router, bool):
            raise TypeError
        single = operator.index(router)
    except TypeError as error:
        raise TypeError(
            f"router={router!r} is no router id; give an int or a LongTensor (B,)."
        ) from error
    _check_lowest(single)
    return single


def _check_lowest(router: int) -> None:
    if router < SKIP:
        raise ValueError(
            f"Router id {router} is out of range; use {SKIP} to skip the mixture, or 0"
            " and above."
        )
