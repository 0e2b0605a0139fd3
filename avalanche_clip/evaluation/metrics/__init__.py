"""Avalanche metrics around :mod:`avalanche_clip.evaluation.functional`."""

from avalanche_clip.evaluation.metrics.retrieval import (
    RetrievalMetric,
    retrieval_plugin_metrics,
)
from avalanche_clip.evaluation.metrics.summary import ContinualSummary
from avalanche_clip.evaluation.metrics.wandb_repair import repair_wandb_logger

repair_wandb_logger()

__all__ = ["ContinualSummary", "RetrievalMetric", "retrieval_plugin_metrics"]
