"""Reference images and sentences: unlabelled data that only distillation sees."""

from __future__ import annotations

import bisect
import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from avalanche.benchmarks.scenarios.generic_scenario import CLExperience, CLStream
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_clip import distributed
from avalanche_clip.benchmarks.items.flat import has_deterministic_images
from avalanche_clip.benchmarks.items.prepare import is_prepared
from avalanche_clip.common.checks import as_size, as_texts, require_choice
from avalanche_clip.common.feature_table import CACHE_BYTES
from avalanche_clip.training.templates.order import TrainingOrder, TrainLoader


class ReferenceImages(Dataset):
    """Images of any data, read and decoded when they are asked for.

    Items are images, or sequences or mappings with one (first element, or key
    ``"image"``); the rest is ignored. Data of :func:`prepare_benchmark` go
    through their own evaluation transform.

    :param source: a data set, an experience, a stream, a sequence of images or
        items, or a list of data sets or experiences.
    :param transform: from what the data give to a float tensor ``(3, H, W)``;
        ``"model"`` for that of the model, None for images that
        are ready. Not used for prepared data.
    :param fixed: whether an image is the same tensor each time, so that the
        teacher's features can be kept; None asks the transform
        (``deterministic=True``), and takes data with another transform of
        their own for random.
    :param cache_bytes: largest table of teacher features; 0 keeps none.
    :param num_workers: processes that read ahead; 0 reads in the main one.
    :param group: transforms of prepared data and of the model: ``"eval"``, or
        ``"train"`` with its augmentation.
    :raises TypeError: for another source.
    :raises ValueError: for an empty source or a negative number.
    """

    def __init__(
        self,
        source: Any,
        *,
        transform: str | Callable[[Any], Tensor] | None = "model",
        fixed: bool | None = None,
        cache_bytes: int = CACHE_BYTES,
        num_workers: int = 0,
        group: str = "eval",
    ):
        if isinstance(transform, str) and transform != "model":
            raise ValueError(
                f"transform={transform!r} is unknown; give 'model', a callable or None."
            )
        as_size(cache_bytes, "cache_bytes", least=0)
        as_size(num_workers, "num_workers", least=0)
        require_choice("group", group, ("eval", "train"))
        self.group = group
        self.parts = [_in_group(part, group) for part in _data_sets(source)]
        self.ends = np.cumsum([len(part) for part in self.parts]).tolist()
        if not self.ends or self.ends[-1] == 0:
            raise ValueError("The reference images are empty; give at least one.")
        self.transform = transform
        self._fixed = fixed
        self.cache_bytes = cache_bytes
        self.num_workers = num_workers

    def bind(self, model: Any) -> ReferenceImages:
        """Return these images with a model's transform, if ``"model"`` is asked for."""
        if self.transform != "model":
            return self
        bound = copy.copy(self)
        bound.transform = model.transform(self.group == "train")
        return bound

    @property
    def fixed(self) -> bool:
        """Whether each image is known to be the same tensor each time."""
        if self._fixed is not None:
            return self._fixed
        ours = getattr(self.transform, "deterministic", False)
        return all(
            has_deterministic_images(part, self.group)
            if _prepared(part)
            else ours and _has_no_own(part)
            for part in self.parts
        )

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> Tensor:
        number = bisect.bisect_right(self.ends, index)
        part = self.parts[number]
        item = part[index - (self.ends[number - 1] if number else 0)]
        if isinstance(item, dict):
            item = item["image"]
        elif isinstance(item, (tuple, list)):
            item = item[0]
        if callable(self.transform) and not _prepared(part):
            item = self.transform(item)
        if not isinstance(item, Tensor):
            raise TypeError(
                f"Reference image {index} is a {type(item).__name__}, not a tensor; "
                "give ReferenceImages(source, transform=...) or transform='model'."
            )
        return item


def _data_sets(source: Any) -> list[Any]:
    """Find the indexable data sets behind a source."""
    if isinstance(source, CLExperience):
        return [source.dataset]  # type: ignore[attr-defined]
    nested = isinstance(source, (list, tuple)) and len(source) > 0
    kinds = (Dataset, AvalancheDataset, CLExperience, CLStream)
    if isinstance(source, CLStream) or (nested and isinstance(source[0], kinds)):
        return [part for one in source for part in _data_sets(one)]
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        if isinstance(source, (str, bytes, dict)):
            raise TypeError(f"reference_images={source!r} holds no images.")
        return [source]
    raise TypeError(
        f"Reference images are a {type(source).__name__}; give a data set with "
        "__len__ and __getitem__, an experience, a stream, or a list of these."
    )


def _prepared(part: Any) -> bool:
    return isinstance(part, AvalancheDataset) and is_prepared(part)


def _in_group(part: Any, group: str) -> Any:
    if group == "train" and _prepared(part):
        return part.train()
    return part.eval() if isinstance(part, AvalancheDataset) else part


def _has_no_own(part: Any) -> bool:
    """Whether a data set has no transform of its own that may be random."""
    own = [getattr(part, name, None) for name in ("transform", "transforms")]
    return all(t is None or getattr(t, "deterministic", False) for t in own)


class ReferenceBatch(NamedTuple):
    """Images of one step: all indices, and this process's part of them."""

    indices: Tensor
    part: slice
    images: Tensor


