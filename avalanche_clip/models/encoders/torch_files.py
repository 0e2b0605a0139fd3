"""Tensors out of PyTorch's own files, without running anything that is in them.

``torch.save`` and ``torch.jit.save`` write pickles, which are programs. Here a pickle
may name what tensors consist of and nothing else; objects of scripted modules become
plain records of their attributes. Sizes are compared with the file before memory is
taken, which ``torch.load`` leaves out.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from avalanche_clip.common.files import file_limits, unreadable
from avalanche_clip.common.pickles import BoundedUnpickler

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_CHUNK = 2**24
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


class Inert:
    """Stands for an object that is no tensor: takes anything and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return self

    def __setstate__(self, state: Any) -> None:
        pass


class ScriptedModule:
    """The attributes of one object of a TorchScript archive."""

    attributes: dict[str, Any]

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("a scripted module has no attributes")
        self.attributes = state

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield parameters and buffers by their names in a state dictionary."""
        todo: list[tuple[str, Any]] = [(prefix, self)]
        seen: set[int] = set()
        while todo:
            path, module = todo.pop(0)
            for name, value in getattr(module, "attributes", {}).items():
                if isinstance(value, Tensor):
                    yield path + name, value
                elif isinstance(value, ScriptedModule) and id(value) not in seen:
                    seen.add(id(value))
                    todo.append((f"{path}{name}.", value))


def read_torch_file(path: Path) -> Any:
    """Read what ``torch.save`` or ``torch.jit.save`` wrote.

    :param path: the file.
    :return: plain data with tensors on the CPU; numpy scalars and arrays are
        :class:`Inert`; a TorchScript archive gives a :class:`ScriptedModule`.
    :raises ValueError: naming file and cause: if it is damaged, holds objects that
        only running its code could make, or declares more than it has.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _read_archive(archive, os.path.getsize(path))
        with open(path, "rb") as file:
            return _read_stream(file, os.path.getsize(path))
    except Refused as error:
        raise ValueError(
            f"{path} cannot be read as plain tensors: it needs {error}. Files that "
            "pickle whole objects run code on loading and are refused; save "
            "model.state_dict() instead."
        ) from error
    except Exception as error:  # what damaged pickles and archives raise
        raise unreadable(
            path, "a file of weights as torch.save writes it", error
        ) from (error)


class Refused(Exception):
    """A pickle names something that is no part of a tensor."""


