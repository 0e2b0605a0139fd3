"""State-dict checkpoints between and inside experiences.

A checkpoint is plain data (tensors, numbers, strings), readable with
``torch.load(path, weights_only=True)``. It holds no images: replay buffers are
stored as counts or sample ids. Work-around for ``save_checkpoint`` of
avalanche-lib 0.6.0, which pickles the whole strategy and fails on any
optimiser with current dill and typing_extensions.
"""

from __future__ import annotations

import mmap
import os
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from avalanche_clip import distributed
from avalanche_clip.training.packing import pack, unpack
from avalanche_clip.training.plugin_state import plain, register_plugin_state
from avalanche_clip.training.resume import (
    FORMAT,
    CheckpointError,
    capture_state,
    restore_state,
)
from avalanche_clip.training.stock_plugin_state import exact_inside

_STEP_COUNTERS = (
    "train_iterations",
    "train_exp_iterations",
    "train_epoch_iterations",
    "total_iterations",
)


def save_state(strategy: Any, path: str | Path) -> Path:
    """Write a checkpoint of a run, atomically.

    May be called between experiences and inside one: from an
    ``iteration_completed`` hook, when all plugins are done with the step, or from
    ``before_training_iteration`` or ``after_training_iteration``, where metrics and
    plugins that come later in the list have not seen the step yet. With several
    processes only the main one writes.

    :param strategy: a strategy of this package.
    :param path: file to write; ``<path>.crc32`` is written beside it.
    :return: the path.
    :raises TypeError: if a plugin has state that cannot be stored; give it
        ``state_dict`` and ``load_state_dict``, or use
        :func:`register_plugin_state`.
    :raises RuntimeError: during an evaluation, before ``before_training_epoch``
        of an experience, between the forward pass of a step and
        ``after_training_iteration``, or in ``after_training_exp``.
    """
    path = Path(path)
    if strategy.experience is not None and not strategy.is_training:
        raise RuntimeError(
            "save_state was called during an evaluation, which cannot be resumed; "
            "call it before or after."
        )
    inside = strategy.experience is not None
    if inside and strategy.step_phase == "open":
        raise RuntimeError(
            "save_state was called in the middle of a step, or while an experience is "
            "being set up, which cannot be resumed; call it in "
            "after_training_iteration, iteration_completed, or between experiences."
        )
    if inside and strategy.step_phase == "closing":
        raise RuntimeError(
            "save_state was called in after_training_exp: the hooks of that moment "
            "would run twice in a resumed run. Call it in experience_completed (as "
            "CheckpointPlugin does), or after train() returns."
        )
    if not distributed.is_main_process():
        return path
    if inside:
        _warn_inexact(strategy)
    index = strategy.experience_index
    state = capture_state(strategy, inside=inside, experience=index)
    if inside and strategy.step_phase == "counting":
        # The clock counts a step after all plugins have run.
        for name in _STEP_COUNTERS:
            state["clock"][name] += 1
    return write_state(state, path)


def write_state(state: dict[str, Any], path: str | Path) -> Path:
    """Write plain data to a file by a temporary one, with a checksum.

    :param state: tensors, numbers, strings, and containers of them.
    :param path: file to write, whole or not at all.
    :return: the path.
    :raises TypeError: naming the place of what is not plain data.
    """
    path = Path(path)
    if not distributed.is_main_process():
        return path
    state = plain(state)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    content = {"format": state.get("format"), **pack(state)}
    with open(temporary, "wb") as file, ThreadPoolExecutor(1) as pool:
        with _without_inner_checksums():
            torch.save(content, file)
        file.flush()
        # The disk is slower than the checksum: compute it meanwhile.
        on_disk = pool.submit(os.fsync, file.fileno())
        crc, size = _checksum(temporary)
        on_disk.result()
    checksum = checksum_path(path)
    # A stale checksum must never sit beside a new file.
    checksum.unlink(missing_ok=True)
    with _freed_later(path):
        os.replace(temporary, path)
    side = checksum.with_name(f"{checksum.name}.{os.getpid()}.tmp")
    side.write_text(f"{crc} {size} {path.name}\n")
    os.replace(side, checksum)
    return path


