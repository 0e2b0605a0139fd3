"""One progress bar per experience."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from avalanche_clip import distributed
from avalanche_clip.training.templates.contract import MethodPlugin


class ProgressPlugin(MethodPlugin, supports_distributed=True):
    """Show iterations, loss and learning rate of the running experience.

    A quiet alternative to Avalanche's ``InteractiveLogger``; only the main
    process shows it.

    :param file: stream to write to; default standard error.
    :param description: shown before the time label.
    """

    stateless = True

    def __init__(self, file: Any = None, description: str = "train"):
        super().__init__()
        self.file = file
        self.description = description
        self._bar: tqdm | None = None

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Open the bar at the start of an experience."""
        if self._bar is not None or not distributed.is_main_process():
            return
        label = getattr(strategy.experience, "time_label", strategy.experience_index)
        self._bar = tqdm(
            total=strategy.planned_iterations,
            initial=strategy.clock.train_exp_iterations,  # of a resumed experience
            desc=f"{self.description} [{label}]",
            file=self.file or sys.stderr,
            dynamic_ncols=True,
            mininterval=1.0,
        )

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        done = strategy.clock.train_exp_iterations + 1
        self._bar.update(done - self._bar.n)
        if done % 20 == 0:
            rate = strategy.optimizer.param_groups[0]["lr"]
            self._bar.set_postfix(
                loss=f"{float(strategy.loss.detach().sum()):.3f}",
                lr=f"{rate:.1e}",
                refresh=False,
            )

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
