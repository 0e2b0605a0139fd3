"""What the command lines of the studies share."""

from __future__ import annotations

import logging
import sys
import warnings
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from traceback import extract_tb
from typing import Any


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


def study_parser(
    description: str, methods: Sequence[str], pretrained: str
) -> ArgumentParser:
    """Return a parser with what every study over methods and seeds is asked.

    :param methods: the default ones.
    :param pretrained: the default weights.
    """
    parser = ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--methods", help=f"default {','.join(methods)}")
    parser.add_argument(
        "--seeds", type=seed_list, default="0", help="comma-separated numbers"
    )
    parser.add_argument("--out", help="folder of the runs")
    parser.add_argument("--device", type=device_name, default="cpu")
    parser.add_argument("--pretrained", default=pretrained, help="tag or file")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--search", action="store_true", help="choose settings, seed 0")
    return parser


def set_up(*ignored: str) -> None:
    """Flush the smallest numbers to zero, which is faster; messages are one line.

    :param ignored: beginnings of warnings that are left out, beside Avalanche's on
        missing loggers.
    """
    import torch

    torch.set_flush_denormal(True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for message in ("No loggers specified", *ignored):
        warnings.filterwarnings("ignore", message=message)


def run_stream(*arguments: Any, **options: Any) -> Any:
    """:func:`avalanche_clip.training.run_stream`, which says how far it is on
    standard error: the standard output of studies holds what they found.
    """
    from avalanche_clip.training import run_stream

    with redirect_stdout(sys.stderr):
        return run_stream(*arguments, **options)


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
