"""How the autoencoders of DDAS are trained, and on which stream of features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_clip.common.checks import as_finite, as_size, require_array
from avalanche_clip.common.progress import progress

STATISTICS_IMAGES = 16_384
_NO_IMAGES = "There are no images to train on; give at least one."


@dataclass(frozen=True)
class SelectorTraining:
    """How an autoencoder is trained: Adam on the mean squared error.

    The learning rate is ``lr * 0.1 ** (epoch // decay_epochs)``, where epochs
    are counted over the images at hand, ``batch_size`` per step.

    :param reference_iterations: steps for index 0.
    :param task_iterations: steps for each task.
    :param batch_size: images per step; the last batch of an epoch is smaller.
    :param lr: initial learning rate; the authors use 0.01, and 0.003 for few
        images per class.
    :param weight_decay: of Adam (added to the gradient).
    :param decay_epochs: epochs until the rate falls to a tenth; None: never.
    :param cache_bytes: most memory for features that are kept.
    :raises ValueError: for a value outside its range.
    """

    reference_iterations: int = 1000
    task_iterations: int = 300
    batch_size: int = 64
    lr: float = 0.01
    weight_decay: float = 1e-4
    decay_epochs: int | None = 10
    cache_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        for name in ("reference_iterations", "task_iterations", "batch_size"):
            as_size(getattr(self, name), name)
        as_size(self.cache_bytes, "cache_bytes", least=0)
        if self.decay_epochs is not None:
            as_size(self.decay_epochs, "decay_epochs")
        as_finite(self.lr, "lr", above=0)
        as_finite(self.weight_decay, "weight_decay", low=0)

    def rate(self, epoch: int) -> float:
        """Return the learning rate of an epoch, counted from 0.

        >>> SelectorTraining().rate(9), SelectorTraining().rate(10)
        (0.01, 0.001)
        """
        steps = 0 if self.decay_epochs is None else epoch // self.decay_epochs
        return float(self.lr * 0.1**steps)


def images_of(batch: Any) -> Tensor:
    """Find the images in a batch of a loader.

    :param batch: image tensor, mapping with ``"image"``, or a sequence that
        starts with one of these.
    :return: float ``(B, 3, H, W)``.
    :raises ValueError: if there are none, or they are no preprocessed images.
    """
    found = batch
    while not isinstance(found, Tensor):
        if isinstance(found, Mapping) and "image" in found:
            found = found["image"]
        elif isinstance(found, list | tuple) and found:
            found = found[0]
        else:
            raise ValueError(
                f"A batch of type {type(batch).__name__} holds no images; give image"
                " tensors, tuples that start with one, or mappings with 'image'."
            )
    give = "made by model.transform(train)"
    require_array(found, "Images", "* * * *", "float", give=give)
    return found


def image_batches(
    source: Any, batch_size: int, generator: torch.Generator | None = None
) -> Iterator[Tensor]:
    """Go once over images.

    :param source: image tensor ``(N, 3, H, W)`` or a re-iterable loader.
    :param batch_size: for a tensor; loaders have their own.
    :param generator: shuffles a tensor; None keeps its order.
    :return: image tensors.
    :raises TypeError: for an iterator, which could be read only once.
    """
    if isinstance(source, Tensor):
        images = images_of(source)
        order = torch.arange(len(images))
        if generator is not None:
            order = torch.randperm(len(images), generator=generator)
        for part in order.split(batch_size) if len(images) else ():
            yield images[part.to(images.device)]
        return
    if isinstance(source, Iterator):
        raise TypeError(
            f"Images came as a {type(source).__name__}, which can be read only once;"
            " give a tensor or a loader."
        )
    for batch in source:
        yield images_of(batch)


def batch_count(source: Any, batch_size: int) -> int | None:
    """Batches of :func:`image_batches`; None if the source does not say."""
    if isinstance(source, Tensor):
        return -(-len(source) // batch_size)
    return len(source) if isinstance(source, Sized) else None


@dataclass
class FeatureStream:
    """Endless batches of features, computed once where that is possible.

    :param extract: images -> features ``(B, F)``.
    :param source: as for :func:`image_batches`.
    :param deterministic: whether a loader gives the same images every epoch.
    :param plan: batch size and memory.
    :param generator: draws the orders.
    :param cache: features of all images, in the order of the first epoch.
    """

    extract: Callable[[Tensor], Tensor]
    source: Any
    deterministic: bool
    plan: SelectorTraining
    generator: torch.Generator
    cache: Tensor | None = None

    def statistics(self, limit: int = STATISTICS_IMAGES) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation ``(F,)`` of one epoch's features.

        :param limit: stop after about this many images.
        :return: float32; dimensions that do not vary get deviation 1.
        """
        parts: list[Tensor] = []
        size = self.plan.batch_size
        most = -(-limit // size)
        total = batch_count(self.source, size)
        total = most if total is None else min(total, most)
        for rows in progress(self._epoch(), "selector, statistics", total):
            parts.append(rows)
            if sum(map(len, parts)) >= limit:
                break
        if not parts:
            raise ValueError(_NO_IMAGES)
        values = torch.cat(parts).double()
        std = values.std(0, unbiased=False)
        still = std <= 1e-6 * values.abs().amax(0)
        return values.mean(0).float(), std.masked_fill(still, 1.0).float()

    def batches(self) -> Iterator[tuple[int, Tensor]]:
        """Yield (epoch, features) of ``batch_size`` rows, for ever."""
        size, epoch = self.plan.batch_size, 0
        while True:
            rest, count = torch.empty(0), 0
            for rows in self._epoch():
                rest = torch.cat([rest, rows]) if len(rest) else rows
                count += len(rows)
                while len(rest) >= size:
                    yield epoch, rest[:size]
                    rest = rest[size:]
            if not count:
                raise ValueError(_NO_IMAGES)
            if len(rest):
                yield epoch, rest
            epoch += 1

    def _epoch(self) -> Iterator[Tensor]:
        """Yield the features of one epoch, and keep them if that is allowed."""
        size = self.plan.batch_size
        if self.cache is not None:
            order = torch.randperm(len(self.cache), generator=self.generator)
            for part in order.split(size):
                yield self.cache[part.to(self.cache.device)]
            return
        fixed = self.deterministic or isinstance(self.source, Tensor)
        kept: list[Tensor] = []
        used = 0
        for images in image_batches(self.source, size, self.generator):
            rows = self.extract(images)
            used += rows.numel() * rows.element_size()
            if fixed and used <= self.plan.cache_bytes:
                kept.append(rows)
            else:
                kept.clear()
            yield rows
        if kept:
            self.cache = torch.cat(kept)


def initial_autoencoder(
    size: int, hidden: int, generator: torch.Generator
) -> list[Tensor]:
    """Draw weights as ``nn.Linear`` does, uniform in +-1/sqrt(inputs).

    :return: encoder weight ``(h, F)``, bias ``(h,)``, decoder weight ``(F, h)``
        and bias ``(F,)``.
    """
    shapes = ((hidden, size), (hidden,), (size, hidden), (size,))
    bounds = (size**-0.5, size**-0.5, hidden**-0.5, hidden**-0.5)
    return [
        torch.empty(shape).uniform_(-bound, bound, generator=generator)
        for shape, bound in zip(shapes, bounds, strict=True)
    ]


def train_autoencoder(
    weights: list[Tensor],
    batches: Iterator[tuple[int, Tensor]],
    iterations: int,
    plan: SelectorTraining,
    description: str = "autoencoder",
) -> None:
    """Train one autoencoder in place.

    :param weights: as :func:`initial_autoencoder` returns them.
    :param batches: yields (epoch, activations ``(B, F)`` in (0, 1)).
    :param iterations: number of steps.
    :param plan: optimiser settings.
    :param description: shown beside how far it is.
    """
    for weight in weights:
        weight.requires_grad_()
    optimizer = torch.optim.Adam(weights, lr=plan.lr, weight_decay=plan.weight_decay)
    encoder, bias, decoder, offset = weights
    with torch.enable_grad(), torch.autocast(encoder.device.type, enabled=False):
        for _ in progress(range(iterations), description, unit="step"):
            epoch, target = next(batches)
            optimizer.param_groups[0]["lr"] = plan.rate(epoch)
            hidden = F.linear(target, encoder, bias).relu()
            output = F.linear(hidden, decoder, offset).sigmoid()
            loss = F.mse_loss(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for weight in weights:
        weight.requires_grad_(False)
        weight.grad = None
