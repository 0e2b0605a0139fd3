"""Low-rank updates of the weights of a block.

A weight W of shape (out, in) becomes ``W + scale * B A`` with A ``(rank, in)`` and B
``(out, rank)``. The updated weight is used in the module's own ``forward``, so it acts
in :class:`torch.nn.MultiheadAttention` as well, whose ``out_proj`` is never called,
only its weight read; and merging is exact. Rows of several ids pass the module group
by group.

Source: Hu et al., ICLR 2022 (LoRA, arXiv 2106.09685). One A for query, key and value
together (``"qkv"``) and ``init="xavier"`` are those of Wang et al., 2024 (SIT, arXiv
2405.15155); a learned scale that of Li et al., 2024 (CoLeCLIP, arXiv 2403.10245).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.models.encoders.blocks import BlockView
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.peft.attached import BranchSet
from avalanche_clip.models.peft.branch import (
    Call,
    RoutedBranch,
    chosen_blocks,
    chosen_names,
    pairs,
    require_flags,
)

TARGETS = ("qkv", "q", "k", "v", "out", "mlp")
_NAMES = {"q": "query", "k": "key", "v": "value"}
INITS = ("zero_b", "xavier")


class Site(NamedTuple):
    """Where an update goes.

    :param part: ``"attn"`` or ``"mlp"``: the call in which it acts.
    :param owner: module that holds the weight.
    :param weight: its name there.
    :param rows: rows of the weight, from and to; several sites share the rows of an
        update one after the other.
    """

    part: str
    owner: nn.Module
    weight: str
    rows: tuple[int, int]

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.rows[1] - self.rows[0]


def sites_of(view: BlockView, target: str) -> dict[str, list[Site]]:
    """Find the weights of a target in a block.

    :param target: one of :data:`TARGETS`.
    :return: by name of the update, where its rows go.
    :raises ValueError: if the block has no such weights.
    """
    if target == "mlp":
        linears = [m for m in view.mlp.modules() if isinstance(m, nn.Linear)]
        if len(linears) != 2:
            raise ValueError(
                f"The perceptron {type(view.mlp).__name__} has {len(linears)} linear"
                " layers, not 2; leave the target 'mlp' out."
            )
        names = "fc_in", "fc_out"
        return {n: [_whole("mlp", m)] for n, m in zip(names, linears, strict=True)}
    attn: Any = view.attn
    if target == "out":
        for name in ("out_proj", "proj"):
            if isinstance(getattr(attn, name, None), nn.Linear):
                return {"out": [_whole("attn", getattr(attn, name))]}
        raise _unknown(attn)
    fused, name = attn, "in_proj_weight"  # torch's, and open_clip's own
    if not hasattr(attn, name):
        fused, name = getattr(attn, "qkv", None), "weight"
    weight = getattr(fused, name, None)
    layers = [getattr(attn, f"{part}_proj", None) for part in "qkv"]
    if weight is not None:
        whole, width = _whole("attn", fused, name), len(weight) // 3
        parts = [whole._replace(rows=(i * width, (i + 1) * width)) for i in range(3)]
    elif all(isinstance(layer, nn.Linear) for layer in layers):
        parts, whole = [_whole("attn", layer) for layer in layers], None
    else:
        raise _unknown(attn)
    if target == "qkv":
        return {"qkv": parts if whole is None else [whole]}
    return {_NAMES[target]: [parts["qkv".index(target)]]}


def _whole(part: str, owner: Any, weight: str = "weight") -> Site:
    return Site(part, owner, weight, (0, len(getattr(owner, weight))))


def _unknown(attn: nn.Module) -> ValueError:
    return ValueError(
        f"LoRA knows no queries, keys and values in {type(attn).__name__}; use"
        " adapters instead."
    )


class Updates(nn.Module):
    """Low-rank factors ``<name>_down`` (A) and ``<name>_up`` (B) of one id."""

    def __init__(
        self,
        shapes: dict[str, tuple[int, int]],
        rank: int,
        scale: float,
        init: str = "zero_b",
        learned_scale: bool = False,
    ) -> None:
        super().__init__()
        self.scale = scale
        for name, (outputs, inputs) in shapes.items():
            down = nn.Parameter(torch.empty(rank, inputs))
            up = nn.Parameter(torch.zeros(outputs, rank))
            if init == "xavier" and name == "qkv":
                nn.init.xavier_uniform_(down)
                nn.init.xavier_uniform_(up)
            else:
                nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            setattr(self, f"{name}_down", down)
            setattr(self, f"{name}_up", up)
            if learned_scale:
                setattr(self, f"{name}_scale", nn.Parameter(torch.tensor(scale)))

    def delta(self, name: str) -> Tensor:
        """Return the update ``(out, in)`` of one name."""
        down, up = getattr(self, f"{name}_down"), getattr(self, f"{name}_up")
        scale = self._parameters.get(f"{name}_scale")
        return (up @ down) * (self.scale if scale is None else scale)


class LoRABranch(RoutedBranch):
    """Low-rank updates of some weights of one block.

    :param view: the block.
    :param targets: see :func:`attach_lora`.
    :param options: of :class:`Updates`.
    """

    CHILD = "lora"

    def __init__(self, view: BlockView, targets: Iterable[str], **options: Any) -> None:
        super().__init__()
        self.options = options
        self.sites: dict[str, list[Site]] = {}
        for target in targets:
            self.sites |= sites_of(view, target)

    def make(self) -> nn.Module:
        """Return the factors of a new id."""
        shapes = {
            name: (sum(s.size for s in sites), _inputs(sites[0]))
            for name, sites in self.sites.items()
        }
        return Updates(shapes, **self.options)

    def hook(self) -> None:
        """Stand in for the modules whose weights are updated."""
        for part in dict.fromkeys(s.part for own in self.sites.values() for s in own):
            self.stand_in(part)

    def updated(self, key: int, part: str | None = None) -> Iterator[Any]:
        """Yield ``(module, name, updated weight)`` of an id, for one call or all."""
        updates: Any = self.table[str(key)]
        found: dict[tuple[int, str], tuple[Any, str, Tensor]] = {}
        for name, sites in self.sites.items():
            if part not in (None, sites[0].part):
                continue
            deltas = updates.delta(name).split([site.size for site in sites])
            for (_, owner, weight, rows), delta in zip(sites, deltas, strict=True):
                now: Any = owner._parameters[weight]
                now = found.get((id(owner), weight), (None, None, now))[2]
                whole = _add_rows(now, rows, delta)
                found[id(owner), weight] = owner, weight, whole
        yield from found.values()

    def around(self, key: int, call: Call) -> Any:
        """Make a call with updated weights."""
        with torch.autocast(call.x.device.type, enabled=False):
            weights = list(self.updated(key, call.part))
        with _lent(weights):
            return call()

    def check_merge(self) -> None:
        """Nothing: all updates are exact."""

    @torch.no_grad()
    def merge(self, key: int, share: float = 1.0) -> None:
        """Put the updates of an id, or a share of them, into the weights."""
        for module, name, weight in self.updated(key):
            module._parameters[name].lerp_(weight, share)


def _inputs(site: Site) -> int:
    return int(getattr(site.owner, site.weight).shape[1])


def _add_rows(weight: Any, rows: tuple[int, int], delta: Tensor) -> Tensor:
    """Add an update to some rows, in the type of the weight."""
    delta = delta.to(torch.promote_types(weight.dtype, delta.dtype))
    if rows == (0, len(weight)):
        return (weight + delta).to(weight.dtype)
    missing = (0, 0, rows[0], len(weight) - rows[1])
    return (weight + nn.functional.pad(delta, missing)).to(weight.dtype)


@contextmanager
def _lent(weights: list[tuple[Any, str, Tensor]]) -> Iterator[None]:
    """Use tensors in place of parameters inside a ``with`` block."""
    before = [(module, name, module._parameters[name]) for module, name, _ in weights]
    try:
        for module, name, weight in weights:
            module._parameters[name] = weight
        yield
    finally:
        for module, name, parameter in before:
            module._parameters[name] = parameter


def attach_lora(
    model: DualEncoder,
    tower: str = "both",
    *,
    blocks: Iterable[int] | None = None,
    rank: int = 4,
    alpha: float = 1.0,
    targets: Iterable[str] = ("qkv", "out"),
    init: str = "zero_b",
    learned_scale: bool = False,
) -> BranchSet:
    """Put low-rank updates beside weights, and freeze everything else.

    Updates start at zero, so features stay those of the model (within 1e-6; bit for
    bit under the id -1). The updates of id 0 train; further ids are made with
    ``model.lora.add()`` and chosen with ``model.lora.set_ids(ids)``, for all rows or
    per row.

    :param model: a dual encoder with residual attention blocks.
    :param tower: ``"image"``, ``"text"`` or ``"both"``.
    :param blocks: indices of the blocks, from 0; None for all.
    :param rank: r of the updates.
    :param alpha: updates are multiplied by ``alpha / rank``.
    :param targets: weights: ``"qkv"`` (one A for query, key and value), ``"q"``,
        ``"k"``, ``"v"`` (each with its own), ``"out"``, ``"mlp"`` (both layers).
    :param init: ``"zero_b"``, or ``"xavier"`` (A and B of ``"qkv"`` random, as in
        SIT's code: features change from the start).
    :param learned_scale: whether ``alpha / rank`` is only the start of a trained
        number per weight (CoLeCLIP).
    :return: the set, also ``model.lora``.
    :raises ValueError: if updates are attached already, a tower has no such blocks or
        weights, or an option is out of range; the model is then unchanged.

    Source: Hu et al., ICLR 2022 (LoRA, arXiv 2106.09685); the defaults are those of
    SIT (arXiv 2405.15155), except ``init``.

    >>> from avalanche_clip import create_dual_encoder
    >>> lora = attach_lora(create_dual_encoder("tiny-emoji-vit"), "text", rank=2)
    >>> lora.num_trainable, lora.add(), lora.keys
    (3072, 1, (0, 1))
    """
    names = chosen_names(targets, "targets", TARGETS)
    if "qkv" in names and _NAMES.keys() & set(names):
        raise ValueError(
            f"targets={names} names a weight twice; 'qkv' is 'q', 'k' and 'v' together."
        )
    require_flags(learned_scale=learned_scale)
    require_choice("init", init, INITS)
    if init == "xavier" and "qkv" not in names:
        raise ValueError(
            f"init='xavier' is of the target 'qkv', which targets={names} lack; leave"
            " it out."
        )
    rank, alpha = as_size(rank, "rank"), as_finite(alpha, "alpha", above=0)
    options = {"rank": rank, "init": init, "learned_scale": learned_scale}
    views, config = chosen_blocks(model, tower, blocks)
    made = pairs(
        lambda view: LoRABranch(view, names, scale=alpha / rank, **options), views
    )
    config |= {"targets": names, "alpha": alpha, **options}
    result = BranchSet(model, "lora", config)
    result.connect(made)
    return result
