"""Weights, gradients and moments that processes share out while an epoch is trained.

By FSDP2 (:func:`torch.distributed.fsdp.fully_shard`): Zhao et al., "PyTorch FSDP:
Experiences on Scaling Fully Sharded Data Parallel", VLDB 2023 (arXiv 2304.11277).
Between epochs, and in evaluations, every process holds the whole weights again, in the
parameters that the model had before: growth, teachers, mixtures of weights and
checkpoints find an ordinary model. Moments stay shared out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from avalanche_clip import distributed
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.text.token_table import find_token_embedding

SHARDINGS = ("ddp", "fsdp2")
_NAMES = ("encode_image", "encode_text")


def check_sharding(strategy: Any) -> None:
    """Raise ValueError for what does not work with shared-out weights."""
    if strategy.step.sharding != "fsdp2":
        return
    import torch.distributed.checkpoint as dcp

    model, what = strategy.model, "sharding='fsdp2' "
    if not hasattr(dcp, "HuggingFaceStorageWriter"):
        raise ValueError(
            f"{what}needs a newer torch than {torch.__version__} (tried with 2.15): "
            "torch.distributed.checkpoint writes no safetensors there."
        )
    if not isinstance(model, DualEncoder):
        raise ValueError(
            f"{what}shares out the towers of a DualEncoder, not of a "
            f"{type(model).__name__}; use create_dual_encoder, or sharding='ddp'."
        )
    if strategy.precision == "fp16":
        raise ValueError(
            f"{what}has no gradient scaler: torch's cannot look through weights that "
            "are shared out and others in one list; use precision='bf16' or 'fp32'."
        )
    if model._compiled_call_impl is not None:
        raise ValueError(f"{what}was not tried with a compiled model; use 'ddp'.")
    for contract in strategy.contracts:
        if contract.reads_weights_in_steps:
            raise ValueError(
                f"{type(contract.wrapped).__name__} reads the weights in each step, of "
                f"which {what}leaves a part to each process; use sharding='ddp'."
            )
    if not distributed.is_distributed():
        warnings.warn(f"{what}has no effect in a single process.", stacklevel=5)


def _is_cut(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


class Shards:
    """The shared-out weights of a model.

    What is shared out: tensors of the plain architecture of more than one value, block
    by block, the rest of both towers as one part. Whole on each process stay growing
    token tables and what is attached beside the weights, whose gradients
    :meth:`average` averages, since a step may use them on one process only.

    :param strategy: its model and optimiser are changed in place.
    """

    def __init__(self, strategy: Any):
        self.optimizer = strategy.optimizer
        self.model: DualEncoder = strategy.model
        self._places: list[tuple[nn.Module, str, nn.Parameter]] = []
        self._undo: list[Callable[[], None]] = []
        self._foreach = [g.get("foreach") for g in self.optimizer.param_groups]
        self._cut()

    def _shared_out(self) -> dict[int, nn.Parameter]:
        table = find_token_embedding(self.model)
        growing = set() if table is None else set(map(id, table.parameters()))
        plain = {f"clip.{n}": s for n, s in self.model.plain_shapes.items()}
        return {
            id(p): p
            for name, p in self.model.named_parameters()
            if p.numel() > 1 and plain.get(name) == p.shape and id(p) not in growing
        }

    def _cut(self) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        shared, model = self._shared_out(), self.model
        device = next(model.parameters()).device.type
        mesh = init_device_mesh(device, (distributed.world_size(),))
        modules = list(model.modules())
        self._places = [
            (module, name, p)
            for module in modules
            for name, p in module._parameters.items()
            if p is not None and id(p) in shared
        ]
        before = [(m, type(m), dict(m.__dict__), _hooks(m)) for m in modules]
        ignored = {p for p in model.parameters() if id(p) not in shared}
        for tower in ("image", "text"):
            with suppress(ValueError):  # no plain blocks: they go with the rest
                for view in model.blocks(tower):
                    fully_shard(view.module, mesh=mesh, ignored_params=ignored)
        fully_shard(model, mesh=mesh, ignored_params=ignored)
        for name in _NAMES:
            register_fsdp_forward_method(model, name)
        self._undo = [_as_before(*one) for one in before]
        new = {id(p): m._parameters[name] for m, name, p in self._places}
        self._point(new)
        for _, _, parameter in self._places:
            parameter.grad = None
            parameter.data = parameter.data.new_empty(0)

    def _point(self, new: dict[int, Any]) -> None:
        """Make the optimiser hold other parameters."""
        for group, foreach in zip(self.optimizer.param_groups, self._foreach):
            group["params"] = [new.get(id(p), p) for p in group["params"]]
            # torch's loops over lists take no list of both kinds of tensors.
            group["foreach"] = False if self._undo else foreach
        for old, state in list(self.optimizer.state.items()):
            if id(old) in new:
                del self.optimizer.state[old]
                parameter = new[id(old)]
                self.optimizer.state[parameter] = {
                    key: _cut_like(value, parameter) for key, value in state.items()
                }

    def gather(self, *, failed: bool = False) -> None:
        """Give each process the whole weights, in the parameters from before.

        :param failed: without asking the others, who may be gone: weights are NaN.
        """
        if not failed:
            for module in self.model.modules():
                if hasattr(module, "set_reshard_after_backward"):
                    module.reshard()  # type: ignore[operator]
        new = {}
        for module, name, parameter in self._places:
            cut: Any = module._parameters[name]
            new[id(cut)] = parameter
            if parameter.numel() != cut.numel():  # else tied, and done
                if failed:
                    parameter.data = parameter.data.new_full(cut.shape, math.nan)
                else:
                    parameter.data = cut.detach().full_tensor()
            parameter.requires_grad_(cut.requires_grad)
        undo, self._undo = self._undo, []
        for put_back in undo:
            put_back()
        for module, name, parameter in self._places:
            module._parameters[name] = parameter
        self._point(new)

    def _gradients(self) -> tuple[list[Any], list[Tensor]]:
        """Parts of gradients that are shared out, and whole gradients."""
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        found = [p.grad for p in held if p.grad is not None]
        parts = [g.to_local() for g in found if _is_cut(g)]
        return parts, [g for g in found if not _is_cut(g)]

    def average(self) -> None:
        """Average the gradients of what is whole on each process."""
        held = [p for group in self.optimizer.param_groups for p in group["params"]]
        whole = [p for p in held if not _is_cut(p)]
        if not whole:
            return
        used = [float(p.grad is not None) for p in whole]
        rows = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in whole]
        flat = torch.cat([whole[0].new_tensor(used), *(r.reshape(-1) for r in rows)])
        dist.all_reduce(flat)
        flat[len(whole) :] /= distributed.world_size()
        sizes = [len(whole), *(p.numel() for p in whole)]
        users, *means = flat.split(sizes)
        for parameter, count, mean in zip(whole, users.tolist(), means):
            if count:
                parameter.grad = mean.view(parameter.shape)

    @torch.no_grad()
    def clip(self, largest: float) -> None:
        """Scale all gradients so that their norm is at most ``largest``."""
        parts, whole = self._gradients()
        device = next(self.model.parameters()).device
        squares = torch.zeros(2, device=device)
        for place, gradients in enumerate((parts, whole)):
            for gradient in gradients:
                squares[place] += gradient.float().square().sum()
        total = squares[0].clone()
        dist.all_reduce(total)
        norm = (total + squares[1]).sqrt()
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        for gradient in (*parts, *whole):
            gradient.mul_(factor.to(gradient.dtype))


def _hooks(module: nn.Module) -> dict[str, dict[Any, Any]]:
    found = vars(module).items()
    return {k: dict(v) for k, v in found if "hooks" in k and isinstance(v, dict)}


def _as_before(
    module: nn.Module, cls: type, fields: dict[str, Any], hooks: dict[str, Any]
) -> Callable[[], None]:
    """What takes off from a module what ``fully_shard`` has just put on."""
    from torch.distributed._composable_state import _module_state_mapping as known

    added = [key for key in vars(module) if key not in fields]

    def undo() -> None:
        module.__class__ = cls
        known.pop(module, None)  # torch 2.15 takes nothing off by itself
        for key in added:
            vars(module).pop(key, None)
        for key, found in hooks.items():
            now = vars(module)[key]
            now.clear()
            now.update(found)

    return undo


def _cut_like(value: Any, parameter: Any) -> Any:
    """A moment as it belongs to a parameter: shared out once, it stays so."""
    from torch.distributed.tensor import distribute_tensor

    if not _is_cut(parameter) or _is_cut(value) or not isinstance(value, Tensor):
        return value
    if value.shape != parameter.shape:
        return value
    mesh, placements = parameter.device_mesh, parameter.placements
    return distribute_tensor(value, mesh, placements, src_data_rank=None)


def cut_moments(strategy: Any) -> dict[str, Any]:
    """Moments that are shared out, by the parameter's name and their own."""
    found = strategy.optimizer_state(copied=False)["state"].items()
    return {
        f"{name}/{key}": value
        for name, state in found
        for key, value in state.items()
        if _is_cut(value)
    }


def without_cut(stored: dict[str, Any]) -> dict[str, Any]:
    """The state of an optimiser but for :func:`cut_moments`."""
    found = stored["state"].items()
    state = {n: {k: v for k, v in s.items() if not _is_cut(v)} for n, s in found}
    return {**stored, "state": state}


@contextmanager
def shared_out(step: Any) -> Iterator[None]:
    """Share out the weights of a strategy in a ``with`` block, if it is to do so."""
    if step.sharding != "fsdp2" or not distributed.is_distributed():
        yield
        return
    step.shards = Shards(step.strategy)
    try:
        yield
    except BaseException:
        shards, step.shards = step.shards, None
        if shards is not None:
            shards.gather(failed=True)
        raise
    shards, step.shards = step.shards, None
    shards.gather()


@contextmanager
def whole(step: Any) -> Iterator[None]:
    """Hold the whole weights in a ``with`` block inside :func:`shared_out`."""
    if step.shards is None:
        yield
        return
    shards, step.shards = step.shards, None
    shards.gather()
    yield
    step.shards = Shards(step.strategy)
