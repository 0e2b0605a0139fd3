"""Noisy top-k gating of expert mixtures, and how evenly experts are used.

Source: Shazeer et al., ICLR 2017 (arXiv 1701.06538), as used by Yu et al., CVPR
2024 (MoE-Adapters, arXiv 2403.11549) and the authors' released code. Breaking
ties by the lowest index is our choice, so that results repeat on all devices.
"""

from __future__ import annotations

from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from avalanche_clip.common.checks import as_finite, require_alike, require_array

BALANCE_WEIGHT = 0.01
"""Factor of the authors' code inside :func:`balance_loss`."""


class Routing(NamedTuple):
    """Which experts the rows of a batch keep, and with what weight.

    :param indices: kept experts, long, shape ``(B, k)``, largest logit first.
    :param weights: their gates, shape ``(B, k)``; each row sums to 1.
    :param logits: the scores that were ranked, noise included, ``(B, E)``.
    """

    indices: Tensor
    weights: Tensor
    logits: Tensor

    def gates(self) -> Tensor:
        """Spread the weights over all experts, shape ``(B, E)``."""
        return torch.zeros_like(self.logits).scatter(1, self.indices, self.weights)

    def counts(self) -> Tensor:
        """Number of rows that keep each expert, int64, shape ``(E,)``."""
        flat = self.indices.reshape(-1)
        return torch.bincount(flat, minlength=self.logits.shape[1])


def route(
    clean: Tensor,
    k: int,
    noise_std: Tensor | float | None = None,
    generator: torch.Generator | None = None,
) -> Routing:
    """Rank experts per row, keep k, and weight them by a softmax.

    :param clean: scores, floating point, shape ``(B, E)``; 16-bit scores are
        ranked in float32.
    :param k: number of experts kept per row, 1 to E.
    :param noise_std: scale of the normal noise added to the scores, a number
        or a tensor that broadcasts to ``(B, E)``; None adds none and draws no
        random numbers.
    :param generator: source of the noise; None for the global one.
    :return: kept experts and weights. Ties go to the lowest index. Gradient
        reaches ``clean`` and ``noise_std`` through the kept scores only.
    :raises ValueError: for other shapes or types, or k out of range.
    """
    if not isinstance(clean, Tensor):
        raise ValueError(
            f"Scores came as {type(clean).__name__}; give a floating point tensor "
            "(B, E), from an array by torch.from_numpy."
        )
    if clean.ndim != 2 or not clean.is_floating_point():
        raise ValueError(
            f"Scores came as {tuple(clean.shape)}, {clean.dtype}; give a floating point"
            " tensor (B, E)."
        )
    _check_kept(k, clean.shape[1])
    logits = clean if clean.dtype is torch.float64 else clean.float()
    if noise_std is not None:
        noise = torch.randn(
            logits.shape, generator=generator, device=logits.device, dtype=logits.dtype
        )
        logits = logits + _scale_like(noise_std, logits) * noise
    # Sorting values and ranking detached ones avoids the gradient of all E scores.
    order = logits.detach().sort(dim=1, descending=True, stable=True).indices
    indices = order[:, :k]
    weights = logits.gather(1, indices).softmax(dim=1)
    return Routing(indices, weights, logits)


def _check_kept(k: int, experts: int) -> None:
    if isinstance(k, bool) or not isinstance(k, Integral):
        raise ValueError(f"k={k!r} is no integer; choose 1 <= k <= E={experts}.")
    if not 1 <= k <= experts:
        raise ValueError(f"k={k} is out of range; choose 1 <= k <= E={experts}.")


def _scale_like(noise_std: Tensor | float, logits: Tensor) -> Tensor | float:
    if not isinstance(noise_std, Tensor):
        return as_finite(noise_std, "noise_std", low=0)
    try:
        fits = torch.broadcast_shapes(noise_std.shape, logits.shape) == logits.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"noise_std has shape {tuple(noise_std.shape)}, the scores"
            f" {tuple(logits.shape)}; give one value per score, or one for all."
        )
    return noise_std.to(logits.dtype)


