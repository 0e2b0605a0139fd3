"""Evaluation: pure metrics, their Avalanche shells, loggers, plots and reports.

Names are loaded on first use, because :mod:`avalanche_clip.evaluation.functional`
has to stay free of Avalanche.
"""

from avalanche_clip._lazy import lazy_names

_MODULES = {
    "classification_metrics": "avalanche_clip.evaluation.functional",
    "continual_summary": "avalanche_clip.evaluation.functional",
    "fold_columns": "avalanche_clip.evaluation.functional",
    "pair_metrics": "avalanche_clip.evaluation.functional",
    "recall_forgetting": "avalanche_clip.evaluation.functional",
    "retrieval_metrics": "avalanche_clip.evaluation.functional",
    "spatial_disorder": "avalanche_clip.evaluation.functional",
    "time_transfer": "avalanche_clip.evaluation.functional",
    "loss_term_metrics": "avalanche_clip.evaluation.metrics",
    "retrieval_plugin_metrics": "avalanche_clip.evaluation.metrics",
    "spatial_disorder_metrics": "avalanche_clip.evaluation.metrics",
    "MetricsCSVLogger": "avalanche_clip.evaluation.loggers",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = list(_MODULES)
