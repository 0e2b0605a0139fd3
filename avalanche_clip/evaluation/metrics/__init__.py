"""Avalanche metrics around :mod:`avalanche_clip.evaluation.functional`."""

from avalanche_clip._exports import face
from avalanche_clip.evaluation.metrics.wandb_repair import repair_wandb_logger

repair_wandb_logger()

__getattr__, __dir__, __all__ = face(__name__)
