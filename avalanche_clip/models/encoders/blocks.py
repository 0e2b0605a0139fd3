"""Residual blocks of a tower under one set of names, for adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

ATTACHMENTS = (
    *("moe_adapters", "language_adapters", "lora", "adapters", "prompts", "prefixes"),
)
"""Attributes of a model for what can be attached to its blocks; None without."""


@dataclass(frozen=True)
class BlockView:
    """One pre-norm residual block with its named sub-modules.

    The block computes ``x = x + attn(norm1(x))`` and then
    ``x = x + mlp_out(mlp(norm2(x)))``. A forward-pre hook on ``norm2`` sees
    the input r of the second branch; a forward hook on ``mlp_out`` may return
    ``output + adapter(r)``. Both survive deep copies when they are bound
    methods of modules registered as children of ``module``.

    :param module: the whole block; register new children here, which keeps
        all original parameter names.
    :param norm1: norm before the attention.
    :param attn: the attention module.
    :param norm2: norm before the perceptron.
    :param mlp: the perceptron.
    :param mlp_out: last module of the second branch (layer scale, or the
        identity in its place; the perceptron itself where there is neither).
    :param batch_first: True if activations are ``(B, L, D)``, False if
        ``(L, B, D)``.
    :param attn_out: last module of the first branch, as ``mlp_out`` of the second;
        the attention itself may give a tuple.
    """

    module: nn.Module
    norm1: nn.Module
    attn: nn.Module
    norm2: nn.Module
    mlp: nn.Module
    mlp_out: nn.Module
    batch_first: bool = True
    attn_out: nn.Module | None = None

    @property
    def width(self) -> int:
        """Number of channels D of the block."""
        weight = getattr(self.norm2, "weight", None)
        if weight is None:
            raise ValueError(
                f"The norm {type(self.norm2).__name__} has no weight to read the width"
                " from; pass the width to the adapter."
            )
        return int(weight.shape[0])


def _no_blocks(tower: str, found: str) -> ValueError:
    return ValueError(
        f"The {tower} tower ({found}) is no plain stack of pre-norm residual attention"
        " blocks, so methods that change blocks cannot be attached to it: use a model"
        " with plain transformer blocks, such as 'tiny-emoji-vit'."
    )


def open_clip_blocks(owner: Any, tower: str) -> list[BlockView]:
    """List the blocks of an open_clip tower, native or timm.

    :param owner: ``clip.visual``, ``clip.text`` or, for text, ``clip``.
    :param tower: ``"image"`` or ``"text"``, for the message only.
    :return: views in order of computation.
    :raises ValueError: for convolutional and for post-norm towers.
    """
    transformer = getattr(owner, "transformer", None)
    if transformer is not None and hasattr(transformer, "resblocks"):
        first = transformer.batch_first
        return [
            BlockView(b, b.ln_1, b.attn, b.ln_2, b.mlp, b.ls_2, first, b.ls_1)
            for b in transformer.resblocks
        ]
    trunk = getattr(owner, "trunk", None)
    if trunk is None:
        inner = type(transformer).__name__ if transformer is not None else ""
        raise _no_blocks(tower, f"{type(owner).__name__} {inner}".strip())
    views = [_timm_block(block) for block in getattr(trunk, "blocks", [])]
    if not views or any(view is None for view in views):
        raise _no_blocks(tower, f"timm {type(trunk).__name__}")
    return [view for view in views if view is not None]


def _timm_block(block: Any) -> BlockView | None:
    # timm 1.0: post-norm and parallel variants have neither ls2 nor this name
    if not all(hasattr(block, n) for n in ("norm1", "attn", "norm2", "mlp")):
        return None
    if hasattr(block, "ls2"):
        outs = block.ls1, block.ls2
    elif type(block).__name__ == "EvaBlock":
        # its layer scale is a bare parameter; what follows it is a module
        outs = block.drop_path1, block.drop_path2
    else:
        return None
    parts = block.norm1, block.attn, block.norm2, block.mlp
    return BlockView(block, *parts, outs[1], attn_out=outs[0])


def transformers_blocks(model: Any) -> list[BlockView]:
    """List the blocks of a transformers CLIP or SigLIP tower.

    :param model: ``clip.vision_model`` or ``clip.text_model``.
    :return: views in order of computation.
    """
    views = []
    for block in model.encoder.layers:
        parts = block.layer_norm1, block.self_attn, block.layer_norm2, block.mlp
        views.append(BlockView(block, *parts, block.mlp, attn_out=block.self_attn))
    return views
