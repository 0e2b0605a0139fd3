"""Image-text items that come in an order of their own: no positions, no columns."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from avalanche.benchmarks.utils import TransformGroups

from avalanche_clip.benchmarks.items.batch import FieldCollate
from avalanche_clip.benchmarks.items.skipped import SampleFault, Skipped, leave_out
from avalanche_clip.common.checks import as_size

STREAM_ADVICE = (
    "is not there for samples that come as a stream: replay, splits and passes over "
    "the data need positions. Read the archives by an index (open_tar_index and "
    "TarPairs), or leave the part out that asks for it."
)
RawItem = tuple[Any, Any, int]
"""Picture, caption or captions, and sample id."""


class StreamedItems:
    """Data of an experience that are read in one order only.

    :param num_samples: of one pass: what an epoch is planned with.
    """

    _data_attributes: Mapping[str, Any] = {}  # facts are in the items
    skipped: Skipped | None = None
    source = "the stream"

    def __init__(self, num_samples: int) -> None:
        self.num_samples = as_size(num_samples, "num_samples")
        fields = ("image", "text", "sample_id", "targets_task_labels")
        self.collate_fn = FieldCollate(fields)
        self.groups: TransformGroups | None = None
        self.group = "train"

    def samples(
        self, part: int, parts: int, seeds: tuple[int, ...] | None
    ) -> Iterator[RawItem]:
        """Yield the samples of one of several readers.

        In ``parts`` passes every reader comes to all samples.

        :param part: number of the reader.
        :param parts: how many there are; each sample of a pass is one reader's.
        :param seeds: of the order of an endless stream; None for one pass in order.
        :raises ValueError: if nothing of the whole stream can be read.
        """
        empty = 0
        for number in range(1) if seeds is None else itertools.count():
            empty += 1
            for raw in self.one_pass(part, parts, seeds, number):
                try:
                    item = self.raw_item(raw)
                except SampleFault as fault:
                    leave_out(fault, self.skipped)
                    continue
                empty = 0
                yield item
            if seeds is not None and empty == 2 * parts:  # all of it at least once
                raise ValueError(
                    f"No sample of {self.source} can be read: {self.skipped}."
                )

    def one_pass(
        self, part: int, parts: int, seeds: tuple[int, ...] | None, number: int
    ) -> Iterator[Any]:
        """Yield what one reader reads in a pass, see :meth:`samples`.

        :param number: of the pass.
        """
        raise NotImplementedError

    def raw_item(self, raw: Any) -> RawItem:
        """Make a sample of what was read.

        :raises SampleFault: if it cannot be.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Text that says which samples these are."""
        raise NotImplementedError

    def prepared(
        self, tokenizer: Any, groups: TransformGroups, pixels: Mapping[str, str] | None
    ) -> StreamedItems:
        """Return the same samples for a model, see :func:`prepare_dataset`."""
        bound = copy.copy(self)
        bound.groups = groups
        bound.collate_fn = FieldCollate(self.collate_fn.fields, tokenizer, pixels)
        return bound

    def item(self, raw: RawItem) -> tuple[Any, ...]:
        """Apply the transforms of the group in use."""
        image, text, number = raw
        if self.groups is not None:
            image, text = self.groups[self.group](image, text)
        return image, text, number, 0

    def train(self) -> StreamedItems:
        """Return the same samples with the transforms of training."""
        return self._in("train")

    def eval(self) -> StreamedItems:
        """Return the same samples with the transforms of evaluation."""
        return self._in("eval")

    def _in(self, group: str) -> StreamedItems:
        found = copy.copy(self)
        found.group = group
        return found

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: Any) -> NoReturn:
        raise TypeError(f"Item {index} {STREAM_ADVICE}")

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{name!r} {STREAM_ADVICE}")
