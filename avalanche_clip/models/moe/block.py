"""The expert mixture of one residual block."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from avalanche_clip.models.moe.mixture import MoEAdapter
from avalanche_clip.models.peft.branch import Branch
from avalanche_clip.models.peft.routes import RowIds


class BlockMoE(MoEAdapter, Branch):
    """The mixture beside the perceptron of one block; ids are those of routers.

    It reads the input of the perceptron's half, before the norm, and is added to what
    the half gives.

    :param width: channels D.
    :param options: of :class:`MoEAdapter`.
    """

    CHILD, TABLE = "moe", "routers"
    ROWS = ("router ids", "rows")

    def hook(self) -> None:
        """Hook into the perceptron's half."""
        self.add_at(self.view.mlp_out, self.view.norm2, normed=False)

    def delta(self, x: Tensor, ids: int | RowIds) -> Tensor:
        """Return the mixture."""
        return self(x, ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": None}
