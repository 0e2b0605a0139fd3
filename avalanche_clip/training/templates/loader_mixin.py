"""The data side of the CLIP templates: loaders that can start anywhere."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.utils.data import DataLoader

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.prepare import require_prepared
from avalanche_clip.budget import ComputeBudget
from avalanche_clip.training.templates.order import (
    TrainingOrder,
    TrainLoader,
    worker_options,
)
from avalanche_clip.training.templates.visits import Visits


class LoaderMixin:
    """Build training and evaluation loaders over ``adapted_dataset``."""

    reads_captions = True
    """Whether the model sees the captions of the data, and not prompts of classes."""

    model: Any
    adapted_dataset: Any
    compute: ComputeBudget
    dataloader: Any
    device: torch.device
    eval_mb_size: int
    experience_index: int
    seed: int
    train_mb_size: int
    visits: Visits

    def make_train_dataloader(
        self, shuffle: bool = True, drop_last: bool = True, **kwargs: Any
    ) -> None:
        """Build the resumable loader over ``adapted_dataset``."""
        dataset = self.adapted_dataset
        assert dataset is not None
        require_prepared(dataset, self.model, captions=self.reads_captions)
        self._check_pool(dataset)
        options = worker_options(kwargs)
        options.setdefault("pin_memory", self.device.type == "cuda")
        world = distributed.world_size()
        order = TrainingOrder(
            len(dataset),
            self.train_mb_size * world,
            seed=self.seed,
            experience=self.visits.seed_number,
            shuffle=shuffle,
            continuous=self.compute.limited,
            drop_last=drop_last,
            processes=world,
        )
        if order.batch_size < self.train_mb_size * world:
            warnings.warn(
                f"Experience {self.experience_index} has {len(dataset)} samples, fewer "
                f"than a batch of {self.train_mb_size * world}; batches of "
                f"{order.batch_size} are used. Choose a smaller train_mb_size to "
                "avoid this.",
                stacklevel=2,
            )
        self.dataloader = TrainLoader(
            dataset,
            order,
            collate_fn=dataset.collate_fn,
            rank=distributed.rank(),
            world_size=world,
            **options,
        )

    def _check_pool(self, dataset: Any) -> None:
        if len(dataset) == 0:
            raise ValueError(
                f"Experience {self.experience_index} has no training data; remove the "
                "empty step from the benchmark."
            )

    def make_eval_dataloader(self, **kwargs: Any) -> None:
        """Build a plain, unshuffled loader over ``adapted_dataset``."""
        dataset = self.adapted_dataset
        assert dataset is not None
        require_prepared(dataset, self.model, captions=self.reads_captions)
        options = worker_options(kwargs)
        options.setdefault("pin_memory", self.device.type == "cuda")
        self.dataloader = DataLoader(
            dataset,
            batch_size=self.eval_mb_size,
            collate_fn=dataset.collate_fn,
            generator=torch.Generator().manual_seed(0),
            **options,
        )
