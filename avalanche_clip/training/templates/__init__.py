"""Training loops, and the contract between them and methods."""

from avalanche_clip._lazy import lazy_names

_MODULES = {
    "CLIPTemplate": "avalanche_clip.training.templates.clip_template",
    "ClassNameTemplate": "avalanche_clip.training.templates.class_name",
    "ContrastiveCriterion": "avalanche_clip.training.templates.contrastive",
    "ContrastiveTemplate": "avalanche_clip.training.templates.contrastive",
    "MethodPlugin": "avalanche_clip.training.templates.contract",
    "NonFiniteLossError": "avalanche_clip.training.templates.clip_template",
    "default_class_evaluator": "avalanche_clip.training.templates.class_name",
    "default_clip_evaluator": "avalanche_clip.training.templates.clip_template",
}

__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = list(_MODULES)
