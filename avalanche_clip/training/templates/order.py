"""Training order as a pure function, and a loader that can start anywhere.

Which samples make up global batch ``k``, and the random numbers that augment
them, depend on ``(seed, experience, visit, k)`` only: not on the number of workers
or processes, nor on what ran before. So a run resumed in the middle draws the
batches that the uninterrupted run would have drawn, and a step that is trained
again draws others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, get_worker_info

from avalanche_clip.benchmarks.items.items import ReadableItems
from avalanche_clip.common.checks import as_size
from avalanche_clip.common.randomness import kept_rng, scramble, seed_cpu
from avalanche_clip.distributed import shares


@dataclass
class TrainingOrder:
    """The sequence of global batches of one experience.

    Without a budget (``continuous=False``) each epoch is a fresh permutation,
    cut into full batches. With one (``continuous=True``) permutations follow
    each other without end and batches run across the seams: every sample is
    drawn equally often, plus or minus one, and no batch holds a sample twice.

    :param num_samples: size ``N`` of the data, at least 1.
    :param batch_size: global batch size ``B``; when ``B > N`` a batch is the
        whole data set.
    :param seed: seed of the run.
    :param experience: index of the experience, or what :func:`seed_number` makes of
        it when the experience comes again.
    :param shuffle: without it the order of the data is kept.
    :param continuous: see above.
    :param drop_last: leave out the smaller tail of each epoch.
    :param processes: number of those that share a batch, each at least one
        sample of it.
    :param repeats: how often each batch comes, one time after the other, with other
        random numbers each time.
    :raises ValueError: if a batch has fewer samples than there are processes.
    """

    num_samples: int
    batch_size: int
    _: KW_ONLY
    seed: int
    experience: int
    shuffle: bool = True
    continuous: bool = False
    drop_last: bool = True
    processes: int = 1
    repeats: int = 1

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, self.num_samples)
        if self.batch_size < self.processes or not self.batch_size:
            raise ValueError(
                f"{self.batch_size} sample(s) cannot fill a batch on {self.processes} "
                "process(es); use fewer processes or more data."
            )
        tail = self.num_samples % self.batch_size
        if 0 < tail < self.processes and not (self.continuous or self.drop_last):
            raise ValueError(
                f"The last batch of an epoch has {tail} of {self.num_samples} samples, "
                f"too few for {self.processes} processes; use drop_last=True, or "
                "another batch size."
            )

    def batches_per_epoch(self) -> int:
        """Number of batches in one pass (of a run without a budget)."""
        full, rest = divmod(self.num_samples, self.batch_size)
        return (full if self.drop_last or not rest else full + 1) * self.repeats

    def permutation(self, number: int) -> np.ndarray:
        """Order of the samples in pass ``number``."""
        if not self.shuffle:
            return np.arange(self.num_samples)
        seeds = [self.seed & (2**63 - 1), self.experience, number]
        return np.random.default_rng(seeds).permutation(self.num_samples)

    def batches(self, epoch: int, start: int, count: int) -> Iterator[np.ndarray]:
        """Yield the index arrays of ``count`` batches.

        :param epoch: number of the epoch; ignored when ``continuous``.
        :param start: first batch, counted from the start of the epoch or, when
            ``continuous``, of the experience.
        :param count: number of batches.
        """
        first, skipped = divmod(start, self.repeats)
        last = -(-(start + count) // self.repeats)
        different = self._different(epoch, first, last - first)
        again = (batch for batch in different for _ in range(self.repeats))
        yield from islice(again, skipped, skipped + count)

    def _different(self, epoch: int, start: int, count: int) -> Iterator[np.ndarray]:
        """Yield batches, each once."""
        if self.continuous:
            yield from self._endless(start, count)
            return
        order = self.permutation(epoch)
        for k in range(start, start + count):
            yield order[k * self.batch_size : (k + 1) * self.batch_size]

    def _skip_to(self, start: int) -> int:
        """First batch of a pass from which batch ``start`` can be reached.

        A seam moves samples among the first two batches of a pass only. So
        the order near its end is that of its permutation, and the batches
        before the pass need not be walked through.
        """
        if self.num_samples < 4 * self.batch_size:
            return 0  # passes are short and seams overlap
        number = start * self.batch_size // self.num_samples - 1
        return max(0, number)

    def _endless(self, start: int, count: int) -> Iterator[np.ndarray]:
        size = self.batch_size
        number = self._skip_to(start)
        order = self.permutation(number)
        # The first batch that lies wholly in this pass.
        first = -(-number * self.num_samples // size)
        position = first * size - number * self.num_samples
        for k in range(first, start + count):
            batch = order[position : position + size]
            position += size
            missing = size - len(batch)
            if missing:
                number += 1
                following = self.permutation(number)
                free = np.flatnonzero(~np.isin(following, batch))[:missing]
                batch = np.concatenate([batch, following[free]])
                order, position = np.delete(following, free), 0
            if k >= start:
                yield batch

    def sample_seeds(self, epoch: int, batch: int, size: int) -> np.ndarray:
        """Seeds of the augmentations of one batch, uint64, ``(size,)``."""
        run = 0 if self.continuous else epoch
        return scramble(self.seed, self.experience, run, batch, np.arange(size))


class PlannedBatchSampler(Sampler[list[tuple[int, int]]]):
    """Yield this process's part of the planned batches, with seeds.

    ``plan(epoch, start, count)`` says what the next iteration yields.
    """

    def __init__(self, order: TrainingOrder, rank: int = 0, world_size: int = 1):
        self.order = order
        self.rank = rank
        self.world_size = world_size
        self.plan(0, 0, order.batches_per_epoch())

    def plan(self, epoch: int, start: int, count: int) -> None:
        """Choose the batches of the next iteration."""
        self.epoch, self.start, self.count = epoch, start, count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches = self.order.batches(self.epoch, self.start, self.count)
        for k, batch in enumerate(batches, self.start):
            seeds = self.order.sample_seeds(self.epoch, k, len(batch))
            sizes = shares(len(batch), self.world_size)
            low = sum(sizes[: self.rank])
            high = low + sizes[self.rank]
            yield list(
                zip(batch[low:high].tolist(), seeds[low:high].tolist(), strict=True)
            )


class SeededItems(ReadableItems):
    """Read items with the random generators seeded per sample.

    Python's, NumPy's and torch's generators are seeded before each item; in
    the main process they are put back after the batch, so that reading data
    never disturbs the model's own random numbers.
    """

    def __getitems__(self, indices: list[tuple[int, int]]) -> list[Any]:
        """Read the items of a batch, each with its seed."""
        in_worker = get_worker_info() is not None
        with nullcontext() if in_worker else kept_rng():
            return super().__getitems__(indices)

    def _read(self, index: tuple[int, int]) -> Any:
        place, seed = index
        seed_cpu(seed)
        return self.dataset[place]


class WatchedLoader(DataLoader):
    """A ``DataLoader`` that tells of a dead worker, whatever breaks first then."""

    def __iter__(self) -> Any:
        try:
            yield from super().__iter__()
        except (OSError, EOFError) as error:
            # What a worker has raised itself begins so.
            if not self.num_workers or str(error).startswith("Caught "):
                raise
            raise RuntimeError(
                f"A DataLoader worker is gone, killed or exited ({error!r} when its "
                "data were taken). Look for a lack of memory, or use fewer workers."
            ) from error


class TrainLoader(WatchedLoader):
    """A ``DataLoader`` over :class:`PlannedBatchSampler`.

    ``len()`` is the number of batches planned for the running epoch, so
    progress bars are right.
    """

    readers = 0
    """Readers that the content of a batch depends on, of a stream."""

    def __init__(
        self,
        dataset: Any,
        order: TrainingOrder,
        *,
        collate_fn: Callable[[list[Any]], Any],
        rank: int = 0,
        world_size: int = 1,
        **options: Any,
    ):
        self.order = order
        super().__init__(
            SeededItems(dataset),
            batch_sampler=PlannedBatchSampler(order, rank, world_size),
            collate_fn=collate_fn,
            generator=torch.Generator().manual_seed(order.seed & (2**63 - 1)),
            **options,
        )

    def plan(self, epoch: int, start: int, count: int) -> None:
        """Choose the batches of the next iteration."""
        sampler: Any = self.batch_sampler
        sampler.plan(epoch, start, count)


WORKER_OPTIONS = (
    "num_workers",
    "pin_memory",
    "persistent_workers",
    "prefetch_factor",
    "multiprocessing_context",
    "timeout",
    "worker_init_fn",
)
"""Options of a ``DataLoader`` that ``train`` and ``eval`` take."""


def worker_options(options: dict[str, Any]) -> dict[str, Any]:
    """Keep the ``DataLoader`` options among the keywords of ``train``."""
    kept = {k: v for k, v in options.items() if k in WORKER_OPTIONS and v is not None}
    for name in ("num_workers", "prefetch_factor"):
        if name in kept:
            kept[name] = as_size(kept[name], name, least=int(name != "num_workers"))
    if not kept.get("num_workers"):
        for name in ("persistent_workers", "prefetch_factor", "timeout"):
            kept.pop(name, None)
        kept.pop("multiprocessing_context", None)
    return kept
