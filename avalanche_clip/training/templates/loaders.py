"""Loaders of training and evaluation that can start anywhere."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from avalanche.benchmarks.scenarios.online import OnlineCLExperience
from torch.utils.data import DataLoader

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.items import ReadableItems
from avalanche_clip.benchmarks.items.prepare import require_prepared
from avalanche_clip.benchmarks.items.streamed import StreamedItems
from avalanche_clip.training.templates.order import (
    TrainingOrder,
    TrainLoader,
    WatchedLoader,
    worker_options,
)
from avalanche_clip.training.templates.streams import StreamLoader, StreamPart

_SERVED = 60
"""Seconds that a worker serves on after SIGTERM; launchers wait 30 at most."""


def _common(strategy: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Check the data of a strategy, and complete what a loader is built with."""
    dataset = strategy.adapted_dataset
    require_prepared(dataset, strategy.model, captions=strategy.reads_captions)
    pinned = {"pin_memory": strategy.device.type == "cuda"}
    options = worker_options(options)
    if options.get("num_workers"):
        begin = partial(_outlast, options.get("worker_init_fn"))
        options["worker_init_fn"] = begin
    return {**pinned, **options, "collate_fn": dataset.collate_fn}


def _outlast(begin: Callable[[int], Any] | None, worker: int) -> None:
    """Let a worker serve on after SIGTERM, which launchers send to all at once.

    A run then needs its batches to the end of the step. The worker ends with it.

    :param begin: what the user has a worker begin with.
    """
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_SERVED))
    if begin is not None:
        begin(worker)


def train_loader(
    strategy: Any, options: dict[str, Any], *, shuffle: bool, drop_last: bool
) -> TrainLoader:
    """Build the resumable loader over the ``adapted_dataset`` of a strategy.

    :param options: keywords of ``train``.
    """
    common = _common(strategy, options)
    dataset, world = strategy.adapted_dataset, distributed.world_size()
    strategy.check_pool(dataset)
    size = strategy.train_mb_size * world
    streamed = isinstance(dataset, StreamedItems)
    order = TrainingOrder(
        len(dataset),
        size,
        seed=strategy.seed,
        experience=strategy.visits.seed_number,
        shuffle=shuffle,
        continuous=strategy.compute.limited and not streamed,
        drop_last=drop_last,
        processes=world,
        repeats=strategy.repeats,
    )
    online = isinstance(strategy.experience, OnlineCLExperience)
    if order.batch_size < size and not online:  # whose parts are as they come
        warnings.warn(
            f"Experience {strategy.experience_index} has {len(dataset)} samples, fewer "
            f"than a batch of {size}; batches of {order.batch_size} are used. Choose a "
            "smaller train_mb_size to avoid this.",
            stacklevel=3,
        )
    rank = distributed.rank()
    kind = StreamLoader if streamed else TrainLoader
    return kind(dataset, order, rank=rank, world_size=world, **common)


def eval_loader(strategy: Any, options: dict[str, Any]) -> DataLoader[Any]:
    """Build a plain, unshuffled loader over the ``adapted_dataset`` of a strategy.

    :param options: keywords of ``eval``.
    """
    dataset = strategy.adapted_dataset
    streamed = isinstance(dataset, StreamedItems)
    return WatchedLoader(
        StreamPart(dataset) if streamed else ReadableItems(dataset),
        batch_size=strategy.eval_mb_size,
        generator=torch.Generator().manual_seed(0),
        **_common(strategy, options),
    )
