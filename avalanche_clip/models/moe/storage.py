"""State of expert adapters without the model they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from avalanche_clip.common.arrays import write_safetensors
from avalanche_clip.common.files import json_text
from avalanche_clip.models.text.vocabulary_storage import naming, read_own

if TYPE_CHECKING:
    from avalanche_clip.models.moe.adapters import MoEAdapterSet

FORMAT = 1
_KEY = "moe_adapters"


def collect(adapters: MoEAdapterSet) -> dict[str, Any]:
    """Return the state of all adapters as plain data.

    :param adapters: the set.
    :return: ``{"facts", "tensors"}``; tensors are copies.
    """
    tensors = {
        f"{tower}.{number}.{name}": tensor.detach().clone()
        for tower in adapters.towers
        for number, adapter in enumerate(adapters.adapters(tower))
        for name, tensor in adapter.state_dict().items()
    }
    facts = {
        "format": FORMAT,
        "base": {
            "pretrained": adapters.model.pretrained,
            "checksum": adapters.base_fingerprint(),
        },
        **adapters.growth_state(),
    }
    return {"facts": facts, "tensors": tensors}


def identity(adapters: Any) -> dict[str, Any]:
    """Return what two sets must have in common to exchange state.

    :return: ``{"towers": widths of the blocks of each tower, "options": ...}``.
    """
    widths = {t: [a.width for a in adapters.adapters(t)] for t in adapters.towers}
    return {"towers": widths, "options": adapters.adapters()[0].options()}


def check_identity(adapters: Any, facts: dict[str, Any]) -> None:
    """Raise ValueError if stored facts are those of other adapters."""
    own = identity(adapters)
    found = {"towers": own["towers"], **own["options"]}
    stored = {"towers": facts["towers"], **facts["options"]}
    for name in sorted(found.keys() | stored.keys()):
        if found.get(name) != stored.get(name):
            raise ValueError(
                f"The stored adapters have {name}={stored.get(name)!r}, these"
                f" {found.get(name)!r}; attach adapters with the stored options"
                " (load_moe_adapters does)."
            )


def restore(adapters: MoEAdapterSet, state: dict[str, Any], check_base: bool) -> None:
    """Put a collected state into a set, all of it or nothing.

    :param adapters: the set.
    :param state: from :func:`collect` or :func:`read`.
    :param check_base: compare the base weights.
    :raises ValueError: if something differs.
    """
    facts, tensors = checked(state)
    if check_base:
        _check_base(adapters, facts["base"])
    check_identity(adapters, facts)
    parts = _split(adapters, tensors, facts["num_routers"])
    adapters.load_growth_state(facts)
    for adapter, own in parts:
        adapter.load_state_dict(own)
    adapters.restore_trainable()


def checked(state: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return facts and tensors of a state.

    :raises ValueError: if it is damaged, or of another format.
    """
    if not isinstance(state, dict) or not {"facts", "tensors"} <= state.keys():
        raise ValueError(
            "This is no state of expert adapters; give what adapter_state_dict()"
            " returned."
        )
    facts, tensors = state["facts"], state["tensors"]
    if not isinstance(facts, dict) or not isinstance(tensors, dict):
        raise ValueError("The state is damaged: facts and tensors are no mappings.")
    found = facts.get("format")
    if found != FORMAT:
        raise ValueError(
            f"The adapters are stored in format {found}, this version reads {FORMAT}."
        )
    wrong = [name for name, is_right in _RULES.items() if not is_right(facts.get(name))]
    if not wrong:
        count, ids = facts["num_routers"], facts["routers"]
        used = [facts["active_router"], *facts["learned"], *ids.values()]
        if max(used) >= count or ids.keys() != facts["towers"].keys():
            wrong = ["routers"]
    wrong += [n for n, t in tensors.items() if not isinstance(t, Tensor)]
    if wrong:
        raise ValueError(
            f"The state is damaged: {wrong[0]!r} is missing or wrong"
            f" ({facts.get(wrong[0])!r}); store the adapters again."
        )
    return facts, tensors


