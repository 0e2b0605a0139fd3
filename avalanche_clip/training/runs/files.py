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
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch

from avalanche_clip import distributed
from avalanche_clip.common.files import found_in, replacing
from avalanche_clip.training.templates import optim
from avalanche_clip.training.runs.identity import differences
from avalanche_clip.training.runs.packing import pack, unpack
from avalanche_clip.training.runs.plugin_state import plain, register_plugin_state
from avalanche_clip.training.runs.resume import FORMAT, CheckpointError, capture_state, restore_state
from avalanche_clip.training.runs.rollback import undone_on_error
from avalanche_clip.training.runs.record import experience_hashes
from avalanche_clip.training.runs.stock_plugin_state import exact_inside

_ARCHIVE = b"PK\x03\x04"
_END, _RECORD = b"PK\x05\x06", 22
"""How the last record of an archive without a comment begins, and its size."""
_NO_COMMENT = b"\0\0"
_COMMENT = b"avalanche_clip checkpoint, CRC-32 "
_LARGE = 1 << 16
_EARLIER = "Use an earlier checkpoint."
_OTHER_VERSION = (
    "Go on with the version that wrote it, or start the run anew in another folder."
)


class OtherVersionError(CheckpointError):
    """Raised when a whole file is of another version or another program."""


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
    :param path: file to write, whole or not at all.
    :return: the path.
    :raises TypeError: if a plugin has state that cannot be stored; give it
        ``state_dict`` and ``load_state_dict``, or use
        :func:`register_plugin_state`.
    :raises RuntimeError: during an evaluation, before ``before_training_epoch``
        of an experience, between the forward pass of a step and
        ``after_training_iteration``, or in ``after_training_exp``.
    :raises CheckpointError: if weights are not finite; nothing is written.
    """
    path = Path(path).expanduser()
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
    bad = _broken_weights(strategy)
    if bad:  # on all processes alike
        raise CheckpointError(
            f"{path} is not written: {len(bad)} weights are not finite ("
            f"{bad[0]}, ...). Go back to an earlier checkpoint, and lower the learning "
            "rate or clip gradients (clip_grad_norm)."
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
    """Write plain data to a file, whole or not at all, with a checksum inside.

    The file is an archive of ``torch.save`` whose comment holds the CRC-32 of all
    that stands before it: ``torch.load(path, weights_only=True)`` reads it.

    :param state: tensors, numbers, strings, and containers of them.
    :param path: file to write.
    :return: the path.
    :raises TypeError: naming the place of what is not plain data.
    """
    path = Path(path).expanduser()
    if not distributed.is_main_process():
        return path
    state = plain(state)
    content = {"format": state.get("format"), **pack(state)}
    with _freed_later(path), replacing(path) as temporary:
        with open(temporary, "wb") as file, ThreadPoolExecutor(1) as pool:
            summed = _Summed(file, pool)
            with _without_inner_checksums():
                torch.save(content, cast(Any, summed))
            comment = _comment(summed.crc)
            # The last field of an archive is the length of its comment.
            file.seek(-len(_NO_COMMENT), os.SEEK_END)
            file.write(len(comment).to_bytes(2, "little") + comment)
    return path


class _Summed:
    """A file to write to that knows the CRC-32 of what was written."""

    def __init__(self, file: IO[bytes], pool: ThreadPoolExecutor):
        self.file, self.pool, self.crc = file, pool, 0

    def write(self, data: Any) -> int:
        if len(data) < _LARGE:
            self.crc = zlib.crc32(data, self.crc)
            return self.file.write(data)
        # Summing and writing a large tensor take about as long: do both at once.
        crc = self.pool.submit(zlib.crc32, data, self.crc)
        written = self.file.write(data)
        self.crc = crc.result()
        return written

    def flush(self) -> None:
        self.file.flush()


def _comment(crc: int) -> bytes:
    """The end of a checkpoint: it finds damage, not forgery."""
    return b"%s%08x" % (_COMMENT, crc)


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
    before = options.get_crc32_options()
    options.set_crc32_options(False)
    try:
        yield
    finally:
        options.set_crc32_options(before)


def read_state(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint and verify it.

    :param path: written by :func:`save_state`.
    :return: the state, all tensors on the CPU.
    :raises FileNotFoundError: if there is no such file.
    :raises CheckpointError: if the file is damaged, has no checksum, cannot be
        read, or is of another format.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    _verify(path)
    try:
        _require_plain_parts(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {cause}"
        ) from error
    found = state.get("format") if isinstance(state, dict) else None
    if found != FORMAT:
        raise OtherVersionError(
            f"{path} is a checkpoint of format {found!r}, this version reads format "
            f"{FORMAT}. {_OTHER_VERSION}"
        )
    return unpack(state)


def _verify(path: Path) -> None:
    """Compare a file with the checksum at its end."""
    with open(path, "rb") as file:
        if file.read(len(_ARCHIVE)) != _ARCHIVE:
            raise CheckpointError(
                f"{path} is no checkpoint: found {found_in(path)}. {_EARLIER}"
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            tail = content[-_RECORD:]
            bare = tail.startswith(_END) and tail.endswith(_NO_COMMENT)
            cause = "" if bare else _damage(content)
    if bare:
        raise OtherVersionError(
            f"{path} is an archive without the checksum of a checkpoint: another "
            f"program or an earlier version wrote it. {_OTHER_VERSION}"
        )
    if cause:
        raise CheckpointError(f"{path} is damaged: {cause}. {_EARLIER}")


def _require_plain_parts(path: Path) -> None:
    """Refuse an archive that unpacks to more than its size."""
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        declared = sum(part.file_size for part in archive.infolist())
    if declared > size:
        raise ValueError(f"its parts declare {declared} bytes, the file has {size}.")


def _damage(content: mmap.mmap) -> str:
    """Say what is wrong with the bytes of a checkpoint; empty if nothing is."""
    size = len(_comment(0))
    end = len(content) - size - len(_NO_COMMENT)
    if end < 0 or content[-size:][: len(_COMMENT)] != _COMMENT:
        return "it does not end as it was written"
    with memoryview(content) as view, view[:end] as archive:
        crc = zlib.crc32(_NO_COMMENT, zlib.crc32(archive))
    length = content[end : end + len(_NO_COMMENT)]
    if content[-size:] != _comment(crc) or length != size.to_bytes(2, "little"):
        return "its content does not have its checksum"
    return ""


def _require_same_data(state: dict[str, Any], benchmark: Any, path: Path) -> None:
    """Compare the training stream with that of the run, as far as both go."""
    stored = state["extra"].get("identity", {}).get("experiences", {}).get("train", {})
    if not stored:
        return
    have = experience_hashes(benchmark.streams["train"])
    both = [key for key in stored if key in have]
    parts = [{"train": {k: hashes[k] for k in both}} for hashes in (stored, have)]
    different = differences(parts[0], parts[1], "experiences")
    if different:
        raise CheckpointError(
            f"{path} was written on other data: {'; '.join(different)}. Give the "
            "benchmark of the stored run."
        )


def require_finite(state: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint that holds weights which are not finite.

    :param state: from :func:`read_state`.
    :param path: of its file, for the error.
    :raises CheckpointError: naming the first of them.
    """
    bad = _not_finite(state.get("model", {}), set(state.get("known", ())))
    if bad:
        raise CheckpointError(
            f"{path} holds {len(bad)} weights that are not finite ({bad[0]}, ...). "
            f"{_EARLIER}"
        )


