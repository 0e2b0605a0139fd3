"""Pictures of a data set, as the model sees them, for metrics that show some."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_clip.benchmarks.items.flat import has_no_images, image_transforms


def sample_pictures(
    strategy: Any, count: int, *, augmented: bool = False
) -> tuple[list[Tensor], list[int], list[int]]:
    """Draw pictures of the data that a strategy trains or evaluates on.

    Random generators stay where they are; what is drawn depends on the seed and the
    experience.

    :param strategy: its ``adapted_dataset`` is drawn from.
    :param count: of pictures; all if there are fewer.
    :param augmented: apply the transforms of training instead of evaluation.
    :return: images ``(3, H, W)``, in [0, 1] where the transform's normalisation is
        known, with the class (or sample id) and the task label of each.
    :raises ValueError: if the data are without images.
    """
    data = strategy.adapted_dataset
    if has_no_images(data):
        raise ValueError(
            "The data were prepared without images (without_images), so that there "
            "are none to show; leave images_samples_metrics out."
        )
    data = data.train() if augmented else data.eval()
    index = int(strategy.experience.logging().current_experience)
    random = np.random.default_rng([strategy.seed & (2**63 - 1), index])
    rows = random.choice(len(data), size=min(count, len(data)), replace=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.integers(2**63)))
        batch, labels, tasks = data.collate_fn([data[int(row)] for row in rows])
    images = _shown(batch["image"], data, "train" if augmented else "eval")
    return list(images), labels.tolist(), tasks.tolist()


def _shown(images: Tensor, data: Any, group: str) -> Tensor:
    for transform in image_transforms(data, group):
        found = getattr(transform, "preprocessing", None)
        if found is not None:
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (found.mean, found.std))
            return (images * std + mean).clamp(0, 1)
    return images
