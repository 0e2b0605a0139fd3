"""Losses as pure functions: tensors in, scalar out."""

from avalanche_clip.losses.contrastive import contrastive_loss
from avalanche_clip.losses.siglip import siglip_loss
from avalanche_clip.losses.similarity_distillation import similarity_distillation_loss

__all__ = ["contrastive_loss", "siglip_loss", "similarity_distillation_loss"]
