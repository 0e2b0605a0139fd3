"""Write checkpoints in training, and find the newest one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from avalanche.core import SupervisedPlugin

from avalanche_clip.checkpointing import CheckpointError, read_state, save_state

_PATTERN = "state_*.pt"


class CheckpointPlugin(SupervisedPlugin, supports_distributed=True):
    """Save the run after each experience, and inside experiences.

    A killed run resumed from its newest checkpoint ends with the same weights
    (bit for bit on the CPU). Disk: ``keep`` files of about the model, its
    optimiser state and the plugins' weights; the data are never stored.

    :param folder: where ``state_<iteration>.pt`` files go.
    :param every_iterations: also save after so many optimiser steps.
    :param every_seconds: also save when so much time has passed.
    :param keep: number of newest checkpoints to keep, at least 1.
    """

    stateless = True

    def __init__(
        self,
        folder: str | Path,
        *,
        every_iterations: int | None = None,
        every_seconds: float | None = None,
        keep: int = 2,
    ):
        super().__init__()
        if every_iterations is not None and every_iterations < 1:
            raise ValueError(f"every_iterations={every_iterations} must be >= 1.")
        if keep < 1:
            raise ValueError(f"keep={keep} must be at least 1.")
        self.folder = Path(folder)
        self.every_iterations = every_iterations
        self.every_seconds = every_seconds
        self.keep = keep
        self._last = time.monotonic()

    def iteration_completed(self, strategy: Any) -> None:
        """Save inside an experience when it is time."""
        done = strategy.clock.train_exp_iterations
        due = self.every_iterations and done % self.every_iterations == 0
        if self.every_seconds is not None:
            due = due or time.monotonic() - self._last >= self.every_seconds
        if due:
            self._save(strategy)

    def experience_completed(self, strategy: Any) -> None:
        """Save between experiences."""
        self._save(strategy)

    def _save(self, strategy: Any) -> None:
        name = f"state_{strategy.clock.train_iterations:09d}"
        between = strategy.experience is None or not strategy.is_training
        path = self.folder / f"{name}{'_end' if between else ''}.pt"
        save_state(strategy, path)
        self._last = time.monotonic()
        for old in checkpoints(self.folder)[: -self.keep]:
            old.unlink(missing_ok=True)
            old.with_name(old.name + ".sha256").unlink(missing_ok=True)


def checkpoints(folder: str | Path) -> list[Path]:
    """List the checkpoints of a folder, oldest first."""
    found = Path(folder).glob(_PATTERN)
    # "state_000000100_end.pt" is later than "state_000000100.pt".
    return sorted(found, key=lambda p: p.name.removesuffix(".pt"))


def latest_checkpoint(folder: str | Path) -> Path | None:
    """Newest checkpoint of a folder that can be read, or None."""
    for path in reversed(checkpoints(folder)):
        try:
            read_state(path)
        except CheckpointError:
            continue
        return path
    return None


__all__ = ["CheckpointPlugin", "checkpoints", "latest_checkpoint"]
