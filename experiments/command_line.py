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


def device_name(text: str) -> str:
    """Read a device that this machine has, for ``add_argument(type=...)``.

    >>> device_name("cpu")
    'cpu'
    """
    import torch

    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ArgumentTypeError(
            f"{text!r} is no device of this machine; use cpu, or cuda, cuda:1, mps or"
            " the like where there is one"
        ) from None
    return text
