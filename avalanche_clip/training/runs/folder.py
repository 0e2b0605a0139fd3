"""The folder of a run: its lock, its files, and what they say of the run."""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from avalanche.logging import TensorboardLogger
from torch.optim import SGD, Adam, AdamW

from avalanche_clip import distributed
from avalanche_clip.common.files import read_json, write_json
from avalanche_clip.common.lock import FolderLock
from avalanche_clip.common.space import require_space
from avalanche_clip.common.state_files import read_state
from avalanche_clip.evaluation.loggers import MetricsCSVLogger
from avalanche_clip.models.encoders.dual_encoder import DualEncoder
from avalanche_clip.models.stored import MODEL, kept_steps, save_whole
from avalanche_clip.training.runs.checkpoint_plugin import (
    ALL,
    CheckpointPlugin,
    checkpoints,
    newest_state,
    remove_leftovers,
)
from avalanche_clip.training.runs.extension import (
    EXTEND,
    advice,
    require_extension,
)
from avalanche_clip.training.runs.identity import require_same, run_differences

logger = logging.getLogger(__name__)

T = TypeVar("T")


def on_main(action: Callable[[], T]) -> T:
    """Call a function on the main process; all get its result, or stop with it.

    :raises RankError: on the others, with the error of the main process.
    """
    value: Any = None
    with distributed.together("opening the folder of the run"):
        if distributed.is_main_process():
            value = action()
    return distributed.broadcast_object(value)