def _is_int(value: Any, lowest: int) -> bool:
    return type(value) is int and value >= lowest


def _is_ints(value: Any, lowest: int) -> bool:
    return isinstance(value, list) and all(_is_int(v, lowest) for v in value)


def _is_table(value: Any, check: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(k, str) and check(v) for k, v in value.items()
    )


_RULES = {
    "towers": lambda v: bool(v) and _is_table(v, lambda w: _is_ints(w, 1)),
    "options": lambda v: bool(v) and _is_table(v, lambda w: w is not None),
    "base": lambda v: isinstance(v, dict) and {"pretrained", "checksum"} <= v.keys(),
    "num_routers": lambda v: _is_int(v, 1),
    "active_router": lambda v: _is_int(v, 0),
    "learned": lambda v: _is_ints(v, 0) and len(set(v)) == len(v),
    "started": lambda v: isinstance(v, bool),
    "in_task": lambda v: isinstance(v, bool),
    "counting": lambda v: isinstance(v, bool),
    "routers": lambda v: _is_table(v, lambda w: _is_int(w, -1)),
}


def _check_base(adapters: MoEAdapterSet, base: dict[str, Any]) -> None:
    own = adapters.base_fingerprint()
    if own != base["checksum"]:
        raise ValueError(
            f"The adapters were trained on other weights (pretrained="
            f"{base['pretrained']!r}, checksum {base['checksum']}) than those of this"
            f" model (pretrained={adapters.model.pretrained!r}, checksum {own}); create"
            " the model with the same configuration, weights and precision."
        )


def _split(
    adapters: MoEAdapterSet, tensors: dict[str, Tensor], routers: int
) -> list[tuple[Any, dict[str, Tensor]]]:
    """Match tensors with adapters before any of them is changed."""
    rest = dict(tensors)
    parts = []
    for tower in adapters.towers:
        for number, adapter in enumerate(adapters.adapters(tower)):
            own = {}
            for name, shape in _expected(adapter, routers).items():
                key = f"{tower}.{number}.{name}"
                tensor = rest.pop(key, None)
                if tensor is None or tuple(tensor.shape) != shape:
                    what = "is missing" if tensor is None else f"is {tensor.shape}"
                    raise ValueError(
                        f"The stored tensor {key} {what}, {shape} is needed; the state"
                        " is damaged or of another model."
                    )
                own[name] = tensor
            parts.append((adapter, own))
    if rest:
        raise ValueError(
            f"The state holds {len(rest)} unknown tensors ({next(iter(rest))}, ...); it"
            " is damaged or of another model."
        )
    return parts


def _expected(adapter: Any, routers: int) -> dict[str, tuple[int, ...]]:
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in adapter.state_dict().items()
        if not name.startswith("routers.")
    }
    size = (adapter.width, adapter.num_experts)
    for router in range(routers):
        shapes[f"routers.{router}.gate"] = shapes[f"routers.{router}.noise"] = size
    return shapes


def write(state: dict[str, Any], path: str | Path) -> None:
    """Write a collected state as one safetensors file, replaced at once.

    :param state: from :func:`collect`.
    :param path: ends with ``.safetensors``.
    """
    facts = json_text(state["facts"], path, sort_keys=True)
    write_safetensors(path, state["tensors"], {_KEY: facts})


def read(path: str | Path, *, verify: bool = True) -> dict[str, Any]:
    """Read a file of :func:`write`; tensors come on the CPU.

    :param path: the file.
    :param verify: False skips the bytes of large tensors.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is damaged, or no file of adapters.
    """
    nothing = "holds no expert adapters; give a file of MoEAdapterSet.save."
    tensors, facts = read_own(path, _KEY, nothing, verify)
    with naming(path, "expert adapters"):
        state = {"facts": json.loads(facts), "tensors": tensors}
        checked(state)
        return state
