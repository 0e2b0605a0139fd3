"""Losses as pure functions: tensors in, scalar out."""

from avalanche_clip.losses.contrastive import contrastive_loss
from avalanche_clip.losses.cross_lingual import cross_lingual_loss, cross_modal_loss
from avalanche_clip.losses.off_diagonal_alignment import off_diagonal_alignment_loss
from avalanche_clip.losses.siglip import siglip_loss
from avalanche_clip.losses.similarity_distillation import similarity_distillation_loss
from avalanche_clip.losses.temperature_distillation import (
    temperature_distillation_loss,
)

__all__ = [
    "contrastive_loss",
    "cross_lingual_loss",
    "cross_modal_loss",
    "off_diagonal_alignment_loss",
    "siglip_loss",
    "similarity_distillation_loss",
    "temperature_distillation_loss",
]
