"""Metrics as pure functions of tensors and arrays; nothing here needs Avalanche."""

from avalanche_clip.evaluation.functional.classification import (
    class_vectors,
    classification_metrics,
)
from avalanche_clip.evaluation.functional.pairs import pair_metrics
from avalanche_clip.evaluation.functional.ranks import (
    RetrievalRanks,
    owner_pairs,
    retrieval_ranks,
)
from avalanche_clip.evaluation.functional.retrieval import retrieval_metrics
from avalanche_clip.evaluation.functional.texts import merge_equal_texts
from avalanche_clip.evaluation.functional.transfer import (
    continual_summary,
    fold_columns,
    time_transfer,
)

__all__ = [
    "RetrievalRanks",
    "class_vectors",
    "classification_metrics",
    "continual_summary",
    "fold_columns",
    "merge_equal_texts",
    "owner_pairs",
    "pair_metrics",
    "retrieval_metrics",
    "retrieval_ranks",
    "time_transfer",
]
