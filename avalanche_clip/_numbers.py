"""Numbers given by users: nothing is cut off, read from text, or not a number."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from typing import Any


def as_integer(value: Any, what: str) -> int:
    """Return an integer as Python's own.

    :param value: an ``int``, or an integer of numpy or of a 0-d tensor.
    :param what: what it is, for the message.
    :raises ValueError: for anything else, such as ``1.0``, ``"1"`` or ``True``.

    >>> import numpy as np
    >>> as_integer(np.int64(3), "order")
    3
    """
    flag = "bool" in (type(value).__name__, str(getattr(value, "dtype", "")))
    flag = flag or str(getattr(value, "dtype", "")) == "torch.bool"
    if not flag and getattr(value, "ndim", 0) == 0:
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise ValueError(
        f"{what} is {value!r}, of type {type(value).__name__}; give an integer."
    )


def as_size(value: Any, what: str, *, least: int = 1, hint: str = "") -> int:
    """Return a number of things as Python's integer, at least ``least``.

    :param value: see :func:`as_integer`; neither a flag nor a float.
    :param what: name of the argument, for the message.
    :param least: smallest number allowed.
    :param hint: what else the argument may be, for the message.
    :raises ValueError: for anything else.

    >>> as_size(4, "chunk_size")
    4
    """
    try:
        number = as_integer(value, what)
    except ValueError:
        number = least - 1
    if number < least:
        also = f" ({hint})" if hint else ""
        raise ValueError(f"{what}={value!r} must be an integer >= {least}{also}.")
    return number


def as_integers(values: Iterable[Any], what: str) -> list[int]:
    """Return integers as a list, see :func:`as_integer`.

    :param values: a list, array or one-dimensional tensor; no string.
    :param what: what they are, for the message.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{what}={values!r} must be a list of integers.")
    return [as_integer(value, f"An entry of {what}") for value in values]


def as_finite(
    value: Any,
    what: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    hint: str = "",
) -> float:
    """Return a number as Python's float, finite and within bounds.

    :param value: a number, of numpy or of a 0-d tensor too; no flag, no text.
    :param what: name of the argument, for the message.
    :param low: smallest number allowed.
    :param high: largest number allowed.
    :param above: number that it must exceed.
    :param below: number that it must stay below.
    :param hint: what else the argument may be, for the message.
    :raises ValueError: for anything else, NaN and infinity included.

    >>> as_finite(1, "margin", low=0), as_finite(0.5, "fraction", above=0, high=1)
    (1.0, 0.5)
    """
    number = math.nan
    kind = str(getattr(value, "dtype", type(value).__name__))
    if "bool" not in kind and not isinstance(value, (str, bytes)):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    # Comparisons with NaN are false.
    if math.isfinite(number) and low <= number <= high and above < number < below:
        return number
    also = f" ({hint})" if hint else ""
    left, right = max(low, above), min(high, below)
    if math.isfinite(right):
        start, end = "[" if left == low else "(", "]" if right == high else ")"
        wanted = f"lie in {start}{left:g}, {right:g}{end}"
    elif left == 0:
        wanted = "not be negative, and finite" if low == 0 else "be positive and finite"
    else:
        wanted = "be a finite number"
        wanted += f" of at least {left:g}" if math.isfinite(left) else ""
    raise ValueError(f"{what}={value!r} must {wanted}{also}.")


__all__ = ["as_finite", "as_integer", "as_integers", "as_size"]
