"""Training loops."""

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
    "ContrastiveCriterion",
    "ContrastiveTemplate",
    "NonFiniteLossError",
    "default_clip_evaluator",
]
