"""The data side of the CLIP templates: loaders that can start anywhere."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from avalanche.benchmarks.utils.transforms import (
    MultiParamCompose,
    MultiParamTransformCallable,
    TupleTransform,
)
from torch.utils.data import DataLoader

from avalanche_clip import distributed
from avalanche_clip.benchmarks.prepare import require_prepared
from avalanche_clip.budget import ComputeBudget
from avalanche_clip.training.loader import TrainingOrder, TrainLoader, worker_options


class LoaderMixin:
    """Build training and evaluation loaders over ``adapted_dataset``."""

    adapted_dataset: Any
    compute: ComputeBudget
    dataloader: Any
    device: torch.device
    eval_mb_size: int
    experience_index: int
    seed: int
    train_mb_size: int

    def make_train_dataloader(
        self, shuffle: bool = True, drop_last: bool = True, **kwargs: Any
    ) -> None:
        """Build the resumable loader over ``adapted_dataset``."""
        dataset = self.adapted_dataset
        assert dataset is not None
        require_prepared(dataset)
        self._check_pool(dataset)
        options = worker_options(kwargs)
        options.setdefault("pin_memory", self.device.type == "cuda")
        world = distributed.world_size()
        order = TrainingOrder(
            len(dataset),
            self.train_mb_size * world,
            seed=self.seed,
            experience=self.experience_index,
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
        require_prepared(dataset)
        options = worker_options(kwargs)
        options.setdefault("pin_memory", self.device.type == "cuda")
        self.dataloader = DataLoader(
            dataset,
            batch_size=self.eval_mb_size,
            collate_fn=dataset.collate_fn,
            generator=torch.Generator().manual_seed(0),
            **options,
        )


def has_deterministic_images(dataset: Any) -> bool:
    """Tell whether a training data set always gives the same image tensors.

    True if every image transform of its training group says
    ``deterministic=True``; data without any are not known to be.
    """
    found = list(_image_transforms(dataset._flat_data))
    return bool(found) and all(getattr(t, "deterministic", False) for t in found)


def _image_transforms(node: Any) -> Iterator[Any]:
    for name in ("_transform_groups", "_frozen_transform_groups"):
        groups = getattr(getattr(node, name, None), "transform_groups", {})
        yield from image_side(groups.get("train"))
    for child in getattr(node, "_datasets", ()):
        yield from _image_transforms(child)


def image_side(transform: Any) -> Iterator[Any]:
    """What a transform of whole items does to images."""
    if isinstance(transform, MultiParamCompose):
        for part in transform.transforms:
            yield from image_side(part)
    elif isinstance(transform, TupleTransform):
        yield from (t for t in transform.transforms[:1] if t is not None)
    elif isinstance(transform, MultiParamTransformCallable):
        yield transform.transform
    elif callable(transform):
        yield transform


__all__ = ["LoaderMixin", "has_deterministic_images"]
