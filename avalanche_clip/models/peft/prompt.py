"""Learned keys and values in attention (prefixes), and learned tokens (prompts).

Prefix: with t the attention's mixture of values over the tokens, p that over the
prefix alone, and w the share of the softmax that falls on the prefix, the mixture
becomes ``t + scale * (c * p - w * t)``, where c is w, or 1 with compensation. At
``scale = 1`` this is attention over the prefix and the tokens; with compensation the
weights of the prefix are divided by their own sum. ``scale`` is trained; from 0 the
features start as they were.

Prompt tokens stand before the image tokens and are masked: they read the image and
earlier prompts, and nothing reads them but later prompts, so that the plain feature
stays what it is. They are read out beside it.

Source: Li and Liang, ACL 2021 (prefix tuning, arXiv 2101.00190); compensation and
masked prompts per task: Li et al., 2024 (CoLeCLIP, arXiv 2403.10245), whose initial
values, uniform in (0, 0.01), are used. Starting the scale at 0 is our choice.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.models.encoders.blocks import BlockView
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.peft.attached import BranchSet
from avalanche_clip.models.peft.branch import (
    Call,
    RoutedBranch,
    chosen_blocks,
    first_of,
    pairs,
    require_flags,
    with_first,
)
from avalanche_clip.models.peft.routes import is_recomputation, present

KINDS = ("prefix", "tokens")
_START = 0.01


class Prefix(nn.Module):
    """Keys and values of one id, ``(length, width)``, and their trained scale."""

    def __init__(self, length: int, width: int, scale: float) -> None:
        super().__init__()
        self.key = nn.Parameter(torch.rand(length, width) * _START)
        self.value = nn.Parameter(torch.rand(length, width) * _START)
        self.scale = nn.Parameter(torch.tensor(scale))


class PrefixBranch(RoutedBranch):
    """Learned keys and values in the attention of one block.

    :param view: the block.
    :param length: number of keys.
    :param scale: its first value.
    :param compensate: whether the weights of the prefix are divided by their sum.
    :raises ValueError: for an attention module that is none of the known ones.
    """

    CHILD = "prefix"

    def __init__(
        self, view: BlockView, length: int, scale: float, compensate: bool
    ) -> None:
        super().__init__()
        _check_attention(view.attn)
        self.length, self.scale, self.compensate = length, scale, compensate

    def make(self) -> nn.Module:
        """Return the prefix of a new id."""
        return Prefix(self.length, self.view.width, self.scale)

    def hook(self) -> None:
        """Stand in for the attention, whose weights others may lend."""
        self.stand_in("attn", innermost=True)

    def around(self, key: int, call: Call) -> Any:
        """Attend with the prefix of an id."""
        prefix: Any = self.table[str(key)]
        attn: Any = self.view.attn
        q, k, v = _heads(attn, self._swap(call.x))
        own = [
            p.view(len(p), q.shape[1], -1).transpose(0, 1)
            for p in (prefix.key, prefix.value)
        ]
        factor = q.shape[-1] ** -0.5
        scores = _masked(factor * (q @ k.transpose(-2, -1)), attn, call)
        extra = factor * (q @ own[0].to(q.dtype).transpose(-2, -1))
        scores, extra = scores.float(), extra.float()
        share = torch.sigmoid(
            extra.logsumexp(-1, keepdim=True) - scores.logsumexp(-1, keepdim=True)
        )
        mixed = scores.softmax(-1).to(v.dtype) @ v
        added = extra.softmax(-1).to(v.dtype) @ own[1].to(v.dtype)
        part_of = 1.0 if self.compensate else share
        mixed = mixed + prefix.scale * (part_of * added - share * mixed)
        return self._give(attn, mixed.to(v.dtype).transpose(1, 2).flatten(2))

    def _give(self, attn: Any, mixed: Tensor) -> Any:
        if isinstance(attn, nn.MultiheadAttention):
            return self._swap(attn.out_proj(mixed)), None
        if hasattr(attn, "qkv"):
            return attn.proj_drop(attn.proj(attn.norm(mixed)))
        return attn.out_proj(mixed), None


def _check_attention(attn: Any) -> None:
    fused = isinstance(attn, nn.MultiheadAttention) and attn.in_proj_weight is not None
    # timm's own, without gates and rotations; transformers'
    timm = type(attn).__name__ == "Attention" and hasattr(attn, "qkv")
    timm = timm and getattr(attn, "gate", None) is None
    if not (fused or timm or all(hasattr(attn, f"{n}_proj") for n in ("q", "out"))):
        raise ValueError(
            f"{type(attn).__name__} is no attention that takes a prefix or a mask"
            " (torch's, timm's or transformers' plain one); use attach_lora or"
            " attach_adapters."
        )


def _heads(attn: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of tokens ``(B, L, D)`` as ``(B, H, L, D / H)``."""
    if isinstance(attn, nn.MultiheadAttention):
        parts = F.linear(x, attn.in_proj_weight, attn.in_proj_bias).chunk(3, -1)
    elif hasattr(attn, "qkv"):
        parts = attn.qkv(x).chunk(3, -1)
    else:
        parts = attn.q_proj(x), attn.k_proj(x), attn.v_proj(x)
    q, k, v = (p.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for p in parts)
    if hasattr(attn, "q_norm"):
        q, k = attn.q_norm(q), attn.k_norm(k)
    return q, k, v


