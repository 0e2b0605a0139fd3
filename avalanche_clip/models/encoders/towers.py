"""What differs between open_clip's and transformers' two-tower models.

One stateless object per library answers the questions that ``DualEncoder``
has: how to encode, which parameters belong to which tower, how large inputs
are, and where the residual blocks sit. Attribute names were checked against
open_clip 3.3 and transformers 5.23; no other module knows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.models.encoders.blocks import (
    BlockView,
    open_clip_blocks,
    transformers_blocks,
)
from avalanche_clip.models.images.resizing import as_pair

_END_POOLING = ("argmax", "eos")


def end_positions(text: Tensor, end_id: int) -> Tensor:
    """Find the position at which a causal text tower is pooled.

    :param text: token ids, long, shape ``(M, L)``.
    :param end_id: id of the end token.
    :return: long tensor ``(M,)``: first occurrence of ``end_id``; for rows
        without it the position of the highest id, which is CLIP's own rule.

    Source: Radford et al., ICML 2021 (arXiv 2103.00020) pool at the highest
    id; preferring the end token is our choice, so that vocabularies may grow
    past it.

    >>> end_positions(torch.tensor([[7, 3, 8, 0], [7, 9, 8, 8]]), end_id=8)
    tensor([2, 2])
    """
    is_end = text == end_id
    return torch.where(is_end.any(1), is_end.int().argmax(1), text.argmax(1))


def _pool(hidden: Tensor, text: Tensor, end_id: int) -> Tensor:
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return hidden[rows, end_positions(text, end_id)]


def inner_path(clip: nn.Module, child: str) -> str:
    """Find the wrapped model below what compiles or adapts it.

    ``torch.compile`` and peft put a module of their own around another, so that all
    its parameters get longer names.

    :param clip: the model, or a wrapper of it.
    :param child: name of the image tower in the model itself.
    :return: prefix of the model's own names, empty or ending with a dot.
    :raises ValueError: if nothing below ``clip`` has such a child.

    >>> inner_path(nn.ModuleDict({"_orig_mod": nn.ModuleDict({"visual": nn.ReLU()})}),
    ...            "visual")
    '_orig_mod.'
    """
    for name, module in clip.named_modules():
        if child in module._modules:
            return f"{name}." if name else ""
    raise ValueError(
        f"The wrapped model is a {type(clip).__name__} without an image tower"
        f" ({child!r}), so it cannot be told which parameters belong to which tower;"
        " wrap single layers instead of the whole model."
    )


def plain_name(name: str) -> str:
    """Remove what ``torch.compile`` puts into the names of parameters.

    >>> plain_name("visual._orig_mod.proj")
    'visual.proj'
    """
    return name.replace("_orig_mod.", "")


def _feature(output: Any) -> Any:
    """Return the tensor of an output that may be a tuple or an output object."""
    if isinstance(output, tuple):
        return output[0]
    # transformers 5 returns an object, earlier releases a tensor
    return output if isinstance(output, Tensor) else output.pooler_output


class _Reached(Exception):
    """Carries activations out of a tower that need not go on."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


def _leave(module: nn.Module, args: Any, output: Any = None) -> None:
    found = args if output is None else output
    # earlier transformers releases return a tuple
    raise _Reached(found[0] if isinstance(found, tuple) else found)


