"""Training loops."""

from avalanche_clip.training.templates.class_name import (
    ClassNameTemplate,
    default_class_evaluator,
)
from avalanche_clip.training.templates.clip_template import (
    CLIPTemplate,
    NonFiniteLossError,
    default_clip_evaluator,
)
from avalanche_clip.training.templates.contrastive import (
    ContrastiveCriterion,
    ContrastiveTemplate,
)

__all__ = [
    "CLIPTemplate",
    "ClassNameTemplate",
    "ContrastiveCriterion",
    "ContrastiveTemplate",
    "NonFiniteLossError",
    "default_class_evaluator",
    "default_clip_evaluator",
]
