"""How long to train, and at which learning rate."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from avalanche_clip import distributed
from avalanche_clip.budget import ComputeBudget
from avalanche_clip.training.templates.order import TrainLoader
from avalanche_clip.training.templates.schedules import learning_rate, trunk_steps


class PlanMixin:
    """Iterations of an experience and its epochs, batches, and schedule."""

    clock: Any
    compute: ComputeBudget
    dataloader: Any
    decay_fraction: float
    experience_index: int
    later_warmup_iterations: int
    model: nn.Module
    optimizer: Optimizer
    planned_iterations: int
    contracts: Any
    schedule: str | None
    train_epochs: int
    train_mb_size: int
    warmup_iterations: int

    def _plan(self) -> int:
        """Iterations of the experience that is about to be trained."""
        if self.compute.limited:
            planned = self._plan_budget()
        else:
            planned = self.train_epochs * len(self.dataloader)
        self._check_warmup(planned)
        return planned

    def _plan_budget(self) -> int:
        loader = self.dataloader
        size = self.train_mb_size * distributed.world_size()
        if isinstance(loader, TrainLoader):
            size = loader.order.batch_size
        elif self.compute.iterations is None:
            # A stock loader's batches hold memory samples, which count too.
            size = len(next(iter(loader))[0]) * distributed.world_size()
        factor = 1.0
        for contract in self.contracts:
            factor *= float(contract.budget_factor(self))
        macs = 0.0
        if self.compute.macs is not None:
            macs = self._macs_per_sample(size)
        return self.compute.planned_iterations(size, macs, factor)

    def _macs_per_sample(self, batch_size: int) -> float:
        """Forward MACs of one training sample with its share of the texts."""
        return float(sum(self.model.macs().values()))  # type: ignore[operator]

    def _warmup(self) -> int:
        fresh = any(contract.starts_fresh for contract in self.contracts)
        if self.clock.train_exp_counter == 0 or fresh:
            return self.warmup_iterations
        return self.later_warmup_iterations

    def _check_warmup(self, planned: int) -> None:
        warmup = self._warmup()
        if self.schedule is None or not warmup:
            return
        room, what = planned, "planned"
        if self.schedule == "const-cosine":
            room = trunk_steps(planned, self.decay_fraction) + 1
            what = "planned before the decay"
        if warmup >= room:
            raise ValueError(
                f"warm-up of {warmup} iterations does not fit into the {room} {what} "
                f"for experience {self.experience_index}; shorten it, or train longer."
            )

    def _epoch_span(self, epoch: int) -> tuple[int, int]:
        """First and last-plus-one iteration of an epoch in the experience."""
        n, parts = self.planned_iterations, self.train_epochs
        return n * epoch // parts, n * (epoch + 1) // parts

    def _plan_epoch(self) -> int:
        """Point the loader at the rest of the epoch; return its length."""
        epoch, done = self.clock.train_exp_epochs, self.clock.train_epoch_iterations
        low, high = self._epoch_span(epoch)
        count = high - low - done
        if isinstance(self.dataloader, TrainLoader):
            start = low + done if self.dataloader.order.continuous else done
            self.dataloader.plan(epoch, start, count)
        return count

    def _draw(self, count: int) -> Iterator[Any]:
        """Draw exactly ``count`` batches, restarting a loader that runs out."""
        drawn = 0
        while drawn < count:
            before = drawn
            for batch in self.dataloader:
                yield batch
                drawn += 1
                if drawn == count:
                    return
            if drawn == before:
                raise ValueError(
                    f"The data loader of experience {self.experience_index} yields no "
                    "batch; use a smaller train_mb_size."
                )

    def _set_learning_rate(self) -> None:
        if self.schedule is None:
            return
        warmup = self._warmup()
        if self.schedule == "constant" and not warmup:
            return  # what the user or a plugin has set stays
        step = min(self.clock.train_exp_iterations, self.planned_iterations - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                self.schedule,
                step,
                self.planned_iterations,
                base=float(group["initial_lr"]),
                warmup=warmup,
                decay_fraction=self.decay_fraction,
            )

    def _give_up_schedule(self) -> None:
        """Leave the learning rate to a stock scheduler plugin, if there is one."""
        setting = [c for c in self.contracts if c.sets_learning_rate]
        if not setting or self.schedule is None:
            return
        if (
            self.schedule != "constant"
            or self.warmup_iterations
            or self.later_warmup_iterations
        ):
            warnings.warn(
                f"{type(setting[0].wrapped).__name__} sets the learning rate: "
                f"schedule={self.schedule!r} and the warm-up are off.",
                stacklevel=3,
            )
        self.schedule = None
