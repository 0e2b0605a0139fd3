"""What takes long is seen: a bar with the time left, on standard error.

All bars of the package are made here. One that is over within :data:`DELAY` is not
shown, so that small runs stay quiet; where standard error is a file, a bar moves every
:data:`INTERVALS` seconds only.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch.distributed as dist
from tqdm import tqdm

T = TypeVar("T")

DELAY = 1.0
"""Seconds before a bar is shown."""
INTERVALS = (10.0, 0.5)
"""Seconds between two changes of a bar, in a file and on a terminal."""

_silent: ContextVar[bool] = ContextVar("silent", default=False)


@contextmanager
def silenced() -> Iterator[None]:
    """Show no bar and say nothing inside the context."""
    before = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(before)


def shown() -> bool:
    """Whether this process shows anything: the main one, unless it was silenced."""
    joined = dist.is_available() and dist.is_initialized()
    return not _silent.get() and not (joined and dist.get_rank())


def bar(
    description: str,
    total: int | None = None,
    *,
    unit: str = "batch",
    delay: float = DELAY,
    leave: bool = False,
    file: Any = None,
    initial: int = 0,
) -> tqdm:
    """Open a bar; a ``with`` statement closes it.

    :param description: what takes long.
    :param total: number of units; None if it is not known, then no time left is shown.
    :param unit: what is counted.
    :param delay: seconds before it is shown.
    :param leave: whether the full bar stays when it is closed.
    :param file: default standard error.
    :param initial: units that were done before.
    """
    stream = sys.stderr if file is None else file
    terminal = bool(getattr(stream, "isatty", lambda: False)())
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        initial=initial,
        delay=delay,
        leave=leave,
        file=stream,
        mininterval=INTERVALS[terminal],
        dynamic_ncols=True,
        disable=not shown(),
    )


def progress(
    items: Iterable[T],
    description: str,
    total: int | None = None,
    *,
    unit: str = "batch",
) -> Iterator[T]:
    """Go through items, showing how far it is.

    :param items: anything to iterate over.
    :param description: what takes long.
    :param total: number of items; default their length, if they have one.
    :param unit: what an item is.

    >>> sum(progress([1, 2, 3], "sum", unit="number"))
    6
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    with bar(description, total, unit=unit) as seen:
        for item in items:
            yield item
            seen.update()


def say(sentence: str, file: Any = None) -> None:
    """Write a line that no bar runs through.

    :param sentence: without a line feed.
    :param file: default standard error.
    """
    if shown():
        tqdm.write(sentence, file=sys.stderr if file is None else file)
        (file or sys.stderr).flush()
