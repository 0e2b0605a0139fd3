"""Evaluation: pure metrics, their Avalanche shells, loggers, plots and reports.

Names are loaded on first use, because :mod:`avalanche_clip.evaluation.functional`
has to stay free of Avalanche.
"""

from importlib import import_module
from typing import Any

_MODULES = {
    "classification_metrics": "functional",
    "continual_summary": "functional",
    "fold_columns": "functional",
    "pair_metrics": "functional",
    "retrieval_metrics": "functional",
    "time_transfer": "functional",
    "retrieval_plugin_metrics": "metrics",
    "MetricsCSVLogger": "loggers",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


__all__ = list(_MODULES)
