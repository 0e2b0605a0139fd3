"""Files of a teacher's feature store: a header and sealed arrays, whole or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from avalanche_clip.common.arrays import npy_seal, read_npy
from avalanche_clip.common.files import found_in, read_json

KINDS = ("image", "text")
DTYPES = ("float32", "float16")
FORMAT = 2
HEADER = "header.json"
PARTS = ("features", "ids", "marks")
ARRAYS = tuple(f"{kind}_{part}.npy" for kind in KINDS for part in PARTS)
_FORMS = {
    "model": dict.fromkeys(KINDS, str),
    "rows": dict.fromkeys(KINDS, int),
    "data": str,
    "dim": int,
    "dtype": DTYPES,
}
_FILES = dict.fromkeys(ARRAYS, {"bytes": int, "sha256": str})
_AGAIN = "Delete it and make it again with precompute_teacher_features."


def read_header(folder: Path, unfinished: bool = False) -> dict[str, Any]:
    """Read and check what a store says of itself.

    :param folder: of the store.
    :param unfinished: whether it may be in the making, without a list of files.
    :raises FileNotFoundError: if there is no store.
    :raises ValueError: if the header is damaged, or of another version.
    """
    path = folder / HEADER
    if path.is_dir():
        raise ValueError(f"{path} is {found_in(path)}: the store is damaged. {_AGAIN}")
    if not path.exists():
        raise FileNotFoundError(
            f"{folder} holds no finished feature store; make one with "
            "precompute_teacher_features(model, dataset, path)."
        )
    try:
        header = read_json(path, dict)
    except ValueError as error:
        raise ValueError(
            f"{path} is no JSON text: the store is damaged ({error}). {_AGAIN}"
        ) from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{folder} has format {header.get('format')!r} in {HEADER}; this version "
            f"reads {FORMAT}, whose files hold checksums. {_AGAIN}"
        )
    header = read_json(path, checksum=True, rewrite=_AGAIN[0].lower() + _AGAIN[1:-1])
    if not unfinished and "files" not in header:
        raise ValueError(
            f"{folder} is unfinished; call precompute_teacher_features with the path "
            "of the store again, which continues it."
        )
    forms = {**_FORMS, "files": _FILES} if "files" in header else _FORMS
    wrong = [name for name, form in forms.items() if not _fits(header.get(name), form)]
    if wrong:
        raise ValueError(
            f"{path}: {wrong[0]!r} is missing or wrong ({header.get(wrong[0])!r:.80}): "
            f"the store is damaged. {_AGAIN}"
        )
    return header


def _fits(value: Any, form: Any) -> bool:
    """Whether a value has a form: a type, one of several values, a dict of forms."""
    if isinstance(form, dict):
        same = isinstance(value, dict) and value.keys() == form.keys()
        return same and all(_fits(value[key], part) for key, part in form.items())
    if isinstance(form, tuple):
        return value in form
    return type(value) is form and (form is str or value > 0)


def compare_headers(
    folder: Path, known: dict[str, Any], wanted: dict[str, Any]
) -> None:
    """Raise ValueError unless a store is made of what it should be.

    :param folder: of the store, for the message.
    :param known: its header.
    :param wanted: entries that it must have.
    """
    for key, value in wanted.items():
        if known.get(key) != value:
            raise ValueError(
                f"{folder} holds features with {key} {known.get(key)!r}, not "
                f"{value!r}: it was made of another model, other data or with "
                "other options. Choose another path, or delete it."
            )


def array_facts(header: dict[str, Any], kind: str, part: str) -> dict[str, str]:
    """What a file of a store says of itself, so that it is known anywhere."""
    model, data = header["model"][kind], header["data"]
    return {"kind": kind, "part": part, "model": model, "data": data}


def file_entry(path: Path) -> dict[str, Any]:
    """What a header says of a file: its size and its checksum."""
    return {"bytes": path.stat().st_size, "sha256": npy_seal(path)["all"]}


def read_arrays(
    folder: Path, header: dict[str, Any], verify: bool
) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Read the files of a store, features mapped into memory.

    :param folder: of the store.
    :param header: of :func:`read_header`.
    :param verify: compare the bytes of the features too.
    :return: arrays by part and kind.
    :raises ValueError: if one is damaged or does not belong to the store.
    """
    read: dict[str, dict[str, npt.NDArray[Any]]] = {part: {} for part in PARTS}
    for kind in KINDS:
        for part in PARTS:
            path = folder / f"{kind}_{part}.npy"
            _check_entry(path, header, kind, part)
            large = part == "features"
            read[part][kind] = read_npy(
                path, mmap=large, sealed=True, verify=verify or not large
            )
            check_array(path, read[part][kind], header, kind, part)
    return read


def check_array(
    path: Path, found: Any, header: dict[str, Any], kind: str, part: str
) -> None:
    """Raise ValueError unless an array, or its head, is as a header says.

    :param found: with ``shape`` and ``dtype``.
    """
    rows, dim = header["rows"][kind], header["dim"]
    shape = (rows, dim) if part == "features" else (rows,)
    dtype = {"features": header["dtype"], "ids": "int64", "marks": "uint64"}[part]
    if found.shape != shape or found.dtype != np.dtype(dtype):
        raise ValueError(
            f"{path} holds {found.dtype} of shape {found.shape}, not {dtype} of shape "
            f"{shape}: the store is damaged. {_AGAIN}"
        )


def _check_entry(path: Path, header: dict[str, Any], kind: str, part: str) -> None:
    """Raise ValueError unless a file is the one that was written here."""
    known = header["files"][path.name]
    size = path.stat().st_size if path.is_file() else -1
    if size != known["bytes"]:
        found = f"has {size} bytes" if size >= 0 else f"is {found_in(path)}"
        raise ValueError(
            f"{path} {found}, not {known['bytes']} bytes: the store is damaged. "
            f"{_AGAIN}"
        )
    seal = npy_seal(path)
    ours = seal["facts"] == array_facts(header, kind, part)
    if seal["all"] != known["sha256"] or not ours:
        raise ValueError(
            f"{path} does not have the checksum that {HEADER} names for it: it comes "
            f"from another store, or the store is damaged. {_AGAIN}"
        )
