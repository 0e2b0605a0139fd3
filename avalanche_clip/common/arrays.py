"""Arrays in files: safetensors with a checksum inside, and bounded ``.npy``.

The checksum finds damage, not forgery. It covers names, types, shapes and bytes
of all tensors and the metadata, and sits in the metadata itself, so a file can be
verified wherever it is moved to.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tokenize
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from avalanche_clip.common.files import replacing, require_file, unreadable
from avalanche_clip.common.progress import bar

KEY = "avalanche_clip.checksum"
SMALL = 2**20
"""Tensors up to this many bytes are verified even with ``verify=False``."""
_SEAL_BYTES = 4096
UNREADABLE = (
    *(ValueError, OSError, EOFError, SyntaxError, KeyError, TypeError),
    *(RecursionError, MemoryError, tokenize.TokenError),
)
"""What reading a damaged array raises: NumPy parses what it declares as Python text."""


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata with a checksum, whole or not at all.

    :param path: must end with ``.safetensors``.
    :param tensors: by name; written from the CPU.
    :param metadata: texts by name; ``format`` is added.
    :raises ValueError: for another suffix, or metadata that are no texts.
    """
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path} must end with .safetensors.")
    write_tensors(path, tensors, metadata)


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Do what :func:`write_safetensors` does, under any name."""
    path = Path(path).expanduser()
    wrong = [k for k, v in metadata.items() if not isinstance(v, str) or k == KEY]
    if wrong:
        raise ValueError(
            f"The metadata {wrong} of {path} must be texts, under own names."
        )
    plain = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    facts = {"format": "pt", **metadata}
    digests = {name: _digest(tensor) for name, tensor in plain.items()}
    facts[KEY] = json.dumps(
        {"tensors": digests, "all": _whole(plain, facts, digests)}, sort_keys=True
    )
    with replacing(path) as temporary:
        save_file(plain, str(temporary), metadata=facts)


def read_safetensors(
    path: str | Path,
    *,
    required: bool = True,
    verify: bool = True,
    rewrite: str = "write the file again",
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata, and verify the checksum.

    :param path: the file.
    :param required: refuse a file without a checksum; False for files that others
        wrote. A wrong checksum is always refused.
    :param verify: False skips the bytes of tensors above 1 MiB.
    :param rewrite: what to do about a file without a checksum, for the error.
    :return: tensors on the CPU, and the metadata without the checksum.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: naming the file and the cause.
    """
    path = require_file(path)
    with _opened(path) as file:
        tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        metadata = dict(file.metadata() or {})
    stored = metadata.pop(KEY, None)
    if stored is not None:
        _verify(path, tensors, metadata, stored, verify)
    elif required:
        raise ValueError(
            f"{path} has no checksum, so it cannot be told whole: it was written by an "
            f"earlier version or by another program; {rewrite}."
        )
    return tensors, metadata


def safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a file as they are, nothing verified.

    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is no safetensors file.
    """
    with _opened(require_file(path)) as file:
        return dict(file.metadata() or {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            yield file
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise unreadable(path, "a valid safetensors file", error) from error


def _verify(
    path: Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    stored: str,
    verify: bool,
) -> None:
    try:
        known = json.loads(stored)
        digests, whole = dict(known["tensors"]), known["all"]
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, "its checksum cannot be read") from error
    if digests.keys() != tensors.keys() or whole != _whole(tensors, metadata, digests):
        cause = "its names, shapes or metadata do not have the checksum they were"
        raise _damaged(path, f"{cause} written with")
    for name, tensor in tensors.items():
        small = tensor.numel() * tensor.element_size() <= SMALL
        if (verify or small) and _digest(tensor) != digests[name]:
            cause = f"the tensor {name!r} does not have the checksum it was"
            raise _damaged(path, f"{cause} written with")


def _damaged(path: Path, cause: str) -> ValueError:
    return ValueError(
        f"{path} is damaged: {cause}. Use another copy, or write it again."
    )


def _digest(tensor: Tensor) -> str:
    flat: Any = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(flat).hexdigest()[:32]


def _whole(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    digests: Mapping[str, str],
) -> str:
    facts = [
        [name, str(t.dtype), list(t.shape), digests[name]]
        for name, t in sorted(tensors.items())
    ]
    text = json.dumps([facts, sorted(metadata.items())], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


# ------------------------------------------------------------- numpy arrays
def read_npy(
    path: str | Path, *, mmap: bool = False, sealed: bool = False, verify: bool = True
) -> np.ndarray[Any, Any]:
    """Read a ``.npy`` array; what it declares is compared with its size first.

    A seal of :func:`seal_npy` behind the array is compared too.

    :param path: the file.
    :param mmap: map it read-only instead of reading it.
    :param sealed: refuse a file without a seal.
    :param verify: False skips the bytes of the array, never what declares them.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, or holds Python objects.
    """
    path = require_file(path)
    try:
        head, behind = _parts_of(path)
        seal = None if behind is None else _parse_seal(behind)
        if sealed and seal is None:
            raise ValueError("it has no checksum behind its array")
        mode: Literal["r"] | None = "r" if mmap and head.count else None
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except UNREADABLE as error:
        raise unreadable(path, "a NumPy array", error) from error
    if seal is not None:
        _check_seal(path, head, seal, verify)
    return array


@dataclass
class NpyHead:
    """What the beginning of a ``.npy`` file declares.

    :param shape: of the array.
    :param dtype: of the array.
    :param start: first byte of the array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    @property
    def count(self) -> int:
        """Number of elements; Python integers cannot overflow."""
        return math.prod(int(length) for length in self.shape)

    @property
    def end(self) -> int:
        """First byte behind the array."""
        return self.start + self.count * self.dtype.itemsize


