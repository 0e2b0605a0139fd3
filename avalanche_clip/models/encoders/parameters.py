"""The tensors of a dual encoder: whose they are, which train, how they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import as_size
from avalanche_clip.models.encoders.architectures import build_clip
from avalanche_clip.models.encoders.blocks import ATTACHMENTS
from avalanche_clip.models.encoders.output import PRECISIONS
from avalanche_clip.models.encoders.towers import plain_name

SCALES = ("logit_scale", "logit_bias")


def tensors_of(model: Any, tower: str | None) -> Iterator[tuple[str, Tensor]]:
    """Yield what can change the features of a tower, or of any, with plain names."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or name.split(".")[0] in ATTACHMENTS:
            continue  # progress of tasks; branches are parts of their blocks
        inner = model._inner_name(name)
        # modules outside the wrapped model may act on either tower
        outside = model.tower_of(name) is None and inner not in SCALES
        if tower is None or outside or model.tower_of(name) == tower:
            yield name if inner is None else f"clip.{inner}", tensor


def depths(model: Any, tower: str) -> dict[str, int]:
    """Tell how far along a tower its parameters act.

    :return: by name: 0 before the residual blocks, their number from 1 on inside of
        them, one more behind them.
    :raises ValueError: for towers without plain residual blocks.
    """
    blocks = model.blocks(tower)
    inside = {
        id(parameter): number
        for number, view in enumerate(blocks, 1)
        for parameter in view.module.parameters()
    }
    found = {}
    for name, parameter in model.named_parameters():
        if model.tower_of(name) == tower:
            early = model._inner_name(name).startswith(model._towers.stems)
            outside = 0 if early else len(blocks) + 1
            found[name] = inside.get(id(parameter), outside)
    return found


def last_blocks(model: Any, towers: list[str], count: int) -> list[Any]:
    """List the parameters of the last blocks of towers, and of what follows them."""
    named, chosen = dict(model.named_parameters()), []
    for tower in towers:
        found = depths(model, tower)
        blocks = len(model.blocks(tower))
        if as_size(count, "last_blocks", least=0) > blocks:
            raise ValueError(
                f"last_blocks={count}, but the {tower} tower has {blocks} blocks."
            )
        chosen += [named[n] for n, depth in found.items() if depth > blocks - count]
    return chosen


def reinitialize(model: Any, seed: int) -> None:
    """See :meth:`DualEncoder.reinitialize`."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the accelerators
        torch.default_generator.manual_seed(seed)
        fresh = build_clip(model.config)
    source = fresh.state_dict()
    for name, tensor in model.clip.state_dict().items():
        tensor.copy_(source[name])


def batch_norms(model: Any) -> list[tuple[str, nn.Module]]:
    """List the modules that count over batches, with their names."""
    kind = nn.modules.batchnorm._BatchNorm
    return [(name, m) for name, m in model.named_modules() if isinstance(m, kind)]


def set_checkpointing(model: Any, enable: bool) -> None:
    """See :meth:`DualEncoder.set_grad_checkpointing`."""
    switches = list(model._towers.checkpointed(model.clip))
    norms = batch_norms(model)
    held = [name for name in ATTACHMENTS if model._modules.get(name) is not None]
    if enable and (norms or held):
        what = f"model.{held[0]}" if held else "batch norms"
        raise ValueError(
            f"With {what} a second forward pass would not be the first one again; use"
            " smaller batches with accumulation instead of set_grad_checkpointing."
        )
    for switch in switches:
        switch(enable)


def check_trainable(model: Any) -> None:
    """See :meth:`DualEncoder.check_trainable`."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            raise ValueError(
                f"The trainable parameter {name} is stored as {parameter.dtype};"
                f" precision={model.precision!r} is for frozen weights. Call"
                " unfreeze(tower), or create the model with precision='fp32'."
            )


def cast_frozen(model: Any) -> None:
    """Store frozen matrices in 16 bits; vectors, norms, branches stay float32."""
    for name, parameter in model.named_parameters():
        own = model._inner_name(name) in model.plain_shapes and model.tower_of(name)
        is_matrix = parameter.ndim >= 2 and "positional_embedding" not in name
        if own and is_matrix and not parameter.requires_grad:
            parameter.data = parameter.data.to(PRECISIONS[model.precision])


def check_plain(model: Any, action: str, grown: str | None) -> None:
    """See :meth:`DualEncoder.check_plain`."""
    tensors = model.clip.state_dict().items()
    shapes = {plain_name(name): tuple(tensor.shape) for name, tensor in tensors}
    stored = [k for k in model.state_dict() if not k.startswith("clip.")]
    outside = [n for n, _ in model.named_parameters() if n in stored]
    plain = {**model.plain_shapes, **({grown: shapes[grown]} if grown else {})}
    changed = [k for k in shapes if shapes[k] != plain.get(k)]
    found = outside + changed + [k for k in plain if k not in shapes]
    if found:
        raise ValueError(
            f"{action} needs the plain architecture, but {len(found)} tensors"
            f" differ from it (first: {found[0]}); detach what was attached, or"
            " use save_state for a whole strategy."
        )