def _masked(scores: Tensor, attn: Any, call: Call) -> Tensor:
    """Apply the mask of a call to scores ``(B, H, L, L)``."""
    forward = inspect.signature(type(attn).forward)
    bound = forward.bind(attn, *call.args, **call.kwargs)
    bound.apply_defaults()
    given = {**bound.arguments.pop("kwargs", {}), **bound.arguments}
    if given.get("key_padding_mask") is not None or given.get("need_weights"):
        raise ValueError("A prefix needs attention without padding mask and weights.")
    mask = given.get("attn_mask", given.get("attention_mask"))
    size = scores.shape[-1]
    if mask is None:
        if not given.get("is_causal"):
            return scores
        mask = torch.ones(size, size, dtype=torch.bool, device=scores.device).tril()
    elif mask.ndim == 3:
        mask = mask.view(-1, scores.shape[1], size, size)
    if mask.dtype is torch.bool:
        if isinstance(attn, nn.MultiheadAttention):
            mask = ~mask  # True means "leave out" there and "keep" elsewhere
        return scores.masked_fill(~mask, float("-inf"))
    return scores + mask.to(scores.dtype)


class Tokens(nn.Module):
    """Prompt tokens of one id, ``(length, width)``."""

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.rand(length, width) * _START)


def prompt_mask(counts: list[int], tokens: int) -> Tensor:
    """Make the mask of prompts before image tokens.

    :param counts: number of prompts of each id, oldest first.
    :param tokens: number of image tokens L.
    :return: float ``(n + L, n + L)``, 0 where the row may read the column, else
        -inf.

    >>> prompt_mask([1, 1], 2)[0]
    tensor([0., -inf, 0., 0.])
    """
    owner = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    mask = torch.zeros(len(owner) + tokens, len(owner) + tokens)
    mask[:, : len(owner)] = float("-inf")
    mask[: len(owner), : len(owner)].masked_fill_(owner[:, None] >= owner, 0.0)
    return mask


class PromptBranch(RoutedBranch):
    """Prompt tokens of the image tower; a child of its first block.

    :param views: all blocks.
    :param entry: norm of all tokens before the first block.
    :param length: prompts per id.
    """

    CHILD = "prompt"

    def __init__(self, views: list[BlockView], entry: nn.Module, length: int) -> None:
        super().__init__()
        for view in views:
            _check_attention(view.attn)
        self.views, self.length = views, length
        self._entry = (entry,)
        self._mask: Tensor | None = None  # of the running pass
        self._masks: dict[tuple[int, int], Tensor] = {}  # by numbers of tokens
        self._used: list[int] = []
        #: tokens of the last pass behind the last block, ``(B, n * length, W)``
        self.outputs: Tensor | None = None

    def make(self) -> nn.Module:
        """Return the tokens of a new id."""
        return Tokens(self.length, self.view.width)

    def hook(self) -> None:
        """Hook into all blocks."""
        blocks = [view.module for view in self.views]
        for block, call in (
            (blocks[0], self._insert),
            *((b, self._hide) for b in blocks),
        ):
            self._handles.append(
                block.register_forward_pre_hook(call, with_kwargs=True)
            )
        self._handles.append(blocks[-1].register_forward_hook(self._take_out))

    def _active(self, x: Tensor) -> tuple[set[int], list[int]]:
        """Ids of a pass, and all whose prompts it has."""
        ids = self.routes.of(x.shape[self._rows], *self.ROWS)
        active = set(present(ids))
        return active, sorted(key for key in self.keys if key <= max(active))

    def _insert(self, module: Any, args: Any, kwargs: Any) -> Any:
        x = _tokens(args, kwargs)
        self.routes.see(x)
        active, used = self._active(x)
        if not is_recomputation():
            self._mask, self.outputs, self._used = None, None, used
        if not used:
            return None
        x = self._swap(x)
        prompts = []
        for key in used:
            tokens: Any = self.table[str(key)].tokens
            prompts.append(tokens if key in active else tokens.detach())
        every = self._entry[0](torch.cat(prompts).to(x.dtype))
        found = torch.cat([every.to(x.dtype).expand(len(x), -1, -1), x], 1)
        if not is_recomputation():
            mask = prompt_mask([self.length] * len(prompts), x.shape[1])
            self._mask = mask.to(x.device, x.dtype)
            self._masks[len(used), found.shape[1]] = self._mask
        self.routes.mark(found)
        found = self._swap(found)
        if args:
            return (found, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": found}

    def _hide(self, module: Any, args: Any, kwargs: Any) -> Any:
        x, mask = _tokens(args, kwargs), self._mask
        if module is not self.views[0].module:
            self.routes.see(x)
        if is_recomputation():
            size = x.shape[1 - self._rows]
            mask = self._masks.get((len(self._active(x)[1]), size))
        if mask is None:
            return None
        names = list(inspect.signature(type(module).forward).parameters)[1:]
        name = "attn_mask" if "attn_mask" in names else "attention_mask"
        return args[: names.index(name)], {**kwargs, name: mask}

    def _take_out(self, module: Any, args: Any, output: Any) -> Any:
        if self._mask is None or is_recomputation():
            return None  # no one reads what a recomputed block gives
        self._mask = None
        x, count = self._swap(first_of(output)), len(self._used) * self.length
        self.outputs = x[:, :count]
        return with_first(output, self._swap(x[:, count:]))

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "outputs": None, "_mask": None, "_masks": {}}


