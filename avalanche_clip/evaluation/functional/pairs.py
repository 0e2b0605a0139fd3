"""Pair selection: small blocks of images and texts, all or nothing."""

from __future__ import annotations

import torch

from avalanche_clip.common.checks import require_array
from avalanche_clip.evaluation.functional._inputs import ArrayLike, as_tensor


def pair_metrics(S: ArrayLike) -> dict[str, float]:
    """Compute text, image and group accuracy of pair selection.

    Text i belongs to image i for the first g = min(I, C) items. An instance is
    right only if all g decisions are. A tie is wrong, so that a model with
    equal features for everything scores 0.

    :param S: similarities of one instance, ``(I, C)``, rows images, columns
        texts; or of many instances, ``(n, I, C)``. Any scale, float.
    :return: Python floats in [0, 1], averaged over the instances: ``text_acc``
        (each image prefers its text), ``image_acc`` (each text prefers its
        image) and ``acc`` (both). Winoground reports all three, SugarCrepe
        (I = 1, C = 2) ``text_acc``, MMVP-VLM (I = C = 2) ``image_acc``.
    :raises ValueError: if the shape does not fit or a value is not finite.

    Source: Thrush et al., CVPR 2022 (Winoground, arXiv 2204.03162); ties count
    as wrong by our choice.

    >>> pair_metrics([[0.30, 0.28], [0.31, 0.33]])
    {'text_acc': 1.0, 'image_acc': 0.0, 'acc': 0.0}
    """
    scores = as_tensor("S", S)
    if scores.ndim == 2:
        scores = scores[None]
    require_array(scores, "S", "n I C", give="or (I, C) of one instance")
    if not torch.isfinite(scores).all():
        raise ValueError(
            f"S of shape {tuple(scores.shape)} holds NaN or infinite values."
        )
    size = min(scores.shape[1:])
    own = scores.diagonal(dim1=1, dim2=2)
    # the own entry is one of the entries at least as high; more are rivals
    text_right = ((scores[:, :size] >= own[:, :, None]).sum(2) == 1).all(1)
    image_right = ((scores[:, :, :size] >= own[:, None, :]).sum(1) == 1).all(1)
    right = {
        "text_acc": text_right,
        "image_acc": image_right,
        "acc": text_right & image_right,
    }
    return {name: value.double().mean().item() for name, value in right.items()}
