"""Forward and backward passes of expert mixtures, by shape of the problem.

All kernels save the input and the hidden activations only and rebuild the rest
in the backward pass. Single tensors of single experts are inputs of their own,
so that experts left out get no gradient.

Shapes: B rows, L tokens, D width, n experts given, k kept per row, b bottleneck.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class MixtureRule:
    """What all experts of a mixture share.

    :param scale: factor s of every expert's output.
    :param activation: ``"relu"`` or ``"identity"``.
    :param dropout: probability for hidden activations; 0 outside training.
    """

    scale: float = 0.1
    activation: str = "relu"
    dropout: float = 0.0


def streamable(tensor: Tensor) -> Tensor:
    """Return a tensor whose rows or tokens lie one after the other in memory."""
    plain = tensor.is_contiguous() or tensor.transpose(0, 1).is_contiguous()
    return tensor if plain else tensor.contiguous()


Params = Sequence[Tensor | None]
Outputs = tuple[Tensor, Tensor, Tensor | None]
Gradients = tuple[Tensor | None, Tensor | None, Params]


class _Stacks(NamedTuple):
    """Tensors of the active experts in one piece each."""

    down: Tensor  # (n, b, D)
    down_bias: Tensor | None  # (n, b)
    up: Tensor  # (n, b, D), transposed
    up_bias: Tensor | None  # (n, D)


def _kinds(params: Params) -> list[list[Any]]:
    """Cut parameters into V, c, U and d of the active experts."""
    count = len(params) // 4
    return [list(params[i * count : (i + 1) * count]) for i in range(4)]


def _stack(params: Params, dtype: torch.dtype) -> _Stacks:
    kinds = _kinds(params)
    count, width = len(kinds[2]), kinds[2][0].shape[0]
    joined = [None if k[0] is None else torch.cat(k).to(dtype) for k in kinds]
    down, down_bias, up, up_bias = joined
    assert down is not None and up is not None
    return _Stacks(
        down.view(count, -1, width),
        None if down_bias is None else down_bias.view(count, -1),
        up.view(count, width, -1).transpose(1, 2).contiguous(),
        None if up_bias is None else up_bias.view(count, width),
    )


def _activate(hidden: Tensor, rule: MixtureRule) -> tuple[Tensor, Tensor | None]:
    """Apply activation and dropout in place; a mask only if it cannot be derived."""
    if rule.activation == "relu":
        hidden = hidden.relu_()
    if not rule.dropout:
        return hidden, None
    hidden, mask = torch.native_dropout(hidden, rule.dropout, True)
    # After a ReLU what was dropped is 0 and has no gradient in either case.
    return hidden, None if rule.activation == "relu" else mask


def _to_preactivation(
    grad: Tensor, hidden: Tensor, mask: Tensor | None, rule: MixtureRule
) -> Tensor:
    """Gradient before activation and dropout, without the factor of kept units."""
    if rule.activation == "relu":
        return torch.ops.aten.threshold_backward(grad, hidden, 0)
    return grad if mask is None else grad * mask


def _keep_factor(rule: MixtureRule) -> float:
    return 1.0 / (1.0 - rule.dropout) if rule.dropout < 1.0 else 0.0


def _unstack(grads: _Stacks, saved: Saved) -> list[Tensor | None]:
    """Hand stacked gradients to the single tensors that want one."""
    up = grads.up.transpose(1, 2).contiguous()
    parts: list[Tensor | None] = []
    for stacked in (grads.down, grads.down_bias, up, grads.up_bias):
        count = len(saved.params) // 4
        parts += [None] * count if stacked is None else stacked.unbind(0)
    return _wanted(parts, saved)


def _wanted(grads: Sequence[Tensor | None], saved: Saved) -> list[Tensor | None]:
    """Gradients that were asked for, in the types of their parameters."""
    return [
        None if grad is None or not want else grad.to(parameter.dtype)
        for grad, want, parameter in zip(grads, saved.needed, saved.params, strict=True)
    ]


class Saved(NamedTuple):
    """What a backward pass starts from."""

    x: Tensor
    hidden: Tensor
    mask: Tensor | None
    weights: Tensor
    slots: Tensor
    rule: MixtureRule
    params: Sequence[Any]
    wants_x: bool
    wants_weights: bool
    needed: list[bool]  # per parameter


class Kernel(NamedTuple):
    """One way to compute a mixture.

    :param forward: ``(x, weights, slots, rule, params)`` to output, hidden
        activations and dropout mask.
    :param backward: ``(saved, grad)`` to gradients of input, weights and params.
    """

    forward: Callable[..., Outputs]
    backward: Callable[[Saved, Tensor], Gradients]


class Mixture(torch.autograd.Function):
    """A mixture of experts by one of the kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        x: Tensor,
        weights: Tensor,
        slots: Tensor,
        rule: MixtureRule,
        *params: Tensor | None,
    ) -> Tensor:
        out, hidden, mask = kernel.forward(x, weights, slots, rule, params)
        ctx.save_for_backward(x, hidden, mask, weights, slots, *params)
        ctx.kernel, ctx.rule = kernel, rule
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        tensors = ctx.saved_tensors  # unpacked anew by each access
        _, wants_x, wants_weights, _, _, *needed = ctx.needs_input_grad
        first: Any = (*tensors[:5], ctx.rule, tensors[5:], wants_x, wants_weights)
        saved = Saved._make((*first, needed))
        with torch.autocast(grad.device.type, enabled=False):
            d_x, d_weights, d_params = ctx.kernel.backward(saved, grad)
        return None, d_x, d_weights, None, None, *d_params


