"""Branches in one file, without the model they belong to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from avalanche_clip.common.arrays import write_safetensors
from avalanche_clip.common.files import json_text
from avalanche_clip.models.text.vocabulary_storage import naming, read_own

FORMAT = 1
Rules = Mapping[str, Callable[[Any], bool]]


def is_int(value: Any, lowest: int) -> bool:
    """Whether a value is an integer, and not too small."""
    return type(value) is int and value >= lowest


def is_ints(value: Any, lowest: int) -> bool:
    """Whether a value is a list of different integers."""
    whole = isinstance(value, list) and all(is_int(v, lowest) for v in value)
    return whole and len(set(value)) == len(value)


def is_table(value: Any, check: Callable[[Any], bool]) -> bool:
    """Whether a value is a mapping of names to what passes a check."""
    return isinstance(value, dict) and all(
        isinstance(k, str) and check(v) for k, v in value.items()
    )


def checked(state: Any, rules: Rules) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return facts and tensors of a state.

    :param state: ``{"facts": plain data, "tensors": by name}``.
    :param rules: what must hold for the facts, by name.
    :raises ValueError: if it is damaged, or of another format.
    """
    if not isinstance(state, dict) or not {"facts", "tensors"} <= state.keys():
        raise ValueError(
            "This is no state of adapters; give what adapter_state_dict() returned."
        )
    facts, tensors = state["facts"], state["tensors"]
    if not isinstance(facts, dict) or not isinstance(tensors, dict):
        raise ValueError("The state is damaged: facts and tensors are no mappings.")
    if facts.get("format") != FORMAT:
        raise ValueError(
            f"The adapters are stored in format {facts.get('format')}, this version"
            f" reads {FORMAT}."
        )
    base = facts.get("base")
    known = isinstance(base, dict) and {"pretrained", "checksum"} <= base.keys()
    wrong = [] if known else ["base"]
    wrong += [name for name, holds in rules.items() if not holds(facts.get(name))]
    wrong += [name for name, t in tensors.items() if not isinstance(t, Tensor)]
    if wrong:
        raise damaged(facts, wrong[0])
    return facts, tensors


def damaged(facts: dict[str, Any], name: str) -> ValueError:
    """Say which part of a state is damaged."""
    return ValueError(
        f"The state is damaged: {name!r} is missing or wrong ({facts.get(name)!r});"
        " store the adapters again."
    )


def matched(
    branches: Mapping[str, Iterable[Any]],
    tensors: dict[str, Tensor],
    keys: Iterable[int],
) -> list[tuple[Any, dict[str, Tensor]]]:
    """Give tensors to branches before any of them is changed.

    :param branches: per tower, first block to last.
    :param tensors: by tower, number of the branch and name.
    :param keys: ids that the branches will have.
    :raises ValueError: if tensors are missing, left over, or of another shape.
    """
    rest, parts, keys = dict(tensors), [], list(keys)
    for tower, own in branches.items():
        for number, branch in enumerate(own):
            values = {}
            for name, shape in branch.shapes(keys).items():
                key = f"{tower}.{number}.{name}"
                tensor = rest.pop(key, None)
                if tensor is None or tuple(tensor.shape) != shape:
                    what = "is missing" if tensor is None else f"is {tensor.shape}"
                    raise ValueError(
                        f"The stored tensor {key} {what}, {shape} is needed; the state"
                        " is damaged or of another model."
                    )
                values[name] = tensor
            parts.append((branch, values))
    if rest:
        raise ValueError(
            f"The state holds {len(rest)} unknown tensors ({next(iter(rest))}, ...); it"
            " is damaged or of another model."
        )
    return parts


def write(state: dict[str, Any], path: str | Path, key: str) -> None:
    """Write a state as one safetensors file, replaced at once.

    :param state: ``{"facts": plain data, "tensors": by name}``.
    :param path: ends with ``.safetensors``.
    :param key: of the facts, in the file's metadata.
    """
    facts = json_text(state["facts"], path, sort_keys=True)
    write_safetensors(path, state["tensors"], {key: facts})


def read(
    path: str | Path, key: str, what: str, rules: Rules, *, verify: bool = True
) -> dict[str, Any]:
    """Read a file of :func:`write`; tensors come on the CPU.

    :param path: the file.
    :param key: see :func:`write`.
    :param what: what it should hold, for messages.
    :param rules: see :func:`checked`.
    :param verify: False skips the bytes of large tensors.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, or no file of that kind.
    """
    nothing = f"holds no {what}; give a file that their save() wrote."
    tensors, facts = read_own(path, key, nothing, verify)
    with naming(path, what):
        state = {"facts": json.loads(facts), "tensors": tensors}
        checked(state, rules)
        return state
