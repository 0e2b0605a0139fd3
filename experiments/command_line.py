"""What the command lines of the studies share."""

from __future__ import annotations

from argparse import ArgumentTypeError


def seed_list(text: str) -> list[int]:
    """Read comma-separated seeds, each once, for ``add_argument(type=...)``.

    >>> seed_list("2,0,2")
    [2, 0]
    """
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} must be numbers such as 0,1,2") from None


__all__ = ["seed_list"]
