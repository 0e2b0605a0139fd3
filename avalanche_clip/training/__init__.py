"""Training: templates, plugins, named strategies and whole runs."""

from avalanche_clip._lazy import lazy_names

_MODULES = {
    "CLIPTemplate": "avalanche_clip.training.templates",
    "ClassNameTemplate": "avalanche_clip.training.templates",
    "ContrastiveTemplate": "avalanche_clip.training.templates",
    "MethodPlugin": "avalanche_clip.training.templates",
    "NonFiniteLossError": "avalanche_clip.training.templates",
    "default_class_evaluator": "avalanche_clip.training.templates",
    "default_clip_evaluator": "avalanche_clip.training.templates",
    "RunResult": "avalanche_clip.training.stream",
    "run_stream": "avalanche_clip.training.stream",
    "CLLCLIP": "avalanche_clip.training.supervised",
    "CLL_VARIANTS": "avalanche_clip.training.supervised",
    "TIC_STRATEGIES": "avalanche_clip.training.supervised",
    "ClassNameFineTuning": "avalanche_clip.training.supervised",
    "ClassNameZSCL": "avalanche_clip.training.supervised",
    "ContrastiveEWC": "avalanche_clip.training.supervised",
    "ContrastiveLwF": "avalanche_clip.training.supervised",
    "CumulativeAll": "avalanche_clip.training.supervised",
    "CumulativeAllStar": "avalanche_clip.training.supervised",
    "CumulativeEqual": "avalanche_clip.training.supervised",
    "CumulativeExp": "avalanche_clip.training.supervised",
    "ModX": "avalanche_clip.training.supervised",
    "MoEAdapters": "avalanche_clip.training.supervised",
    "Oracle": "avalanche_clip.training.supervised",
    "Patching": "avalanche_clip.training.supervised",
    "Restart": "avalanche_clip.training.supervised",
    "Sequential": "avalanche_clip.training.supervised",
    "VRLwF": "avalanche_clip.training.supervised",
    "ZSCL": "avalanche_clip.training.supervised",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = list(_MODULES)
