"""The images that a router selector learns from, as loaders that can be re-read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.benchmarks.scenarios.generic_scenario import CLExperience, CLStream
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torch.utils.flop_counter import FlopCounterMode

from avalanche_clip.benchmarks.items.flat import has_deterministic_images
from avalanche_clip.benchmarks.items.prepare import is_prepared
from avalanche_clip.common.randomness import named_seed
from avalanche_clip.training.templates.order import (
    TrainingOrder,
    TrainLoader,
    worker_options,
)
from avalanche_clip.training.templates.reference_data import ReferenceImages

REFERENCE_NUMBER = 2**31 - 1  # in place of the index of an experience


class Images(Dataset):
    """The images of data whose items begin with one, or are mappings."""

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Tensor:
        item = self.data[index]
        if isinstance(item, dict):
            return item["image"]
        return item[0] if isinstance(item, (tuple, list)) else item


class ImagePasses:
    """Passes over images: shuffled and augmented anew each time.

    What a pass gives depends on the seed, the experience and the number of the
    pass only; every process sees all images.

    :param strategy: whose model, seed and experience are used.
    :param source: a prepared data set, or reference images, which are transformed as
        the tasks' unless they bring a transform of their own.
    :param batch_size: images per batch; the smaller tail of a pass is kept.
    :param options: of the loader (workers).
    :param transform: which of the data's transforms: ``"train"`` or ``"eval"``.
    :param experience: number that stands for the experience; None for the running one.
    """

    def __init__(
        self,
        strategy: Any,
        source: Any,
        batch_size: int,
        options: dict[str, Any],
        *,
        transform: str = "eval",
        experience: int | None = None,
    ):
        images, same = _images_of(strategy.model, source, transform)
        if experience is None:
            experience = strategy.visits.seed_number
        #: whether each image is the same tensor each time
        self.deterministic = same
        self.images = images
        #: images given so far
        self.drawn = 0
        order = TrainingOrder(
            len(images),
            batch_size,
            seed=named_seed(strategy.seed, "selector"),
            experience=experience,
            drop_last=False,
        )
        self._count = order.batches_per_epoch()
        self._passes = 0
        self._loader = TrainLoader(
            images, order, collate_fn=torch.stack, **worker_options(options)
        )

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tensor]:
        self._loader.plan(self._passes, 0, self._count)
        self._passes += 1
        for batch in self._loader:
            self.drawn += len(batch)
            yield batch


def _images_of(model: Any, source: Any, transform: str) -> tuple[Any, bool]:
    """Image tensors of a source, and whether they are the same each time."""
    if not isinstance(source, ReferenceImages):
        parts = _prepared_parts(source) if transform == "train" else []
        if parts:
            images = Images(ConcatDataset([part.train() for part in parts]))
            return images, all(has_deterministic_images(part) for part in parts)
        source = ReferenceImages(
            source, transform=model.transform(transform == "train")
        )
    bound = source.bind(model)
    return bound, bound.fixed


def selector_images(
    selector: Any, model: Any, loader: ImagePasses, iterations: int
) -> float:
    """Cost of fitting an autoencoder, in passes of images through the model.

    Forward passes only, as for everything that is booked: those of the early
    layers, and those of the autoencoder in its iterations.

    :param selector: an :class:`AutoSelector`.
    :param model: a dual encoder.
    :param loader: what the autoencoder was fitted on.
    :param iterations: of its training.
    """
    whole = model.macs()["image"]
    size = model.image_size
    height, width = (size, size) if isinstance(size, int) else size
    blank = torch.zeros(1, 3, height, width, device=selector.encoder_weight.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = selector.features(blank)
    early = counter.get_total_flops() / 2
    batch = min(selector.training_plan.batch_size, len(loader.images))
    coding = 2 * features.shape[1] * selector.hidden
    return (loader.drawn * early + iterations * batch * coding) / whole


def _prepared_parts(source: Any) -> list[Any]:
    """The prepared data sets of a source, none if it is something else."""
    if isinstance(source, CLExperience):
        source = source.dataset  # type: ignore[attr-defined]
    if isinstance(source, AvalancheDataset):
        return [source] if is_prepared(source) else []
    if isinstance(source, (CLStream, list, tuple)) and len(source):
        parts = [_prepared_parts(one) for one in source]
        return [p for part in parts for p in part] if all(parts) else []
    return []
