"""The images that a router selector learns from, as loaders that can be re-read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from avalanche_clip.common.randomness import named_seed
from avalanche_clip.training.templates.order import (
    TrainingOrder,
    TrainLoader,
    worker_options,
)
from avalanche_clip.training.templates.reference_data import ReferenceImages

REFERENCE_NUMBER = 2**31 - 1  # in place of the index of an experience


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
        if not isinstance(source, ReferenceImages):
            source = ReferenceImages(source, group=transform)
        images = source.bind(strategy.model)
        if experience is None:
            experience = strategy.visits.seed_number
        #: whether each image is the same tensor each time
        self.deterministic = images.fixed
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