class _Towers:
    """What both libraries' image towers have in common."""

    image_child: str
    stems: tuple[str, ...]

    def blocks(self, clip: Any, tower: str) -> list[BlockView]:
        """Return the residual blocks of one tower, first to last."""
        raise NotImplementedError

    def early_stage(self, clip: Any) -> tuple[nn.Module, list[nn.Module]]:
        """Find where early image features are read, and what comes later.

        :return: the first residual block, after which they are read, and the later
            blocks; for convolutional towers the first stage, before which they are
            read, and the stages, itself included.
        :raises ValueError: for a tower without a known beginning.
        """
        try:
            first, *later = [view.module for view in self.blocks(clip, "image")]
            return first, later
        except ValueError:
            trunk = getattr(clip, self.image_child)
            trunk = getattr(trunk, "trunk", trunk)
        for name in ("stages", "layer1", "s1", "blocks"):
            stage = getattr(trunk, name, None)
            if name in ("stages", "blocks") and stage is not None and len(stage):
                return stage[0], list(stage)
            if stage is not None:
                return stage, [stage]
        raise ValueError(
            f"The image tower ({type(trunk).__name__}) has neither plain residual"
            " blocks nor a first stage named stages, layer1, s1 or blocks; give a"
            " SelectorFeatures module of your own, or extractor='alexnet' with local"
            " weights."
        )

    @staticmethod
    def prefix(root: nn.Module, stage: str, before: bool, image: Tensor) -> Tensor:
        """Run the beginning of an image tower only.

        :param root: the tower.
        :param stage: name of the module at which it is left.
        :param before: return the module's input instead of its output.
        :param image: float ``(B, 3, H, W)``.
        :return: the activations there.
        """
        module = root.get_submodule(stage)
        hook = module.register_forward_pre_hook if before else None
        handle = (hook or module.register_forward_hook)(_leave)
        try:
            root(image)
        except _Reached as reached:
            return reached.hidden
        finally:
            handle.remove()
        raise RuntimeError(f"The image tower never reached {stage}.")


class OpenCLIPTowers(_Towers):
    """Answers for open_clip's ``CLIP``, ``CustomTextCLIP`` and ``CoCa``."""

    library = "open_clip"
    image_child = "visual"
    image_prefixes = ("visual.",)
    stems = tuple(
        "visual.class_embedding visual.positional_embedding visual.conv1."
        " visual.ln_pre. visual.trunk.patch_embed. visual.trunk.cls_token"
        " visual.trunk.reg_token visual.trunk.pos_embed visual.trunk.norm_pre."
        " token_embedding. cls_emb positional_embedding text.token_embedding."
        " text.cls_emb text.positional_embedding".split()
    )

    def text_tower(self, clip: Any) -> Any:
        """Return the module that holds the text tower's parts."""
        return clip.text if isinstance(getattr(clip, "text", None), nn.Module) else clip

    def is_causal(self, clip: Any) -> bool:
        """Tell whether tokens after the end token cannot change the feature."""
        tower = self.text_tower(clip)
        pool = getattr(tower, "text_pool_type", getattr(tower, "pool_type", None))
        return (
            getattr(tower, "attn_mask", None) is not None
            and getattr(tower, "cls_emb", None) is None
            and pool in _END_POOLING
        )

    def encode_image(self, clip: Any, image: Tensor) -> Tensor:
        """Return raw image features ``(B, D)``."""
        return _feature(clip.encode_image(image, normalize=False))

    def encode_text(self, clip: Any, text: Tensor, end_id: int) -> Tensor:
        """Return raw text features ``(M, D)``; causal towers take any length."""
        if not self.is_causal(clip):
            return _feature(clip.encode_text(text, normalize=False))
        tower = self.text_tower(clip)
        length = text.shape[1]
        dtype = tower.transformer.get_cast_dtype()
        hidden = tower.token_embedding(text).to(dtype)
        hidden = hidden + tower.positional_embedding[:length].to(dtype)
        mask = tower.attn_mask[:length, :length]
        hidden = tower.ln_final(tower.transformer(hidden, attn_mask=mask))
        pooled = _pool(hidden, text, end_id)
        projection = tower.text_projection
        if projection is None:
            return pooled
        if isinstance(projection, nn.Module):
            return projection(pooled)
        return pooled @ projection

    def blocks(self, clip: Any, tower: str) -> list[BlockView]:
        """Return the residual blocks of one tower, first to last."""
        if tower == "image":
            return open_clip_blocks(clip.visual, tower)
        return open_clip_blocks(self.text_tower(clip), tower)

    def image_entry(self, clip: Any) -> nn.Module:
        """Return the norm of all tokens before the first image block."""
        visual = clip.visual
        trunk = getattr(visual, "trunk", None)
        return visual.ln_pre if trunk is None else trunk.norm_pre

    def image_head(self, clip: Any, token: Tensor) -> Tensor:
        """Return raw features ``(M, D)`` of tokens ``(M, W)`` of the last block."""
        visual = clip.visual
        both = torch.stack([token, token], 1)  # as class token and as patch
        trunk = getattr(visual, "trunk", None)
        if trunk is not None:
            return visual.head(trunk.forward_head(trunk.norm(both)))
        pooled, _ = visual._pool(both)
        return pooled if visual.proj is None else pooled @ visual.proj

    def image_size(self, clip: Any) -> tuple[int, int]:
        """Return height and width of the input in pixels."""
        return as_pair(clip.visual.image_size)

    def checkpointed(self, clip: Any) -> Iterator[Callable[[bool], Any]]:
        """Yield what switches the recomputation of activations of each tower."""
        for tower in (clip.visual, self.text_tower(clip)):
            own = getattr(tower, "transformer", None)
            inner: Any = getattr(tower, "trunk", own)
            if hasattr(inner, "resblocks"):
                yield partial(setattr, inner, "grad_checkpointing")
            elif hasattr(inner, "set_grad_checkpointing"):
                yield inner.set_grad_checkpointing
            else:
                yield _recomputing(inner or tower)


