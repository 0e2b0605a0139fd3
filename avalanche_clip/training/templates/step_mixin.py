"""One optimiser step: encode, check the loss, differentiate, update."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from avalanche_clip import distributed
from avalanche_clip.budget import ComputeBudget
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training.templates.accumulation import FeatureCache
from avalanche_clip.training.templates.ranks_mixin import RanksMixin
from avalanche_clip.training.templates.teachers import TeacherService

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


class StepMixin(RanksMixin):
    """Forward, backward and update of the CLIP templates."""

    model: nn.Module
    optimizer: Optimizer
    device: torch.device
    plugins: list[Any]
    is_training: bool
    retain_graph: bool
    clock: Any
    loss: Tensor
    mbatch: Any
    mb_x: Any
    precision: str
    accumulation_steps: int
    clip_grad_norm: float | None
    experience_index: int
    compute: ComputeBudget
    teachers: TeacherService
    loss_terms: dict[str, Tensor]
    batch_sizes: list[int]
    text_counts: list[int]
    mb_features: CLIPOutput | None
    global_features: CLIPOutput | None
    _cache: FeatureCache | None
    _ddp: nn.Module | None
    _scaler: torch.amp.GradScaler | None

    def autocast(self) -> torch.autocast:
        """Context of the forward passes of this strategy."""
        dtype = PRECISIONS[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _new_scaler(self) -> None:
        """Start a gradient scaler anew (fp16 only)."""
        fp16 = self.precision == "fp16"
        self._scaler = torch.amp.GradScaler(self.device.type) if fp16 else None

    def _unpack_minibatch(self) -> None:
        assert self.mbatch is not None
        if self.is_training:
            self.batch_sizes, self.text_counts = [], []
        self.mbatch = [part.to(self.device, non_blocking=True) for part in self.mbatch]

    # -------------------------------------------------------------- forward
    def _encode(self, batch: Any) -> CLIPOutput:
        with self.autocast():
            return self.model(batch)

    def _encode_synced(self, batch: Any) -> CLIPOutput:
        """Encode so that the backward pass synchronises gradients."""
        if self._ddp is None or not self.is_training:
            return self._encode(batch)
        with self.autocast():
            return self._ddp(batch)

    def forward(self) -> Any:
        """Encode the batch; return what ``mb_output`` shall be."""
        self._cache = None
        if self.is_training:
            self._meet()
        if self.is_training and self.accumulation_steps > 1:
            self._cache = FeatureCache(self.mb_x, self.accumulation_steps, self.device)
            output = self._cache.forward(self._encode)
        else:
            output = self._encode_synced(self.mb_x)
        self.mb_features = output
        if self.is_training:
            self.global_features = self.gather_output(output)
        return self._output(output)

    def _meet(self) -> None:
        """Learn how many images and texts each process has in this step."""
        step = self.clock.train_exp_iterations
        place = f"step {step} of experience {self.experience_index}"
        sizes = distributed.exchange(place, (len(self.mb_x), len(self.mb_x["text"])))
        self.batch_sizes = [images for images, _ in sizes]
        self.text_counts = [texts for _, texts in sizes]

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Join rows of this step's images, one each, over all processes.

        :param rows: ``(B, ...)``; processes may have different numbers.
        """
        return distributed.gather_rows(rows, self.batch_sizes)

    def gather_output(self, output: CLIPOutput) -> CLIPOutput:
        """Join the outputs of all processes to that of the whole batch."""
        return distributed.gather_output(output, self.batch_sizes)

    def batch_totals(self, batch: Any) -> tuple[int, int]:
        """Images and texts of a training batch over all processes."""
        if self.mbatch is not None and batch is self.mb_x:
            if not self.batch_sizes:
                self._meet()
            return sum(self.batch_sizes), sum(self.text_counts)
        world = distributed.world_size()
        return len(batch) * world, len(batch["text"]) * world

    def _output(self, output: CLIPOutput) -> Any:
        raise NotImplementedError

    # ----------------------------------------------------- backward, update
    def backward(self) -> None:
        """Compute gradients (unscaled), and stop if the loss is not finite."""
        check = _LossCheck(self.loss)
        if not self.loss.is_cuda:
            self._require(check)
        loss = self.loss if self._scaler is None else self._scaler.scale(self.loss)
        if self._cache is None:
            loss.backward(retain_graph=self.retain_graph)
        elif self._ddp is None:
            loss.backward(retain_graph=self.retain_graph)
            self._cache.backward(self._encode, self._encode)
        else:
            with self._ddp.no_sync():  # type: ignore[operator]
                loss.backward(retain_graph=self.retain_graph)
                # Only the last part may synchronise.
            self._cache.backward(self._encode, self._encode_synced)
        self._cache = None
        if self.loss.is_cuda:
            self._require(check)
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)

    def optimizer_step(self) -> None:
        """Clip, step, clamp the logit scale, and move the EMA teacher."""
        if self.clip_grad_norm is not None:
            params = [p for g in self.optimizer.param_groups for p in g["params"]]
            nn.utils.clip_grad_norm_(params, self.clip_grad_norm)
        if self._scaler is None:
            self.optimizer.step()
        else:
            self._scaler.step(self.optimizer)
            self._scaler.update()
        bound = getattr(self.model, "max_log_scale", None)
        scale: Any = self.model.logit_scale if bound is not None else None
        if scale is not None and scale.requires_grad:  # a frozen one does not move
            with torch.no_grad():
                scale.clamp_(0.0, bound)
        self.teachers.update_ema()

    def _require(self, check: _LossCheck) -> None:
        if check.passed():
            return
        terms = {name: float(value.sum()) for name, value in self.loss_terms.items()}
        bad = [n for n, v in terms.items() if not torch.isfinite(torch.tensor(v))]
        where = f"term {bad[0]!r}" if bad else "a term added by a stock plugin"
        raise NonFiniteLossError(
            f"The loss is {float(self.loss.detach().sum())} in experience "
            f"{self.experience_index}, iteration {self.clock.train_exp_iterations}: "
            f"{where} is not finite. Terms: {terms}. Lower the learning rate, clip "
            "gradients (clip_grad_norm), or use precision='fp32'."
        )

    def _require_finite_weights(self) -> None:
        """Raise when the last update of an experience has broken the model."""
        bad = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and not torch.isfinite(parameter).all()
        ]
        if bad:
            raise NonFiniteLossError(
                f"{len(bad)} weights ({bad[0]}, ...) are not finite after experience "
                f"{self.experience_index}, iteration {self.clock.train_exp_iterations}:"
                " the last loss was finite, but its gradient was not. Lower the "
                "learning rate, clip gradients (clip_grad_norm), or use "
                "precision='fp32'."
            )

    def _count_batch(self) -> None:
        images, texts = self.batch_totals(self.mb_x)
        self.compute.spend("train", images=images, texts=texts, steps=1)
