"""Samples that are left out of training and evaluation, counted by cause."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.utils.data import get_worker_info

from avalanche_clip.common.checks import require_choice

SKIP_CAUSES = (
    "archive missing",
    "archive cut off",
    "archive damaged",
    "member refused",
    "member too large",
    "member twice",
    "no picture",
    "no caption",
    "caption unreadable",
    "picture unreadable",
    "picture too large",
    "content changed",
    "row unreadable",
    "time unreadable",
    "other",
)
"""Why a sample, or the rest of an archive, is left out."""
ON_ERROR = ("raise", "skip")
_WORKERS = 256


class SampleFault(ValueError):
    """Something that cannot be read, with its cause.

    :param cause: one of :data:`SKIP_CAUSES`.
    :param words: what was found where, and what to do.
    """

    def __init__(self, cause: str, words: str | None = None) -> None:
        if words is None:  # as torch makes it again from a worker's message
            cause, words = "other", cause
        super().__init__(words)
        self.cause = cause

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cause, str(self))


class Skipped:
    """Counts of what was left out, by cause, shared with worker processes.

    A source of items that has one as ``skipped`` says with it that items which cannot
    be read are to be left out: our loaders do so, and a batch is smaller by them. The
    first of each cause is warned about in the process that meets it. Samples that
    are met in several passes count each time.

    >>> skipped = Skipped()
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore")
    ...     skipped.add(SampleFault("no caption", "a.tar, sample 3 has no caption."))
    >>> skipped.counts(), skipped.total
    ({'no caption': 1}, 1)
    """

    def __init__(self) -> None:
        # One row per worker, so that none loses what another one adds.
        self._table = torch.zeros(_WORKERS + 1, len(SKIP_CAUSES), dtype=torch.int64)
        self._table.share_memory_()

    def add(self, fault: Exception) -> None:
        """Count a fault; an absent file is ``"no picture"``, the rest ``"other"``."""
        worker = get_worker_info()
        row = 0 if worker is None else 1 + worker.id % _WORKERS
        absent = isinstance(fault, FileNotFoundError)
        cause = "no picture" if absent else "other"
        cause = fault.cause if isinstance(fault, SampleFault) else cause
        column = SKIP_CAUSES.index(cause)
        self._table[row, column] += 1
        if self._table[:, column].sum() == 1:
            warnings.warn(
                f"A sample is left out ({cause}): {fault} Others of this cause are "
                "counted without a word.",
                stacklevel=3,
            )

    def counts(self) -> dict[str, int]:
        """Number of what was left out for each cause that occurred."""
        found = dict(zip(SKIP_CAUSES, self._table.sum(0).tolist(), strict=True))
        return {cause: count for cause, count in found.items() if count}

    @property
    def total(self) -> int:
        """Number of all that was left out."""
        return int(self._table.sum())

    def __deepcopy__(self, memo: Any) -> Skipped:
        return self

    def __repr__(self) -> str:
        return f"Skipped({self.counts()})"


def skipped_for(on_error: str) -> Skipped | None:
    """What a reader counts in; None if it shall raise.

    :param on_error: ``"raise"`` or ``"skip"``.
    :raises ValueError: for another value.
    """
    require_choice("on_error", on_error, ON_ERROR)
    return Skipped() if on_error == "skip" else None


def leave_out(fault: Exception, skipped: Skipped | None) -> None:
    """Raise a fault, or count it where that is wanted."""
    if skipped is None:
        raise fault
    skipped.add(fault)