class SharedOrder:
    """An endless shuffled sequence of batches that processes share.

    Batch ``k`` is a pure function of ``(seed, experience, k)``: passes over the
    items follow each other without end. Processes take equal parts of it when
    its size allows, else each of them takes all.

    :param count: number of items.
    :param batch_size: items per step, over all processes; at most ``count``.
    :param seed: of the sequence.
    :param experience: index of the experience.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int, experience: int):
        self.order = TrainingOrder(
            count, batch_size, seed=seed, experience=experience, continuous=True
        )
        size, world = self.order.batch_size, distributed.world_size()
        self.shared = world > 1 and size % world == 0
        """Whether processes take different parts."""
        low, high = 0, size
        if self.shared:
            low = size // world * distributed.rank()
            high = low + size // world
        self.part = slice(low, high)
        #: how many processes do the same
        self.copies = 1 if self.shared else world

    def indices(self, start: int, count: int) -> Iterator[Tensor]:
        """Yield the item indices, int64 ``(R,)``, of some batches."""
        for batch in self.order.batches(0, start, count):
            yield torch.from_numpy(batch)

    def join(self, rows: Tensor) -> Tensor:
        """Rows of the whole batch from those of each process, with gradients."""
        return distributed.gather_rows(rows) if self.shared else rows


class ReferenceSampler:
    """Draw the reference images of step after step, from any step on.

    Global random generators are left as they were.

    :param images: what to draw from.
    :param order: which images make up which batch.
    :param pin_memory: as for ``DataLoader``.
    """

    def __init__(self, images: ReferenceImages, order: SharedOrder, pin_memory: bool):
        self.order = order
        workers = {"num_workers": images.num_workers, "pin_memory": pin_memory}
        shared = order.shared
        self.loader = TrainLoader(
            images,
            order.order,
            collate_fn=_stack,
            rank=distributed.rank() if shared else 0,
            world_size=distributed.world_size() if shared else 1,
            **workers,
        )
        self.at = -1
        self._indices: Iterator[Tensor] = iter(())
        self._images: Iterator[Tensor] = iter(())

    @classmethod
    def of(
        cls, strategy: Any, images: ReferenceImages, batch_size: int, seed: int
    ) -> ReferenceSampler:
        """Sample for the running experience of a strategy.

        :param batch_size: images per step, over all processes.
        :param seed: of the order.
        """
        number = strategy.visits.seed_number
        order = SharedOrder(len(images), batch_size, seed=seed, experience=number)
        return cls(images, order, strategy.device.type == "cuda")

    def batch(self, step: int, planned: int) -> ReferenceBatch:
        """Return the batch of a step; steps in a row are read ahead.

        :param step: iteration of the experience.
        :param planned: iterations of the experience.
        """
        if step != self.at:
            count = max(planned - step, 1)
            self.loader.plan(0, step, count)
            self._indices = self.order.indices(step, count)
            self._images = iter(self.loader)
        self.at = step + 1
        return ReferenceBatch(next(self._indices), self.order.part, next(self._images))


def _stack(images: list[Tensor]) -> Tensor:
    first = images[0]
    if any(image.shape != first.shape for image in images):
        shapes = sorted({tuple(image.shape) for image in images})
        raise ValueError(
            f"Reference images differ in shape: {shapes}; give a transform that "
            "resizes, such as transform='model'."
        )
    return torch.stack(images)


class ReferenceTexts:
    """Sentences, as strings or token ids.

    :param texts: strings, or token ids ``(N, L)``, int64.
    :raises TypeError: for another kind.
    :raises ValueError: for no text, or ids of another shape.
    """

    def __init__(self, texts: Sequence[str] | Tensor):
        self.texts: Any = _checked(texts)

    def __len__(self) -> int:
        return len(self.texts)

    def tokens(self, rows: Tensor | slice, tokenizer: Any) -> Tensor:
        """Token ids of some texts; of given ids, padding at the end is cut.

        :param rows: indices ``(M,)``, or a slice.
        :param tokenizer: turns strings into ids.
        :return: int64, ``(M, L)``.
        """
        if not isinstance(self.texts, Tensor):
            if isinstance(rows, slice):
                return tokenizer(self.texts[rows])
            return tokenizer([self.texts[i] for i in rows.tolist()])
        ids = self.texts[rows]
        used = (ids != tokenizer.pad_id).any(dim=0).nonzero()
        if not len(used):
            raise ValueError(
                f"Reference token ids hold nothing but the padding id "
                f"{tokenizer.pad_id}; give rows with a start and an end token."
            )
        # Some tokenizers pad with the end token, of which the first one counts.
        last = int(used.max()) + int(tokenizer.pad_id == tokenizer.eot_id)
        return ids[:, : last + 1]

    def fingerprint(self) -> str:
        """Checksum that tells lists of texts apart."""
        if isinstance(self.texts, Tensor):
            content = self.texts.contiguous().numpy().tobytes()
            head = f"ids {tuple(self.texts.shape)}"
        else:
            content = "\0".join(self.texts).encode("utf-8", "surrogatepass")
            head = f"strings {len(self.texts)}"
        return hashlib.sha256(head.encode() + b"\n" + content).hexdigest()[:32]


def _checked(texts: Any) -> Any:
    if isinstance(texts, Tensor):
        if texts.dim() != 2 or not len(texts) or texts.is_floating_point():
            raise ValueError(
                f"Reference texts came as a tensor {tuple(texts.shape)} of "
                f"{texts.dtype}; give token ids (N, L) with N >= 1."
            )
        return texts.detach().to("cpu", torch.int64)
    return as_texts(texts, "The reference texts")
