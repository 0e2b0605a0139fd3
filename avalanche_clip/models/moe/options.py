"""Which options of an expert mixture are allowed."""

from __future__ import annotations

from numbers import Integral

from avalanche_clip.common.checks import as_finite, require_choice
from avalanche_clip.models.moe.dispatch import ACTIVATIONS

NUM_EXPERTS = 22
"""Published size of the pool: two experts per data set of MTIL."""
ROUTER_INPUTS = ("first", "mean")
RANKINGS = ("all", "unfrozen")


def check_sizes(width: int, num_experts: int, top_k: int, bottleneck: int) -> None:
    """Check the integers.

    :raises TypeError: if one is no integer.
    :raises ValueError: if one is out of range.
    """
    sizes = {"width": width, "num_experts": num_experts, "bottleneck": bottleneck}
    for name, value in (sizes | {"top_k": top_k}).items():
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError(f"{name}={value!r} is no integer; choose 1 or more.")
        if value < 1:
            raise ValueError(f"{name}={value} is too small; choose 1 or more.")
    if top_k > num_experts:
        raise ValueError(
            f"top_k={top_k} exceeds num_experts={num_experts}; choose top_k <="
            " num_experts."
        )


def check_options(
    scale: float, dropout: float, activation: str, router_input: str, floor: float
) -> None:
    """Check the other options.

    :raises ValueError: if one is out of range.
    """
    as_finite(dropout, "dropout", low=0, high=1)
    as_finite(scale, "scale")
    require_choice("activation", activation, ACTIVATIONS)
    require_choice("router_input", router_input, ROUTER_INPUTS)
    as_finite(floor, "noise_floor", low=0)