# ---------------------------------------------------------------- containers
def _read_archive(archive: zipfile.ZipFile, size: int) -> Any:
    members = {info.filename: info for info in archive.infolist()}
    roots = [name for name in members if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError("the archive holds no data.pkl, so no tensors")
    most = max(file_limits.gzip_bytes, file_limits.gzip_ratio * size)
    declared = sum(info.file_size for info in members.values())
    if declared > most:
        raise ValueError(
            f"its parts declare {declared} bytes, the file has {size}; raise "
            "avalanche_clip.file_limits.gzip_ratio if that is meant"
        )
    root = roots[0].removesuffix("data.pkl")
    if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != b"little":
        raise ValueError("its numbers are not little-endian")
    stored: dict[str, torch.UntypedStorage] = {}

    def storage(key: str, count: int, dtype: torch.dtype) -> torch.UntypedStorage:
        info = members.get(f"{root}data/{key}")
        if info is None:
            raise ValueError(f"the part data/{key} is missing")
        needed = count * dtype.itemsize
        if info.file_size < needed:
            raise ValueError(
                f"the part data/{key} has {info.file_size} bytes, {needed} are declared"
            )
        if key not in stored:
            with archive.open(info) as part:
                stored[key] = _fill(part, info.file_size)
        return stored[key]

    return _Unpickler(io.BytesIO(archive.read(roots[0])), storage).load()


def _read_stream(file: IO[bytes], size: int) -> Any:
    """Read the form that ``torch.save`` wrote before version 1.6."""
    head = file.read(2)
    file.seek(0)
    if head[:1] != b"\x80":
        raise ValueError("it is neither a zip archive nor a pickle")
    if pickle_value(file) != _MAGIC or pickle_value(file) != _PROTOCOL:
        raise ValueError("it is a pickle, but none that torch.save wrote")
    facts = pickle_value(file)
    if not isinstance(facts, dict) or facts.get("little_endian") is not True:
        raise ValueError("its numbers are not little-endian")
    stored: dict[str, tuple[torch.UntypedStorage, int]] = {}

    def storage(key: str, count: int, dtype: torch.dtype) -> torch.UntypedStorage:
        needed = count * dtype.itemsize
        if key not in stored:
            declared = sum(s.nbytes() for s, _ in stored.values()) + needed
            if declared > size:
                raise ValueError(f"{declared} bytes are declared, the file has {size}")
            stored[key] = torch.UntypedStorage(needed), dtype.itemsize
        if stored[key][0].nbytes() < needed:
            raise ValueError(f"the part {key} is declared with two sizes")
        return stored[key][0]

    content = _Unpickler(file, storage).load()
    for key in pickle_value(file):
        whole, itemsize = stored[str(key)]
        (count,) = struct.unpack("<q", file.read(8))
        if count * itemsize != whole.nbytes():
            raise ValueError(f"the part {key} has another size than declared")
        _fill_into(file, whole)
    return content


def pickle_value(file: IO[bytes]) -> Any:
    """Read one pickle of plain values."""
    return _Unpickler(file, None).load()


def _fill(part: IO[bytes], count: int) -> torch.UntypedStorage:
    whole = torch.UntypedStorage(count)
    _fill_into(part, whole)
    if part.read(1):  # also lets the archive compare its own check sum
        raise ValueError("a part is longer than declared")
    return whole


def _fill_into(part: IO[bytes], whole: torch.UntypedStorage) -> None:
    if not whole.nbytes():
        return
    view: Any = torch.tensor([], dtype=torch.uint8).set_(whole).numpy()
    target = memoryview(view)
    done = 0
    while done < len(target):
        data = part.read(min(_CHUNK, len(target) - done))
        if not data:
            raise ValueError("it ends too early")
        target[done : done + len(data)] = data
        done += len(data)


# ------------------------------------------------------------------ pickles
Source = Callable[[str, int, torch.dtype], torch.UntypedStorage]


class _Unpickler(BoundedUnpickler):
    """A pickle machine that knows tensors and plain data only."""

    def __init__(self, file: IO[bytes], source: Source | None) -> None:
        super().__init__(file, encoding="utf-8")
        self.source = source

    def find_class(self, module: str, name: str) -> Any:
        if self.source is None:
            raise Refused(f"{module}.{name}")
        known = _KNOWN.get((module, name))
        if known is not None:
            return known
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if module == "__torch__" or module.startswith("__torch__."):
            return ScriptedModule
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return Inert
        raise Refused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        if self.source is None or not isinstance(pid, tuple) or len(pid) < 5:
            raise pickle.UnpicklingError("a stored tensor is described in another way")
        kind, dtype, key, _, count = pid[:5]
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"a part is of the kind {kind!r}")
        if not isinstance(count, int) or count < 0 or (len(pid) > 5 and pid[5]):
            raise pickle.UnpicklingError(f"the part {key} has the size {count!r}")
        return _Stored(self.source(str(key), count, dtype), dtype)


class _Stored:
    """A storage with the type that its numbers have."""

    def __init__(self, whole: torch.UntypedStorage, dtype: torch.dtype) -> None:
        self.whole, self.dtype = whole, dtype


def _tensor(stored: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """Rebuild a tensor; ``rest``: gradient flag, hooks, and (v3) the type."""
    if not isinstance(stored, _Stored):
        raise pickle.UnpicklingError("a tensor has no stored numbers")
    dtypes = [value for value in rest if isinstance(value, torch.dtype)]
    dtype = dtypes[0] if dtypes else stored.dtype
    size, stride = [int(n) for n in size], [int(n) for n in stride]
    if min([0, int(offset), *size, *stride]) < 0:
        raise pickle.UnpicklingError(f"a tensor has the shape {size}, steps {stride}")
    # an expanded view of few numbers must not become many when it is copied
    bytes_ = math.prod(size) * dtype.itemsize
    if bytes_ > max(stored.whole.nbytes(), file_limits.gzip_bytes):
        raise pickle.UnpicklingError(
            f"a tensor of shape {size} has {stored.whole.nbytes()} stored bytes only"
        )
    # set_ refuses what lies outside of the storage; views share it as saved
    empty = torch.tensor([], dtype=dtype)
    return empty.set_(stored.whole, int(offset), size, stride)  # type: ignore[call-overload]


def _first(value: Any, *rest: Any) -> Any:
    return value


_JIT = ("build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
_PARAMETERS = ("_rebuild_parameter", "_rebuild_parameter_with_state")
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("_codecs", "encode"): Inert(),
    # settings that people keep beside weights
    ("argparse", "Namespace"): Inert,
    ("pathlib", "PosixPath"): Inert,
    ("torch", "Size"): tuple,
    ("torch", "device"): Inert,
    **{("torch._utils", f"_rebuild_tensor{v}"): _tensor for v in ("", "_v2", "_v3")},
    **{("torch._utils", name): _first for name in _PARAMETERS},
    **{("torch.jit._pickle", name): _first for name in (*_JIT, "restore_type_tag")},
}
# what numpy's numbers and arrays are pickled with: read past, never made
_NUMPY = ("scalar", "dtype", "_reconstruct", "ndarray", "_frombuffer")