def noisy_top_k_gates(
    logits_or_clean: Tensor,
    k: int,
    noise_std: Tensor | float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute the gates of a mixture: softmax over the k largest scores.

    :param logits_or_clean: scores, float32 or float64, shape ``(B, E)``.
    :param k: number of experts kept per row, 1 to E.
    :param noise_std: scale of the normal noise added to the scores before
        ranking, a number or a tensor that broadcasts to ``(B, E)``; None for
        evaluation, or when the scores hold the noise already.
    :param generator: source of the noise; None for the global one.
    :return: gates, type of the scores, shape ``(B, E)``: each row sums to 1 and
        is 0 outside the k kept experts. Ties go to the lowest index. Gradient
        flows through the kept scores only.
    :raises ValueError: for other shapes or types, k out of range, or scores from
        which no gates follow (NaN, infinite).

    Source: Shazeer et al., ICLR 2017 (arXiv 1701.06538), equations 3 to 5.

    >>> noisy_top_k_gates(torch.tensor([[2.0, 1.0, 0.0, -1.0]]), k=2)
    tensor([[0.7311, 0.2689, 0.0000, 0.0000]])
    """
    # Not in route(), which mixtures call: it waits for the device.
    if isinstance(noise_std, Tensor) and not bool((noise_std >= 0).all()):
        raise ValueError("noise_std holds negative values or NaN; give 0 or more.")
    gates = route(logits_or_clean, k, noise_std, generator).gates()
    if bool(gates.isnan().any()):
        raise ValueError(
            f"The scores {tuple(gates.shape)} hold NaN or infinite values; look for "
            "the step that broke them."
        )
    return gates


def importance(gates: Tensor) -> Tensor:
    """Sum the gates of each expert over the rows.

    :param gates: shape ``(B, E)``.
    :return: shape ``(E,)``; sums to B.

    >>> importance(torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]]))
    tensor([0.7500, 0.7500, 0.5000])
    """
    require_array(gates, "gates", "* E")
    return gates.sum(dim=0)


def expert_load(
    clean: Tensor,
    logits: Tensor,
    k: int,
    noise_std: Tensor | float | None = None,
) -> Tensor:
    """Estimate how many rows keep each expert, with a gradient if there is noise.

    With noise and k < E it is the sum over rows of the probability that the
    expert would be kept if its own noise were drawn again. Otherwise it is the
    number of rows that keep it, which has no gradient.

    :param clean: scores without noise, float32 or float64, ``(B, E)``.
    :param logits: scores with noise, same shape.
    :param k: number of experts kept per row, 1 to E.
    :param noise_std: scale of the noise, positive; None for scores without.
    :return: shape ``(E,)``.
    :raises ValueError: if shapes differ or k is out of range.

    Source: Shazeer et al., ICLR 2017 (arXiv 1701.06538), appendix A.

    >>> scores = torch.tensor([[1.0, 0.5, 0.2, -0.3]])
    >>> expert_load(scores, scores, k=2, noise_std=0.703147)
    tensor([0.8724, 0.6652, 0.3348, 0.1276])
    """
    require_array(clean, "clean", "* E")
    do = "give the scores of the same rows"
    require_alike(do, ("shape",), clean=clean, logits=logits)
    experts = clean.shape[1]
    _check_kept(k, experts)
    if noise_std is None or k == experts:
        kept = logits.detach().sort(dim=1, descending=True, stable=True).indices[:, :k]
        return torch.bincount(kept.reshape(-1), minlength=experts).to(logits.dtype)
    ranked = logits.sort(dim=1, descending=True, stable=True).values
    inside, outside = ranked[:, k - 1 : k], ranked[:, k : k + 1]
    threshold = torch.where(logits > outside, outside, inside)
    scale = _scale_like(noise_std, logits)
    if isinstance(scale, float):
        scale = as_finite(scale, "noise_std", above=0, hint="None for no noise")
    return torch.special.ndtr((clean - threshold) / scale).sum(dim=0)


def cv_squared(values: Tensor) -> Tensor:
    """Square the coefficient of variation: 0 when all values are equal.

    :param values: floating point, shape ``(E,)``; 16-bit ones are taken in
        float32.
    :return: 0-d, unbiased variance over the squared mean; 0 for one value.

    Source: Shazeer et al., ICLR 2017 (arXiv 1701.06538), equation 7; the
    constant 1e-10 is that of the released MoE-Adapters code.

    >>> cv_squared(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor(4.)
    """
    if values.ndim != 1 or not len(values):
        raise ValueError(f"Values have shape {tuple(values.shape)}; give (E,), E >= 1.")
    if values.dtype is not torch.float64:
        values = values.float()
    if len(values) == 1:
        return values.sum() * 0.0
    return values.var() / (values.mean().square() + 1e-10)


def balance_loss(importances: Tensor, loads: Tensor) -> Tensor:
    """Penalise mixtures that use some experts more than others.

    :param importances: from :func:`importance`, shape ``(E,)``.
    :param loads: from :func:`expert_load`, shape ``(E,)``.
    :return: 0-d, ``0.01 * (cv_squared(importances) + cv_squared(loads))``.

    Source: Yu et al., CVPR 2024: their code computes it and leaves it out of
    the loss.

    >>> balance_loss(torch.ones(4), torch.tensor([1.0, 0.0, 0.0, 0.0]))
    tensor(0.0400)
    """
    return BALANCE_WEIGHT * (cv_squared(importances) + cv_squared(loads))
