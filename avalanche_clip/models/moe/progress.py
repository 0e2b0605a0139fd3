"""How far the expert adapters of a model have come, as part of its state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.models.moe import storage as moe_storage
from avalanche_clip.models.peft.routes import Routes, RowIds

PROGRESS = "moe.progress"
"""Entry of the set in the state of a model; adapters add names with ``.moe.``."""
_TOWERS = ("image", "text")
_ABSENT = -2


class AdapterProgress(nn.Module):
    """Tasks, routers and their place in the state; base of the adapter set."""

    adapters: Any
    routers: Any
    counting: Any
    num_routers: Any
    num_trainable: Any
    active_router: Any
    restore_trainable: Any
    towers: Any
    _named: Any
    _towers: dict[str, Routes]

    def __init__(self) -> None:
        super().__init__()
        self._started = False
        self._in_task = False
        #: routers of finished tasks, in the order of finishing
        self.learned: list[int] = []

    def growth_state(self) -> dict[str, Any]:
        """Describe options, growth and progress as plain data."""
        ids = {t: i for t, i in self.routers.items() if isinstance(i, int)}
        return {
            **moe_storage.identity(self),
            "num_routers": self.num_routers,
            "active_router": self.active_router,
            "learned": list(self.learned),
            "started": self._started,
            "in_task": self._in_task,
            "counting": self.counting,
            "routers": {t: ids.get(t, self.active_router) for t in self._towers},
        }

    def load_growth_state(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`growth_state` returned; values of weights stay.

        :raises ValueError: if the towers, blocks or options are others.
        """
        moe_storage.check_identity(self, state)
        for adapter in self.adapters():
            del adapter.routers[state["num_routers"] :]
            while adapter.num_routers < state["num_routers"]:
                adapter.add_router()
            adapter.activate_router(state["active_router"])
        self.learned = list(state["learned"])
        self._started, self._in_task = state["started"], state["in_task"]
        self.counting = state["counting"]
        self.restore_trainable()
        for tower, ids in state["routers"].items():
            self._towers[tower].ids = ids

    def forward_state(self) -> dict[str, int | RowIds]:
        """Router ids per tower: what decides a pass beside weights."""
        return {tower: state.ids for tower, state in self._towers.items()}

    def load_forward_state(self, state: dict[str, int | RowIds]) -> None:
        """Put back what :meth:`forward_state` of this model or a copy returned."""
        for tower, ids in state.items():
            self._towers[tower].ids = ids

    def _save_to_state_dict(
        self, destination: Any, prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + PROGRESS] = _pack(self.growth_state())

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Take over the progress; the state of a plain model holds none."""
        packed = state_dict.pop(prefix + PROGRESS, None)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if packed is None:
            return
        facts = _unpack(packed, self.towers)
        if facts["active_router"] >= self.num_routers:
            return  # only a part of a state
        for adapter in self.adapters():
            adapter._active = facts["active_router"]
        self.learned = facts["learned"]
        self._started, self._in_task = facts["started"], facts["in_task"]
        for tower, ids in facts["routers"].items():
            self._towers[tower].ids = ids
        # Copies such as teachers are frozen as a whole, and stay so.
        if self.num_trainable:
            self.restore_trainable()

    def before_load(
        self,
        model: nn.Module,
        state: dict[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        *args: Any,
    ) -> None:
        """Report adapters that a state leaves out (pre-hook of loading).

        The state of a plain model has none at all and leaves them as they are.
        """
        named = [(f"{prefix}{name}.", adapter) for name, adapter in self._named()]
        absent = [
            (start, adapter)
            for start, adapter in named
            if not any(key.startswith(start) for key in state)
        ]
        if len(absent) < len(named):
            for start, adapter in absent:
                missing += adapter.state_dict(prefix=start)


def _pack(state: dict[str, Any]) -> Tensor:
    """Write progress as numbers, so that a state dict holds tensors only.

    :param state: from ``MoEAdapterSet.growth_state``.
    :return: int64: started, in a task, active router, ids of the image and the
        text tower (:data:`_ABSENT` without), then the learned routers.
    """
    ids = [state["routers"].get(tower, _ABSENT) for tower in _TOWERS]
    head = [int(state["started"]), int(state["in_task"]), state["active_router"]]
    return torch.tensor([*head, *ids, *state["learned"]], dtype=torch.int64)


def _unpack(packed: Tensor, towers: tuple[str, ...]) -> dict[str, Any]:
    """Read what :func:`_pack` wrote, for some of the towers."""
    started, in_task, active, *rest = packed.tolist()
    ids = zip(_TOWERS, rest[:2], strict=True)
    return {
        "started": bool(started),
        "in_task": bool(in_task),
        "active_router": active,
        "routers": {t: i for t, i in ids if i != _ABSENT and t in towers},
        "learned": rest[2:],
    }
