"""Symmetric contrastive loss of CLIP."""

from __future__ import annotations

import torch
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


def contrastive_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    *,
    targets: Tensor | None = None,
    rows: slice | None = None,
) -> Tensor:
    """Compute the symmetric InfoNCE loss of a batch of image-text pairs.

    Row i of both matrices is one pair. The logits are ``logit_scale`` times
    the inner products; the cross-entropy over images and the one over texts
    are averaged. Nothing is normalised and nothing is gathered here: under
    data parallel training pass the global batch, gathered with gradients.

    :param image_features: L2-normalised image features, ``(B, D)``, float32 or
        float64 (half precision is raised to float32).
    :param text_features: L2-normalised text features, same shape.
    :param logit_scale: inverse temperature as it multiplies the similarities
        (already exponentiated): a number or a tensor with one element.
    :param targets: integer ids, ``(B,)``. Pairs with equal ids are positives
        of each other and share the target probability equally (each row sums
        to 1). None: only the own partner is a positive.
    :param rows: the share of these images and of these texts, each among all
        ``B`` of the other side; shares of consecutive rows add up to the loss.
        So each process computes its own rows, ``2 b B`` logits instead of ``B B``
        (open_clip's local loss). None: all.
    :return: scalar loss, at least float32. 0 for a batch of one pair.
    :raises ValueError: if shapes or types do not fit, the batch is empty, or
        ``rows`` are not consecutive rows of it.

    Source: Radford et al., ICML 2021 (CLIP, arXiv 2103.00020), figure 3; the
    equal weights over several positives are our choice.

    >>> features = torch.eye(2)
    >>> round(contrastive_loss(features, features, 1.0).item(), 6)
    0.313262
    """
    check_feature_pair(image_features, text_features)
    scale = check_scalar("logit_scale", logit_scale)
    with full_precision(image_features):
        images = at_least_float32(image_features)
        texts = at_least_float32(text_features)
        rows = require_rows(rows, len(images))
        if rows is not None:
            return _share(images, texts, scale, targets, rows)
        logits = scale * (images @ texts.T)
        if targets is None:
            labels = torch.arange(logits.shape[0], device=logits.device)
        else:
            positives = positive_mask(targets, images).to(logits.dtype)
            # symmetric, so the same rows serve both directions
            labels = positives / positives.sum(dim=1, keepdim=True)
        per_image = F.cross_entropy(logits, labels)
        per_text = F.cross_entropy(logits.T, labels)
        return (per_image + per_text) / 2


def _share(
    images: Tensor,
    texts: Tensor,
    scale: Tensor | float,
    targets: Tensor | None,
    rows: slice,
) -> Tensor:
    if targets is None:
        labels = torch.arange(rows.start, rows.stop, device=images.device)
    else:
        positives = positive_mask(targets, images, rows).to(images.dtype)
        labels = positives / positives.sum(dim=1, keepdim=True)
    pairs = ((images[rows], texts), (texts[rows], images))
    sums = [
        F.cross_entropy(scale * (own @ other.T), labels, reduction="sum")
        for own, other in pairs
    ]
    return (sums[0] + sums[1]) / (2 * len(images))
