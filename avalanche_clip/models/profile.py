"""Counting the arithmetic of a dual encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avalanche_clip._numbers import as_size
from avalanche_clip.common.randomness import evaluating

if TYPE_CHECKING:
    from avalanche_clip.models.dual_encoder import DualEncoder


def count_macs(model: DualEncoder, text_length: int) -> dict[str, int]:
    """Count multiply-adds of one image and of one caption, forward only.

    Products of matrices and convolutions are counted, attention included;
    norms, activations and sums are not. Mode, gradients and random state of
    the model are left as they were.

    :param model: the model, on any device.
    :param text_length: tokens of the caption.
    :return: ``{"image": int, "text": int}``; 1 MAC = 2 FLOPs.

    Source: ``torch.utils.flop_counter``; fused attention is switched off
    while counting, since its kernels hide the products they contain.
    """
    text_length = as_size(text_length, "text_length")
    parameter = next(model.parameters())
    size = model.image_size
    height, width = (size, size) if isinstance(size, int) else size
    image = torch.zeros(1, 3, height, width, device=parameter.device)
    text = torch.zeros(1, text_length, dtype=torch.long, device=parameter.device)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            with FlopCounterMode(display=False) as images:
                model.encode_image(image)
            with FlopCounterMode(display=False) as texts:
                model.encode_text(text)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return {
        "image": images.get_total_flops() // 2,
        "text": texts.get_total_flops() // 2,
    }


__all__ = ["count_macs"]
