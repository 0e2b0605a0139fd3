"""Avalanche metrics around :mod:`avalanche_clip.evaluation.functional`."""

from avalanche_clip.evaluation.metrics.disorder import (
    SpatialDisorderMetric,
    spatial_disorder_metrics,
)
from avalanche_clip.evaluation.metrics.loss_terms import (
    LossTermsMetric,
    loss_term_metrics,
)
from avalanche_clip.evaluation.metrics.retrieval import (
    RetrievalMetric,
    retrieval_plugin_metrics,
)
from avalanche_clip.evaluation.metrics.summary import ContinualSummary
from avalanche_clip.evaluation.metrics.wandb_repair import repair_wandb_logger

repair_wandb_logger()

__all__ = [
    "ContinualSummary",
    "LossTermsMetric",
    "RetrievalMetric",
    "SpatialDisorderMetric",
    "loss_term_metrics",
    "retrieval_plugin_metrics",
    "spatial_disorder_metrics",
]
