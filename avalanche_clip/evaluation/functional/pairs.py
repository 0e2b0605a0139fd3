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
from avalanche_clip.evaluation.functional.intervals import (
    bootstrap_interval,
    wilson_interval,
)


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
    S: ArrayLike,
    patterns: Sequence[str],
    *,
    tie_eps: float = 0.0,
    blindness: ArrayLike | None = None,
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
    :param blindness: of each pair, ``(P,)``, averaged too: the cosine of its images.
    :return: pattern -> metric -> value, in the order of first appearance, after
        ``"all"``, which has the mean over the patterns (over pairs, if each pattern has
        as many). Fractions in [0, 1] are ``text_to_image_acc``, ``image_to_text_acc``
        (each image prefers its statement) and ``group_acc`` (both), in which a tie is
        wrong, see :func:`pair_metrics`; ``text_to_image_acc_low`` and ``..._high``
        bound a 95 % interval: Wilson's of a pattern, the bootstrap's of the mean.
        ``margin`` is by how much a statement prefers its image, of the worse of both;
        ``group_margin`` by how much both right pairings exceed the wrong ones: means,
        in the scale of S. ``count`` is the number of images, two per pair.
    :raises ValueError: if shapes do not fit, a value is not finite, or a pattern is
        called ``"all"``.

    Source: Tong et al., CVPR 2024 (MMVP, arXiv 2401.06209) and the released code.

    >>> right, wrong = [[1.0, 0.0], [0.0, 1.0]], [[0.3, 0.28], [0.31, 0.33]]
    >>> found = pattern_metrics([right, wrong, wrong], ["Text", "Color", "Color"])
    >>> {pattern: value["text_to_image_acc"] for pattern, value in found.items()}
    {'all': 0.5, 'Text': 1.0, 'Color': 0.0}
    """
    scores, names = as_tensor("S", S).double(), as_texts(patterns, "patterns")
    require_array(scores, "S", "P 2 2")
    require_length(names, len(scores), "patterns", "pair")
    eps = as_finite(tie_eps, "tie_eps", low=0)
    alike = None if blindness is None else as_tensor("blindness", blindness).double()
    if alike is not None:
        require_array(alike, "blindness", f"{len(scores)}", give="one per pair")
        if not torch.isfinite(alike).all():
            raise ValueError("blindness holds NaN or infinite values.")
    if "all" in names:
        raise ValueError("A pattern is called 'all', which is the name of their mean.")
    found, hits = {}, []
    for name in dict.fromkeys(names):
        places = [place for place, other in enumerate(names) if other == name]
        part = scores[places]
        strict = pair_metrics(part - eps * torch.eye(2, device=part.device))
        gaps = part.diagonal(dim1=1, dim2=2) - part.flip(1).diagonal(dim1=1, dim2=2)
        picked = (gaps[:, 0] > eps) & (gaps[:, 1] >= -eps)
        hits.append(picked.double().tolist())
        low, high = wilson_interval(int(picked.sum()), len(part))
        found[name] = {
            "text_to_image_acc": picked.double().mean().item(),
            "text_to_image_acc_low": low,
            "text_to_image_acc_high": high,
            "image_to_text_acc": strict["text_acc"],
            "group_acc": strict["acc"],
            "margin": gaps.amin(1).mean().item(),
            "group_margin": gaps.sum(1).mean().item(),
            "count": 2.0 * len(part),
        }
        if alike is not None:
            found[name]["blindness"] = alike[places].mean().item()
    first, *_ = found.values()
    mean = {key: sum(v[key] for v in found.values()) / len(found) for key in first}
    hits.sort(key=lambda group: (len(group), sum(group)))  # in any order of rows
    ends = bootstrap_interval(hits)
    mean["text_to_image_acc_low"], mean["text_to_image_acc_high"] = ends
    return {"all": {**mean, "count": 2.0 * len(names)}, **found}