def _broken_weights(strategy: Any) -> list[str]:
    trained = strategy.groups.known | set(optim.trainable(strategy.model))
    named = dict(strategy.model.named_parameters())
    tensors: dict[str, Any] = {k: v for k, v in named.items() if k in trained}
    return _not_finite({**tensors, **dict(strategy.model.named_buffers())}, trained)


def _not_finite(tensors: Mapping[str, Any], trained: set[str]) -> list[str]:
    """Names of tensors with NaN, or of trained ones also with infinity.

    Masks that a model stores hold minus infinity.
    """
    return [
        name
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor)
        and value.is_floating_point()
        and not _finite(value.detach(), masks=name not in trained)
    ]


def _finite(value: torch.Tensor, masks: bool) -> bool:
    # A sum is finite only if all terms are, and takes a third of the time.
    if bool(value.sum().isfinite()):
        return True
    return not bool((value.isnan() if masks else value.isfinite().logical_not()).any())


def load_state(strategy: Any, path: str | Path, benchmark: Any) -> int:
    """Put a fresh strategy where a stored run was.

    Model, counters and plugins are restored at once. If the run stopped inside
    an experience, everything but growth is applied again right after that
    experience's ``before_training_exp``, when it is trained next, so nothing
    is copied, drawn or grown twice. If it fails, the strategy is as it was before.

    Files written by :func:`run_stream` know the data of the training stream: an
    experience that holds other data (see :func:`content_hash`) is refused.

    :param strategy: built like the one that was stored, not yet trained.
    :param path: written by :func:`save_state`.
    :param benchmark: the same prepared benchmark, with every step that was trained;
        gives replay its data.
    :return: index of the experience to train next: the interrupted one, if the run
        stopped inside, else the one behind that which was trained last.
    :raises CheckpointError: if the file is damaged, holds weights that are not
        finite, or was written by another kind of run.
    """
    path = Path(path).expanduser()
    state = read_state(path)
    require_finite(state, path)
    _require_same_data(state, benchmark, path)
    with undone_on_error(strategy):
        try:
            return restore_state(strategy, state, benchmark)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error


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
