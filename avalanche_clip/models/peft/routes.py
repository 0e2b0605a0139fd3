"""Which branch of a block serves which row of a batch.

One protocol for all branches: an integer id for all rows, or a LongTensor with one
id per row; -1 passes the plain block.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

SKIP = -1
"""Id of rows that pass the plain block."""


class RowIds(NamedTuple):
    """Ids per row, and which of them occur.

    :param ids: integer tensor, shape ``(B,)``.
    :param present: the different ids in ascending order.
    """

    ids: Tensor
    present: tuple[int, ...]


def parse_ids(ids: Any) -> int | RowIds:
    """Check ids and note which of them occur.

    :param ids: an int, or an integer tensor of shape ``()`` or ``(B,)``; -1 skips
        the branch.
    :return: an int if there is only one id, else ids per row.
    :raises TypeError: for another type.
    :raises ValueError: for another shape, or an id below -1.
    """
    if isinstance(ids, RowIds):
        return ids
    if isinstance(ids, Tensor) and ids.ndim > 0:
        whole = not (ids.is_floating_point() or ids.is_complex())
        if not whole or ids.dtype is torch.bool:
            raise TypeError(f"Ids of rows have type {ids.dtype}; give a LongTensor.")
        if ids.ndim != 1:
            raise ValueError(
                f"Ids of rows have shape {tuple(ids.shape)}; give one per row, (B,)."
            )
        present = tuple(torch.unique(ids).tolist())
        if present:
            _check_lowest(present[0])
        return RowIds(ids.detach().long(), present)
    try:
        if isinstance(ids, bool):
            raise TypeError
        single = operator.index(ids)
    except TypeError as error:
        raise TypeError(
            f"{ids!r} is no router id; give an int or a LongTensor (B,)."
        ) from error
    _check_lowest(single)
    return single


def _check_lowest(single: int) -> None:
    if single < SKIP:
        raise ValueError(
            f"Id {single} is out of range; use {SKIP} for the plain block, or 0 and"
            " above."
        )


def is_recomputation() -> bool:
    """Tell whether gradient checkpointing runs this pass a second time."""
    return torch._C._current_graph_task_id() != -1


class Routes:
    """Ids of one tower's rows in its next passes, read by its branches.

    :param ids: an int, or ids per row.
    """

    def __init__(self, ids: int | RowIds = 0) -> None:
        self.ids = ids
        self._trained: int | RowIds | None = None

    def current(self) -> int | RowIds:
        """Ids of this pass; when it is recomputed, of the last one with gradients."""
        if is_recomputation() and self._trained is not None:
            return self._trained
        if torch.is_grad_enabled():
            self._trained = self.ids
        return self.ids

    def of(self, rows: int, what: str, row: str) -> int | RowIds:
        """Ids of this pass for a number of rows; one int if they are all alike.

        :param rows: B.
        :param what: what the ids are, for the message.
        :param row: what a row is, for the message.
        :raises ValueError: if there are ids of another number of rows.
        """
        ids = self.current()
        if isinstance(ids, int):
            return ids
        if len(ids.ids) != rows:
            raise ValueError(
                f"{len(ids.ids)} {what} for {rows} {row}; set one per row, or one for"
                " all (batches of several ids cannot be cut into chunks)."
            )
        return ids if len(ids.present) > 1 else (*ids.present, SKIP)[0]

    @property
    def present(self) -> tuple[int, ...]:
        """The different ids, -1 for the plain block included."""
        return (self.ids,) if isinstance(self.ids, int) else self.ids.present

    @property
    def plain(self) -> int | Tensor:
        """The ids as they were given."""
        return self.ids if isinstance(self.ids, int) else self.ids.ids


@contextmanager
def restored(routes: dict[str, Routes]) -> Iterator[None]:
    """Put the ids of towers back when a ``with`` block ends."""
    before = {tower: own.ids for tower, own in routes.items()}
    try:
        yield
    finally:
        for tower, ids in before.items():
            routes[tower].ids = ids
