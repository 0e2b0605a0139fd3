"""Zero-shot classification: class vectors and accuracies."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_clip.common.checks import (
    as_finite,
    require_alike,
    require_array,
    require_choice,
    require_indices,
)
from avalanche_clip.evaluation.functional._inputs import (
    ArrayLike,
    as_float_matrix,
    as_tensor,
)
from avalanche_clip.evaluation.functional.ranks import full_products

_ROWS_PER_BLOCK = 4096
_TIES = ("pessimistic", "lowest")


def classification_metrics(
    scores: ArrayLike, targets: ArrayLike, *, ties: str = "pessimistic"
) -> dict[str, float]:
    """Compute accuracies, or mean average precision for multi-label data.

    By default a class with the same score as the right one counts as ranked
    before it, so that a model with equal scores for all classes gets 0.

    :param scores: one column per class, ``(N, C)``, float32 or float64.
    :param targets: class indices ``(N,)`` in 0..C-1; or, for multi-label data,
        zeros and ones ``(N, C)``, bool, integer or float.
    :param ties: ``"pessimistic"``, or ``"lowest"``: among equal scores the lowest
        column comes first, as ``argmax`` has it. That is the rule for equal class
        names in several domains: only the right column counts. Multi-label data
        know the first only.
    :return: Python floats in [0, 1]. For indices ``acc1``, ``acc5`` (NaN with
        fewer than 5 classes) and ``mean_per_class_recall``, the mean over the
        classes that occur among the targets. For multi-label data
        ``mean_average_precision``, the mean over all classes, where one
        without positives counts as 0.
    :raises ValueError: if shapes, types or the range of the targets do not fit,
        a score is not finite, or ``ties`` is unknown, or not for such data.

    Source: the definitions of LAION's CLIP_benchmark; the treatment of ties is
    our choice.

    >>> metrics = classification_metrics([[0.9, 0.1], [0.8, 0.2]], [0, 1])
    >>> metrics["acc1"], metrics["acc5"], metrics["mean_per_class_recall"]
    (0.5, nan, 0.5)
    """
    scores = as_float_matrix("scores", scores)
    targets = as_tensor("targets", targets).to(scores.device)
    require_choice("ties", ties, _TIES)
    if targets.shape == scores.shape:
        if ties != _TIES[0]:
            raise ValueError(
                f"ties={ties!r} is not for multi-label data; leave it out."
            )
        return {"mean_average_precision": _mean_average_precision(scores, targets)}
    wanted = "class indices, or multi-label targets of the shape of the scores"
    require_array(targets, "targets", f"{len(scores)}", "integer", give=wanted)
    require_indices(targets, scores.shape[1], "targets")
    targets = targets.long()
    blocks = zip(
        scores.split(_ROWS_PER_BLOCK), targets.split(_ROWS_PER_BLOCK), strict=True
    )
    ranks = torch.cat([_block_ranks(block, target, ties) for block, target in blocks])
    num_classes = scores.shape[1]
    correct = torch.bincount(targets[ranks < 1], minlength=num_classes).double()
    present = torch.bincount(targets, minlength=num_classes).double()
    recall = (correct / present)[present > 0]
    top5 = (ranks < 5).double().mean().item() if num_classes >= 5 else math.nan
    return {
        "acc1": (ranks < 1).double().mean().item(),
        "acc5": top5,
        "mean_per_class_recall": recall.mean().item(),
    }


def class_ranks(
    image_features: ArrayLike,
    vectors: ArrayLike,
    targets: ArrayLike,
    *,
    tie_eps: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Rank the right class of each image without the full matrix of scores.

    :param image_features: ``(N, D)``, float32 or float64.
    :param vectors: of the classes, ``(C, D)``, same type and device.
    :param targets: class of each image, integers ``(N,)`` in 0..C-1.
    :param tie_eps: largest difference of two scores that counts as a tie, >= 0. Equal
        vectors may give scores that differ in their last bits.
    :return: number of other classes with at least the score of the right one, less
        ``tie_eps``, 0 = found first; and the right class where it is found first, else
        the best other one; both int64 ``(N,)``.
    :raises ValueError: if shapes, types or the range of the targets do not fit, or a
        feature is not finite.

    >>> found = class_ranks(torch.eye(2), torch.eye(2), torch.tensor([0, 0]))
    >>> [part.tolist() for part in found]
    [[0, 1], [0, 1]]
    """
    images = as_float_matrix("image_features", image_features)
    classes = as_float_matrix("vectors", vectors)
    require_alike(
        "give features of one model, of one type, on one device",
        ("columns", "dtype", "device"),
        image_features=images,
        vectors=classes,
    )
    eps = as_finite(tie_eps, "tie_eps", low=0)
    labels = as_tensor("targets", targets).to(images.device)
    require_array(labels, "targets", f"{len(images)}", "integer", give="class indices")
    require_indices(labels, len(classes), "targets")
    labels = labels.long()
    ranks, predictions = torch.empty_like(labels), labels.clone()
    memory = images.new_empty(min(_ROWS_PER_BLOCK, len(images)), len(classes))
    autocast_off = torch.autocast(device_type=images.device.type, enabled=False)
    with torch.no_grad(), autocast_off, full_products():
        for start in range(0, len(images), _ROWS_PER_BLOCK):
            part = slice(start, start + _ROWS_PER_BLOCK)
            label = labels[part, None]
            block = memory[: len(label)]
            torch.mm(images[part], classes.T, out=block)
            own = block.gather(1, label) - eps
            block.scatter_(1, label, -torch.inf)
            best = block.max(dim=1)
            wrong = best.values >= own[:, 0]
            predictions[part][wrong] = best.indices[wrong]
            # zeros and ones over the scores: see the counter of retrieval ranks
            ranks[part] = torch.ge(block, own, out=block).sum(dim=1).long()
    return ranks, predictions


