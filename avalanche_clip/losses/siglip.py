"""Pairwise sigmoid loss of SigLIP."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from avalanche_clip.losses._checks import (
    at_least_float32,
    check_feature_pair,
    check_scalar,
    full_precision,
    positive_mask,
    require_rows,
)


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float,
    *,
    targets: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """Compute the pairwise sigmoid loss of a batch of image-text pairs.

    Each of the B x B combinations is one binary decision, positive where the
    image and the text belong together. The sum is divided by B, not by the
    number of combinations.

    :param image_features: L2-normalised image features, ``(B, D)``, float32 or
        float64 (half precision is raised to float32).
    :param text_features: L2-normalised text features, same shape.
    :param logit_scale: inverse temperature, already exponentiated: a number or
        a tensor with one element.
    :param logit_bias: added to all logits: a number or a tensor with one
        element. Pre-trained SigLIP models start from -10.
    :param targets: integer ids, ``(B,)``; combinations with equal ids are
        positive. None: only the own partner is.
    :param rows: the share of these images, each with all texts; shares of
        consecutive rows add up to the loss. None: all.
    :return: scalar loss, at least float32.
    :raises ValueError: if shapes or types do not fit, the batch is empty, or
        ``rows`` are not consecutive rows of it.

    Source: Zhai et al., ICCV 2023 (SigLIP, arXiv 2303.15343), equation 1; the
    use of ``targets`` is our choice.

    >>> import torch
    >>> features = torch.ones(1, 1)
    >>> round(siglip_loss(features, features, 1.0, 0.0).item(), 6)
    0.313262
    """
    check_feature_pair(image_features, text_features)
    scale = check_scalar("logit_scale", logit_scale)
    bias = check_scalar("logit_bias", logit_bias)
    with full_precision(image_features):
        images = at_least_float32(image_features)
        texts = at_least_float32(text_features)
        own = require_rows(rows, len(images)) or slice(None)
        logits = scale * (images[own] @ texts.T) + bias
        signs = positive_mask(targets, images, own).to(logits.dtype) * 2 - 1
        return -F.logsigmoid(signs * logits).sum() / len(images)
