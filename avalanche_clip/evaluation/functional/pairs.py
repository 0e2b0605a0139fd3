"""Pair selection: small blocks of images and texts, all or nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from avalanche_clip.common.checks import (
    as_finite,
    as_texts,
    require_array,
    require_length,
)
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
        (I = 1, C = 2) ``text_acc``, MMVP-VLM (I = C = 2) ``image_acc``, ties
        aside (:func:`pattern_metrics`).
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


def pattern_metrics(
    S: ArrayLike, patterns: Sequence[str], *, tie_eps: float = 0.0
) -> dict[str, dict[str, float]]:
    """Score pairs of images and statements by what they differ in, as MMVP-VLM does.

    The score is ``text_to_image_acc``: a pair is right if each statement picks the
    image that it describes. A statement picks the first image if that is more similar,
    else the second: a tie goes to the second, so that equal features score 0. Pairs are
    grouped by their pattern, whatever their order and number.

    :param S: similarities ``(P, 2, 2)``, rows images, columns texts, of one scale in
        each pair.
    :param patterns: of each pair.
    :param tie_eps: largest difference that counts as a tie, in the scale of S, >= 0.
    :return: pattern -> metric -> value, in the order of first appearance, after
        ``"all"``, which has the mean over the patterns (over pairs, if each pattern has
        as many). Fractions in [0, 1] are ``text_to_image_acc``, ``image_to_text_acc``
        (each image prefers its statement) and ``group_acc`` (both), in which a tie is
        wrong, see :func:`pair_metrics`. ``margin`` is by how much a statement prefers
        its image, of the worse of the two; ``group_margin`` by how much both right
        pairings exceed the wrong ones: means, in the scale of S. ``pair_count`` is the
        number of pairs.
    :raises ValueError: if shapes do not fit, a value is not finite, or a pattern is
        called ``"all"``.

    Source: Tong et al., CVPR 2024 (MMVP, arXiv 2401.06209) and the released code.

    >>> right, wrong = [[1.0, 0.0], [0.0, 1.0]], [[0.3, 0.28], [0.31, 0.33]]
    >>> found = pattern_metrics([right, wrong, wrong], ["Text", "Color", "Color"])
    >>> {pattern: value["text_to_image_acc"] for pattern, value in found.items()}
    {'all': 0.5, 'Text': 1.0, 'Color': 0.0}
    """
    scores = as_tensor("S", S)
    require_array(scores, "S", "P 2 2")
    names = as_texts(patterns, "patterns")
    require_length(names, len(scores), "patterns", "pair")
    if "all" in names:
        raise ValueError("A pattern is called 'all', which is the name of their mean.")
    tie_eps = as_finite(tie_eps, "tie_eps", low=0)
    own_less = tie_eps * torch.eye(2, device=scores.device)
    found = {}
    for name in dict.fromkeys(names):
        part = scores[[place for place, other in enumerate(names) if other == name]]
        right = pair_metrics(part - own_less.to(part.dtype))
        own, other = part.double().diagonal(dim1=1, dim2=2), part.double().flip(1)
        gaps = own - other.diagonal(dim1=1, dim2=2)
        picked = (gaps[:, 0] > tie_eps) & (gaps[:, 1] >= -tie_eps)
        found[name] = {
            "text_to_image_acc": picked.double().mean().item(),
            "image_to_text_acc": right["text_acc"],
            "group_acc": right["acc"],
            "margin": gaps.amin(1).mean().item(),
            "group_margin": gaps.sum(1).mean().item(),
            "pair_count": float(len(part)),
        }
    mean = {
        metric: sum(values[metric] for values in found.values()) / len(found)
        for metric in found[names[0]]
    }
    return {"all": {**mean, "pair_count": float(len(names))}, **found}
