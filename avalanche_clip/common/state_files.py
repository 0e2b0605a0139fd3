"""Files of checkpoints: plain data, whole or refused.

A checkpoint is readable with ``torch.load(path, weights_only=True)``. Its many small
tensors are joined to a few large ones: a file of hundreds of small tensors takes
several times as long to write.
"""

from __future__ import annotations

import mmap
import os
import threading
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from avalanche_clip.common.files import found_in, replacing
from avalanche_clip.common.plain import mapped, plain
from avalanche_clip.common.shard_files import SUFFIX, read_shards, remove_shards

FORMAT = 3
PATTERN = "state_*.pt"
LARGEST = 1 << 16
"""Bytes up to which a tensor is packed; larger ones need no second copy."""

_ARCHIVE = b"PK\x03\x04"
_END, _RECORD = b"PK\x05\x06", 22
"""How the last record of an archive without a comment begins, and its size."""
_NO_COMMENT = b"\0\0"
_COMMENT = b"avalanche_clip checkpoint, CRC-32 "
_MARK = "__packed__"
_EARLIER = "Use an earlier checkpoint."
_OTHER_VERSION = (
    "Go on with the version that wrote it, or start the run anew in another folder."
)


class CheckpointError(ValueError, RuntimeError):
    """Raised when a checkpoint is damaged or does not fit."""


class OtherVersionError(CheckpointError):
    """Raised when a whole file is of another version or another program."""


def write_state(state: dict[str, Any], path: str | Path) -> Path:
    """Write plain data to a file, whole or not at all, with a checksum inside.

    The file is an archive of ``torch.save`` whose comment holds the CRC-32 of all
    that stands before it: ``torch.load(path, weights_only=True)`` reads it.

    :param state: tensors, numbers, strings, and containers of them.
    :param path: file to write.
    :return: the path.
    :raises NoSpaceError: if the disk is full; an earlier file stays.
    :raises TypeError: naming the place of what is not plain data.
    """
    path = Path(path).expanduser()
    state = plain(state)
    content = {"format": state.get("format"), **pack(state)}
    with _freed_later(path), replacing(path) as temporary:
        with open(temporary, "wb") as file, ThreadPoolExecutor(1) as pool:
            summed = _Summed(file, pool)
            try:
                with _without_inner_checksums():
                    torch.save(content, cast(Any, summed))
            except RuntimeError as error:  # of torch, after the disk's own
                hidden = error.__context__
                raise hidden if isinstance(hidden, OSError) else error from None
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
        if len(data) < LARGEST:
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
    state = unpack(state)
    if "shards" in state:
        moments = state["optimizer"]["state"]
        try:
            for name, value in read_shards(state["shards"], path).items():
                parameter, _, key = name.rpartition("/")
                moments.setdefault(parameter, {})[key] = value
        except Exception as error:
            raise CheckpointError(f"{path} is damaged: {error}. {_EARLIER}") from error
    return state


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


def checkpoints(folder: str | Path) -> list[Path]:
    """List the checkpoints of a folder, oldest first."""
    return sorted(Path(folder).expanduser().glob(PATTERN), key=order)


def remove_state(path: Path) -> None:
    """Delete a checkpoint, and what processes wrote beside it."""
    path.unlink(missing_ok=True)
    remove_shards(path)


def remove_lost_shards(folder: str | Path) -> None:
    """Delete what processes wrote for checkpoints that are not there."""
    for left in Path(folder).expanduser().glob(f"state_*{SUFFIX}"):
        state = left.with_name(f"{left.name.split('.')[0]}.pt")
        if not state.exists():
            remove_shards(state)


def order(path: Path) -> str:
    """What checkpoints are sorted by: ``"_end"`` and ``"_eval"`` come later."""
    return path.name.removesuffix(".pt")


def require_finite(state: dict[str, Any], path: Path) -> None:
    """Refuse a checkpoint that holds weights which are not finite.

    :param state: from :func:`read_state`.
    :param path: of its file, for the error.
    :raises CheckpointError: naming the first of them.
    """
    bad = not_finite(state.get("model", {}), set(state.get("known", ())))
    if bad:
        raise CheckpointError(
            f"{path} holds {len(bad)} weights that are not finite ({bad[0]}, ...). "
            f"{_EARLIER}"
        )


def not_finite(tensors: Mapping[str, Any], trained: set[str]) -> list[str]:
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


# ------------------------------------------------------------------ packing
def pack(state: Any) -> dict[str, Any]:
    """Replace small tensors by their place in one flat tensor per type.

    :param state: plain data; strings ``"__packed__"`` as a key are reserved.
    :return: ``{"tree", "flat"}``, readable with ``weights_only=True``.
    :raises ValueError: for a reserved key.
    """
    groups: dict[str, list[Tensor]] = {}
    sizes: dict[str, int] = {}
    known: dict[Any, Any] = {}

    def place(leaf: Any, path: Any) -> Any:
        if isinstance(leaf, dict):
            raise ValueError(f"The key {_MARK!r} of a state is reserved; rename it.")
        if not isinstance(leaf, Tensor) or not _is_small(leaf):
            return leaf
        shape = list(leaf.shape)
        # Tied weights are one tensor.
        same = (leaf.data_ptr(), *shape, leaf.stride(), leaf.dtype, leaf.device)
        if same not in known:
            kind = f"{leaf.dtype}, {leaf.device}"
            start = sizes.get(kind, 0)
            flat = leaf if leaf.dim() == 1 else leaf.reshape(-1)
            groups.setdefault(kind, []).append(flat)
            sizes[kind] = start + leaf.numel()
            known[same] = {_MARK: [kind, start, leaf.numel(), shape]}
        return known[same]

    tree = mapped(state, place, mark=_MARK)
    return {"tree": tree, "flat": {k: torch.cat(v).cpu() for k, v in groups.items()}}


def unpack(packed: dict[str, Any]) -> Any:
    """Undo :func:`pack`; small tensors come back on the CPU.

    >>> unpack(pack({"a": [torch.arange(2), torch.ones(1)], "b": 3}))
    {'a': [tensor([0, 1]), tensor([1.])], 'b': 3}
    """

    def fetch(leaf: Any, path: Any) -> Any:
        if not isinstance(leaf, dict):
            return leaf
        kind, start, count, shape = leaf[_MARK]
        return packed["flat"][kind][start : start + count].clone().view(shape)

    return mapped(packed["tree"], fetch, mark=_MARK)


def _is_small(tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided or not tensor.numel():
        return False
    return tensor.numel() * tensor.element_size() <= LARGEST
