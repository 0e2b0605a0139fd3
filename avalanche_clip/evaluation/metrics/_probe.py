"""A fixed set of image-text pairs that is embedded again and again."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from avalanche_clip.benchmarks.items.prepare import require_prepared
from avalanche_clip.common.checks import as_size, require_some
from avalanche_clip.common.progress import progress
from avalanche_clip.common.randomness import evaluating, kept_rng, seed_cpu


class Snapshot(NamedTuple):
    """Features of the probe at one point: float32 on the CPU, ``(N, D)`` each."""

    image_features: Tensor
    text_features: Tensor


class Probe:
    """The pairs of a data set that a metric looks at.

    :param dataset: prepared image-text data; its evaluation transforms are
        used, and the first caption of each image.
    :param max_pairs: largest number of pairs; of more data as many are taken
        at equal distances, so that all parts of a sorted data set are seen.
    :param batch_size: pairs per forward pass.
    :param num_workers: processes that read the data.
    :raises ValueError: if the data are not prepared or empty, or a number is
        out of range.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        max_pairs: int = 1000,
        batch_size: int = 128,
        num_workers: int = 0,
    ):
        as_size(max_pairs, "max_pairs")
        self.batch_size = as_size(batch_size, "batch_size")
        self.num_workers = as_size(num_workers, "num_workers", least=0)
        require_prepared(dataset)
        require_some(dataset, "pairs in the probe")
        size, total = min(max_pairs, len(dataset)), len(dataset)
        self.indices = [number * total // size for number in range(size)]
        self._dataset = dataset.eval()

    def __len__(self) -> int:
        return len(self.indices)

    @torch.no_grad()
    def embed(self, model: nn.Module, device: torch.device) -> Snapshot:
        """Encode all pairs in evaluation mode and full precision.

        Mode, last features and random generators are put back.

        :param model: a dual encoder on ``device``.
        :param device: where the batches go.
        :return: normalised features.
        """
        require_prepared(self._dataset, model)
        images, texts, features = [], [], model.features
        loader = DataLoader(
            Subset(self._dataset, self.indices),
            batch_size=self.batch_size,
            collate_fn=self._dataset.collate_fn,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(0),
        )
        try:
            with evaluating(model), kept_rng(device):
                seed_cpu(0)
                for batch, *_ in progress(loader, "probe"):
                    with torch.autocast(device.type, enabled=False):
                        output = model(_first_captions(batch).to(device))
                    images.append(output.image_features.float())
                    texts.append(output.text_features.float())
        finally:
            model.features = features
        # One copy at the end, so that a GPU does not wait after each batch.
        return Snapshot(torch.cat(images).cpu(), torch.cat(texts).cpu())


def _first_captions(batch: Any) -> Any:
    """Keep the first caption of each image."""
    size, owner = len(batch), batch["owner"]
    first = torch.full((size,), len(owner), dtype=torch.int64)
    first.scatter_reduce_(0, owner, torch.arange(len(owner)), "amin")
    batch = batch.copy()
    batch.pop("caption_key", None)
    batch["text"], batch["owner"] = batch["text"][first], torch.arange(size)
    return batch