def _tokens(args: Any, kwargs: Any) -> Tensor:
    """What a block is called with."""
    return args[0] if args else kwargs["hidden_states"]


class PromptSet(BranchSet):
    """Prompt tokens of the image tower; made by :func:`attach_prompts`."""

    def encode_image(self, image: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Encode images, and what the prompts have read from them.

        :param image: float, ``(B, 3, H, W)``.
        :return: raw plain features ``(B, D)``; raw features of the prompts of every id
            up to the largest one in use, ``(B, n, D)``, averaged per id; the n ids.
        """
        model, branch = self.model, self.branches("image")[0]
        plain = model.encode_image(image, normalize=False)
        tokens, branch.outputs = branch.outputs, None
        if tokens is None:
            return plain, plain.new_zeros(len(plain), 0, plain.shape[1]), []
        with model._compute_type(image):
            read = model._towers.image_head(model.clip, tokens.flatten(0, 1)).float()
        read = read.view(len(plain), len(branch._used), branch.length, -1).mean(2)
        return plain, read, list(branch._used)


def attach_prompts(
    model: DualEncoder,
    tower: str = "both",
    *,
    blocks: Iterable[int] | None = None,
    kind: str = "prefix",
    length: int | None = None,
    scale: float = 0.0,
    compensate: bool = False,
) -> BranchSet:
    """Put learned keys and values, or learned tokens, into towers; freeze all else.

    Features start as those of the frozen model. Those of id 0 train; further ids are
    made with ``model.prompts.add()`` and chosen with ``model.prompts.set_ids(ids)``.

    :param model: a dual encoder with residual attention blocks.
    :param tower: ``"image"``, ``"text"`` or ``"both"``; tokens are for ``"image"``.
    :param blocks: indices of the blocks with a prefix, from 0; None for all. Tokens
        pass all blocks.
    :param kind: ``"prefix"``: keys and values in every attention; ``"tokens"``: tokens
        that read the image and are read by nothing but later ids' tokens, see
        :meth:`PromptSet.encode_image`.
    :param length: number of keys, or tokens, per id; default 10 and 1.
    :param scale: first value of the prefix's trained scale (CoLeCLIP: 1).
    :param compensate: whether the attention's weights of the prefix are divided by
        their own sum.
    :return: the set, also ``model.prompts``.
    :raises ValueError: if prompts are attached already, a tower has no such blocks, or
        an option is out of range; the model is then unchanged.

    Source: CoLeCLIP (arXiv 2403.10245); see the module.

    >>> from avalanche_clip import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji-vit")
    >>> prompts = attach_prompts(model, "image", kind="tokens")
    >>> plain, read, ids = prompts.encode_image(torch.zeros(2, 3, 48, 48))
    >>> tuple(read.shape) == (2, 1, model.embed_dim), ids
    (True, [0])
    """
    require_choice("kind", kind, KINDS)
    default = 10 if kind == "prefix" else 1
    length = default if length is None else as_size(length, "length")
    scale = as_finite(scale, "scale")
    require_flags(compensate=compensate)
    views, config = chosen_blocks(model, tower, blocks)
    config |= {"kind": kind, "length": length}
    made: dict[str, Any]
    if kind == "prefix":
        made = pairs(lambda v: PrefixBranch(v, length, scale, compensate), views)
        config |= {"scale": scale, "compensate": compensate}
        result = BranchSet(model, "prompts", config)
    else:
        if tower != "image" or blocks is not None or compensate or scale:
            raise ValueError(
                "Prompt tokens pass the whole image tower, so they take tower='image'"
                f" and no other options; tower={tower!r}, blocks={blocks},"
                f" scale={scale}, compensate={compensate} were given."
            )
        every = views["image"]
        entry = model._towers.image_entry(model.clip)
        made = {"image": [(PromptBranch(every, entry, length), every[0])]}
        result = PromptSet(model, "prompts", config)
    result.connect(made)
    return result
