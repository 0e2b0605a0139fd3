"""Arrays in files: safetensors with a checksum inside, and bounded ``.npy``.

The checksum finds damage, not forgery. It covers names, types, shapes and bytes
of all tensors and the metadata, and sits in the metadata itself, so a file can be
verified wherever it is moved to.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avalanche_clip._files import replacing, require_file, unreadable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

KEY = "avalanche_clip.checksum"
SMALL = 2**20
"""Tensors up to this many bytes are verified even with ``verify=False``."""


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write tensors and metadata with a checksum, whole or not at all.

    :param path: must end with ``.safetensors``.
    :param tensors: by name; written from the CPU.
    :param metadata: texts by name; ``format`` is added.
    :raises ValueError: for another suffix, or metadata that are no texts.
    """
    from safetensors.torch import save_file

    path = Path(path).expanduser()
    if path.suffix != ".safetensors":
        raise ValueError(f"{path} must end with .safetensors.")
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
    from safetensors import SafetensorError, safe_open

    path = require_file(path)
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise unreadable(path, "a valid safetensors file", error) from error
    stored = metadata.pop(KEY, None)
    if stored is not None:
        _verify(path, tensors, metadata, stored, verify)
    elif required:
        raise ValueError(
            f"{path} has no checksum, so it cannot be told whole: it was written by an "
            f"earlier version or by another program; {rewrite}."
        )
    return tensors, metadata


def _verify(
    path: Path,
    tensors: dict[str, Tensor],
    metadata: dict[str, str],
    stored: str,
    verify: bool,
) -> None:
    damaged = f"{path} is damaged: {{}}. Use another copy, or write it again."
    try:
        known = json.loads(stored)
        digests, whole = dict(known["tensors"]), known["all"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(damaged.format("its checksum cannot be read")) from error
    if digests.keys() != tensors.keys() or whole != _whole(tensors, metadata, digests):
        raise ValueError(
            damaged.format(
                "its names, shapes or metadata do not have the checksum they were "
                "written with"
            )
        )
    for name, tensor in tensors.items():
        small = tensor.numel() * tensor.element_size() <= SMALL
        if (verify or small) and _digest(tensor) != digests[name]:
            raise ValueError(
                damaged.format(
                    f"the tensor {name!r} does not have the checksum it was written "
                    "with"
                )
            )


def _digest(tensor: Tensor) -> str:
    import torch

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


def read_npy(path: str | Path, *, mmap: bool = False) -> np.ndarray[Any, Any]:
    """Read a ``.npy`` array; what it declares is compared with its size first.

    :param path: the file.
    :param mmap: map it read-only instead of reading it.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, or holds Python objects.
    """
    import numpy as np

    path = require_file(path)
    try:
        with open(path, "rb") as file:
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
            count = 1
            for length in shape:  # Python integers cannot overflow
                if length < 0:
                    raise ValueError(f"it declares the shape {shape}")
                count *= int(length)
            needed = file.tell() + count * dtype.itemsize
        size = os.path.getsize(path)
        if size != needed:
            raise ValueError(
                f"it declares {dtype} of shape {shape}, with the header {needed} "
                f"bytes, but has {size}"
            )
        return np.load(
            path, mmap_mode="r" if mmap and count else None, allow_pickle=False
        )
    except (ValueError, OSError, EOFError, SyntaxError, KeyError, TypeError) as error:
        raise unreadable(path, "a NumPy array", error) from error


__all__ = ["KEY", "SMALL", "read_npy", "read_safetensors", "write_safetensors"]
