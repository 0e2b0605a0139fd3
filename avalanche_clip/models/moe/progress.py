"""Which tasks a set of expert mixtures has learned, as buffers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

SEVERAL = -2
"""Stands for ids per row, or a tower without mixtures."""


class MoEProgress(nn.Module):
    """Progress of a set of mixtures; names in the model's state hold ``.moe.``."""

    in_task: Tensor
    finished: Tensor  # per router its place in the order of finishing, -1 before
    # Passes read these two as numbers; they are brought up to date when stored.
    active_router: Tensor
    routers: Tensor  # in use by image and text tower

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("in_task", torch.tensor(False))
        self.register_buffer("finished", torch.tensor([-1]))
        self.register_buffer("active_router", torch.tensor(0))
        self.register_buffer("routers", torch.tensor([SEVERAL, SEVERAL]))

    @property
    def learned(self) -> list[int]:
        """Routers of finished tasks, in the order of finishing."""
        return _in_order(self.finished.tolist())

    def finish(self, routers: Iterable[int], count: int) -> None:
        """Take over finished routers, in their order, of ``count`` that there are."""
        places = torch.full((count,), -1)
        for place, router in enumerate(routers):
            places[router] = place
        self.finished = places.to(self.finished.device)

    def read(self, state: Any, start: str) -> dict[str, Any] | None:
        """Read the facts of a model's state; {} if it has none, None if some.

        :param state: tensors by name. What earlier versions stored, one tensor of
            numbers, is taken out.
        :param start: what stands before the names.
        """
        packed = state.pop(f"{start}progress", None)
        if packed is not None:
            _, in_task, active, image, text, *learned = packed.tolist()
            ids = [image, text]
        else:
            names = ("in_task", "finished", "active_router", "routers")
            found = [state[start + n].tolist() for n in names if start + n in state]
            if len(found) < len(names):
                return None if found else {}
            in_task, places, active, ids = found
            learned = _in_order(places)
        routers = zip(("image", "text"), ids, strict=True)
        return {
            "in_task": bool(in_task),
            "active_router": active,
            "learned": learned,
            "routers": {tower: i for tower, i in routers if i != SEVERAL},
        }


def _in_order(places: list[int]) -> list[int]:
    known = [router for router, place in enumerate(places) if place >= 0]
    return sorted(known, key=places.__getitem__)
