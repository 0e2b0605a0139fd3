"""Losses that carry an English text tower over to other languages.

Source: Yang et al., AAAI 2024 (CLL-CLIP, arXiv 2401.17186) and the released code.
"""

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
)


def cross_lingual_loss(text_features: Tensor, teacher_text_features: Tensor) -> Tensor:
    """Mean squared distance of raw text features to those of the English caption.

    :param text_features: of the student, **not** normalised, ``(B, e)``.
    :param teacher_text_features: of the teacher on the English captions, not
        normalised, same shape; no gradient goes to them.
    :return: scalar: mean over all ``B * e`` entries, at least float32.
    :raises ValueError: if shapes or types do not fit, or the batch is empty.

    >>> cross_lingual_loss(torch.zeros(1, 2), torch.tensor([[1.0, 3.0]]))
    tensor(5.)
    """
    check_feature_pair(teacher_text_features, text_features)
    with full_precision(text_features):
        target = at_least_float32(teacher_text_features.detach())
        return F.mse_loss(at_least_float32(text_features), target)


def cross_modal_loss(
    text_features: Tensor,
    image_features: Tensor,
    temperature: Tensor | float,
    *,
    image_ids: Tensor | None = None,
) -> Tensor:
    """Symmetric InfoNCE between texts and images, with soft targets by image.

    Both sides are normalised here. Texts of one image share the target
    probability equally.

    :param text_features: ``(B, e)``, of any length.
    :param image_features: of the teacher, ``(B, e)``, of any length; row i
        belongs to text i. No gradient goes to them.
    :param temperature: divisor of the cosines, a number or a tensor with one
        element.
    :param image_ids: integers ``(B,)``, equal for equal images; None: each row
        is an image of its own.
    :return: scalar, mean of both directions, at least float32.
    :raises ValueError: if shapes or types do not fit, or the batch is empty.

    >>> features = torch.eye(2)
    >>> round(cross_modal_loss(features, 3 * features, 1.0).item(), 6)
    0.313262
    """
    check_feature_pair(image_features, text_features)
    tau = check_scalar("temperature", temperature)
    with full_precision(text_features):
        texts = F.normalize(at_least_float32(text_features), dim=-1)
        images = F.normalize(at_least_float32(image_features.detach()), dim=-1)
        logits = texts @ images.T / tau
        if image_ids is None:
            labels = torch.arange(len(logits), device=logits.device)
        else:
            same = positive_mask(image_ids, texts).to(logits.dtype)
            labels = same / same.sum(dim=1, keepdim=True)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
