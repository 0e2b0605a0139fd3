"""Files of a teacher's feature store: a header and sealed arrays, whole or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from avalanche_clip.common.arrays import npy_seal, read_npy
from avalanche_clip.common.files import found_in, read_json

KINDS = ("image", "text")
DTYPES = ("float32", "float16")
FORMAT = 2
HEADER = "header.json"
PARTS = ("features", "ids", "marks")
ARRAYS = tuple(f"{kind}_{part}.npy" for kind in KINDS for part in PARTS)
_AGAIN = "Delete it and make it again with precompute_teacher_features."


def read_header(folder: Path, unfinished: bool = False) -> dict[str, Any]:
    """Read and check what a store says of itself.

    :param folder: of the store.
    :param unfinished: whether it may be in the making, without a list of files.
    :raises FileNotFoundError: if there is no store.
    :raises ValueError: if the header is damaged, or of another version.
    """
    path = folder / HEADER
    if path.exists() and not path.is_file():
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
    wrong = [name for name, right in _RULES.items() if not right(header.get(name))]
    if not unfinished and "files" not in header:
        raise ValueError(
            f"{folder} is unfinished; call precompute_teacher_features with the path "
            "of the store again, which continues it."
        )
    if "files" in header and not _is_file_list(header["files"]):
        wrong.append("files")
    if wrong:
        raise ValueError(
            f"{path}: {wrong[0]!r} is missing or wrong ({header.get(wrong[0])!r:.80}): "
            f"the store is damaged. {_AGAIN}"
        )
    return header


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_table(value: Any, check: Any) -> bool:
    known = isinstance(value, dict) and value.keys() == set(KINDS)
    return known and all(check(value[kind]) for kind in KINDS)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_file_list(value: Any) -> bool:
    known = isinstance(value, dict) and value.keys() == set(ARRAYS)
    return known and all(
        isinstance(entry, dict)
        and _is_count(entry.get("bytes"))
        and _is_text(entry.get("sha256"))
        for entry in value.values()
    )


_RULES = {
    "model": lambda v: _is_table(v, _is_text),
    "rows": lambda v: _is_table(v, _is_count),
    "data": _is_text,
    "dim": _is_count,
    "dtype": lambda v: v in DTYPES,
}


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
            rows, dim = header["rows"][kind], header["dim"]
            shape = (rows, dim) if large else (rows,)
            dtype = {"features": header["dtype"], "ids": "int64", "marks": "uint64"}
            found = read[part][kind]
            if found.shape != shape or found.dtype != dtype[part]:
                raise ValueError(
                    f"{path} holds {found.dtype} of shape {found.shape}, not "
                    f"{dtype[part]} of shape {shape}: the store is damaged. {_AGAIN}"
                )
    return read


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
