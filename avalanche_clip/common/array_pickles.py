"""Reading pickles of arrays whose makers are not trusted."""

from __future__ import annotations

import codecs
import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np

from avalanche_clip.common.files import read_bytes, unreadable
from avalanche_clip.common.pickles import BoundedUnpickler

# What pickled arrays need. Numpy renamed its modules in version 2, so its functions
# are known by their names and taken from what arrays are pickled by.
_MODULES = tuple(
    f"numpy.{core}.{end}"
    for core in ("core", "_core")
    for end in ("multiarray", "numeric")
)
_EMPTY: Any = cast(Any, np.ones(1).__reduce__()[0])
_SCALAR: Any = cast(Any, np.float32(1).__reduce__()[0])
_BUFFER: Any = cast(Any, np.ones(1).__reduce_ex__(5)[0])


class _ArrayType:
    """Stands for ``numpy.ndarray``, which itself would make arrays of any size."""

    def __new__(cls, *args: Any) -> _ArrayType:
        raise ValueError("it makes an array without values")


def _empty_array(kind: Any, shape: Any, code: Any) -> Any:
    if kind is not _ArrayType or tuple(shape) != (0,):
        raise ValueError(f"it makes an array of shape {shape} without values")
    return _EMPTY(np.ndarray, (0,), b"b")


def _scalar(dtype: Any, data: Any) -> Any:
    # Without data NumPy makes room for as many bytes as the type declares.
    return _SCALAR(dtype, data)


def _encode(text: Any, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"it holds bytes in {encoding!r}")
    return codecs.encode(text, encoding)


_FUNCTIONS: dict[str, Any] = {
    _EMPTY.__name__: _empty_array,
    _SCALAR.__name__: _scalar,
    _BUFFER.__name__: _BUFFER,
}
_ALLOWED = {
    ("_codecs", "encode"): _encode,  # bytes in protocols before 3
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _ArrayType,
}


class _ArrayUnpickler(BoundedUnpickler):
    """Read plain containers and arrays of some kinds; refuse everything else."""

    def __init__(self, file: io.BytesIO, kinds: str, holds: str) -> None:
        super().__init__(file)
        self.kinds, self.holds = kinds, holds

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "dtype"):
            return self._dtype
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        if module in _MODULES and name in _FUNCTIONS:
            return _FUNCTIONS[name]
        raise ValueError(
            f"it asks for {module}.{name}; {self.holds}, in arrays of numpy and plain "
            "containers. Do not load it"
        )

    def _dtype(self, *args: Any) -> np.dtype[Any]:
        found = np.dtype(*args)
        if found.kind not in self.kinds:
            raise ValueError(f"it holds {found}; {self.holds}")
        return found

    def load_build(self) -> None:
        """Set the state of an object, of types only what says byte order and size."""
        state, made = self.stack[-1], self.stack[-2]  # type: ignore[attr-defined]
        if isinstance(made, np.dtype):
            plain = isinstance(state, tuple) and state[2:5] == (None,) * 3
            if not plain or len(state) != 8 or state[7] not in (0, 8):
                raise ValueError(f"it holds a type with the parts {state}")
        pickle._Unpickler.dispatch[pickle.BUILD[0]](self)  # type: ignore[arg-type]

    dispatch: ClassVar[dict[int, Any]] = {
        **BoundedUnpickler.dispatch,
        pickle.BUILD[0]: load_build,
    }


def read_array_pickle(path: str | Path, wanted: str, kinds: str, holds: str) -> Any:
    """Read a pickle of arrays in plain containers; nothing else is unpickled.

    :param path: the file, gzipped if its name ends with ``.gz``.
    :param wanted: what it should be, with its article, for errors.
    :param kinds: NumPy's letters of the kinds of types that arrays may have.
    :param holds: what such files hold, for errors: ``"features are numbers"``.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, or holds anything else.
    """
    # What the pickle declares can then not be more than there is.
    file = io.BytesIO(read_bytes(path))
    try:
        content = _ArrayUnpickler(file, kinds, holds).load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise unreadable(path, wanted, error) from error
    if file.read(1):
        raise unreadable(path, wanted, "something follows its end")
    return content
