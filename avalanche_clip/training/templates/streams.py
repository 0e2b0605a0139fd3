"""Batches of samples that come as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from avalanche_clip.benchmarks.items.streamed import StreamedItems
from avalanche_clip.common.randomness import kept_rng, scramble, seed_cpu
from avalanche_clip.distributed import shares
from avalanche_clip.training.templates.order import TrainingOrder, TrainLoader


class StreamPart(IterableDataset[Any]):
    """The items of this process, each worker's its own.

    :param items: the stream.
    :param order: of training; None for one pass in order.
    :param rank: of this process.
    """

    def __init__(
        self, items: StreamedItems, order: TrainingOrder | None = None, rank: int = 0
    ) -> None:
        self.items, self.order, self.rank = items, order, rank
        self.epoch = self.start = 0
        """Epoch, and the first batch of it that is wanted."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if self.order is None:
            yield from map(self.items.item, self.items.samples(worker, workers, None))
            return
        order = self.order
        # Batch k of an epoch is that of reader k % workers, wherever it begins.
        reader = (worker + self.start) % workers
        skipped = len(range(reader, self.start, workers)) * self.batch_size
        part = self.rank * workers + reader
        seeds = (order.seed & (2**63 - 1), order.experience, self.epoch)
        samples = self.items.samples(part, order.processes * workers, seeds)
        for number, raw in enumerate(samples):
            if number < skipped:
                continue
            with kept_rng() if info is None else nullcontext():
                seed_cpu(int(scramble(*seeds, part, number)))
                item = self.items.item(raw)
            yield item

    @property
    def batch_size(self) -> int:
        """Samples of a batch that are this process's."""
        assert self.order is not None
        return shares(self.order.batch_size, self.order.processes)[self.rank]


class StreamLoader(TrainLoader):
    """Batches of a stream, as many as are planned.

    What a batch holds depends on the seed, the experience, its visit and the epoch, and
    on the number of workers and processes, which a resumed run must have again to go on
    exactly; it reads once more what was drawn in the running epoch.

    :raises ValueError: for steps that repeat a batch, or workers that persist.
    """

    def __init__(
        self,
        dataset: StreamedItems,
        order: TrainingOrder,
        *,
        rank: int = 0,
        world_size: int = 1,
        **options: Any,
    ) -> None:
        if order.repeats > 1 or options.get("persistent_workers"):
            what = "persistent_workers" if order.repeats == 1 else "repeats > 1"
            raise ValueError(
                f"{what} cannot be had with samples that come as a stream; leave it "
                "out, or read the archives by an index."
            )
        self.order, self.count = order, order.batches_per_epoch()
        self.part = StreamPart(dataset, order, rank)
        self.readers = order.processes * max(1, options.get("num_workers", 0))
        """Workers of all processes, each of which has archives of its own."""
        DataLoader.__init__(
            self,
            self.part,
            batch_size=self.part.batch_size,
            drop_last=True,
            generator=torch.Generator().manual_seed(order.seed & (2**63 - 1)),
            **options,
        )

    def plan(self, epoch: int, start: int, count: int) -> None:
        """Choose the batches of the next iteration."""
        self.part.epoch, self.part.start, self.count = epoch, start, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        return islice(super().__iter__(), self.count)