class TransformersTowers(_Towers):
    """Answers for transformers' ``CLIPModel`` and ``SiglipModel``."""

    library = "transformers"
    image_child = "vision_model"
    image_prefixes = ("vision_model.", "visual_projection.")
    stems = ("vision_model.embeddings.", "vision_model.pre_", "text_model.embeddings.")

    def text_tower(self, clip: Any) -> Any:
        """Return the module that holds the text tower's parts."""
        return clip.text_model

    def is_causal(self, clip: Any) -> bool:
        """Tell whether tokens after the end token cannot change the feature."""
        return clip.config.model_type == "clip"

    def encode_image(self, clip: Any, image: Tensor) -> Tensor:
        """Return raw image features ``(B, D)``."""
        return _feature(clip.get_image_features(pixel_values=image))

    def encode_text(self, clip: Any, text: Tensor, end_id: int) -> Tensor:
        """Return raw text features ``(M, D)``; causal towers take any length."""
        if self.is_causal(clip):
            hidden = clip.text_model(input_ids=text).last_hidden_state
            end_id = self.pooling_id(clip, text, end_id)
            return clip.text_projection(_pool(hidden, text, end_id))
        return _feature(clip.get_text_features(input_ids=text))

    def pooling_id(self, clip: Any, text: Tensor, end_id: int) -> int:
        """Return the id at which features are taken.

        transformers takes them at the configured end token; 2 stands for the highest
        id there, as in its first releases.
        """
        stated = clip.config.text_config.eos_token_id
        if not isinstance(stated, int) or stated in (2, end_id):
            return end_id
        return stated if bool((text == stated).any(1).all()) else end_id

    def blocks(self, clip: Any, tower: str) -> list[BlockView]:
        """Return the residual blocks of one tower, first to last."""
        model = clip.vision_model if tower == "image" else clip.text_model
        return transformers_blocks(model)

    def image_entry(self, clip: Any) -> nn.Module:
        """Return the norm of all tokens before the first image block."""
        if clip.config.model_type == "clip":
            return clip.vision_model.pre_layrnorm
        return nn.Identity()

    def image_head(self, clip: Any, token: Tensor) -> Tensor:
        """Return raw features ``(M, D)`` of tokens ``(M, W)`` of the last block."""
        token = clip.vision_model.post_layernorm(token)
        if clip.config.model_type == "clip":
            return clip.visual_projection(token)
        return clip.vision_model.head(token[:, None])

    def image_size(self, clip: Any) -> tuple[int, int]:
        """Return height and width of the input in pixels."""
        return as_pair(clip.config.vision_config.image_size)

    def checkpointed(self, clip: Any) -> Iterator[Callable[[bool], Any]]:
        """Yield what switches the recomputation of activations of each tower."""
        yield _recomputing(clip)


def _recomputing(module: Any) -> Callable[[bool], Any]:
    """Return what switches the recomputation of a transformers module."""
    # the names since transformers 5 and before
    names = [f"{kind}_checkpointing" for kind in ("activation", "gradient")]
    names = [name for name in names if hasattr(module, f"{name}_enable")]
    if not names:
        raise ValueError(
            f"{type(module).__name__} cannot compute its activations again; use a model"
            " with transformer towers, or smaller batches with accumulation."
        )

    def switch(enable: bool) -> None:
        if enable:
            getattr(module, f"{names[0]}_enable")({"use_reentrant": False})
        else:
            getattr(module, f"{names[0]}_disable")()

    return switch


Towers = OpenCLIPTowers | TransformersTowers
