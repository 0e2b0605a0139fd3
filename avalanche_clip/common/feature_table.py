"""Feature rows of frozen encoders by id, in memory or mapped from a file."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

CACHE_BYTES = 128 * 2**20
"""Largest table of image features that is kept of a teacher."""


class FeatureTable:
    """Rows ``(N, D)`` by id; those not given are put in one after the other.

    :param ids: ids of the rows, ascending and different; a number N for ids
        ``0..N-1``.
    :param rows: all rows, such as a memory map, float16 or float32; None begins
        with none.
    :param max_bytes: most memory for rows that are put in; None: no bound.
    """

    def __init__(
        self,
        ids: npt.NDArray[np.int64] | int,
        rows: np.ndarray | None = None,
        *,
        max_bytes: int | None = None,
    ):
        self.ids = None if isinstance(ids, int) else ids
        self.size = ids if isinstance(ids, int) else len(ids)
        self.max_bytes = max_bytes
        self.given = rows
        self.rows: Tensor | None = None
        self.held: list[int] = []  # positions of the rows, in the order of arrival
        self._slots = np.full(0 if rows is not None else self.size, -1, np.int32)

    def extend(self, size: int) -> None:
        """Make room for the ids ``0..size-1``, in a table without given ids or rows."""
        self._slots = np.append(self._slots, np.full(size - self.size, -1, np.int32))
        self.size = size

    def positions(self, ids: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Find ids in the table: int64 ``(R,)``, -1 where it has no such id."""
        wanted = np.asarray(ids, dtype=np.int64)
        if self.ids is None:
            inside = (wanted >= 0) & (wanted < self.size)
            return np.where(inside, wanted, -1)
        if not self.size:
            return np.full_like(wanted, -1)
        at = np.minimum(np.searchsorted(self.ids, wanted), self.size - 1)
        return np.where(self.ids[at] == wanted, at, -1)

    def known(self, ids: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Say which ids have a row, bool ``(R,)``."""
        at = self.positions(ids)
        if self.given is not None:
            return at >= 0
        return (at >= 0) & (self._slots[at] >= 0)

    def get(self, ids: npt.ArrayLike) -> Tensor | None:
        """Return the rows ``(R, D)``, float32, or None unless all are known."""
        at = self.positions(ids)
        if not self.known(ids).all():
            return None
        if self.given is not None:
            return torch.from_numpy(self.given[at].astype(np.float32))
        return None if self.rows is None else self.rows[self._slots[at].tolist()]

    def all(self) -> Tensor:
        """Return all rows that were put in, in the order of arrival, not copied."""
        assert self.rows is not None
        rows, count = self.rows, len(self.held)
        return rows if count == len(rows) else rows[:count]

    def put(self, ids: npt.ArrayLike, values: Tensor) -> None:
        """Store rows; new ones as long as there is room, ids of others are left out.

        :param ids: integers ``(R,)``.
        :param values: float32 ``(R, D)``; the table stays on the device of the first.
        """
        at = self.positions(ids)
        new = np.unique(at[(at >= 0) & (self._slots[at] < 0)])
        capacity = self._capacity(values.shape[1])
        new = new[: max(capacity - len(self.held), 0)]
        start, end = len(self.held), len(self.held) + len(new)
        self._slots[new] = np.arange(start, end, dtype=np.int32)
        self.held += new.tolist()
        have = 0 if self.rows is None else len(self.rows)
        if end > have:
            grown = values.new_empty(min(max(2 * end, 256), capacity), values.shape[1])
            if self.rows is not None:
                grown[:have] = self.rows
            self.rows = grown
        kept = np.flatnonzero((at >= 0) & (self._slots[at] >= 0))
        if self.rows is not None and len(kept):
            self.rows[self._slots[at[kept]].tolist()] = values[kept.tolist()]

    def _capacity(self, width: int) -> int:
        if self.max_bytes is None:
            return self.size
        return min(self.size, self.max_bytes // (4 * width))

    def state_dict(self) -> dict[str, Any]:
        """Return what was put in as plain data."""
        rows = None if self.rows is None else self.all()
        ids = None if self.ids is None else torch.from_numpy(self.ids)
        return {
            "ids": self.size if ids is None else ids,
            "held": torch.tensor(self.held, dtype=torch.int64),
            "rows": rows,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        ids = state["ids"]
        again = FeatureTable(
            ids if isinstance(ids, int) else ids.numpy(), max_bytes=self.max_bytes
        )
        again.held = state["held"].tolist()
        again._slots[again.held] = np.arange(len(again.held), dtype=np.int32)
        again.rows = None if state["rows"] is None else state["rows"].clone()
        vars(self).update(vars(again))
