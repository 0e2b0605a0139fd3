"""What a dual encoder can take, and the errors for all else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.checks import require_array

_SHORT = (torch.float16, torch.bfloat16)


def check_images(image: Any) -> None:
    """Refuse what is no batch of preprocessed images."""
    give = "made by model.transform(train)"
    require_array(image, "Images", "* * * *", "float", give=give)


def wrong_size(image: Tensor, size: tuple[int, int]) -> ValueError:
    """Make the error for images of another size than a tower takes."""
    return ValueError(
        f"Images came as {tuple(image.shape)}, the model takes (B, 3, {size[0]},"
        f" {size[1]}); use model.transform(train)."
    )


def check_tokens(text: Any, limit: int) -> None:
    """Refuse what is no matrix of token ids of at most ``limit`` columns."""
    if not isinstance(text, Tensor) or text.dtype not in (torch.int64, torch.int32):
        found = text.dtype if isinstance(text, Tensor) else type(text).__name__
        raise TypeError(
            f"Texts came as {found}; give token ids made by model.tokenizer(texts)."
        )
    if text.ndim != 2 or text.shape[1] > limit or text.shape[1] == 0:
        raise ValueError(
            f"Token ids have shape {tuple(text.shape)}; give (M, L) with L between"
            f" 1 and context_length={limit}."
        )


def check_conversion(change: Callable[[Tensor], Tensor]) -> None:
    """Refuse a change of all parameters to a type of 16 bits.

    :param change: what ``nn.Module`` applies to each tensor.
    """
    kind = change(torch.zeros(1)).dtype
    if kind in _SHORT:
        name = "fp16" if kind is torch.float16 else "bf16"
        raise ValueError(
            f"A DualEncoder is not converted to {kind} as a whole: trainable weights "
            "and norms stay float32. Create the model with "
            f"create_dual_encoder(..., precision={name!r}) to store frozen weights in "
            f"16 bits, or give the strategy precision={name!r} for mixed precision."
        )