def class_vectors(prompt_features: Tensor, class_index: Tensor) -> Tensor:
    """Average the prompt features of each class into one unit vector.

    Each prompt is normalised, the prompts of a class are averaged, and the mean
    is normalised again. The first step is what makes long and short features
    count equally.

    :param prompt_features: features of all prompts, ``(P, D)``, float32 or
        float64, of any length.
    :param class_index: class of each prompt, integers ``(P,)`` covering
        0..C-1, in any order.
    :return: class vectors ``(C, D)`` of length 1.
    :raises ValueError: if shapes or types do not fit, a feature is not finite,
        or a class has no prompt.

    Source: Radford et al., ICML 2021 (CLIP, arXiv 2103.00020), prompt
    ensembling in the embedding space.

    >>> class_vectors(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([0, 0]))
    tensor([[0.8944, 0.4472]])
    """
    features = as_float_matrix("prompt_features", prompt_features)
    index = as_tensor("class_index", class_index).to(features.device)
    wanted = f"one per row of features of shape {tuple(features.shape)}"
    require_array(index, "class_index", f"{len(features)}", "integer", give=wanted)
    index = index.long()
    if index.min() < 0 or (torch.bincount(index) == 0).any():
        raise ValueError(
            f"class_index holds {torch.unique(index).tolist()}; it must cover 0..C-1 "
            "without gaps."
        )
    sums = features.new_zeros(int(index.max()) + 1, features.shape[1])
    for start in range(0, len(index), _ROWS_PER_BLOCK):
        part = slice(start, start + _ROWS_PER_BLOCK)
        sums.index_add_(0, index[part], F.normalize(features[part], dim=1))
    # the length of the sum is irrelevant after the second normalisation
    return F.normalize(sums, dim=1)


def _block_ranks(block: Tensor, target: Tensor, ties: str) -> Tensor:
    """Return how many other classes come before the right one."""
    own = block.gather(1, target[:, None])
    if ties == "lowest":
        earlier = torch.arange(block.shape[1], device=block.device) < target[:, None]
        return ((block > own) | ((block == own) & earlier)).sum(dim=1)
    return (block >= own).sum(dim=1) - 1  # the right class is always counted once


def _mean_average_precision(scores: Tensor, targets: Tensor) -> float:
    values = targets.to(scores.dtype)
    if not ((values == 0) | (values == 1)).all():
        raise ValueError(
            f"multi-label targets of shape {tuple(targets.shape)} hold other values "
            "than 0 and 1."
        )
    places = torch.arange(1, scores.shape[0] + 1, device=scores.device)
    precisions = []
    for column, positive in zip(scores.T, values.T, strict=True):
        # negatives first, then a stable sort: a tie never helps
        by_label = positive.sort(stable=True).indices
        order = by_label[column[by_label].sort(descending=True, stable=True).indices]
        hits = positive[order].double()
        precision = (hits * hits.cumsum(0) / places).sum()
        precisions.append(precision / hits.sum().clamp(min=1))
    return torch.stack(precisions).mean().item()
