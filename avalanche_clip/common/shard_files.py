"""Tensors that processes share out, written by all of them at once beside a checkpoint.

By ``torch.distributed.checkpoint``, as safetensors: its own metadata are pickled, and a
checkpoint can be read without trust. The folder is named in the checkpoint, with the
size and CRC-32 of its files. It replaces none: a save that stops leaves the last one.
"""

from __future__ import annotations

import os
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.ranks import exchange, rank, together

SUFFIX = ".shards"
_CHUNK = 1 << 24


def write_shards(tensors: Mapping[str, Any], beside: Path) -> dict[str, Any]:
    """Write the parts of tensors that this process has; all processes call it.

    :param tensors: DTensors by name.
    :param beside: the checkpoint that will name the folder.
    :return: what the checkpoint has to hold for :func:`read_shards`.
    """
    import torch.distributed.checkpoint as dcp

    own = f"{beside.stem}.{os.urandom(4).hex()}{SUFFIX}"
    folder = beside.parent / exchange("naming a folder of shards", own)[0]
    with together("writing shards"):
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer)
    files: dict[str, list[int]] = {}
    with together("reading what was written"):
        if rank() == 0:
            for path in sorted(folder.iterdir()):
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
                files[path.name] = [path.stat().st_size, _crc(path)]
    kinds = {
        name: [str(t.dtype).removeprefix("torch."), list(t.shape)]
        for name, t in tensors.items()
    }
    return {"folder": folder.name, "files": files, "tensors": kinds}


def read_shards(record: Mapping[str, Any], beside: Path) -> dict[str, Tensor]:
    """Read whole tensors, in any number of processes.

    :param record: from :func:`write_shards`.
    :param beside: the checkpoint that holds it.
    :raises ValueError: if a file is missing or damaged.
    """
    import torch.distributed.checkpoint as dcp

    folder = beside.parent / Path(record["folder"]).name
    for name, (size, crc) in record["files"].items():
        path = folder / Path(name).name
        if not path.is_file() or [path.stat().st_size, _crc(path)] != [size, crc]:
            raise ValueError(f"{path} is missing or not as it was written")
    found = {
        name: torch.zeros(shape, dtype=getattr(torch, kind))
        for name, (kind, shape) in record["tensors"].items()
    }
    reader = dcp.HuggingFaceStorageReader(str(folder))
    dcp.load(found, storage_reader=reader, no_dist=True)
    return found


def remove_shards(of: Path, *, but: str | None = None) -> None:
    """Delete the folders of a checkpoint.

    :param but: name of the folder that stays.
    """
    for folder in of.parent.glob(f"{of.stem}.*{SUFFIX}"):
        if folder.name != but:
            shutil.rmtree(folder, ignore_errors=True)


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while part := file.read(_CHUNK):
            crc = zlib.crc32(part, crc)
    return crc
