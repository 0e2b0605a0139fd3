"""Which branch of a block serves which row of a batch.

One protocol for all branches: an integer id for all rows, or a LongTensor with one
id per row; -1 passes the plain block.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

SKIP = -1
"""Id of rows that pass the plain block."""


class RowIds(NamedTuple):
    """Ids per row, and which of them occur.

    :param ids: integer tensor, shape ``(B,)``.
    :param present: the different ids in ascending order.
    """

    ids: Tensor
    present: tuple[int, ...]

    def rows(self, device: torch.device) -> Iterator[tuple[int, Tensor]]:
        """Yield each id with the positions of its rows."""
        ids = self.ids.to(device)
        for key in self.present:
            yield key, (ids == key).nonzero().squeeze(1)


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
        # A copy, since the caller may fill the tensor with other ids.
        return RowIds(ids.detach().to(torch.long, copy=True), present)
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


def present(ids: int | RowIds) -> tuple[int, ...]:
    """The different ids, -1 for the plain block included."""
    return (ids,) if isinstance(ids, int) else ids.present


def for_rows(ids: int | RowIds, rows: int, what: str, row: str) -> int | RowIds:
    """Check that ids fit a number of rows; see :meth:`Routes.of`."""
    if isinstance(ids, int):
        return ids
    if len(ids.ids) != rows:
        raise ValueError(
            f"{len(ids.ids)} {what} for {rows} {row}; set one per row, or one for"
            " all (batches of several ids cannot be cut into chunks)."
        )
    return ids if len(ids.present) > 1 else (*ids.present, SKIP)[0]


def is_recomputation() -> bool:
    """Tell whether gradient checkpointing runs this pass a second time."""
    return torch._C._current_graph_task_id() != -1


def memory_of(x: Tensor) -> tuple[Any, StorageWeakRef] | None:
    """What tells the memory of a tensor from all other memory in use.

    :return: a key, and a reference that keeps the address from being used again, not
        the memory; None where there is no memory.
    """
    if torch.compiler.is_compiling():  # a trace knows none
        return None
    try:
        storage = StorageWeakRef(x.untyped_storage())
    except NotImplementedError:  # nor do tensors of torch.func
        return None
    return (storage.cdata, x.storage_offset(), x.shape), storage


class _Pass:
    """Ids of a pass; its graph holds this object."""

    def __init__(self, ids: int | RowIds) -> None:
        self.ids = ids


class Routes:
    """Ids of one tower's rows in its next passes, read by its branches.

    Gradient checkpointing runs a block a second time in the backward pass, when other
    ids may be set. Which pass it belongs to is told by the block's input, which is kept
    in between. Where it is not (a whole tower is run again, or what is kept moves to
    another device), all passes with a graph must have the same ids.

    :param ids: an int, or ids per row.
    """

    def __init__(self, ids: int | RowIds = 0) -> None:
        self.ids = ids
        self._inputs: dict[Any, tuple[StorageWeakRef, int | RowIds | None]] = {}
        self._passes: WeakSet[_Pass] = WeakSet()
        self._again: int | RowIds | None = None

    def see(self, x: Tensor) -> None:
        """Note the ids that go with a block's input, or find them again.

        :param x: what the block reads in a pass; the same memory in its second run.
        """
        self._again = None
        found = memory_of(x)
        if found is None:
            return
        key, storage = found
        if is_recomputation():
            self._again = self._inputs.get(key, (storage, None))[1]
            return
        self._inputs = {k: v for k, v in self._inputs.items() if not v[0].expired()}
        known = self._inputs.get(key, (storage, self.ids))[1]
        self._inputs[key] = storage, self.ids if _same(known, self.ids) else None

    def mark(self, output: Tensor) -> None:
        """Note that a pass with these ids has a graph.

        :param output: of a module with a branch.
        """
        node: Any = output.grad_fn
        if node is not None and not is_recomputation():
            held = node.metadata[id(self)] = _Pass(self.ids)
            self._passes.add(held)

    def current(self) -> int | RowIds:
        """Ids of this pass; when it is recomputed, those of its first run.

        :raises RuntimeError: if they cannot be told.
        """
        if not is_recomputation():
            return self.ids
        if self._again is not None:
            return self._again
        found = [held.ids for held in self._passes]
        if not found or not all(_same(found[0], other) for other in found):
            raise RuntimeError(
                f"Checkpointing runs a pass a second time, and {len(found)} runs with"
                " different ids, or none, have a graph, so its ids cannot be told;"
                " checkpoint single blocks (the tower's own switch does), or call"
                " backward() before other ids are chosen."
            )
        return found[0]

    def of(self, rows: int, what: str, row: str) -> int | RowIds:
        """Ids of this pass for a number of rows; one int if they are all alike.

        :param rows: B.
        :param what: what the ids are, for the message.
        :param row: what a row is, for the message.
        :raises ValueError: if there are ids of another number of rows.
        """
        return for_rows(self.current(), rows, what, row)

    @property
    def plain(self) -> int | Tensor:
        """The ids as they were given."""
        return self.ids if isinstance(self.ids, int) else self.ids.ids

    def __reduce__(self) -> Any:
        return Routes, (self.ids,)


def _same(one: int | RowIds | None, other: int | RowIds | None) -> bool:
    if isinstance(one, RowIds) and isinstance(other, RowIds):
        return one is other or one.ids.tolist() == other.ids.tolist()
    return one == other


@contextmanager
def restored(routes: dict[str, Routes]) -> Iterator[None]:
    """Put the ids of towers back when a ``with`` block ends."""
    before = {tower: own.ids for tower, own in routes.items()}
    try:
        yield
    finally:
        for tower, ids in before.items():
            routes[tower].ids = ids
