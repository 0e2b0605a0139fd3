"""Mixtures of bottleneck experts, computed without copying activations.

Every row keeps k experts and mixes their outputs:

    y[b, l] = sum over kept e of g[b, e] * s * (U_e act(V_e x[b, l] + c_e) + d_e)

Four ways give the same values up to rounding, and :func:`choose_path` picks one
by shape:

- ``"gather"``: the weights of a row's experts are gathered and the sum over
  experts is part of one batched product, so no activation is copied k times;
- ``"dense"``: all experts that any row keeps are one wide adapter, gates of the
  others are 0; exact arithmetic cost when all rows keep the same experts;
- ``"segments"``: per expert, the rows that keep it;
- ``"reference"``: plain autograd code, a loop over experts.

The first three save the input and the hidden activations only (the input is
kept by its producer anyway) and rebuild the rest in the backward pass. Experts
that no row keeps take no part in the graph: their gradient stays None. Each
tensor of each expert is its own leaf.

Shapes: B rows, L tokens, D width, E experts, n of them active, k kept per row,
b bottleneck.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from avalanche_clip.common.checks import require_choice
from avalanche_clip.models.moe.gating import Routing
from avalanche_clip.models.moe.kernels import KERNELS, Mixture, MixtureRule, streamable

ACTIVATIONS = ("relu", "identity")
PATHS = ("gather", "dense", "segments", "reference")


class ExpertTensors(NamedTuple):
    """The tensors of one expert.

    :param down_weight: V, shape ``(b, D)``.
    :param down_bias: c, shape ``(b,)``, or None.
    :param up_weight: U, shape ``(D, b)``.
    :param up_bias: d, shape ``(D,)``, or None.
    """

    down_weight: Tensor
    down_bias: Tensor | None
    up_weight: Tensor
    up_bias: Tensor | None


def choose_path(
    rows: int, tokens: int, width: int, *, active: int, top_k: int, bottleneck: int
) -> str:
    """Pick the fastest way to compute a mixture of this shape.

    :param rows: B.
    :param tokens: L.
    :param width: D.
    :param active: number of experts that any row keeps.
    :param top_k: k.
    :param bottleneck: b.
    :return: ``"dense"``, ``"gather"`` or ``"segments"``.

    Source: our measurements (``benchmarks/moe_dispatch.py``). Gathering copies
    ``2 B k b D`` weights, per-expert segments ``2 k B L D`` activations, and
    the dense form does ``active / k`` times the arithmetic.

    >>> choose_path(64, 197, 768, active=22, top_k=2, bottleneck=64)
    'gather'
    >>> choose_path(100, 77, 512, active=2, top_k=2, bottleneck=64)
    'dense'
    """
    if active <= top_k:
        return "dense"
    if top_k * bottleneck <= 2 * tokens or rows * tokens * width < 100_000:
        return "gather"
    return "segments"


def mix_experts(
    x: Tensor,
    routing: Routing,
    experts: Sequence[ExpertTensors],
    rule: MixtureRule,
    *,
    path: str | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Compute the mixture for every token, forward and backward.

    Under autocast the products are taken in its type, otherwise in the widest
    type of input and weights.

    :param x: floating point, shape ``(B, L, D)``; any strides, also a
        transposed ``(L, B, D)``.
    :param routing: kept experts and weights of every row.
    :param experts: all E experts.
    :param rule: scale, activation and dropout.
    :param path: one of ``PATHS``; None lets :func:`choose_path` decide.
    :param counts: ``routing.counts()`` if known already.
    :return: type and shape of ``x``. First derivatives only, except on the
        ``"reference"`` path.
    :raises ValueError: for an unknown path.
    """
    require_choice("path", path, (*PATHS, None))
    rows, tokens, width = x.shape
    if not rows or not tokens:
        return x * 0.0
    top_k = routing.indices.shape[1]
    active = _active_experts(routing, len(experts), counts)
    chosen = [experts[e] for e in active]
    if path is None:
        bottleneck = chosen[0].down_weight.shape[0]
        path = choose_path(
            rows, tokens, width, active=len(active), top_k=top_k, bottleneck=bottleneck
        )
    slots = routing.indices
    if len(active) < len(experts):
        place = [0] * len(experts)
        for number, expert in enumerate(active):
            place[expert] = number
        slots = torch.tensor(place, device=slots.device)[slots]
    compute = _compute_type(x, chosen[0].down_weight)
    with torch.autocast(x.device.type, enabled=False):
        inputs = streamable(x.to(compute))
        weights = routing.weights
        if path == "reference":
            return _reference(inputs, weights, slots, chosen, rule).to(x.dtype)
        apply: Any = Mixture.apply
        out = apply(KERNELS[path], inputs, weights, slots, rule, *_flatten(chosen))
    return out.to(x.dtype)


def _active_experts(routing: Routing, experts: int, counts: Tensor | None) -> list[int]:
    """Experts that a row keeps; with k < E the host waits for the device."""
    if routing.indices.shape[1] == experts:
        return list(range(experts))
    counts = routing.counts() if counts is None else counts
    return [e for e, n in enumerate(counts.tolist()) if n]


def _compute_type(x: Tensor, weight: Tensor) -> torch.dtype:
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype is not torch.float64:
        return torch.get_autocast_dtype(kind)
    return torch.promote_types(x.dtype, weight.dtype)


def _flatten(experts: Sequence[ExpertTensors]) -> list[Tensor | None]:
    # by kind: all V, all c, all U, all d
    return [tensor for kind in zip(*experts, strict=True) for tensor in kind]


def _reference(
    x: Tensor,
    weights: Tensor,
    slots: Tensor,
    experts: Sequence[ExpertTensors],
    rule: MixtureRule,
) -> Tensor:
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    for number, expert in enumerate(experts):
        rows, position = torch.where(slots == number)
        gates = weights[rows, position].to(x.dtype)[:, None, None]
        y = expert_output(x[rows], expert, rule)
        out = out.index_add(0, rows, gates * y)
    return out


def expert_output(x: Tensor, expert: ExpertTensors, rule: MixtureRule) -> Tensor:
    """Apply one expert to every token, in plain autograd code.

    :param x: shape ``(..., D)``.
    :param expert: its tensors.
    :param rule: scale, activation and dropout.
    :return: shape of ``x``.
    """
    tensors = [None if t is None else t.to(x.dtype) for t in expert]
    down_weight, down_bias, up_weight, up_bias = tensors
    hidden = torch.nn.functional.linear(x, down_weight, down_bias)  # type: ignore
    if rule.activation == "relu":
        hidden = hidden.relu()
    hidden = torch.nn.functional.dropout(hidden, rule.dropout)
    return rule.scale * torch.nn.functional.linear(hidden, up_weight, up_bias)  # type: ignore