class RunFolder:
    """Files of a run, written by the main process.

    :param path: the folder.
    :param strategy: its own :class:`CheckpointPlugin`, if it has one, is used.
    :param run: that checkpoints hold; its ``identity`` is what a resumed run must
        have in common with it, its ``points`` are the steps after which they are
        written.
    :param checkpoint_iterations: interval of checkpoints inside experiences.
    :param keep_steps: latest steps that keep a checkpoint, or ``"all"``.
    """

    csv: MetricsCSVLogger

    def __init__(
        self,
        path: Path,
        strategy: Any,
        run: Any,
        checkpoint_iterations: int | None,
        keep_steps: int | str,
    ):
        self.path = path
        self.strategy = strategy
        self.run = run
        own = [p for p in strategy.plugins if isinstance(p, CheckpointPlugin)]
        self.added = not own
        inner = checkpoint_iterations
        made = CheckpointPlugin(path / "checkpoints", every_iterations=inner)
        self.checkpoints = own[0] if own else made
        self.keep_steps = keep_steps
        self.found: Path | None = None
        """Checkpoint that the run goes on from."""
        self._state: dict[str, Any] | None = None
        self._made: list[Path] = []
        self._writer: Any = None

    @property
    def state_path(self) -> Path:
        """File that says which run the folder holds."""
        return self.path / "run_state.json"

    @property
    def results_path(self) -> Path:
        """File that a finished run leaves."""
        return self.path / "results.json"

    def save_model(self, model: DualEncoder) -> None:
        """Write ``model/``, or warn why not: a run does not fail for it at its end."""
        path = self.path / MODEL
        try:
            save_whole(model, path)
        except ValueError as error:
            for left in (path, path.with_name(f"{MODEL}.tmp")):
                shutil.rmtree(left, ignore_errors=True)  # that of a shorter run, too
            warnings.warn(
                f"{path} is not written: {error}. The weights are in the checkpoints; "
                "load_state puts them into a strategy that is built alike.",
                stacklevel=2,
            )

    # ------------------------------------------------------- opening, closing
    @contextmanager
    def opened(self, resume: bool | str) -> Iterator[None]:
        """Keep others out, and write what happens to the strategy meanwhile.

        :param resume: go on with the run in the folder; ``"extend"``: also with one
            over fewer steps.
        :raises NoSpaceError: before any file is touched: if the disk is too small.
        :raises ValueError: likewise: if another run is at work
            in the folder, or it holds a run and ``resume`` is False, or another
            one.
        """
        with ExitStack() as stack:
            on_main(lambda: self._lock(stack))
            found = on_main(lambda: self._look(resume))
            self.found = None if found is None else self.checkpoints.folder / found
            on_main(self._require_space)
            strategy = self.strategy
            stack.callback(self._detach, strategy.evaluator.loggers, strategy.run)
            try:
                on_main(lambda: self._attach(resume))
                if self.added:
                    strategy.plugins.append(self.checkpoints)
                self.checkpoints.points = self.run.points
                self.checkpoints.keep_steps = self.keep_steps
                strategy.run = self.run
                yield
            except BaseException:
                self._forget()
                raise

    def _require_space(self) -> None:
        """Raise unless the disk holds the checkpoints to come, at the least.

        Those are the trained weights and the optimiser's state, if that is known, of
        each step that keeps its model, and one that is being written.
        """
        trained = [p for p in self.strategy.model.parameters() if p.requires_grad]
        each = sum(p.numel() * p.element_size() for p in trained)
        each *= 1 + _moments(self.strategy.optimizer)
        steps = len(self.run.points.steps)
        kept = steps + 1 if self.keep_steps == ALL else min(int(self.keep_steps), steps)
        known = checkpoints(self.checkpoints.folder)
        there = sum(path.stat().st_size for path in known)
        what = f"A run in {self.path} that keeps the models of {kept} steps"
        require_space(
            self.checkpoints.folder, max(each, (kept + 1) * each - there), what
        )

    def _lock(self, stack: ExitStack) -> None:
        folders = {self.path, *([] if self.added else [self.checkpoints.folder])}
        for folder in sorted(folders):
            if not folder.exists():
                stack.callback(_remove_empty, folder)
            stack.enter_context(FolderLock(folder))

    def _attach(self, resume: bool | str) -> None:
        """Open the files; the main process's loggers write them."""
        path = self.path / "metrics.csv"
        self._made = [p for p in (self.state_path, path) if not p.exists()]
        try:
            self.csv = MetricsCSVLogger(path)
        except ValueError as error:
            if not resume:
                raise
            kept = path.with_name(path.name + ".damaged")
            logger.warning("%s It is kept as %s.", error, kept)
            os.replace(path, kept)
            self.csv = MetricsCSVLogger(path)
        if resume and self.found is None:
            self.csv.truncate_to(0)
        remove_leftovers(self.checkpoints.folder)
        for file in (self.state_path, self.results_path, path):
            for left in self.path.glob(f"{file.name}.*.tmp"):
                left.unlink(missing_ok=True)
        write_json(self.state_path, {"identity": self.run.identity}, checksum=True)
        board = TensorboardLogger(str(self.path / "tensorboard"))
        self._writer = board.writer
        evaluator = self.strategy.evaluator
        evaluator.loggers = [*evaluator.loggers, self.csv, board]

    def _detach(self, loggers: list[Any], run: Any) -> None:
        """Take away what was added, so that the strategy can run again."""
        if self.added and self.checkpoints in self.strategy.plugins:
            self.strategy.plugins.remove(self.checkpoints)
        self.strategy.evaluator.loggers = loggers
        self.checkpoints.points, self.checkpoints.keep_steps = None, 0
        self.strategy.run, self.strategy.prepare_on = run, None
        if self._writer is not None:
            self._writer.close()

    def _forget(self) -> None:
        """Leave no trace of a run that failed before its first checkpoint."""
        if not checkpoints(self.checkpoints.folder):
            for path in self._made:
                path.unlink(missing_ok=True)

    # --------------------------------------------------------------- looking
    def _look(self, resume: bool | str) -> str | None:
        """Name of the checkpoint to go on from; touches nothing.

        What counts is the checkpoint; the state file only stands in for it
        before the first one is written.
        """
        folder = self.checkpoints.folder
        if not resume:
            known = (self.state_path, self.results_path)
            if any(p.exists() for p in known) or checkpoints(folder):
                raise ValueError(
                    f"{self.path} already holds a run. Pass resume=True to go on with "
                    "it, resume='extend' to train further steps, or another out_dir."
                )
            return None
        newest = newest_state(folder)
        noted = self._noted()
        # An extension that was stopped before its first checkpoint.
        begun = noted is not None and not run_differences(noted, self.run.identity)
        longer = begun or resume == EXTEND
        if newest is None:
            if checkpoints(folder):
                logger.warning("No checkpoint can be read; the run starts anew.")
            if noted is not None:
                self._require_own(noted, self.path, longer)
            return None
        path, state = newest
        if state["run"] is None:
            raise ValueError(
                f"{path} was not written by run_stream; go on with load_state."
            )
        stored = state["identity"]
        self._require_own(stored, path, longer)
        if noted is not None and not begun and run_differences(noted, stored):
            logger.warning(
                "%s is that of another run than %s; it is written again.",
                self.state_path,
                path,
            )
        self._state = state
        return path.name

    def _require_own(self, stored: dict[str, Any], where: Path, longer: bool) -> None:
        """Raise unless a stored identity is this run's, or that over fewer steps."""
        if longer:
            require_extension(stored, self.run, where)
        else:
            also = advice(stored, self.run)
            require_same(stored, self.run.identity, where, also)

    def kept_points(self) -> dict[int, str]:
        """Steps trained, of the models that can be read -> name of the checkpoint."""
        folder = self.checkpoints.folder
        found = on_main(lambda: kept_steps(folder, skip_damaged=True))
        return {int(k) + 1 if k.isdigit() else 0: p.name for k, p in found.items()}

    def take_state(self) -> dict[str, Any]:
        """State in the checkpoint that the run goes on from; call once."""
        assert self.found is not None
        state, self._state = self._state, None
        return read_state(self.found) if state is None else state

    def _noted(self) -> dict[str, Any] | None:
        """Identity in the state file; None if there is none to be read."""
        try:
            content = read_json(self.state_path, checksum=True)
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s It is written again.", error)
            return None
        return content.get("identity")


def _moments(optimizer: Any) -> int:
    """Values that an optimiser keeps per weight, as far as is known before it runs."""
    if optimizer is None or isinstance(optimizer, (Adam, AdamW)):
        return 2  # None is AdamW
    momentum = isinstance(optimizer, SGD) and optimizer.defaults["momentum"]
    return 1 if momentum else 0


def _remove_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        pass  # it holds files, or is gone
