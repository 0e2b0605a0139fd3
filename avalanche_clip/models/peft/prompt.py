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
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.models.encoders.blocks import BlockView
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.models.peft.attached import BranchSet
from avalanche_clip.models.peft.branch import (
    Call,
    RoutedBranch,
    chosen_blocks,
    first_of,
    pairs,
    require_flags,
)
from avalanche_clip.models.peft.routes import is_recomputation, memory_of, present

KINDS = ("prefix", "tokens")
NAMES = ("prompts", "prefixes")
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
        return _give(attn, mixed.to(v.dtype), self._swap)


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


def _give(attn: Any, mixed: Tensor, swap: Callable[[Tensor], Tensor]) -> Any:
    """What an attention module returns for mixed values ``(B, H, L, D / H)``."""
    mixed = mixed.transpose(1, 2).flatten(2)
    if isinstance(attn, nn.MultiheadAttention):
        return swap(attn.out_proj(mixed)), None
    if hasattr(attn, "qkv"):
        return attn.proj_drop(attn.proj(attn.norm(mixed)))
    return attn.out_proj(mixed), None


def _mask_of(attn: Any, call: Call) -> tuple[Tensor | None, bool]:
    """The mask of a call, and whether it is causal without one."""
    forward = inspect.signature(type(attn).forward)
    bound = forward.bind(attn, *call.args, **call.kwargs)
    bound.apply_defaults()
    given = {**bound.arguments.pop("kwargs", {}), **bound.arguments}
    if given.get("key_padding_mask") is not None or given.get("need_weights"):
        raise ValueError(
            "Prefixes and prompt tokens need attention without padding mask and "
            "weights."
        )
    mask = given.get("attn_mask", given.get("attention_mask"))
    return mask, bool(given.get("is_causal"))


