"""Sizes given by users: whole numbers, never switches."""

from __future__ import annotations

import operator
from typing import Any


def as_size(value: Any, name: str, least: int = 1) -> int:
    """Return a size as Python's own integer.

    :param value: an ``int``, or an integer of numpy or of a 0-d tensor.
    :param name: of the argument, for the message.
    :param least: smallest size that makes sense.
    :raises ValueError: for smaller ones and for anything else, such as ``True``,
        ``2.0``, ``"2"`` or None.

    >>> as_size(3, "top_k")
    3
    """
    kind = str(getattr(value, "dtype", type(value).__name__))
    if "bool" not in kind and getattr(value, "ndim", 0) == 0:
        try:
            size = operator.index(value)
        except TypeError:
            size = least - 1
        if size >= least:
            return size
    raise ValueError(
        f"{name}={value!r} (a {type(value).__name__}) is refused; give a whole number, "
        f"{least} or more."
    )


__all__ = ["as_size"]
