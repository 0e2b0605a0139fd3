"""Image-text retrieval metrics in both directions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from avalanche_clip.common.checks import as_size
from avalanche_clip.evaluation.functional._inputs import ArrayLike
from avalanche_clip.evaluation.functional.ranks import retrieval_ranks


def retrieval_metrics(
    image_features: ArrayLike,
    text_features: ArrayLike,
    owner: ArrayLike | None = None,
    *,
    ks: Sequence[int] = (1, 5, 10),
    ties: str = "pessimistic",
    tie_eps: float = 1e-6,
    chunk_size: int = 1024,
) -> dict[str, float]:
    """Compute recall at k, median and mean rank of image-text retrieval.

    An image counts as found among the k best if at least one of its texts is,
    and a text if at least one of its images is. Scores are inner products of
    the features as given; ranks are exact and count foreign items only, see
    :func:`retrieval_ranks`.

    :param image_features: ``(N, D)`` tensor or array, float32 or float64,
        normally L2-normalised.
    :param text_features: ``(M, D)``, same type and device.
    :param owner: image of each text, integers ``(M,)``; or (text, image) pairs
        ``(P, 2)`` where texts may belong to several images; or None if text i
        belongs to image i.
    :param ks: numbers of results looked at, integers >= 1. A k above the number
        of candidates gives 1 under its own name.
    :param ties: ``"pessimistic"`` (tied foreign items come first),
        ``"strict"`` (they come last) or ``"expected"`` (mean of both ranks).
    :param tie_eps: largest difference of two scores that counts as a tie.
    :param chunk_size: side of the score tiles; affects memory and speed only.
    :return: Python floats under ``image_to_text_R@k`` (share of the N images),
        ``text_to_image_R@k`` (share of the M texts) and ``mean_R@k`` (mean of
        the two) for each k, in [0, 1]; ``rsum``, the sum of all recalls of both
        directions in percent (0..600 for three ks); and for both directions
        ``..._median_rank`` and ``..._mean_rank`` (best is 1) and
        ``..._tie_share``, the share of queries with a foreign item within
        ``tie_eps`` of their own score.
    :raises ValueError: if shapes, types or options do not fit, a feature is not
        finite, or an image or a text has no partner.

    Source: the protocol of Karpathy and Fei-Fei, CVPR 2015, as used for CLIP;
    tie policies and many-to-many owners are our choice.

    >>> import torch
    >>> texts = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.1, 0.2, 0.6]])
    >>> metrics = retrieval_metrics(torch.eye(3), texts, ks=(1,))
    >>> round(metrics["text_to_image_R@1"], 4), metrics["image_to_text_R@1"]
    (0.6667, 1.0)
    """
    ks = _checked_ks(ks)
    ranks = retrieval_ranks(
        image_features,
        text_features,
        owner,
        ties=ties,
        tie_eps=tie_eps,
        chunk_size=chunk_size,
    )
    image_recall = _recalls(ranks.image_to_text, ks)
    text_recall = _recalls(ranks.text_to_image, ks)
    result = {f"image_to_text_R@{k}": image_recall[k] for k in ks}
    result |= {f"text_to_image_R@{k}": text_recall[k] for k in ks}
    result |= {f"mean_R@{k}": (image_recall[k] + text_recall[k]) / 2 for k in ks}
    result["rsum"] = 100 * (sum(image_recall.values()) + sum(text_recall.values()))
    result |= _rank_summary("image_to_text", ranks.image_to_text)
    result |= _rank_summary("text_to_image", ranks.text_to_image)
    result["image_to_text_tie_share"] = _share(ranks.image_to_text_tied)
    result["text_to_image_tie_share"] = _share(ranks.text_to_image_tied)
    return result


def guessed_recalls(
    owner: Tensor, num_images: int, num_texts: int, ks: Sequence[int]
) -> dict[str, float]:
    """Recalls that a random order of the candidates has on average.

    A query with c own ones among M candidates has one of them among the first k with
    the probability 1 - C(M - c, k) / C(M, k).

    :param owner: (text, image) pairs ``(P, 2)``, or the image of each text ``(M,)``.
    :param num_images: N.
    :param num_texts: M.
    :param ks: numbers of results looked at.
    :return: recalls named as by :func:`retrieval_metrics`.

    >>> import torch
    >>> guessed_recalls(torch.arange(4), 4, 4, [1])["mean_R@1"]
    0.25
    """
    texts, images = (
        owner.T if owner.ndim == 2 else (torch.arange(len(owner)), owner.cpu())
    )
    found: dict[str, float] = {}
    for k in ks:
        sides = {
            "image_to_text": _guessed(images, num_images, num_texts, k),
            "text_to_image": _guessed(texts, num_texts, num_images, k),
        }
        found |= {f"{side}_R@{k}": value for side, value in sides.items()}
        found[f"mean_R@{k}"] = sum(sides.values()) / 2
    return found


def _guessed(queries: Tensor, num_queries: int, candidates: int, k: int) -> float:
    own = torch.bincount(queries, minlength=num_queries)
    total = 0.0
    for count, times in zip(*own.unique(return_counts=True), strict=True):
        miss = math.prod(
            max(candidates - int(count) - i, 0) / (candidates - i)
            for i in range(min(k, candidates))
        )
        total += int(times) * (1 - miss)
    return total / num_queries


def _checked_ks(ks: Sequence[int]) -> list[int]:
    try:
        values = [as_size(k, "ks") for k in ks]
    except (TypeError, ValueError):
        values = []
    if not values:
        raise ValueError(
            f"ks={ks!r} given; pass a sequence of at least one integer, all >= 1."
        )
    return list(dict.fromkeys(values))


def _share(flags: Tensor) -> float:
    return int(flags.sum()) / flags.numel()


def _recalls(ranks: Tensor, ks: list[int]) -> dict[int, float]:
    return {k: _share(ranks < k) for k in ks}


def _rank_summary(direction: str, ranks: Tensor) -> dict[str, float]:
    ordered = ranks.sort().values
    size = ordered.numel()
    median = (ordered[(size - 1) // 2] + ordered[size // 2]).item() / 2
    return {
        f"{direction}_median_rank": float(math.floor(median) + 1),
        f"{direction}_mean_rank": ranks.mean().item() + 1,
    }