@contextmanager
def _freed_later(path: Path) -> Iterator[None]:
    """Let a thread wait while the blocks of a replaced file are freed.

    A file that is open is freed when it is closed; freeing can take as long as
    writing. Elsewhere than on POSIX systems an open file cannot be replaced.
    """
    if os.name != "posix" or not path.exists():
        yield
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        yield
    finally:
        threading.Thread(target=os.close, args=(handle,), daemon=True).start()


@contextmanager
def _without_inner_checksums() -> Iterator[None]:
    """Spare torch its own CRC of every tensor: ours covers the whole file."""
    options: Any = torch.serialization
    if not hasattr(options, "set_crc32_options"):  # torch < 2.6
        yield
        return
    before = options.get_crc32_options()
    options.set_crc32_options(False)
    try:
        yield
    finally:
        options.set_crc32_options(before)


def checksum_path(path: Path) -> Path:
    """File beside a checkpoint that holds its CRC-32 and size.

    It finds damage, not forgery, at a tenth of the time of a cryptographic hash.
    """
    return path.with_name(path.name + ".crc32")


def read_state(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint and verify it.

    :param path: written by :func:`save_state`.
    :return: the state, all tensors on the CPU.
    :raises FileNotFoundError: if there is no such file.
    :raises CheckpointError: if the checksum differs, the file cannot be read,
        or it is of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    checksum = checksum_path(path)
    if checksum.is_file():
        words = checksum.read_text(errors="replace").split()
        if words[:2] != _checksum(path):
            raise CheckpointError(
                f"{path} is damaged: its checksum differs from {checksum.name}. Use an "
                "earlier checkpoint."
            )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read as a checkpoint.") from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of format {FORMAT}, but of format {found!r}. "
            "Finish its run with the version of avalanche_clip that wrote it, or start "
            "it anew in another folder."
        )
    return unpack(state)


def _checksum(path: Path) -> list[str]:
    size = path.stat().st_size
    if not size:  # An empty file cannot be mapped.
        return [f"{0:08x}", "0"]
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        return [f"{zlib.crc32(content):08x}", str(size)]


def load_state(strategy: Any, path: str | Path, benchmark: Any) -> int:
    """Put a fresh strategy where a stored run was.

    Model, counters and plugins are restored at once. If the run stopped inside
    an experience, everything but growth is applied again right after that
    experience's ``before_training_exp``, when it is trained next, so nothing
    is copied, drawn or grown twice.

    :param strategy: built like the one that was stored, not yet trained.
    :param path: written by :func:`save_state`.
    :param benchmark: the same prepared benchmark, with every step that was trained;
        gives replay its data.
    :return: index of the experience to train next: the interrupted one, if the run
        stopped inside, else the one behind that which was trained last.
    :raises CheckpointError: if the file is damaged or was written by another
        kind of run.
    """
    return restore_state(strategy, read_state(path), benchmark)


def _warn_inexact(strategy: Any) -> None:
    if exact_inside(strategy) or getattr(strategy, "_warned_inexact", False):
        return
    strategy._warned_inexact = True
    warnings.warn(
        f"Batches of {type(strategy.dataloader).__name__} or of a stock memory cannot "
        "be drawn again: a run resumed from a checkpoint inside this experience "
        "differs. Stock replay, GDumb and A-GEM resume exactly between experiences "
        "only; BudgetedReplayPlugin also inside.",
        stacklevel=3,
    )


__all__ = [
    "CheckpointError",
    "capture_state",
    "checksum_path",
    "load_state",
    "read_state",
    "register_plugin_state",
    "save_state",
    "write_state",
]
