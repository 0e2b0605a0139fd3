"""Let plugins choose the adapters of a batch that is encoded outside the loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def routed(strategy: Any, batch: Any) -> Iterator[None]:
    """Route a batch in a ``with`` block as in training and evaluation.

    Plugins with ``route_batch(strategy, batch)`` choose what its samples pass; those
    with ``end_route(strategy)`` go back to the base model.

    :param strategy: whose plugins are asked.
    :param batch: about to be encoded.
    """
    for route_batch in strategy._hooks("route_batch"):
        route_batch(strategy, batch)
    try:
        yield
    finally:
        for end_route in strategy._hooks("end_route"):
            end_route(strategy)
