"""Helpers for several processes: ranks, and gathers that carry gradients."""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from avalanche_clip.models.output import CLIPOutput


def is_distributed() -> bool:
    """Tell whether a process group of more than one process is running."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank() -> int:
    """Number of this process, 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes, 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def is_main_process() -> bool:
    """Tell whether this process writes files and logs."""
    return rank() == 0


def init_distributed(backend: str | None = None) -> torch.device:
    """Join the process group that ``torchrun`` describes.

    :param backend: ``"nccl"`` or ``"gloo"``; default nccl with CUDA.
    :return: the device of this process. Without a launcher nothing is joined.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    if "RANK" in os.environ and not dist.is_initialized():
        # avalanche-lib 0.6.0 makes a logger when it is imported, which it refuses
        # to do in any but the main process of a group: import it before.
        import_module("avalanche.training")
        dist.init_process_group(backend or ("nccl" if cuda else "gloo"))
    if cuda:
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return torch.device("cpu")


def barrier() -> None:
    """Wait for all processes."""
    if is_distributed():
        dist.barrier()


def broadcast_object(value: Any) -> Any:
    """Give every process the value of the main one.

    :param value: anything that can be pickled; used on the main process only.
    :return: the main process's value.
    """
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _all_gather(rows: Tensor) -> Tensor:
    # empty_like keeps the strides of what it copies, and NCCL wants none.
    rows = rows.detach().contiguous()
    parts = [torch.empty_like(rows) for _ in range(world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:  # type: ignore[override]
        ctx.count = rows.shape[0]
        return _all_gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        start = rank() * ctx.count
        return total[start : start + ctx.count]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all processes, with gradients.

    Every process must give the same shape. The backward pass sums the
    gradients of all processes; since DDP averages over processes, a loss that
    each of them computes on the gathered rows has the gradient of one process
    that holds the whole batch.

    :param rows: ``(B, ...)`` on each process.
    :return: ``(B * world_size, ...)``, rows of process 0 first.
    """
    if not is_distributed():
        return rows
    if rows.is_floating_point() and rows.requires_grad:
        return _GatherRows.apply(rows)
    return _all_gather(rows)


class SyncedModel(nn.Module):
    """A model as :class:`DistributedDataParallel` can wrap it.

    DDP takes a parameter that a model returns as it is, such as a logit bias,
    for one that is not used, and then fails when its gradient comes.

    :param model: returns a :class:`CLIPOutput`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Any) -> CLIPOutput:
        """Call the model; parameters among its outputs become views."""
        output = self.model(batch)
        if not output.aux:
            return output
        return output._replace(aux={k: _no_leaf(v) for k, v in output.aux.items()})


def _no_leaf(value: Any) -> Any:
    leaf = isinstance(value, Tensor) and value.requires_grad and value.is_leaf
    return value.view_as(value) if leaf else value


def gather_output(output: CLIPOutput) -> CLIPOutput:
    """Gather a model output of each process into that of the whole batch.

    Features and per-sample ``aux`` tensors are concatenated; scalars
    (``logit_scale``, ``logit_bias``, ``balance_loss``) stay as they are.
    """
    if not is_distributed():
        return output
    aux = output.aux
    if aux is not None:
        aux = {
            k: gather_rows(v) if isinstance(v, Tensor) and v.dim() > 0 else v
            for k, v in aux.items()
        }
    return CLIPOutput(
        gather_rows(output.image_features),
        gather_rows(output.text_features),
        output.logit_scale,
        aux,
    )


__all__ = [
    "SyncedModel",
    "barrier",
    "broadcast_object",
    "gather_output",
    "gather_rows",
    "init_distributed",
    "is_distributed",
    "is_main_process",
    "rank",
    "world_size",
]
