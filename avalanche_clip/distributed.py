"""Helpers for several processes: ranks, and gathers that carry gradients."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# `as`: type checkers let users import these names from here
# isort: off
from avalanche_clip.common.ranks import (
    DEFAULT_TIMEOUT as DEFAULT_TIMEOUT,
    RankError as RankError,
    agree as agree,
    ask_to_stop as ask_to_stop,
    asked_to_stop as asked_to_stop,
    control_group,
    exchange as exchange,
    guarded as guarded,
    is_distributed as is_distributed,
    rank as rank,
    require_joined as require_joined,
    stopping as stopping,
    together as together,
    world_size as world_size,
)

# isort: on
from avalanche_clip.models.encoders.output import CLIPOutput

_FOREVER = 10.0**9  # seconds that a timedelta can hold


def is_main_process() -> bool:
    """Tell whether this process writes files and logs."""
    return rank() == 0


def init_distributed(
    backend: str | None = None, *, timeout: float | timedelta | None = None
) -> torch.device:
    """Join the process group that ``torchrun`` describes.

    When one process fails, ends or hangs, the others stop with
    :class:`RankError` within ``timeout``. It must be longer than what processes
    may wait for each other in a sound run, such as for a file that the main one
    writes.

    :param backend: ``"nccl"`` or ``"gloo"``; default nccl with CUDA.
    :param timeout: seconds; default 1,800. With nccl a step that is already
        queued on the GPU is ended by its watchdog after the same time.
    :return: the device of this process. Without a launcher nothing is joined.
    :raises ValueError: for a timeout that is not positive, or arguments that come
        too late: the group is already running with others.
    :raises RankError: if the other processes do not come in time.
    """
    if isinstance(timeout, timedelta):
        timeout = timeout.total_seconds()
    if timeout is not None and not 0 < timeout < _FOREVER:
        raise ValueError(f"timeout={timeout!r} must be a positive number of seconds.")
    local = int(os.environ.get("LOCAL_RANK", 0))
    cuda = torch.cuda.is_available()
    if dist.is_initialized():
        _refuse_late(backend, timeout)
    elif "RANK" in os.environ:
        # avalanche-lib 0.6.0 makes a logger when it is imported, which it refuses
        # to do in any but the main process of a group: import it before.
        import_module("avalanche.training")
        _join(backend or ("nccl" if cuda else "gloo"), timeout or DEFAULT_TIMEOUT)
    if cuda:
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return torch.device("cpu")


def _join(backend: str, timeout: float) -> None:
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except dist.DistError as error:
        raise RankError(
            f"rank {os.environ['RANK']} of {os.environ.get('WORLD_SIZE', '?')} has "
            f"waited {timeout:g} s for the others at {os.environ.get('MASTER_ADDR')}:"
            f"{os.environ.get('MASTER_PORT')}. Look at the first error in their "
            "output, and whether all call init_distributed()."
        ) from error
    if is_distributed():
        with guarded("init_distributed()"):
            control_group()


def _refuse_late(backend: str | None, timeout: float | None) -> None:
    running = dist.get_backend()
    if timeout is not None or backend not in (None, running):
        raise ValueError(
            f"init_distributed(backend={backend!r}, timeout={timeout!r}) comes too "
            f"late: a process group with {running} is already running. Give them to "
            "the call that starts it, at the beginning of the script."
        )


def barrier() -> None:
    """Wait for all processes."""
    exchange("a barrier")


def broadcast_object(value: Any) -> Any:
    """Give every process the value of the main one.

    :param value: anything that can be pickled; used on the main process only.
    :return: the main process's value.
    """
    return exchange("a broadcast", value if is_main_process() else None)[0]


def broadcast_buffers(model: nn.Module) -> None:
    """Give every process the main one's running statistics.

    :param model: those of its batch norms differ after a step, since each process
        has seen its own part of the batch.
    """
    if not is_distributed():
        return
    with guarded("sharing buffers"):
        for buffer in model.buffers():
            if buffer.is_floating_point():
                dist.broadcast(buffer, src=0)


def shares(count: int, processes: int) -> list[int]:
    """Cut ``count`` rows into consecutive, nearly equal parts, one per process.

    >>> shares(7, 2), shares(8, 2), shares(1, 2)
    ([3, 4], [4, 4], [0, 1])
    """
    bounds = [count * part // processes for part in range(processes + 1)]
    return [high - low for low, high in zip(bounds[:-1], bounds[1:], strict=True)]


def _all_gather(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    # empty_like keeps the strides of what it copies, and NCCL wants none.
    rows = rows.detach().contiguous()
    longest = max(sizes)
    if len(rows) < longest:
        filler = rows.new_zeros(longest - len(rows), *rows.shape[1:])
        rows = torch.cat([rows, filler])
    parts = [torch.empty_like(rows) for _ in sizes]
    with guarded("a gather of rows"):
        dist.all_gather(parts, rows)
    cut = [part[:size] for part, size in zip(parts, sizes, strict=True)]
    return torch.cat(cut)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sizes: Sequence[int]) -> Tensor:  # type: ignore[override]
        ctx.own = own_rows(sizes)
        return _all_gather(rows, sizes)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        total = gradient.contiguous().clone()
        with guarded("the backward pass of a gather"):
            dist.all_reduce(total)
        return total[ctx.own], None


def gather_rows(rows: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
    """Concatenate the rows of all processes, with gradients.

    The backward pass sums the gradients of all processes; since DDP averages
    over processes, a loss that each of them computes on the gathered rows has
    the gradient of one process that holds the whole batch.

    :param rows: ``(B, ...)`` on each process, where ``B`` may differ.
    :param sizes: ``B`` of each process; default asks them.
    :return: ``(sum(sizes), ...)``, rows of process 0 first.
    :raises ValueError: if ``rows`` are not as many as ``sizes`` say.
    """
    if not is_distributed():
        return rows
    if not sizes:
        sizes = exchange("the sizes of a gather", len(rows))
    if len(rows) != sizes[rank()]:
        raise ValueError(
            f"rank {rank()} has {len(rows)} rows to gather, but sizes are "
            f"{list(sizes)}; give the number of rows of each process."
        )
    if rows.is_floating_point() and rows.requires_grad:
        return _GatherRows.apply(rows, sizes)
    return _all_gather(rows, sizes)


def own_rows(sizes: Sequence[int]) -> slice:
    """Rows of this process among those gathered.

    :param sizes: rows of each process.
    """
    start = sum(sizes[: rank()])
    return slice(start, start + sizes[rank()])


def sum_of_shares(share: Tensor) -> Tensor:
    """Add up scalars of all processes, each of which has a share of one loss.

    Each process follows the gradient of its own share, times their number, since
    DDP averages: with features from :func:`gather_rows` the average is the gradient
    of the sum.

    :param share: of this process, 0-d.
    :return: the sum, the same on each process.
    """
    if not is_distributed():
        return share
    total = share.detach().clone()
    with guarded("the sum of a loss"):
        dist.all_reduce(total)
    own = share * world_size()
    return total + (own - own.detach())


class OnWholeBatch(nn.Module):
    """A part of a model that losses apply to the gathered batch, not its own pass.

    Each process has the gradient of the whole batch, which needs no averaging.
    """


class SyncedModel(nn.Module):
    """A model as :class:`DistributedDataParallel` can wrap it.

    DDP takes a parameter that a model returns as it is, such as a logit bias,
    for one that is not used, and then fails when its gradient comes; and so it does
    with the parameters of :class:`OnWholeBatch`, which it is told to ignore.

    :param model: returns a :class:`CLIPOutput`.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self._ddp_params_and_buffers_to_ignore = [  # read by DDP
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, OnWholeBatch)
            for name, _ in module.named_parameters()
        ]

    def forward(self, batch: Any) -> CLIPOutput:
        """Call the model; parameters among its outputs become views."""
        output = self.model(batch)
        if not output.aux:
            return output
        return output._replace(aux={k: _no_leaf(v) for k, v in output.aux.items()})


def _no_leaf(value: Any) -> Any:
    leaf = isinstance(value, Tensor) and value.requires_grad and value.is_leaf
    return value.view_as(value) if leaf else value


def gather_output(
    output: CLIPOutput, sizes: Sequence[int] | None = None, *, texts: bool = True
) -> CLIPOutput:
    """Gather a model output of each process into that of the whole batch.

    Features and per-sample ``aux`` tensors are concatenated; scalars
    (``logit_scale``, ``logit_bias``, ``balance_loss``) stay as they are.

    :param output: of this process's part of the batch.
    :param sizes: see :func:`gather_rows`.
    :param texts: False where the texts are the same on each process: they stay.
    """
    if not is_distributed():
        return output
    aux = output.aux
    if aux is not None:
        aux = {
            k: gather_rows(v, sizes)
            if isinstance(v, Tensor) and v.dim() > 0 and (texts or k != "text_norm")
            else v
            for k, v in aux.items()
        }
    text_features = output.text_features
    return CLIPOutput(
        gather_rows(output.image_features, sizes),
        gather_rows(text_features, sizes) if texts else text_features,
        output.logit_scale,
        aux,
    )
