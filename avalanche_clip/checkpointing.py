"""State-dict checkpoints between and inside experiences.

A checkpoint is plain data (tensors, numbers, strings), readable with
``torch.load(path, weights_only=True)``. It holds no images: replay buffers are
stored as counts or sample ids. Work-around for ``save_checkpoint`` of
avalanche-lib 0.6.0, which pickles the whole strategy and fails on any
optimiser with current dill and typing_extensions.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch

from avalanche_clip import distributed
from avalanche_clip.training import plugin_state
from avalanche_clip.training.loader import TrainLoader
from avalanche_clip.training.plugin_state import register_plugin_state
from avalanche_clip.training.resume import (
    FORMAT,
    CheckpointError,
    capture_state,
    restore_model,
    restore_running,
)
from avalanche_clip.training.stock_plugin_state import restore_replay

logger = logging.getLogger(__name__)


class _HashingFile:
    """File wrapper that hashes what is written."""

    def __init__(self, file: Any):
        self.file = file
        self.hash = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save_state(strategy: Any, path: str | Path) -> Path:
    """Write a checkpoint of a run, atomically.

    May be called between experiences and, from an ``iteration_completed``
    hook, inside one. With several processes only the main one writes.

    :param strategy: a strategy of this package.
    :param path: file to write; ``<path>.sha256`` is written beside it.
    :return: the path.
    :raises TypeError: if a plugin has state that cannot be stored; give it
        ``state_dict`` and ``load_state_dict``, or use
        :func:`register_plugin_state`.
    """
    inside = strategy.experience is not None and strategy.is_training
    if inside:
        _warn_foreign_loader(strategy)
        index = strategy.experience_index
    else:
        index = strategy.clock.train_exp_counter
    state = capture_state(strategy, inside=inside, experience=index)
    return write_state(state, path)


def write_state(state: dict[str, Any], path: str | Path) -> Path:
    """Write plain data to a file by a temporary one, with a checksum."""
    path = Path(path)
    if not distributed.is_main_process():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + f".{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        hashing = _HashingFile(file)
        torch.save(state, hashing)
        file.flush()
        os.fsync(file.fileno())
    checksum = path.with_name(path.name + ".sha256")
    # A stale checksum must never sit beside a new file.
    checksum.unlink(missing_ok=True)
    os.replace(temporary, path)
    side = checksum.with_name(checksum.name + ".tmp")
    side.write_text(f"{hashing.hash.hexdigest()}  {path.name}\n")
    os.replace(side, checksum)
    return path


def read_state(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint and verify it.

    :raises FileNotFoundError: if there is no such file.
    :raises CheckpointError: if the checksum differs, the file cannot be read,
        or it is of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    checksum = path.with_name(path.name + ".sha256")
    if checksum.is_file():
        expected = checksum.read_text().split()[0]
        if hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise CheckpointError(
                f"{path} is damaged: its checksum differs from {checksum.name}. Use an "
                "earlier checkpoint."
            )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint.") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of format {FORMAT}.")
    return state


def load_state(strategy: Any, path: str | Path, benchmark: Any) -> int:
    """Put a fresh strategy where a stored run was.

    Model, counters and plugins are restored at once. If the run stopped inside
    an experience, everything is applied again right after that experience's
    ``before_training_exp``, when it is trained next, so nothing is copied,
    drawn or grown twice.

    :param strategy: built like the one that was stored.
    :param path: written by :func:`save_state`.
    :param benchmark: the same prepared benchmark; gives replay its data.
    :return: index of the experience to train next (the interrupted one, if
        the run stopped inside).
    :raises CheckpointError: if the file is damaged or was written by another
        kind of run.
    """
    state = read_state(path)
    if state["seed"] != strategy.seed:
        raise CheckpointError(
            f"The checkpoint was written with seed={state['seed']}, but the strategy "
            f"has seed={strategy.seed}; build it with the same one."
        )
    restore_model(strategy, state)
    plugin_state.apply_numbers(strategy.clock, state["clock"])
    strategy.compute.load_state_dict(state["compute"])
    plugin_state.restore(strategy, state["plugins"])
    _restore_data(strategy, benchmark)
    strategy.teachers.load_state_dict(state["teachers"])
    if state["inside"]:
        strategy._pending = state
    else:
        strategy._pending = None
        restore_running(strategy, state)
    return int(state["experience"])


def _restore_data(strategy: Any, benchmark: Any) -> None:
    for plugin in strategy.plugins:
        restore_data = getattr(plugin, "restore_data", None)
        if callable(restore_data):
            restore_data(benchmark)
        restore_replay(plugin, benchmark)


def _warn_foreign_loader(strategy: Any) -> None:
    if not isinstance(strategy.dataloader, TrainLoader):
        logger.warning(
            "The data loader of %s is not ours: a run resumed from this checkpoint "
            "draws other batches. Stock replay resumes exactly between experiences "
            "only; BudgetedReplayPlugin also inside.",
            type(strategy.dataloader).__name__,
        )


__all__ = [
    "CheckpointError",
    "capture_state",
    "load_state",
    "read_state",
    "register_plugin_state",
    "save_state",
    "write_state",
]
