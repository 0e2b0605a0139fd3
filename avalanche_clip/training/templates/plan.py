"""How long an experience is trained, and at which learning rate.

Source of the schedules: Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226): warm-up
in the first time step only, a cosine to zero in every step from the same maximum.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from avalanche_clip import distributed
from avalanche_clip.common.checks import as_finite, require_choice
from avalanche_clip.common.progress import say
from avalanche_clip.training.templates.order import TrainLoader

_MUCH = 0.5
SCHEDULES = ("constant", "cosine", "const-cosine")


def cosine_lr(step: int, total: int, warmup: int, base: float) -> float:
    """Linear warm-up, then a cosine to zero.

    :param step: index of the optimiser step in the experience, from 0.
    :param total: planned steps of the experience.
    :param warmup: steps of warm-up, less than ``total``.
    :param base: maximum learning rate.
    :return: ``base (s+1)/w`` while ``s < w``, then
        ``base/2 (1 + cos(pi (s-w)/(n-w)))``.

    >>> cosine_lr(0, 4500, 500, 5e-4), cosine_lr(2500, 4500, 500, 5e-4)
    (1e-06, 0.00025)
    """
    if step < warmup:
        return base * (step + 1) / warmup
    return base / 2 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def learning_rate(
    kind: str,
    step: int,
    total: int,
    *,
    base: float,
    warmup: int = 0,
    decay_fraction: float = 0.2,
) -> float:
    """Learning rate of one optimiser step.

    :param kind: ``"constant"`` (after the warm-up), ``"cosine"``, or
        ``"const-cosine"``: constant for the trunk, then a cosine to zero over
        the last ``decay_fraction`` of the steps.
    :param step: index in the experience, ``0 <= step < total``.
    :param total: planned steps.
    :param base: maximum learning rate.
    :param warmup: steps of linear warm-up.
    :param decay_fraction: share of decay steps of ``"const-cosine"``.
    :return: the rate, ``>= 0``.
    :raises ValueError: for another kind.
    """
    require_choice("schedule", kind, SCHEDULES)
    if kind == "cosine" or step < warmup:
        return cosine_lr(step, total, warmup, base)
    trunk = total if kind == "constant" else trunk_steps(total, decay_fraction)
    return base if step < trunk else cosine_lr(step - trunk, total - trunk, 0, base)


def trunk_steps(total: int, decay_fraction: float) -> int:
    """Steps before the decay branch of ``"const-cosine"`` begins.

    >>> trunk_steps(100, 0.2)
    80
    """
    return total - max(1, round(decay_fraction * total))


def of_experience(values: Sequence[float], strategy: Any, what: str) -> float:
    """Return the value of the running experience.

    :param values: one per experience of the stream, whenever that is trained.
    :param what: what they are, for the message: ``"learning rates"``.
    :raises ValueError: if there are fewer values than experiences.
    """
    index = strategy.experience_index
    if index >= len(values):
        raise ValueError(
            f"There are {len(values)} {what}, but this is experience number "
            f"{index + 1}; give one per experience."
        )
    return values[index]


def require_per_experience(values: Sequence[float], steps: int, what: str) -> None:
    """Raise ValueError before a run if there are fewer values than experiences.

    :param values: see :func:`of_experience`.
    :param steps: number of training experiences.
    :param what: what the values are, for the message.
    """
    if len(values) < steps:
        raise ValueError(
            f"There are {len(values)} {what} for {steps} training experiences; give "
            "one per experience."
        )


class Plan:
    """Iterations and epochs of the running experience, its batches, its schedule.

    :param strategy: its settings, loader, clock, budget and plugins are read, and the
        learning rates of its optimiser are set.
    """

    def __init__(self, strategy: Any):
        self.strategy = strategy
        self.iterations = 0
        """Optimiser steps of the running experience."""
        self.announced: set[str] = set()
        """Phases whose cost was told."""

    def check_stream(self, steps: int) -> None:
        """Raise ValueError if there are values per experience, but not for all.

        :param steps: number of training experiences of a run.
        """
        epochs, rates = self.strategy.__dict__["train_epochs"], self._rates
        if not isinstance(epochs, int):
            require_per_experience(epochs, steps, "numbers of epochs")
        if rates:
            require_per_experience(rates, steps, "learning rates")

    @property
    def _rates(self) -> tuple[float, ...]:
        """Learning rates of the experiences; empty where one is that of all."""
        rates: tuple[float, ...] = self.strategy.learning_rates
        return rates if len(rates) > 1 else ()

    def set_rates(self) -> None:
        """Begin an experience at its own learning rate, if it has one."""
        strategy, rates = self.strategy, self._rates
        if not rates or strategy.clock.train_exp_iterations:
            return
        rate = of_experience(rates, strategy, "learning rates")
        for group in strategy.optimizer.param_groups:
            # Other rates are those of groups of their own.
            if group.get("initial_lr", group["lr"]) in rates:
                group["initial_lr"] = group["lr"] = rate

    def start(self) -> None:
        """Count the iterations of the experience that is about to be trained.

        :raises ValueError: if the warm-up does not fit, or a plugin needs more.
        """
        strategy = self.strategy
        if strategy.repeats > 1 and not isinstance(strategy.dataloader, TrainLoader):
            raise ValueError(
                f"repeats={strategy.repeats}, but a plugin has replaced the loader "
                f"by a {type(strategy.dataloader).__name__}, which repeats no batch; "
                "use BudgetedReplayPlugin, or repeats=1."
            )
        if strategy.compute.limited:
            self.iterations = self._affordable()
        else:
            self.iterations = strategy.train_epochs * len(strategy.dataloader)
        self._check_warmup()
        for contract in strategy.contracts:
            contract.check_plan(strategy, self.iterations)

    def announce(self, what: str, samples: int, hint: str) -> None:
        """Say before a phase after the training what it takes, if that is much.

        That is at least half (our choice) of the samples that the running experience
        was trained on; each phase is announced once.

        :param what: name of the phase.
        :param samples: that it encodes.
        :param hint: how to make it smaller.
        """
        strategy = self.strategy
        trained = self.iterations * strategy.train_mb_size * distributed.world_size()
        if what in self.announced or samples < _MUCH * trained:
            return
        self.announced.add(what)
        times = ""
        if trained:
            number = strategy.experience_index + 1
            times = f", {samples / trained:.1f} times what step {number} was trained on"
        say(f"{what}: {samples:,} samples{times}; {hint}.")

    def _affordable(self) -> int:
        """Iterations that the budget pays for."""
        strategy, loader = self.strategy, self.strategy.dataloader
        compute, world = strategy.compute, distributed.world_size()
        size = strategy.train_mb_size * world
        if isinstance(loader, TrainLoader):
            size = loader.order.batch_size
        elif compute.iterations is None:
            # A stock loader's batches hold memory samples, which count too.
            size = len(next(iter(loader))[0]) * world
        factor = 1.0
        for contract in strategy.contracts:
            what = f"{type(contract.wrapped).__name__}.budget_factor()"
            factor *= as_finite(contract.budget_factor(strategy), what, above=0)
        macs = 0.0 if compute.macs is None else strategy.macs_per_sample(size)
        planned: int = compute.planned_iterations(size, macs, factor)
        return planned

    @property
    def warmup(self) -> int:
        """Iterations of warm-up of the running experience."""
        strategy = self.strategy
        fresh = any(contract.starts_fresh for contract in strategy.contracts)
        first = strategy.clock.train_exp_counter == 0 or fresh
        steps: int = (
            strategy.warmup_iterations if first else strategy.later_warmup_iterations
        )
        return steps

    def _check_warmup(self) -> None:
        schedule, warmup = self.strategy.schedule, self.warmup
        if schedule is None or not warmup:
            return
        room, what = self.iterations, "planned"
        if schedule == "const-cosine":
            room = trunk_steps(self.iterations, self.strategy.decay_fraction) + 1
            what = "planned before the decay"
        if warmup >= room:
            raise ValueError(
                f"warm-up of {warmup} iterations does not fit into the {room} {what} "
                f"for experience {self.strategy.experience_index}; shorten it, or "
                "train longer."
            )

    def start_epoch(self) -> int:
        """Point the loader at the rest of the epoch; return its length."""
        clock, loader = self.strategy.clock, self.strategy.dataloader
        epoch, done = clock.train_exp_epochs, clock.train_epoch_iterations
        low, high = (
            self.iterations * number // self.strategy.train_epochs
            for number in (epoch, epoch + 1)
        )
        count: int = high - low - done
        if isinstance(loader, TrainLoader):
            start = low + done if loader.order.continuous else done
            loader.plan(epoch, start, count)
        return count

    def batches(self) -> Iterator[Any]:
        """Draw the rest of the epoch, restarting a loader that runs out."""
        count, drawn = self.start_epoch(), 0
        while drawn < count:
            before = drawn
            for batch in self.strategy.dataloader:
                yield batch
                drawn += 1
                if drawn == count:
                    return
            if drawn == before:
                raise ValueError(
                    "The data loader of experience "
                    f"{self.strategy.experience_index} yields no batch; use a smaller "
                    "train_mb_size."
                )

    def set_learning_rate(self) -> None:
        """Set the rates of the coming step, unless a constant one is left alone."""
        self.set_rates()
        strategy, warmup = self.strategy, self.warmup
        schedule = strategy.schedule
        if schedule is None or (schedule == "constant" and not warmup):
            return  # what the user or a plugin has set stays
        step = min(strategy.clock.train_exp_iterations, self.iterations - 1)
        for group in strategy.optimizer.param_groups:
            group["lr"] = learning_rate(
                schedule,
                step,
                self.iterations,
                base=float(group["initial_lr"]),
                warmup=warmup,
                decay_fraction=strategy.decay_fraction,
            )

    def give_up_schedule(self) -> None:
        """Leave the learning rate to a plugin that sets it, if there is one."""
        strategy = self.strategy
        setting = [c for c in strategy.contracts if c.sets_learning_rate]
        if not setting or strategy.schedule is None:
            return
        if self._rates:
            raise ValueError(
                f"{type(setting[0].wrapped).__name__} sets the learning rate, so that "
                f"lr={list(self._rates)} would have no effect; leave one out."
            )
        warmups = strategy.warmup_iterations or strategy.later_warmup_iterations
        if strategy.schedule != "constant" or warmups:
            warnings.warn(
                f"{type(setting[0].wrapped).__name__} sets the learning rate: "
                f"schedule={strategy.schedule!r} and the warm-up are off.",
                stacklevel=4,
            )
        strategy.schedule = None
