"""What the command lines of the studies share."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import extract_tb


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


def positive(text: str) -> int:
    """Read a number of 1 or more, for ``add_argument(type=...)``."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"{text!r} must be a whole number of 1 or more")
    return number


@contextmanager
def refusals(parser: ArgumentParser) -> Iterator[None]:
    """Say in one line what was refused: names, settings, weights, folders,
    rates that diverge.

    Errors that nobody raised in words are faults, and keep their traceback.
    """
    try:
        yield
    except (ValueError, FloatingPointError) as error:  # the latter: a loss is NaN
        raised = extract_tb(error.__traceback__)[-1].line or ""
        if not raised.startswith("raise "):
            raise
        parser.error(str(error))


def check_start(model: str, pretrained: str | None) -> None:
    """Raise ValueError for weights that there are not."""
    from avalanche_clip.models import create_dual_encoder

    create_dual_encoder(model, pretrained)