# ------------------------------------------------------------------------ dense
def _dense_forward(
    x: Tensor, weights: Tensor, slots: Tensor, rule: MixtureRule, params: Params
) -> Outputs:
    """All active experts as one adapter of width n * b."""
    stacks = _stack(params, x.dtype)
    count, bottleneck, width = stacks.down.shape
    flat, unflat = _tokens(x)
    hidden = _affine(flat, stacks.down.view(-1, width), stacks.down_bias)
    hidden, mask = _activate(hidden, rule)
    gates = _spread(weights, slots, count).to(x.dtype) * rule.scale
    gated = _times_gates(unflat(hidden), gates, bottleneck)
    out = _tokens(gated)[0] @ stacks.up.view(-1, width)
    out = unflat(out)
    if stacks.up_bias is not None:
        out += (gates @ stacks.up_bias)[:, None]
    return out, hidden, mask


def _dense_backward(saved: Saved, grad: Tensor) -> Gradients:
    x, hidden, mask, weights, slots, rule, params = saved[:7]
    stacks = _stack(params, x.dtype)
    count, bottleneck, width = stacks.down.shape
    grad = _like(grad, x)
    flat, unflat = _tokens(x)
    out = _tokens(grad)[0]
    gates = _spread(weights, slots, count).to(x.dtype)
    scaled = gates * rule.scale
    back = unflat(out @ stacks.up.view(-1, width).T)
    total = grad.sum(1)
    d_weights = None
    if saved.wants_weights:
        d_gates = (back * unflat(hidden)).sum(1).view(len(x), count, -1).sum(2)
        if stacks.up_bias is not None:
            d_gates = d_gates + total @ stacks.up_bias.T
        d_weights = (d_gates.gather(1, slots) * rule.scale).to(weights.dtype)
    d_params: list[Tensor | None] = [None] * len(params)
    factor = scaled * _keep_factor(rule)
    pre = _tokens(_times_gates(back, factor, bottleneck))[0]
    pre = _to_preactivation(pre, hidden, mask, rule)
    if any(saved.needed):
        gated = _tokens(_times_gates(unflat(hidden), scaled, bottleneck))[0]
        grads = _Stacks(
            (pre.T @ flat).view(stacks.down.shape),
            None if stacks.down_bias is None else pre.sum(0).view(count, -1),
            (gated.T @ out).view(stacks.up.shape),
            None if stacks.up_bias is None else scaled.T @ total,
        )
        d_params = _unstack(grads, saved)
    d_x = unflat(pre @ stacks.down.view(-1, width)) if saved.wants_x else None
    return d_x, d_weights, d_params


def _tokens(x: Tensor) -> tuple[Tensor, Any]:
    """View ``(B, L, D)`` as ``(B * L, D)`` in memory order, and the way back."""
    rows, tokens, _ = x.shape
    if x.is_contiguous():
        return x.view(rows * tokens, -1), lambda t: t.view(rows, tokens, -1)
    swapped = x.transpose(0, 1)
    return (
        swapped.reshape(rows * tokens, -1),
        lambda t: t.view(tokens, rows, -1).transpose(0, 1),
    )