def _masked(scores: Tensor, attn: Any, call: Call) -> Tensor:
    """Apply the mask of a call to scores ``(B, H, L, L)``."""
    size, (mask, is_causal) = scores.shape[-1], _mask_of(attn, call)
    if mask is None:
        if not is_causal:
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

    Image tokens read no prompts, so they pass a block first, without any mask and, in
    a frozen tower, without a graph. Then the prompts pass it, beside them: their
    attention reads the keys and values that it has kept of the image tokens.

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
        self._masks: dict[Any, Tensor | None] = {}  # by numbers of prompts and tokens
        self._used: list[int] = []
        # What goes with the input of a block, for gradient checkpointing.
        self._inputs: dict[Any, tuple[Any, Tensor]] = {}
        self._forget()

    def _forget(self) -> None:
        """Drop what belongs to a pass."""
        self._at: BlockView = self.views[0]
        self._prompts: Tensor | None = None  # before the running block, (B, n, W)
        self._image: tuple[Tensor, Tensor] | None = None  # keys and values
        self._reading = False  # whether the prompts pass the block
        #: tokens of the last pass behind the last block, ``(B, n * length, W)``
        self.outputs: Tensor | None = None

    def make(self) -> nn.Module:
        """Return the tokens of a new id."""
        return Tokens(self.length, self.view.width)

    def hook(self) -> None:
        """Hook into all blocks, and stand in for their attention."""
        for view in self.views:
            self._handles += [
                view.module.register_forward_pre_hook(self._begin, with_kwargs=True),
                view.module.register_forward_hook(self._read, with_kwargs=True),
            ]
            self.stand_in("attn", innermost=True, view=view)

    def _begin(self, module: Any, args: Any, kwargs: Any) -> None:
        """Find the prompts that go with the image tokens of a block."""
        if self._reading:
            return
        x, again = _tokens(args, kwargs), is_recomputation()
        self._at = next(view for view in self.views if view.module is module)
        self.routes.see(x)
        if self._at is self.views[0]:
            self._prompts = self._start(self._swap(x), again)
            return
        memory = memory_of(x)
        if again and memory is not None:
            self._prompts = self._inputs.get(memory[0], (None, self._prompts))[1]
        elif memory is not None and self._prompts is not None:
            kept = self._inputs.items()
            self._inputs = {k: v for k, v in kept if not v[0].expired()}
            if self._prompts.requires_grad:
                self._inputs[memory[0]] = memory[1], self._prompts

    def _start(self, x: Tensor, again: bool) -> Tensor | None:
        """Prompts of the ids in use and all before them, as the first block reads."""
        active = set(present(self.routes.of(len(x), *self.ROWS)))
        used = sorted(key for key in self.keys if key <= max(active))
        if not again:
            self._forget()
            self._used = used
        if not used:
            return None
        tokens: Any = [(key, self.table[str(key)]) for key in used]
        prompts = [t.tokens if k in active else t.tokens.detach() for k, t in tokens]
        every = self._entry[0](torch.cat(prompts).to(x.dtype)).to(x.dtype)
        found = every.expand(len(x), -1, -1)
        self.routes.mark(found)
        return found

    def call(self, call: Call) -> Any:
        """Attend: image tokens to themselves, prompts to them and to prompts."""
        if self._prompts is None:
            return call()
        attn: Any = self._at.attn
        if _mask_of(attn, call) != (None, False):
            raise ValueError("Prompt tokens need an image tower without masks.")
        q, k, v = _heads(attn, self._swap(call.x))
        mask = None
        if self._reading:
            assert self._image is not None
            keys, values = self._image
            k, v = torch.cat([k, keys], 2), torch.cat([v, values], 2)
            mask = self._mask(k)
        else:
            self._image = k, v
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return _give(attn, mixed, self._swap)

    def _mask(self, keys: Tensor) -> Tensor | None:
        """Rows of the prompts of :func:`prompt_mask`; None if all are zero."""
        assert self._prompts is not None
        count, place = self._prompts.shape[1], (keys.device, keys.dtype)
        if count == self.length:
            return None
        key = count, keys.shape[2], *place
        if key not in self._masks:
            counts = [self.length] * (count // self.length)
            rows = prompt_mask(counts, keys.shape[2] - count)[:count]
            self._masks[key] = rows.to(*place)
        return self._masks[key]

    def _read(self, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Let the prompts pass the block that the image tokens have passed."""
        if self._reading or self._prompts is None:
            return
        x = self._swap(self._prompts)
        if args:
            args = (x, *args[1:])
        else:
            kwargs = {**kwargs, "hidden_states": x}
        # transformers' layers would checkpoint the prompts apart from the image.
        apart = getattr(module, "gradient_checkpointing", False)
        self._reading = True
        try:
            if apart:
                module.gradient_checkpointing = False
            found = module(*args, **kwargs)
        finally:
            self._reading, self._image = False, None
            if apart:
                module.gradient_checkpointing = True
        self._prompts = self._swap(first_of(found))
        if self._at is self.views[-1]:
            if not is_recomputation():  # no one reads what a recomputed block gives
                self.outputs = self._prompts
            self._prompts = None

    def __getstate__(self) -> dict[str, Any]:
        none = dict.fromkeys(("_prompts", "_image", "outputs"))
        return {**super().__getstate__(), **none, "_inputs": {}, "_masks": {}}


def _tokens(args: Any, kwargs: Any) -> Tensor:
    """What a block is called with."""
    return args[0] if args else kwargs["hidden_states"]


class PromptSet(BranchSet):
    """Prompt tokens of the image tower; made by :func:`attach_prompts`.

    Outputs of the model have what the prompts have read in
    ``aux["prompt_features"]``, see :meth:`read`.
    """

    def connect(self, *args: Any, **kwargs: Any) -> None:
        """Hook into the blocks, and into the model."""
        super().connect(*args, **kwargs)
        self._handles.append(self.model.register_forward_hook(self._after_forward))

    def encode_image(self, image: Tensor) -> tuple[Tensor, Tensor, list[int]]:
        """Encode images, and what the prompts have read from them.

        :param image: float, ``(B, 3, H, W)``.
        :return: raw plain features ``(B, D)``; raw features of the prompts of every id
            up to the largest one in use, ``(B, n, D)``, averaged per id; the n ids.
        """
        plain = self.model.encode_image(image, normalize=False)
        read = self.read()
        if read is None:
            return plain, plain.new_zeros(len(plain), 0, plain.shape[1]), []
        return plain, read, list(self.branches("image")[0]._used)

    def read(self) -> Tensor | None:
        """What the prompts have read in the last pass of the image tower; only once.

        :return: raw features ``(B, n, D)`` of the n ids up to the largest one in use,
            averaged per id; None under the id -1.
        """
        model, branch = self.model, self.branches("image")[0]
        tokens, branch.outputs = branch.outputs, None
        if tokens is None:
            return None
        with model._compute_type(tokens):
            read = model._towers.image_head(model.clip, tokens.flatten(0, 1)).float()
        return read.view(len(tokens), len(branch._used), branch.length, -1).mean(2)

    def _after_forward(self, module: Any, args: Any, output: CLIPOutput) -> Any:
        read = self.read()
        if read is None:
            return None
        return output._replace(aux={**(output.aux or {}), "prompt_features": read})


def attach_prompts(
    model: DualEncoder,
    tower: str = "both",
    *,
    blocks: Iterable[int] | None = None,
    kind: str = "prefix",
    length: int | None = None,
    scale: float = 0.0,
    compensate: bool = False,
    name: str = "prompts",
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
    :param name: attribute of the model, ``"prompts"``, or ``"prefixes"`` for a second
        set of another tower.
    :return: the set, also ``model.prompts``.
    :raises ValueError: if there are prompts under that name already, a tower has no
        such blocks, the image tower would have a prefix and tokens, or an option is
        out of range; the model is then unchanged.

    Source: CoLeCLIP (arXiv 2403.10245); see the module.

    >>> from avalanche_clip import create_dual_encoder
    >>> model = create_dual_encoder("tiny-emoji-vit")
    >>> prompts = attach_prompts(model, "image", kind="tokens")
    >>> plain, read, ids = prompts.encode_image(torch.zeros(2, 3, 48, 48))
    >>> tuple(read.shape) == (2, 1, model.embed_dim), ids
    (True, [0])
    """
    require_choice("kind", kind, KINDS)
    require_choice("name", name, NAMES)
    default = 10 if kind == "prefix" else 1
    length = default if length is None else as_size(length, "length")
    scale = as_finite(scale, "scale")
    require_flags(compensate=compensate)
    views, config = chosen_blocks(model, tower, blocks)
    config |= {"kind": kind, "length": length}
    for view in model.blocks("image") if "image" in views else ():
        if {"prefix", "prompt"} & {child for child, _ in view.module.named_children()}:
            raise ValueError(
                "The image tower has prompts already, a prefix or tokens, and takes one"
                " set of them; detach() it before."
            )
    made: dict[str, Any]
    if kind == "prefix":
        made = pairs(lambda v: PrefixBranch(v, length, scale, compensate), views)
        config |= {"scale": scale, "compensate": compensate}
        result = BranchSet(model, name, config)
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
        result = PromptSet(model, name, config)
    result.connect(made)
    return result
