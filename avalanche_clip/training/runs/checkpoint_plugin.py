"""Write checkpoints in training, and find the newest one."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Container
from pathlib import Path
from typing import Any, NoReturn

from avalanche_clip import distributed
from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.common.space import told_when_full
from avalanche_clip.common.state_files import (
    PATTERN,
    CheckpointError,
    OtherVersionError,
    checkpoints,
    order,
    read_state,
    remove_lost_shards,
    remove_state,
    require_finite,
)
from avalanche_clip.training.runs.resume import save_state
from avalanche_clip.training.templates.contract import MethodPlugin
from avalanche_clip.training.templates.stock_memories import exact_inside

logger = logging.getLogger(__name__)

ALL = "all"
_ITERATIONS_DIGITS = 9


class CheckpointPlugin(MethodPlugin, supports_distributed=True):
    """Save the run after each experience, and inside experiences.

    A killed run resumed from its newest checkpoint ends with the same weights
    (bit for bit on the CPU). With stock replay, GDumb or A-GEM nothing is saved
    inside experiences, because their memories cannot start in the middle.
    Disk: ``keep`` files of about the trained part of the model, its optimiser
    state and the plugins' weights; the data are never stored, and of weights
    that were never trainable only a hash. Time: that of writing the file. Weights
    that are not finite are never written: they stop the run.

    :param folder: where ``state_<iteration>.pt`` files go.
    :param every_iterations: also save after so many optimiser steps of an
        experience.
    :param every_seconds: also save when so much time has passed.
    :param keep: number of newest checkpoints to keep, at least 1.
    :raises ValueError: for an interval that is not positive, or ``keep`` < 1.
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
        if every_iterations is not None:
            as_size(every_iterations, "every_iterations")
        if every_seconds is not None:
            as_finite(every_seconds, "every_seconds", above=0)
        as_size(keep, "keep")
        self.folder = Path(folder).expanduser()
        self.every_iterations = every_iterations
        self.every_seconds = every_seconds
        self.keep = keep
        self.points: Container[int] | None = None
        """Steps after which it saves, which ``run_stream`` sets; None for all."""
        self.keep_steps: int | str = 0
        """Latest steps that keep a checkpoint in any case, which it sets, too."""
        self._last = time.monotonic()
        self._warned = False

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Note the weights that are frozen from the start."""
        strategy.frozen_base.ensure()
        self._last = time.monotonic()

    def iteration_completed(self, strategy: Any) -> None:
        """Save inside an experience when it is time."""
        done = strategy.clock.train_exp_iterations
        due = bool(self.every_iterations) and done % self.every_iterations == 0  # type: ignore[operator]
        if self.every_seconds is not None:
            due = due or time.monotonic() - self._last >= self.every_seconds
        stopping = distributed.stopping()
        if not (due or stopping):
            return
        if exact_inside(strategy):
            self.save(strategy)
        elif not self._warned:
            self._warned = True
            warnings.warn(
                "Stock replay, GDumb and A-GEM resume exactly between experiences "
                "only: no checkpoint is written inside them. BudgetedReplayPlugin "
                "also resumes inside.",
                stacklevel=2,
            )
        if stopping:
            self.stop()

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Stop in an evaluation between steps, before which a checkpoint was written.

        One in training goes on, so that the step can be saved behind it.
        """
        if strategy.run is not None and not strategy.in_training:
            self.stop_if_asked("a batch of an evaluation")

    def stop_if_asked(self, place: str) -> None:
        """Stop here if one of the processes has been asked to.

        :param place: where in the run all of them meet.
        """
        distributed.exchange(place)
        if distributed.stopping():
            self.stop()

    def stop(self) -> NoReturn:
        """End the process in order.

        :raises SystemExit: with status 0.
        """
        if distributed.is_main_process():
            logger.warning("The run stops, as SIGTERM asks for. %s.", self._newest())
        raise SystemExit(0)

    def experience_completed(self, strategy: Any) -> None:
        """Save between experiences."""
        if self.points is None or strategy.visits.finished[-1].place in self.points:
            self.save(strategy, "_end")

    def save(self, strategy: Any, suffix: str = "") -> Path:
        """Save now, and delete what is no longer kept.

        :param strategy: the strategy.
        :param suffix: tells checkpoints of the same iteration apart; sorts
            after those without.
        :return: path of the checkpoint.
        """
        number = f"{strategy.clock.train_iterations:0{_ITERATIONS_DIGITS}d}"
        path = self.folder / f"state_{number}{suffix}.pt"
        with (
            distributed.together("writing a checkpoint"),
            told_when_full(path, self._newest()),
        ):
            save_state(strategy, path)
        self._last = time.monotonic()
        if distributed.is_main_process():
            # Later ones were left by another run, or could not be used.
            known = [p for p in checkpoints(self.folder) if order(p) <= order(path)]
            for old in {*known[: -self.keep]} - self._of_steps(known):
                remove_state(old)
        return path

    def _newest(self) -> str:
        known = checkpoints(self.folder)
        if not known:
            return "No checkpoint has been written yet"
        return f"The newest checkpoint is {known[-1]}; resume=True goes on from it"

    def _of_steps(self, known: list[Path]) -> set[Path]:
        """The newest checkpoint after each of the latest steps."""
        after = {order(p).split("_")[1]: p for p in known if order(p)[-1] > "9"}
        if self.keep_steps == ALL:
            return {*after.values()}
        steps = [number for number in after if int(number)]
        return {after[number] for number in steps[len(steps) - int(self.keep_steps) :]}


def as_kept(keep_steps: Any) -> int | str:
    """Check how many steps keep their model.

    :param keep_steps: a number of at least 1, or ``"all"``.
    :raises ValueError: for anything else.
    """
    if isinstance(keep_steps, str):
        require_choice("keep_steps", keep_steps, (ALL,))
        return keep_steps
    return as_size(keep_steps, "keep_steps", hint="or 'all'")


def newest_state(folder: str | Path) -> tuple[Path, dict[str, Any]] | None:
    """Newest checkpoint of a folder that can be used, with its content.

    Damaged ones, and those with weights that are not finite, are passed over
    with a warning in the log.

    :raises CheckpointError: if there are only files of other versions.
    """
    other: CheckpointError | None = None
    for path in reversed(checkpoints(folder)):
        try:
            state = read_state(path)
            require_finite(state, path)
            return path, state
        except (CheckpointError, FileNotFoundError) as error:  # or a dead link
            logger.warning("%s Going back to the one before.", error)
            other = error if isinstance(error, OtherVersionError) else other
    if other is not None:
        raise other
    return None


def latest_checkpoint(folder: str | Path) -> Path | None:
    """Newest checkpoint of a folder that can be used, or None.

    :raises CheckpointError: if there are only files of other versions.
    """
    found = newest_state(folder)
    return None if found is None else found[0]


def remove_leftovers(folder: str | Path) -> None:
    """Delete temporary files of a run that was killed while writing."""
    for path in Path(folder).expanduser().glob(f"{PATTERN}*.tmp"):
        path.unlink(missing_ok=True)
    remove_lost_shards(folder)
