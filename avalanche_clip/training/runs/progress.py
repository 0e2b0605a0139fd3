"""One progress bar per experience."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm

from avalanche_clip.common.progress import DELAY, bar
from avalanche_clip.training.templates.contract import MethodPlugin


class ProgressPlugin(MethodPlugin, supports_distributed=True):
    """Show iterations, loss and learning rate of the running experience.

    A quiet alternative to Avalanche's ``InteractiveLogger``; only the main
    process shows it. :func:`run_stream` shows such a bar by itself.

    :param file: stream to write to; default standard error.
    :param description: shown before the time label.
    :param leave: whether the full bar stays at the end of an experience.
    """

    stateless = True

    def __init__(
        self, file: Any = None, description: str = "train", *, leave: bool = True
    ):
        super().__init__()
        self.file = file
        self.leave = leave
        self.description = description
        self._bar: tqdm | None = None

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Open the bar at the start of an experience."""
        if self._bar is not None:
            return
        label = getattr(strategy.experience, "time_label", strategy.experience_index)
        self._bar = bar(
            f"{self.description} [{label}]",
            strategy.planned_iterations,
            unit="step",
            delay=0.0 if self.leave else DELAY,
            leave=self.leave,
            file=self.file,
            initial=strategy.clock.train_exp_iterations,  # of a resumed experience
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
