################################################################################
# Copyrights licensed under the MIT License.                                   #
# See the accompanying LICENSE file for terms.                                 #
################################################################################
"""Retrieval metrics for models that embed pairs, such as images and captions."""

from typing import TYPE_CHECKING, Dict, List, Sequence, Tuple

import torch
from avalanche.evaluation import GenericPluginMetric, Metric
from avalanche.evaluation.metric_results import MetricResult, MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from torch import Tensor

if TYPE_CHECKING:
    from avalanche.training.templates import SupervisedTemplate


class RetrievalRecall(Metric[Dict[str, float]]):
    """The Retrieval Recall metric. This is a standalone metric.

    Pairs of embeddings, such as those of images and their captions, are collected
    by `update`. The recall at k is the share of queries whose partner is among the k
    items with the highest inner product. First elements are searched with second
    ones and the other way round.

    Items as similar as the partner (within `tie_eps`) are ranked before it, so that
    a model whose embeddings are all equal has a recall of 0, not of 1.

    The embeddings of all pairs since the last reset are kept on the CPU.
    """

    def __init__(
        self, top_k: Sequence[int] = (1,), tie_eps: float = 1e-6, chunk_size: int = 1024
    ):
        """Init.

        :param top_k: values of k, at least 1.
        :param tie_eps: largest difference of two similarities that is a tie.
        :param chunk_size: number of queries compared at a time with all items.
        """
        if len(top_k) == 0 or min(top_k) < 1:
            raise ValueError(f"top_k must have values of at least 1, got {top_k}.")
        self.top_k = tuple(top_k)
        self.tie_eps = tie_eps
        self.chunk_size = chunk_size
        self._firsts: List[Tensor] = []
        self._seconds: List[Tensor] = []

    @torch.no_grad()
    def update(self, firsts: Tensor, seconds: Tensor) -> None:
        """Add the pairs of a minibatch.

        :param firsts: embeddings of shape (B, D), such as those of images.
        :param seconds: embeddings of their partners, (B, D). To compare cosines,
            normalize both.

        :return: None.
        """
        if firsts.dim() != 2 or firsts.shape != seconds.shape:
            raise ValueError(
                "Size mismatch: expected two tensors of shape (B, D), got "
                f"{tuple(firsts.shape)} and {tuple(seconds.shape)}"
            )
        self._firsts.append(firsts.detach().float().cpu())
        self._seconds.append(seconds.detach().float().cpu())

    def result(self) -> Dict[str, float]:
        """Retrieves the recalls of all pairs since the last reset.

        Calling this method will not change the internal state of the metric.

        :return: for each k the keys `first_to_second_R@k`, `second_to_first_R@k`
            and their mean, `mean_R@k`, with values between 0 and 1. Without any
            pair an empty dictionary.
        """
        if len(self._firsts) == 0:
            return {}
        firsts, seconds = torch.cat(self._firsts), torch.cat(self._seconds)
        forward, backward = self._ranks(firsts, seconds), self._ranks(seconds, firsts)
        recalls: Dict[str, float] = {}
        for k in self.top_k:
            there = (forward < k).double().mean().item()
            back = (backward < k).double().mean().item()
            recalls[f"first_to_second_R@{k}"] = there
            recalls[f"second_to_first_R@{k}"] = back
            recalls[f"mean_R@{k}"] = (there + back) / 2
        return recalls

    def reset(self) -> None:
        """Resets the metric.

        :return: None.
        """
        self._firsts = []
        self._seconds = []

    @torch.no_grad()
    def _ranks(self, queries: Tensor, items: Tensor) -> Tensor:
        """Number of other items that are ranked before the partner of a query."""
        ranks = []
        for start in range(0, len(queries), self.chunk_size):
            scores = queries[start : start + self.chunk_size] @ items.T
            rows = torch.arange(len(scores))
            own = scores[rows, start + rows].unsqueeze(1)
            # NaN is before everything
            before = ~(scores < own - self.tie_eps)
            before[rows, start + rows] = False
            ranks.append(before.sum(dim=1))
        return torch.cat(ranks)


class RetrievalPluginMetric(GenericPluginMetric[Dict[str, float], RetrievalRecall]):
    """
    Base class for all retrieval plugin metrics.

    `strategy.mb_output` must start with the two embeddings of each pair: any
    model that returns a tuple of them will do.
    """

    def __init__(self, reset_at, emit_at, top_k):
        super().__init__(
            RetrievalRecall(top_k), reset_at=reset_at, emit_at=emit_at, mode="eval"
        )

    def update(self, strategy: "SupervisedTemplate"):
        firsts, seconds = self._pairs(strategy)
        self._metric.update(firsts, seconds)

    def _pairs(self, strategy: "SupervisedTemplate") -> Tuple[Tensor, Tensor]:
        """The two embeddings of each pair of the minibatch.

        Override this if the strategy keeps them elsewhere.
        """
        return strategy.mb_output[0], strategy.mb_output[1]

    def _package_result(self, strategy: "SupervisedTemplate") -> "MetricResult":
        return [
            MetricValue(
                self,
                get_metric_name(
                    f"{name}_{self}",
                    strategy,
                    add_experience=self._emit_at == "experience",
                    add_task=self._emit_at == "experience",
                ),
                value,
                strategy.clock.train_iterations,
            )
            for name, value in self.result().items()
        ]


class ExperienceRetrieval(RetrievalPluginMetric):
    """
    At the end of each experience, this plugin metric reports the recalls among
    the pairs of that experience.
    This metric only works at eval time.
    """

    def __init__(self, top_k: Sequence[int] = (1,)):
        """
        Creates an instance of the ExperienceRetrieval metric.
        """
        super().__init__(reset_at="experience", emit_at="experience", top_k=top_k)

    def __str__(self):
        return "Exp"


class StreamRetrieval(RetrievalPluginMetric):
    """
    At the end of the entire stream of experiences, this plugin metric reports the
    recalls among the pairs of all experiences: the more there are, the harder is
    the search.
    This metric only works at eval time.
    """

    def __init__(self, top_k: Sequence[int] = (1,)):
        """
        Creates an instance of the StreamRetrieval metric.
        """
        super().__init__(reset_at="stream", emit_at="stream", top_k=top_k)

    def __str__(self):
        return "Stream"


def retrieval_metrics(
    *, top_k: Sequence[int] = (1,), experience=False, stream=False
) -> List[RetrievalPluginMetric]:
    """
    Helper method that can be used to obtain the desired set of
    plugin metrics.

    :param top_k: the values of k for which recalls are reported.
    :param experience: If True, will return a metric able to log
        the recalls among the pairs of each evaluation experience.
    :param stream: If True, will return a metric able to log the recalls among
        the pairs of the entire evaluation stream of experiences.

    :return: A list of plugin metrics.
    """

    metrics: List[RetrievalPluginMetric] = []
    if experience:
        metrics.append(ExperienceRetrieval(top_k))
    if stream:
        metrics.append(StreamRetrieval(top_k))

    return metrics


__all__ = [
    "RetrievalRecall",
    "ExperienceRetrieval",
    "StreamRetrieval",
    "retrieval_metrics",
]
