"""The formulas of CoLeCLIP: embeddings that move, owners of names, safe negatives.

Source: Li et al., 2024 (CoLeCLIP, arXiv 2403.10245) and the authors' released code,
whose sums of exponentials overflow at cosines above 0.88; here they are log-sum-exps,
and otherwise the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_clip.models.encoders.output import unit_features

Score = Callable[[Tensor, Tensor], Tensor]
"""Features ``(B, D)`` and embeddings ``(C, D)`` to logits ``(B, C)``."""
_NONE = float("-inf")


def fused_embeddings(kept: Tensor, texts: Tensor) -> Tensor:
    """Embeddings half way between the vocabulary's and new ones, of length 1.

    :param kept: of the vocabulary, of length 1, ``(K, D)``.
    :param texts: of the trained text tower, of length 1, ``(K, D)``.

    >>> fused_embeddings(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    tensor([[0.7071, 0.7071]])
    """
    return unit_features(kept + texts)[0]


def moved_embeddings(kept: Tensor, fused: Tensor, alpha: float) -> Tensor:
    """The vocabulary's embeddings after one step of momentum, of length 1.

    :param kept: before it, ``(K, D)``.
    :param fused: of :func:`fused_embeddings`, ``(K, D)``.
    :param alpha: weight of ``fused``, in ``[0, 1]``.
    """
    return unit_features(alpha * fused + (1 - alpha) * kept)[0]


def stability_loss(fused: Tensor, start: Tensor) -> Tensor:
    """Mean distance (not squared) of embeddings from those before the task.

    :param fused: ``(K, D)``.
    :param start: ``(K, D)``.
    """
    return torch.linalg.vector_norm(fused - start, dim=-1).mean()


def owner_logits(
    features: Tensor, embeddings: Tensor, owned: Sequence[Tensor], score: Score
) -> Tensor:
    """Logits of names by the features of the tasks that own them.

    :param features: one per image and task, ``(B, T, D)``.
    :param embeddings: of the names, ``(C, D)``.
    :param owned: per task the columns that it owns, int64.
    :param score: of features and embeddings.
    :return: ``(B, C)``, the largest one of all owners; -inf without an owner.
    """
    logits = features.new_full((len(features), len(embeddings)), _NONE)
    for own, columns in zip(features.unbind(1), owned, strict=True):
        best = torch.maximum(logits[:, columns], score(own, embeddings[columns]))
        logits = logits.index_copy(1, columns, best)
    return logits


@torch.no_grad()
def blocked_negatives(
    logits: Tensor, count: int, tasks: Tensor, scale: Tensor, quantile: float
) -> Tensor:
    """Mark the names of earlier tasks that are no safe negatives of an image.

    With F the log-sum-exp of the logits of a task divided by ``scale``, an earlier
    task k is safe for an image if ``F_current - F_k`` exceeds both zero and the
    quantile of that difference over the batch. A name is blocked if any of its tasks
    is not safe; tasks without a name of their own do not count.

    :param logits: of the current task's names and then the others, ``(B, count + R)``.
    :param count: names of the current task.
    :param tasks: per earlier task which of the others are its names, bool ``(T, R)``.
    :param scale: factor of the cosines in the logits.
    :param quantile: in ``[0, 1]``, interpolated.
    :return: bool ``(B, R)``.
    """
    own, others = logits[:, :count].logsumexp(1), logits[:, count:]
    blocked = torch.zeros_like(others, dtype=torch.bool)
    for names in tasks:
        if names.any():
            ahead = (own - others[:, names].logsumexp(1)) / scale
            least = torch.quantile(ahead, quantile).clamp_min(0)
            blocked |= names & ~(ahead > least)[:, None]
    return blocked


def mean_cross_entropy(logits: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Mean of the cross-entropies of several logits ``(B, C)``, over images too."""
    return torch.stack([F.cross_entropy(each, targets) for each in logits]).mean()


def negatives_loss(
    logits: Sequence[Tensor],
    targets: Tensor,
    count: int,
    tasks: Tensor,
    scale: Tensor,
    quantile: float,
) -> Tensor:
    """Cross-entropies in which hard images have safe names of other tasks, too.

    An image is hard if some name, blocked or not, beats its own by the last of the
    logits, which also decide what is safe. Others keep to the names of their task.

    :param logits: ``(B, count + R)`` each, see :func:`blocked_negatives`.
    :param targets: columns below ``count``, int64 ``(B,)``.
    :param count: see :func:`blocked_negatives`.
    :param tasks: see :func:`blocked_negatives`.
    :param scale: see :func:`blocked_negatives`.
    :param quantile: see :func:`blocked_negatives`.
    :return: 0-d.
    """
    deciding = logits[-1].detach()
    blocked = blocked_negatives(deciding, count, tasks, scale, quantile)
    own = deciding.gather(1, targets[:, None])
    hard = own < deciding.amax(1, keepdim=True)
    left_out = F.pad(blocked | ~hard, (count, 0))
    return mean_cross_entropy([x.masked_fill(left_out, _NONE) for x in logits], targets)