def npy_head(path: str | Path, offset: int = 0) -> NpyHead:
    """Read what a ``.npy`` file declares.

    :param offset: where it begins, for one inside an archive.
    :raises ValueError: if that is damaged, or the array holds Python objects.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        version = np.lib.format.read_magic(file)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if read is None:
            raise ValueError(f"its format {version} is not supported")
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which would run code")
        if any(length < 0 for length in shape):
            raise ValueError(f"it declares the shape {shape}")
        return NpyHead(shape, dtype, file.tell())


def seal_npy(path: str | Path, facts: Mapping[str, str]) -> str:
    """Put a checksum behind the array of a ``.npy`` file, in place.

    Other readers do not look at it. It covers what the file declares, the bytes of
    the array and the facts.

    :param path: an array without a seal.
    :param facts: texts by name, what the array is.
    :return: the checksum of all of it, 64 hexadecimal digits.
    """
    head = npy_head(path)
    with open(path, "r+b") as file:
        data = _hash_range(file, head.start, head.end)
        known: dict[str, Any] = {"facts": dict(facts), "data": data}
        known["all"] = _seal_hash(file, head, known)
        file.truncate(head.end)
        file.seek(head.end)
        file.write(_seal_text(known))
        file.flush()
        os.fsync(file.fileno())
    return known["all"]


def npy_seal(path: str | Path) -> dict[str, Any]:
    """Return the seal of an array: its ``"facts"``, and the checksum of ``"all"``.

    :raises ValueError: if there is no seal that can be read.
    """
    try:
        seal = _parts_of(Path(path))[1]
        if seal is None:
            raise ValueError("it has no checksum behind its array")
        return _parse_seal(seal)
    except UNREADABLE as error:
        raise unreadable(path, "a sealed NumPy array", error) from error


def _parts_of(path: Path) -> tuple[NpyHead, bytes | None]:
    """Return what a file declares and what lies behind the array."""
    head = npy_head(path)
    size = os.path.getsize(path)
    if size == head.end:
        return head, None
    if not head.end < size <= head.end + _SEAL_BYTES:
        raise ValueError(
            f"it declares {head.dtype} of shape {head.shape}, {head.end} bytes with "
            f"the header, but has {size}"
        )
    with open(path, "rb") as file:
        file.seek(head.end)
        return head, file.read()


def _seal_text(known: Mapping[str, Any]) -> bytes:
    return b"\n" + json.dumps({KEY: known}, sort_keys=True).encode() + b"\n"


def _parse_seal(text: bytes) -> dict[str, Any]:
    try:
        known = json.loads(text)[KEY]
        if _seal_text(known) == text and known.keys() == {"all", "data", "facts"}:
            return known
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError("what follows the array is not a checksum that was written there")


def _check_seal(path: Path, head: NpyHead, known: dict[str, Any], verify: bool) -> None:
    with open(path, "rb") as file:
        if _seal_hash(file, head, known) != known["all"]:
            cause = "what it declares does not have the checksum it was written with"
            raise _damaged(path, cause)
        if verify and _hash_range(file, head.start, head.end) != known["data"]:
            cause = "its values do not have the checksum they were written with"
            raise _damaged(path, cause)


def _seal_hash(file: IO[bytes], head: NpyHead, known: Mapping[str, Any]) -> str:
    """Hash the head of a file, the facts and the hash of the array."""
    file.seek(0)
    facts = json.dumps([known["facts"], known["data"]], sort_keys=True)
    content = file.read(head.start) + facts.encode()
    return hashlib.sha256(content).hexdigest()


def _hash_range(file: IO[bytes], start: int, end: int) -> str:
    digest = hashlib.sha256()
    file.seek(start)
    with bar(f"checking {file.name}", end - start, unit="B") as shown:
        while start < end:
            block = file.read(min(2**22, end - start))
            if not block:
                raise ValueError("it became shorter while it was read")
            digest.update(block)
            start += len(block)
            shown.update(len(block))
    return digest.hexdigest()
