"""One optimiser step: encode, differentiate, stop at NaN, update."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip import distributed
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training.templates.accumulation import FeatureCache
from avalanche_clip.training.templates.contract import routed
from avalanche_clip.training.templates.sharding import Shards

_ADVICE = (
    "Lower the learning rate, clip gradients (clip_grad_norm), or use precision='fp32'."
)
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class NonFiniteLossError(FloatingPointError):
    """Raised when a loss becomes NaN or infinite."""


class _LossCheck:
    """Learn whether a loss is finite without waiting for the backward pass.

    On a GPU the answer is copied while the backward pass is being queued; on
    the CPU there is nothing to wait for.
    """

    def __init__(self, loss: Tensor):
        finite = torch.isfinite(loss.detach()).all()
        self.event = None
        if finite.is_cuda:
            self.finite = torch.empty((), dtype=torch.bool, pin_memory=True)
            self.finite.copy_(finite, non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(finite.device))
        else:
            self.finite = finite

    def passed(self) -> bool:
        if self.event is not None:
            self.event.synchronize()
        return bool(self.finite)


class Step:
    """Forward pass, backward pass and update of a strategy.

    In mixed precision, in chunks, and on several processes, whose gradients are
    averaged.

    :param strategy: its settings, model, optimiser and loss are used; it encodes.
    :param sharding: ``"ddp"`` or ``"fsdp2"``.
    """

    def __init__(self, strategy: Any, sharding: str = "ddp"):
        self.strategy = strategy
        self.sharding = sharding
        self.shards: Shards | None = None
        """Weights while they are shared out over processes, see :func:`shared_out`."""
        self.scaler: torch.amp.GradScaler | None = None
        self.synced: nn.Module | None = None
        """Encodes a batch so that the backward pass averages gradients over several
        processes; None for one process."""
        self._cache: FeatureCache | None = None
        self._synced_ids: frozenset[int] = frozenset()
        self.new_scaler()

    def new_scaler(self) -> None:
        """Start a gradient scaler anew (fp16 only)."""
        if self.strategy.precision == "fp16":
            self.scaler = torch.amp.GradScaler(self.strategy.device.type)

    def autocast(self) -> torch.autocast:
        """Context of forward passes."""
        dtype = PRECISIONS[self.strategy.precision]
        kind = self.strategy.device.type
        return torch.autocast(kind, dtype=dtype, enabled=dtype is not None)

    # ------------------------------------------------------- several processes
    def synchronise(self) -> None:
        """Average the gradients of several processes, whatever is trainable now."""
        if not distributed.is_distributed():
            return
        parameters = self.strategy.model.parameters()
        ids = frozenset(id(p) for p in parameters if p.requires_grad)
        if self.synced is None or ids != self._synced_ids:
            self.synced = None
            self.synced = self.strategy.synced_module()
            if self.sharding == "ddp":
                self.synced = nn.parallel.DistributedDataParallel(
                    self.synced, find_unused_parameters=True
                )
            self._synced_ids = ids

    def meet(self) -> tuple[list[int], list[int]]:
        """Numbers of images and of texts that each process has in this step."""
        batch, step = self.strategy.mb_x, self.strategy.clock.train_exp_iterations
        place = f"step {step} of experience {self.strategy.experience_index}"
        sizes = distributed.exchange(place, (len(batch), len(batch["text"])))
        return [images for images, _ in sizes], [texts for _, texts in sizes]

    # ------------------------------------------------------------ the three parts
    def forget(self) -> None:
        """Let go of the features of the last batch."""
        self._cache = None

    def forward(self) -> CLIPOutput:
        """Encode the batch, in chunks where gradients are accumulated."""
        strategy = self.strategy
        self._cache = None
        if not strategy.is_training:
            with routed(strategy, strategy.mb_x):
                return strategy.encode(strategy.mb_x)
        if strategy.accumulation_steps == 1:
            return strategy.encode(strategy.mb_x, synced=True)
        self._cache = FeatureCache(
            strategy.mb_x, strategy.accumulation_steps, strategy.device
        )
        return self._cache.forward(strategy.encode)

    def backward(self) -> None:
        """Compute gradients (unscaled), and stop if the loss is not finite."""
        strategy, whole = self.strategy, self.strategy.loss
        check = _LossCheck(whole)
        if not whole.is_cuda:
            self._require(check)
        loss = whole if self.scaler is None else self.scaler.scale(whole)
        cache, self._cache = self._cache, None
        if cache is None or self.synced is None or self.shards is not None:
            loss.backward(retain_graph=strategy.retain_graph)
        else:
            with self.synced.no_sync():  # type: ignore[operator]
                loss.backward(retain_graph=strategy.retain_graph)
        if cache is not None:  # only the last part may synchronise
            cache.backward(strategy.encode, partial(strategy.encode, synced=True))
        if self.shards is not None:
            self.shards.average()
        if whole.is_cuda:
            self._require(check)
        if self.scaler is not None:
            self.scaler.unscale_(strategy.optimizer)

    def update(self) -> None:
        """Clip, step and clamp the logit scale."""
        strategy, optimizer = self.strategy, self.strategy.optimizer
        if strategy.clip_grad_norm is not None and self.shards is not None:
            self.shards.clip(strategy.clip_grad_norm)
        elif strategy.clip_grad_norm is not None:
            params = [p for g in optimizer.param_groups for p in g["params"]]
            nn.utils.clip_grad_norm_(params, strategy.clip_grad_norm)
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
        bound = getattr(strategy.model, "max_log_scale", None)
        scale = strategy.model.logit_scale if bound is not None else None
        if scale is not None and scale.requires_grad:  # a frozen one does not move
            with torch.no_grad():
                scale.clamp_(0.0, bound)

    # -------------------------------------------------------------------- NaN
    def _place(self) -> str:
        strategy = self.strategy
        return (
            f"experience {strategy.experience_index}, iteration "
            f"{strategy.clock.train_exp_iterations}"
        )

    def _require(self, check: _LossCheck) -> None:
        if check.passed():
            return
        found = self.strategy.loss_terms.items()
        terms = {name: float(value.sum()) for name, value in found}
        bad = [name for name, value in terms.items() if not math.isfinite(value)]
        where = f"term {bad[0]!r}" if bad else "a term added by a stock plugin"
        raise NonFiniteLossError(
            f"The loss is {float(self.strategy.loss.detach().sum())} in "
            f"{self._place()}: {where} is not finite. Terms: {terms}. {_ADVICE}"
        )

    def require_finite_weights(self) -> None:
        """Raise when the last update of an experience has broken the model."""
        bad = [
            name
            for name, parameter in self.strategy.model.named_parameters()
            if parameter.requires_grad and not torch.isfinite(parameter).all()
        ]
        if bad:
            raise NonFiniteLossError(
                f"{len(bad)} weights ({bad[0]}, ...) are not finite after "
                f"{self._place()}: the last loss was finite, but its gradient was not. "
                f"{_ADVICE}"
            )
