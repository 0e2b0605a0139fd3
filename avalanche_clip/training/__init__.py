"""Training: templates, plugins, named strategies and whole runs."""

from importlib import import_module
from typing import Any

_MODULES = {
    "CLIPTemplate": "templates",
    "ContrastiveTemplate": "templates",
    "NonFiniteLossError": "templates",
    "default_clip_evaluator": "templates",
    "RunResult": "stream",
    "run_stream": "stream",
    "TIC_STRATEGIES": "supervised",
    "ContrastiveEWC": "supervised",
    "ContrastiveLwF": "supervised",
    "CumulativeAll": "supervised",
    "CumulativeAllStar": "supervised",
    "CumulativeEqual": "supervised",
    "CumulativeExp": "supervised",
    "Oracle": "supervised",
    "Patching": "supervised",
    "Restart": "supervised",
    "Sequential": "supervised",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])


__all__ = list(_MODULES)
