"""Metrics as pure functions of tensors and arrays; nothing here needs Avalanche."""

from avalanche_clip.evaluation.functional.classification import (
    class_vectors,
    classification_metrics,
)
from avalanche_clip.evaluation.functional.disorder import (
    ROTATION_BINS,
    TOPOLOGY_BINS,
    angle_histogram,
    rotation_angles,
    self_angles,
    spatial_disorder,
    topology_change,
)
from avalanche_clip.evaluation.functional.forgetting import (
    forgetting_per_task,
    multilingual_summary,
    recall_forgetting,
    recall_forgetting_curves,
)
from avalanche_clip.evaluation.functional.pairs import pair_metrics
from avalanche_clip.evaluation.functional.ranks import (
    RetrievalRanks,
    owner_pairs,
    retrieval_ranks,
)
from avalanche_clip.evaluation.functional.retrieval import retrieval_metrics
from avalanche_clip.evaluation.functional.texts import merge_equal_pairs
from avalanche_clip.evaluation.functional.transfer import (
    continual_summary,
    fold_columns,
    incremental_accuracy,
    seen_unseen_harmonic,
    seen_unseen_per_step,
    time_transfer,
    transfer_average_last,
    transfer_per_task,
)

__all__ = [
    "ROTATION_BINS",
    "RetrievalRanks",
    "TOPOLOGY_BINS",
    "angle_histogram",
    "class_vectors",
    "classification_metrics",
    "continual_summary",
    "fold_columns",
    "incremental_accuracy",
    "forgetting_per_task",
    "merge_equal_pairs",
    "multilingual_summary",
    "owner_pairs",
    "pair_metrics",
    "recall_forgetting",
    "recall_forgetting_curves",
    "retrieval_metrics",
    "retrieval_ranks",
    "rotation_angles",
    "seen_unseen_harmonic",
    "seen_unseen_per_step",
    "self_angles",
    "spatial_disorder",
    "time_transfer",
    "topology_change",
    "transfer_average_last",
    "transfer_per_task",
]