def _like(grad: Tensor, x: Tensor) -> Tensor:
    """Bring a gradient to the memory order of ``x``."""
    if x.is_contiguous():
        return grad.contiguous()
    return grad.transpose(0, 1).contiguous().transpose(0, 1)


def _affine(flat: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is None:
        return flat @ weight.T
    return torch.addmm(bias.reshape(-1), flat, weight.T)


def _spread(weights: Tensor, slots: Tensor, count: int) -> Tensor:
    return weights.new_zeros(len(weights), count).scatter(1, slots, weights)


def _times_gates(hidden: Tensor, gates: Tensor, bottleneck: int) -> Tensor:
    """Multiply hidden units ``(B, L, n b)`` by the gates of their experts."""
    return hidden * gates.repeat_interleave(bottleneck, 1)[:, None]


# ----------------------------------------------------------------------- gather
def _gather_forward(
    x: Tensor, weights: Tensor, slots: Tensor, rule: MixtureRule, params: Params
) -> Outputs:
    """The weights of each row's experts in one batched product."""
    stacks = _stack(params, x.dtype)
    bottleneck = stacks.down.shape[1]
    hidden, mask = _activate(_gathered_hidden(x, slots, stacks), rule)
    gates = weights.to(x.dtype) * rule.scale
    gated = _times_gates(hidden, gates, bottleneck)
    up = _pick(stacks.up, slots)
    if stacks.up_bias is None:
        out = torch.bmm(gated, up)
    else:
        bias = _spread(gates, slots, len(stacks.up)) @ stacks.up_bias
        out = torch.baddbmm(bias[:, None], gated, up)
    return out, hidden, mask


def _pick(stacked: Tensor, slots: Tensor) -> Tensor:
    """Gather ``(n, b, D)`` per row into ``(B, k b, D)``."""
    rows = stacked.index_select(0, slots.reshape(-1))
    return rows.view(len(slots), -1, stacked.shape[2])


def _gathered_hidden(x: Tensor, slots: Tensor, stacks: _Stacks) -> Tensor:
    down = _pick(stacks.down, slots).transpose(1, 2)
    if stacks.down_bias is None:
        return torch.bmm(x, down)
    bias = stacks.down_bias[slots].view(len(x), 1, -1)
    return torch.baddbmm(bias, x, down)


def _gather_backward(saved: Saved, grad: Tensor) -> Gradients:
    x, hidden, mask, weights, slots, rule, params = saved[:7]
    stacks = _stack(params, x.dtype)
    count, bottleneck, width = stacks.down.shape
    rows, top_k = slots.shape
    grad = streamable(grad)
    total = grad.sum(1)
    gates = weights.to(x.dtype) * rule.scale
    back = torch.bmm(grad, _pick(stacks.up, slots).transpose(1, 2))
    d_weights = None
    if saved.wants_weights:
        d_gates = (back * hidden).sum(1).view(rows, top_k, -1).sum(2)
        if stacks.up_bias is not None:
            d_gates = d_gates + (total @ stacks.up_bias.T).gather(1, slots)
        d_weights = (d_gates * rule.scale).to(weights.dtype)
    pre = _times_gates(back, gates * _keep_factor(rule), bottleneck)
    pre = _to_preactivation(pre, hidden, mask, rule)
    d_params: list[Tensor | None] = [None] * len(params)
    if any(saved.needed):
        member = x.new_zeros(count, rows * top_k)
        member.scatter_(0, slots.reshape(1, -1), 1.0)
        gated = _times_gates(hidden, gates, bottleneck)
        down = torch.bmm(pre.transpose(1, 2), x)
        up = torch.bmm(gated.transpose(1, 2), grad)
        per_slot = pre.sum(1).view(rows * top_k, -1)
        grads = _Stacks(
            (member @ down.view(rows * top_k, -1)).view(stacks.down.shape),
            None if stacks.down_bias is None else member @ per_slot,
            (member @ up.view(rows * top_k, -1)).view(stacks.up.shape),
            None if stacks.up_bias is None else _spread(gates, slots, count).T @ total,
        )
        d_params = _unstack(grads, saved)
    d_x = torch.bmm(pre, _pick(stacks.down, slots)) if saved.wants_x else None
    return d_x, d_weights, d_params


# --------------------------------------------------------------------- segments
def _segments_forward(
    x: Tensor, weights: Tensor, slots: Tensor, rule: MixtureRule, params: Params
) -> Outputs:
    """Expert by expert, the rows that keep it."""
    down, down_bias, up, up_bias = _cast(params, x.dtype)
    order, owners, sizes = _segments(slots, len(down))
    hidden = x.new_empty(len(order), x.shape[1], down[0].shape[0])
    parts = zip(owners, hidden.split(sizes), strict=True)
    for e, (rows, part) in enumerate(parts):
        flat, target = x.index_select(0, rows).flatten(0, 1), part.flatten(0, 1)
        if down_bias[e] is None:
            torch.mm(flat, down[e].T, out=target)
        else:
            torch.addmm(down_bias[e], flat, down[e].T, out=target)
    hidden, mask = _activate(hidden, rule)
    gates = weights.to(x.dtype).reshape(-1)[order] * rule.scale
    gated = hidden * gates[:, None, None]
    out = torch.zeros_like(x, memory_format=torch.contiguous_format)
    if up_bias[0] is not None:
        dense = _spread(weights, slots, len(sizes)).to(x.dtype) * rule.scale
        out += (dense @ torch.stack(up_bias))[:, None]
    for e, (rows, part) in enumerate(zip(owners, gated.split(sizes), strict=True)):
        out.index_add_(0, rows, part @ up[e].T)
    return out, hidden, mask


def _cast(params: Params, dtype: torch.dtype) -> list[list[Any]]:
    """Tensors of the active experts by kind, in the type of the products."""
    return _kinds([None if p is None else p.to(dtype) for p in params])


def _segments(slots: Tensor, count: int) -> tuple[Tensor, Any, list[int]]:
    """Sort (row, slot) pairs by expert; rows of each expert, and their number."""
    flat = slots.reshape(-1)
    order = flat.argsort(stable=True)
    sizes = torch.bincount(flat, minlength=count).tolist()
    rows = order.div(slots.shape[1], rounding_mode="floor")
    return order, rows.split(sizes), sizes


def _segments_backward(saved: Saved, grad: Tensor) -> Gradients:
    x, hidden, mask, weights, slots, rule, params = saved[:7]
    down, _, up, up_bias = _cast(params, x.dtype)
    count = len(down)
    order, owners, sizes = _segments(slots, count)
    gates = weights.to(x.dtype).reshape(-1)[order] * rule.scale
    gated = (hidden * gates[:, None, None]).split(sizes)
    back = torch.empty_like(hidden)
    d_params: list[Tensor | None] = [None] * len(params)
    for e, (rows, part) in enumerate(zip(owners, back.split(sizes), strict=True)):
        out = grad.index_select(0, rows).flatten(0, 1)
        torch.mm(out, up[e], out=part.flatten(0, 1))
        if saved.needed[2 * count + e]:
            d_params[2 * count + e] = out.T @ gated[e].flatten(0, 1)
    total = grad.sum(1)
    dense = _spread(weights, slots, count).to(x.dtype) * rule.scale
    if up_bias[0] is not None:
        d_params[3 * count :] = (dense.T @ total).unbind(0)
    d_weights = None
    if saved.wants_weights:
        d_gates = torch.empty_like(gates)
        d_gates[order] = (back * hidden).sum((1, 2))
        d_gates = d_gates.view(slots.shape)
        if up_bias[0] is not None:
            d_gates = d_gates + (total @ torch.stack(up_bias).T).gather(1, slots)
        d_weights = (d_gates * rule.scale).to(weights.dtype)
    pre = back.mul_((gates * _keep_factor(rule))[:, None, None])
    pre = _to_preactivation(pre, hidden, mask, rule)
    d_x = torch.zeros_like(x) if saved.wants_x else None
    for e, (rows, part) in enumerate(zip(owners, pre.split(sizes), strict=True)):
        flat = part.flatten(0, 1)
        if saved.needed[e]:
            d_params[e] = flat.T @ x.index_select(0, rows).flatten(0, 1)
        if saved.needed[count + e] and params[count + e] is not None:
            d_params[count + e] = flat.sum(0)
        if d_x is not None:
            d_x.index_add_(0, rows, part @ down[e])
    return d_x, d_weights, _wanted(d_params, saved)


KERNELS = {
    "gather": Kernel(_gather_forward, _gather_backward),
    "dense": Kernel(_dense_forward, _dense_backward),
    "segments": Kernel(_segments_forward, _segments_backward),
}
