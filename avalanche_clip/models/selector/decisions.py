"""Arithmetic of DDAS decisions: errors, routes and thresholds.

Source: Yu et al., CVPR 2024 (MoE-Adapters, arXiv 2403.11549) and the authors'
code; the fused pass and the calibration are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

GRANULARITIES = ("sample", "batch")
ZERO_SHOT = -1
# elements of one decoded piece: what fits the cache of a CPU
_PIECE = {"cpu": 1 << 19}
_LARGE_PIECE = 1 << 25


@dataclass(frozen=True)
class Calibration:
    """Thresholds found on held-out images.

    :param threshold: the largest of ``per_task``: no calibrated task loses
        more than the allowed share of its own images.
    :param per_task: task id -> its threshold.
    :param given: the threshold of the constructor, for comparison.
    """

    threshold: float
    per_task: Mapping[int, float]
    given: float


@torch.no_grad()
def autoencoder_errors(
    target: Tensor,
    encoder_weight: Tensor,
    encoder_bias: Tensor,
    decoder_weight: Tensor,
    decoder_bias: Tensor,
) -> Tensor:
    """Compute the mean squared errors of n autoencoders in one pass.

    All encoders are one matrix product; decoders run in pieces, of which only
    sums of squares are kept.

    :param target: activations ``(B, F)``.
    :param encoder_weight: ``(n, h, F)``.
    :param encoder_bias: ``(n, h)``.
    :param decoder_weight: ``(n, F, h)``.
    :param decoder_bias: ``(n, F)``.
    :return: ``(B, n)``.
    """
    (count, hidden, size), rows = encoder_weight.shape, len(target)
    weight = encoder_weight.view(count * hidden, size)
    codes = torch.addmm(encoder_bias.view(-1), target, weight.T).relu_()
    codes = codes.view(rows, count, hidden).transpose(0, 1)
    total = target.new_zeros(count, rows)
    piece = _PIECE.get(target.device.type, _LARGE_PIECE)
    width = min(size, max(piece // max(rows, 1), 256))
    group = max(1, piece // max(rows * size, 1))
    for first in range(0, count, group):
        part = slice(first, first + group)
        for start in range(0, size, width):
            cut = slice(start, start + width)
            output = torch.baddbmm(
                decoder_bias[part, None, cut],
                codes[part],
                decoder_weight[part, cut].transpose(1, 2),
            )
            output.sigmoid_().sub_(target[:, cut])
            total[part] += output.square_().sum(2)
    return total.T.div(size)


def choose_routes(errors: Tensor, limits: Tensor, granularity: str) -> Tensor:
    """Decide which router each row of an error matrix belongs to.

    The lowest error wins, on ties the lowest index. Index 0 (the reference)
    and errors above their limit give -1; errors that are no numbers do too.

    :param errors: ``(B, n)``, column 0 the reference.
    :param limits: ``(n,)``, largest familiar error if column j wins.
    :param granularity: ``"sample"``, or ``"batch"``: one decision from the
        mean of the rows, for all of them.
    :return: long ``(B,)``: -1 or column - 1.

    >>> errors = torch.tensor([[0.3, 0.1, 0.2], [0.1, 0.2, 0.1], [0.9, 0.8, 0.7]])
    >>> choose_routes(errors, torch.full((3,), 0.5), "sample")
    tensor([ 0, -1, -1])
    """
    rows = len(errors)
    if rows and granularity == "batch":
        # the mean of equal float32 rows is that row, in float64
        errors = errors.double().mean(0, keepdim=True).to(errors.dtype)
    lowest = errors.amin(1)
    index = (errors == lowest[:, None]).int().argmax(1)
    limits = limits.to(errors)
    familiar = (lowest <= limits[index]) & (index > 0)
    routes = torch.where(familiar, index - 1, ZERO_SHOT)
    return routes if len(routes) == rows else routes.repeat(rows)


def conformal_threshold(errors: Tensor, quantile: float) -> float:
    """Return the ``ceil((n + 1) quantile)``-th smallest of n errors.

    Capped at the largest. A further error from the same source exceeds it with
    a probability of at most ``1 - quantile`` where the cap is not needed.

    :param errors: ``(n,)``, n >= 1.
    :param quantile: in (0, 1].

    Source: split conformal prediction (Vovk et al., 2005; Lei et al., JASA
    2018).

    >>> conformal_threshold(torch.tensor([0.5, 0.125, 0.25, 1.0]), 0.5)
    0.5
    """
    ranked = errors.double().sort().values
    # rounded, so that 0.95 * 20 is 19
    rank = math.ceil(round((len(ranked) + 1) * quantile, 9))
    return float(ranked[min(rank, len(ranked)) - 1])
