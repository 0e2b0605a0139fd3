"""Files of a grown vocabulary, whole or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.arrays import (
    KEY,
    read_safetensors,
    safetensors_metadata,
    write_safetensors,
    write_tensors,
)
from avalanche_clip.common.files import found_in, json_text

FORMAT = 2
_KEY = "vocabulary"
_ZIP = "a zip archive"
REWRITE = "rewrite it with avalanche_clip.models.rewrite_file(path)"
"""What to do about a file of an earlier version."""
_UNFIT = (KeyError, TypeError, ValueError, AttributeError, IndexError)


@contextmanager
def naming(path: str | Path, what: str) -> Iterator[None]:
    """Turn what goes wrong with the content of a file into an error that names it.

    :param path: of the file.
    :param what: that it should hold.
    """
    try:
        yield
    except _UNFIT as error:
        cause = repr(error) if isinstance(error, KeyError) else error
        raise ValueError(f"{path} does not hold {what}: {cause}") from error


def read_own(
    path: str | Path, key: str, nothing: str, verify: bool
) -> tuple[dict[str, Tensor], str]:
    """Read a file of this package that has a text in its metadata.

    :param path: the file.
    :param key: name of the text.
    :param nothing: what to say of a file that never had it.
    :param verify: see :func:`read_safetensors`.
    :return: tensors, and the text.
    """
    if not {key, KEY} & safetensors_metadata(path).keys():
        raise ValueError(f"{path} {nothing}")
    tensors, metadata = read_safetensors(path, verify=verify, rewrite=REWRITE)
    if key not in metadata:
        raise ValueError(f"{path} {nothing}")
    return tensors, metadata[key]


def write(state: dict[str, Any], path: str | Path) -> None:
    """Write a vocabulary as one file, replaced at once.

    :param state: growth state of a token table with its values as ``"table"``.
    :param path: of any name; the content is safetensors.
    """
    tensors = {name: state[name] for name in ("table", "usage")}
    rest = {k: v for k, v in state.items() if k not in (*tensors, "active", "factor")}
    facts = json_text({"format": FORMAT, **rest}, path)
    write_tensors(path, tensors, {_KEY: facts})


def read(path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """Read a file of :func:`write`.

    :param path: the file.
    :param verify: False skips the bytes of a large table.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, or no such file.
    """
    if found_in(path) == _ZIP:
        raise ValueError(
            f"{path} is a zip archive: a vocabulary of an earlier version, without a "
            f"checksum, or another file; {REWRITE}."
        )
    nothing = "was not written by save_vocabulary."
    tensors, text = read_own(path, _KEY, nothing, verify)
    with naming(path, "a vocabulary"):
        facts = json.loads(text)
        if facts.pop("format") != FORMAT or tensors.keys() != {"table", "usage"}:
            raise ValueError(f"its format is not {FORMAT}")
        return {**checked({**facts, **tensors}), "active": None, "factor": 1.0}


def checked(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state whose parts fit each other.

    :raises ValueError: if a part is missing, of a wrong type or of a wrong size.
    """
    rows, base, table = state["rows"], state["base_rows"], state["table"]
    if type(rows) is not int or type(base) is not int or not 0 < base <= rows:
        raise ValueError(f"it counts {rows!r} rows, {base!r} of them at first")
    if table.ndim != 2 or len(table) != rows or not table.is_floating_point():
        raise ValueError(
            f"its table is {table.dtype} of shape {tuple(table.shape)}, {rows} rows of "
            "floats are needed"
        )
    if state["tokenizer"] is not None and not isinstance(state["tokenizer"], dict):
        raise ValueError("its tokenizer is no mapping")
    return {**state, "usage": checked_usage(state["usage"], rows)}


def checked_usage(usage: Tensor, rows: int) -> Tensor:
    """Return usage counts if they are those of a table of this size.

    :raises ValueError: if they are not.
    """
    shape = tuple(usage.shape)
    if usage.dtype != torch.int32 or shape != (rows,) or (usage < 0).any():
        raise ValueError(
            f"its usage is {usage.dtype} of shape {shape}; {rows} counts (int32) are "
            "needed, none negative"
        )
    return usage


def write_usage(usage: Tensor, path: str | Path) -> None:
    """Write the usage counts of a token table, replaced at once."""
    write_safetensors(path, {"usage": usage}, {})


def read_usage(path: str | Path, rows: int) -> Tensor:
    """Read a file of :func:`write_usage`.

    :param path: the file.
    :param rows: of the table.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, or of a table of another size.
    """
    tensors, _ = read_safetensors(path, rewrite=REWRITE)
    with naming(path, "the usage of a token table"):
        if tensors.keys() != {"usage"}:
            raise ValueError(f"it holds {sorted(tensors)[:5]}")
        return checked_usage(tensors["usage"], rows)
