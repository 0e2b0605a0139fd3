"""Counting the arithmetic of a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from avalanche_clip.common.randomness import evaluating


def count_macs(
    model: nn.Module, passes: Mapping[str, Callable[[], Any]]
) -> dict[str, int]:
    """Count multiply-adds of forward passes.

    Products of matrices and convolutions are counted, attention included;
    norms, activations and sums are not. Mode, gradients and random state of
    the model are left as they were.

    :param model: the model, on any device.
    :param passes: what is counted, each a call of the model.
    :return: numbers under the same names; 1 MAC = 2 FLOPs.

    Source: ``torch.utils.flop_counter``; fused attention is switched off
    while counting, since its kernels hide the products they contain.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    found = {}
    try:
        torch.backends.mha.set_fastpath_enabled(False)
        with evaluating(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            for name, run in passes.items():
                with FlopCounterMode(display=False) as counter:
                    run()
                found[name] = counter.get_total_flops() // 2
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return found


def count_passes(model: Any, size: tuple[int, int], length: int) -> dict[str, int]:
    """Count one pass of each tower of a dual encoder.

    :param model: the dual encoder.
    :param size: height and width of the image.
    :param length: tokens of the text.
    """
    device = model.logit_scale.device
    image = torch.zeros(1, 3, *size, device=device)
    text = torch.zeros(1, length, dtype=torch.long, device=device)
    passes = {
        "image": partial(model.encode_image, image),
        "text": partial(model.encode_text, text),
    }
    return count_macs(model, passes)
