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
from avalanche_clip.benchmarks.streams.quotas import mix64
from avalanche_clip.common.checks import as_size
from avalanche_clip.training.templates.order import TrainingOrder, TrainLoader
from avalanche_clip.training.templates.teachers import CACHE_BYTES

# Keep the orders of images and sentences apart from that of the training data.
IMAGE_ORDER, TEXT_ORDER = 0x1A6E, 0x7E87


class ReferenceImages(Dataset):
    """Images of any data, read and decoded when they are asked for.

    Items are images, or sequences or mappings with one (first element, or key
    ``"image"``); the rest is ignored. Data of :func:`prepare_benchmark` go
    through their own evaluation transform.

    :param source: a data set, an experience, a stream, a sequence of images or
        items, or a list of data sets or experiences.
    :param transform: from what the data give to a float tensor ``(3, H, W)``;
        ``"model"`` for ``model.transform(False)``, None for images that are
        ready. Not used for prepared data.
    :param fixed: whether an image is the same tensor each time, so that the
        teacher's features can be kept; None asks the transform
        (``deterministic=True``), and takes data with another transform of
        their own for random.
    :param cache_bytes: largest table of teacher features; 0 keeps none.
    :param num_workers: processes that read ahead; 0 reads in the main one.
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
    ):
        if isinstance(transform, str) and transform != "model":
            raise ValueError(
                f"transform={transform!r} is unknown; give 'model', a callable or None."
            )
        as_size(cache_bytes, "cache_bytes", least=0)
        as_size(num_workers, "num_workers", least=0)
        self.parts = [_for_evaluation(part) for part in _data_sets(source)]
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
        bound.transform = model.transform(False)
        return bound

    @property
    def fixed(self) -> bool:
        """Whether each image is known to be the same tensor each time."""
        if self._fixed is not None:
            return self._fixed
        ours = getattr(self.transform, "deterministic", False)
        return all(
            has_deterministic_images(part, "eval")
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
    if isinstance(source, CLStream) or (nested and _holds_images(source[0])):
        return [part for one in source for part in _data_sets(one)]
    if hasattr(source, "__len__") and hasattr(source, "__getitem__"):
        if isinstance(source, (str, bytes, dict)):
            raise TypeError(f"reference_images={source!r} holds no images.")
        return [source]
    raise TypeError(
        f"Reference images are a {type(source).__name__}; give a data set with "
        "__len__ and __getitem__, an experience, a stream, or a list of these."
    )


def _holds_images(item: Any) -> bool:
    return isinstance(item, (Dataset, AvalancheDataset, CLExperience, CLStream))


def _prepared(part: Any) -> bool:
    return isinstance(part, AvalancheDataset) and is_prepared(part)


def _for_evaluation(part: Any) -> Any:
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


def order_seed(seed: int, kind: int) -> int:
    """Seed of a sequence of reference data, apart from that of the training data."""
    state = mix64(np.uint64(seed & (2**64 - 1)))
    return int(mix64(state ^ np.uint64(kind)) >> np.uint64(1))


class ReferenceTexts:
    """Sentences, as strings or token ids.

    :param texts: strings; token ids ``(N, L)``, int64; or a callable that
        makes either from a tokenizer, such as :class:`RandomTexts`.
    :raises TypeError: for another kind.
    :raises ValueError: for no text, or ids of another shape.
    """

    def __init__(self, texts: Sequence[str] | Tensor | Callable[[Any], Any]):
        self._make = texts if callable(texts) else None
        self.texts: Any = None if callable(texts) else _checked(texts)

    def bind(self, tokenizer: Any) -> ReferenceTexts:
        """Return the texts themselves, made by the callable where there is one."""
        return self if self._make is None else ReferenceTexts(self._make(tokenizer))

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
        """Checksum that tells lists of texts apart; of a callable, its name."""
        if self._make is not None:
            return getattr(self._make, "__name__", type(self._make).__name__)
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
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(
            "Reference texts must be a list of strings or token ids (N, L); got "
            f"{texts!r:.80}."
        )
    if not len(texts):
        raise ValueError("The reference texts are empty; give at least one.")
    return list(texts)


class RandomTexts:
    """Make random token strings for the tokenizer of a model.

    :param count: number of strings ``n``.
    :param length: random ids per string.
    :param seed: of the draw.

    Source: Zheng et al., ICCV 2023 (arXiv 2303.06628), their LwF-VR baseline.
    """

    def __init__(self, count: int = 1000, *, length: int = 10, seed: int = 0):
        as_size(count, "count")
        as_size(length, "length")
        self.count, self.length, self.seed = count, length, seed

    def __call__(self, tokenizer: Any) -> Tensor:
        """Draw the strings.

        :param tokenizer: gives ``sot_id`` (None for no start token),
            ``eot_id``, ``pad_id``, ``vocab_size`` and ``context_length``.
        :return: int64 ``(n, context_length)``: start token, random ids other
            than the special ones, end token, padding.
        :raises ValueError: if the context is too short, or nothing is left to
            draw from.
        """
        special = {tokenizer.sot_id, tokenizer.eot_id, tokenizer.pad_id} - {None}
        allowed = [i for i in range(tokenizer.vocab_size) if i not in special]
        first = [] if tokenizer.sot_id is None else [tokenizer.sot_id]
        room = tokenizer.context_length - len(first) - 1
        if self.length > room or not allowed:
            raise ValueError(
                f"length={self.length} does not fit: the context has room for {room} "
                f"ids and the vocabulary {len(allowed)} to draw from."
            )
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.randint(
            len(allowed), (self.count, self.length), generator=generator
        )
        rows = torch.full(
            (self.count, tokenizer.context_length), tokenizer.pad_id, dtype=torch.int64
        )
        start = len(first)
        if first:
            rows[:, 0] = first[0]
        rows[:, start : start + self.length] = torch.tensor(allowed)[draw]
        rows[:, start + self.length] = tokenizer.eot_id
        return rows


class FeatureStore:
    """Feature rows by index, kept until a number of bytes is reached.

    :param size: number of indices.
    :param max_bytes: bound of the float32 rows.
    """

    def __init__(self, size: int, max_bytes: int):
        self.slots = torch.full((size,), -1, dtype=torch.int32)
        self.indices: list[int] = []
        self.max_bytes = max_bytes
        self.rows: Tensor | None = None

    def known(self, indices: Tensor) -> Tensor:
        """Whether each index has a row, bool ``(R,)``."""
        return self.slots[indices] >= 0

    def get(self, indices: Tensor) -> Tensor:
        """Rows ``(R, D)`` of indices that all have one."""
        assert self.rows is not None
        return self.rows[self.slots[indices].long().to(self.rows.device)]

    def put(self, indices: Tensor, values: Tensor) -> None:
        """Store the rows of new indices, as many as there is room for."""
        capacity = self.max_bytes // (4 * values.shape[1])
        room = min(capacity, len(self.slots)) - len(self.indices)
        new = (~self.known(indices)).nonzero().squeeze(1)[: max(room, 0)]
        if not len(new):
            return
        start, end = len(self.indices), len(self.indices) + len(new)
        held = 0 if self.rows is None else len(self.rows)
        if end > held:
            grown = values.new_empty(
                min(max(2 * end, 256), capacity, len(self.slots)), values.shape[1]
            )
            if self.rows is not None:
                grown[:held] = self.rows
            self.rows = grown
        assert self.rows is not None
        self.rows[start:end] = values[new.to(values.device)]
        self.slots[indices[new]] = torch.arange(start, end, dtype=torch.int32)
        self.indices += indices[new].tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return indices and rows as plain data."""
        rows = None if self.rows is None else self.rows[: len(self.indices)]
        return {"indices": torch.tensor(self.indices, dtype=torch.int64), "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned."""
        self.slots.fill_(-1)
        self.indices, self.rows = [], None
        if state["rows"] is not None:
            self.put(state["indices"], state["rows"].clone())
