"""Image-text items, batches and collation for Avalanche data sets.

A data set item is ``(image, text)`` followed by the per-sample facts that
were asked for; a mini-batch is ``[ImageTextBatch, targets, task]``, the
layout that stock Avalanche plugins (EWC, A-GEM, replay) can run a model on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    DataAttribute,
    TransformGroups,
)
from avalanche.benchmarks.utils.classification_dataset import (
    TaskAwareSupervisedClassificationDataset,
)
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.benchmarks.utils.flat_data import (
    ConstantSequence,
    LazyIndices,
    LazyRange,
)
from torch import Tensor

IN_ITEM_DEFAULT = ("sample_id", "targets", "language")
"""Facts that every item carries when the data set has them."""

_ATTRIBUTE_ORDER = ("sample_id", "targets", "language", "timestamp")


class CorruptSampleError(RuntimeError):
    """Raised when a raw item of an image-text data set cannot be read."""


class ImageTextBatch(dict):
    """A mini-batch of images with their captions.

    Keys: ``image`` (float, ``(B, C, H, W)``), ``text`` (int64 token ids,
    ``(M, L)``), ``owner`` (int64, ``(M,)``, the row of the image that each
    caption belongs to), ``sample_id`` (int64, ``(B,)``), and where the data
    set has them ``targets``, ``language`` and ``timestamp`` (``(B,)``). With
    one caption per image, ``M == B`` and ``owner`` is ``arange(B)``.

    ``len(batch)`` is the number of images ``B``, which stock plugins use as
    the weight of the batch.

    >>> batch = ImageTextBatch(image=torch.zeros(2, 3, 8, 8))
    >>> len(batch), tuple(batch.shape)
    (2, (2, 3, 8, 8))
    """

    def to(self, *args: Any, **kwargs: Any) -> ImageTextBatch:
        """Return a batch whose tensors were moved by ``Tensor.to``."""
        return type(self)(
            (k, v.to(*args, **kwargs) if hasattr(v, "to") else v)
            for k, v in self.items()
        )

    def pin_memory(self) -> ImageTextBatch:
        """Return a batch whose tensors are in pinned memory."""
        return type(self)(
            (k, v.pin_memory() if isinstance(v, Tensor) else v) for k, v in self.items()
        )

    def __len__(self) -> int:
        image = self.get("image")
        if image is None:
            return dict.__len__(self)
        return int(image.shape[0])

    def __bool__(self) -> bool:
        return True

    @property
    def shape(self) -> torch.Size:
        """Shape of the image tensor."""
        return self["image"].shape

    @property
    def device(self) -> torch.device:
        """Device of the image tensor."""
        return self["image"].device

    def split(self, chunks: int) -> list[ImageTextBatch]:
        """Cut the batch into consecutive, nearly equal parts.

        :param chunks: number of parts, between 1 and the batch size; fewer
            parts are returned when the batch is smaller.
        :return: batches that hold all images and captions in order.
        """
        size = len(self)
        chunks = max(1, min(chunks, size))
        bounds = [round(i * size / chunks) for i in range(chunks + 1)]
        owner = self.get("owner")
        parts = []
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            part = type(self)()
            if owner is None:
                rows: Any = slice(start, stop)
            else:
                rows = ((owner >= start) & (owner < stop)).nonzero().squeeze(1)
            for key, value in self.items():
                if key == "owner":
                    part[key] = value[rows] - start
                elif key == "text":
                    part[key] = value[rows]
                else:
                    part[key] = value[start:stop]
            parts.append(part)
        return parts


class FieldCollate:
    """Turn data set items into ``[ImageTextBatch, targets, task]``.

    Captions are tokenised here, in one call per batch. The tokenizer is held
    by reference, so a vocabulary that grows later is seen.

    :param fields: names of the item's elements in order; the first two are
        ``image`` and ``text``, the last may be ``targets_task_labels``.
    :param tokenizer: callable ``(texts, languages) -> LongTensor (N, L)``;
        without one only pre-tokenised captions can be collated.
    :raises ValueError: while collating, when an item has another number of
        elements than ``fields``, or images of a batch differ in size.
    """

    def __init__(self, fields: Sequence[str], tokenizer: Any = None):
        self.fields = tuple(fields)
        self.tokenizer = tokenizer
        if self.fields[:2] != ("image", "text"):
            raise ValueError(
                f"fields={self.fields!r} must begin with 'image', 'text'; pass the "
                "names of the item's elements in order."
            )

    def with_tokenizer(self, tokenizer: Any) -> FieldCollate:
        """Return a copy that uses another tokenizer."""
        return FieldCollate(self.fields, tokenizer)

    def __call__(self, samples: Sequence[Sequence[Any]]) -> list[Any]:
        width = len(self.fields)
        for sample in samples:
            if len(sample) != width:
                raise ValueError(
                    f"An item has {len(sample)} elements, but {width} are declared: "
                    f"{self.fields}. Build data sets with make_image_text_dataset, "
                    "and add facts with its arguments only."
                )
        columns = dict(zip(self.fields, zip(*samples, strict=True), strict=True))
        batch = ImageTextBatch(image=_stack_images(columns["image"]))
        facts = {
            name: torch.as_tensor(np.asarray(columns[name]))
            for name in self.fields[2:]
            if name != "targets_task_labels"
        }
        texts, owner = _flatten_captions(columns["text"])
        batch["text"] = self._tokenise(texts, owner, facts.get("language"))
        batch["owner"] = torch.as_tensor(owner)
        batch.update(facts)
        size = len(samples)
        labels = facts.get("targets", facts.get("sample_id", torch.arange(size)))
        task = columns.get("targets_task_labels", (0,) * size)
        return [batch, labels, torch.as_tensor(np.asarray(task, dtype=np.int64))]

    def _tokenise(
        self, texts: list[Any], owner: list[int], languages: Tensor | None
    ) -> Tensor:
        if isinstance(texts[0], Tensor):
            return _pad_tokens(texts)
        if self.tokenizer is None:
            raise ValueError(
                "Captions are strings, but no tokenizer is bound to the data. Call "
                "prepare_benchmark(benchmark, model) before training or evaluating."
            )
        codes = None
        if languages is not None:
            codes = [int(languages[o]) for o in owner]
        return self.tokenizer(texts, codes)


def _stack_images(images: Sequence[Any]) -> Tensor:
    first = images[0]
    if not isinstance(first, Tensor):
        raise ValueError(
            f"An image is a {type(first).__name__}, not a tensor: no image transform "
            "is bound to the data. Call prepare_benchmark(benchmark, model) first."
        )
    if any(image.shape != first.shape for image in images):
        shapes = sorted({tuple(image.shape) for image in images})
        raise ValueError(
            f"Images of one batch differ in shape: {shapes}. Give a transform that "
            "resizes, for example through prepare_benchmark(benchmark, model)."
        )
    return torch.stack(list(images))


def _flatten_captions(texts: Sequence[Any]) -> tuple[list[Any], list[int]]:
    flat: list[Any] = []
    owner: list[int] = []
    for row, text in enumerate(texts):
        captions = text if isinstance(text, (list, tuple)) else (text,)
        flat.extend(captions)
        owner.extend([row] * len(captions))
    return flat, owner


def _pad_tokens(rows: Sequence[Tensor]) -> Tensor:
    width = max(int(row.shape[-1]) for row in rows)
    out = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        out[i, : row.shape[-1]] = row
    return out


class _CheckedPairs:
    """Raw items, with read errors and empty captions named by position."""

    def __init__(self, pairs: Any, sample_ids: np.ndarray, empty_captions: str):
        self.pairs = pairs
        self.sample_ids = sample_ids
        self.empty_captions = empty_captions

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        try:
            item = self.pairs[index]
            image, text = item[0], item[1]
            if hasattr(image, "load") and not isinstance(image, Tensor):
                image.load()
        except (OSError, SyntaxError, EOFError, ValueError, KeyError) as error:
            raise CorruptSampleError(
                f"Item {index} (sample_id {self.sample_ids[index]}) cannot be read: "
                f"{type(error).__name__}: {error}. Repair the file, or leave the item "
                "out: find_corrupt_samples(dataset) lists all such positions, and "
                "dataset.subset(list_of_positions_to_keep) drops them."
            ) from error
        _check_caption(text, index, self.sample_ids[index], self.empty_captions)
        return image, text


def _check_caption(text: Any, index: int, sample_id: int, policy: str) -> None:
    if isinstance(text, Tensor):
        return
    captions = text if isinstance(text, (list, tuple)) else (text,)
    where = f"Item {index} (sample_id {sample_id})"
    if not captions:
        raise ValueError(f"{where} has no caption; give at least one string per image.")
    for caption in captions:
        if isinstance(caption, Tensor):
            continue
        if not isinstance(caption, str):
            raise TypeError(
                f"{where} has a caption of type {type(caption).__name__}; captions "
                "are strings, lists of strings, or tensors of token ids."
            )
        if policy == "raise" and not caption.strip():
            raise ValueError(
                f"{where} has an empty caption. Leave the item out, or pass "
                "empty_captions='keep' to train on it as an empty text."
            )


def make_image_text_dataset(
    pairs: Any,
    *,
    sample_ids: Sequence[int] | np.ndarray | None = None,
    targets: Sequence[int] | np.ndarray | None = None,
    timestamps: Sequence[float] | np.ndarray | None = None,
    languages: Sequence[int] | np.ndarray | None = None,
    task_labels: int | Sequence[int] | None = 0,
    in_item: Sequence[str] = IN_ITEM_DEFAULT,
    transform_groups: TransformGroups | None = None,
    empty_captions: str = "raise",
) -> AvalancheDataset:
    """Wrap a map-style data set of image-text pairs for Avalanche.

    Nothing is loaded: items are read when a batch needs them. Facts are kept
    as numpy columns, never as Python objects per sample.

    :param pairs: object with ``len()`` and ``[i] -> (image, text)``; an image
        is a PIL image or a tensor, a text a string, a list of captions of the
        same image, or a tensor of token ids.
    :param sample_ids: int64, ``(N,)``, unique in the whole benchmark;
        default ``0 .. N-1``.
    :param targets: int64 group ids, ``(N,)``: class, concept or caption group.
    :param timestamps: float64 seconds UTC, ``(N,)``.
    :param languages: int codes, ``(N,)``.
    :param task_labels: one int for all samples, a sequence, or None for none.
    :param in_item: which facts travel with each item into the batch; facts
        that the data set does not have are left out.
    :param transform_groups: Avalanche groups ``train`` and ``eval``, each a
        pair (image transform, text transform); usually set later by
        :func:`avalanche_clip.benchmarks.prepare_benchmark`.
    :param empty_captions: ``"raise"`` or ``"keep"``.
    :return: an ``AvalancheDataset`` with attributes ``sample_id``,
        ``targets``, ``language``, ``timestamp``, ``targets_task_labels`` (in
        this order, those given) and a :class:`FieldCollate`.
    :raises ValueError: when a column has a wrong length or type, sample ids
        repeat, or an argument is not among the allowed values.
    """
    size = len(pairs)
    if empty_captions not in ("raise", "keep"):
        raise ValueError(
            f"empty_captions={empty_captions!r} is unknown; use 'raise' or 'keep'."
        )
    unknown = sorted(set(in_item) - set(_ATTRIBUTE_ORDER))
    if unknown:
        raise ValueError(f"in_item has {unknown}; allowed are {_ATTRIBUTE_ORDER}.")
    ids = _column("sample_ids", np.arange(size) if sample_ids is None else sample_ids)
    columns = {
        "sample_id": ids,
        "targets": None if targets is None else _column("targets", targets),
        "language": None if languages is None else _column("languages", languages),
        "timestamp": _timestamps(timestamps),
    }
    _check_columns(columns, size)
    attributes = [
        DataAttribute(column, name, use_in_getitem=name in in_item)
        for name, column in columns.items()
        if column is not None
    ]
    fields = ["image", "text"] + [a.name for a in attributes if a.use_in_getitem]
    if task_labels is not None:
        labels = (
            ConstantSequence(task_labels, size)
            if isinstance(task_labels, int)
            else _column("task_labels", task_labels)
        )
        attributes.append(TaskLabels(labels))
        fields.append("targets_task_labels")
    cls = AvalancheDataset
    if targets is not None and task_labels is not None:
        # Class-balanced buffers need `task_set`, which only this class has.
        cls = TaskAwareSupervisedClassificationDataset
    return cls(
        [_CheckedPairs(pairs, ids, empty_captions)],
        data_attributes=attributes,
        transform_groups=transform_groups,
        collate_fn=FieldCollate(fields),
    )


def _column(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has dtype {array.dtype}; it must hold integers (for languages "
            "and classes, integer codes)."
        )
    return np.ascontiguousarray(array, dtype=np.int64)


def _timestamps(values: Any) -> np.ndarray | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.dtype.kind == "M":
        return array.astype("datetime64[ns]").astype(np.int64) / 1e9
    if array.dtype.kind not in "iuf":
        raise ValueError(
            f"timestamps have dtype {array.dtype}; give seconds since 1970 in UTC as "
            "numbers, or numpy datetime64 values; NaN marks a missing one."
        )
    return np.ascontiguousarray(array, dtype=np.float64)


def _check_columns(columns: dict[str, np.ndarray | None], size: int) -> None:
    for name, column in columns.items():
        if column is not None and column.shape != (size,):
            raise ValueError(
                f"{name} has shape {column.shape}, but there are {size} pairs; give "
                "one value per pair."
            )
    ids = columns["sample_id"]
    assert ids is not None
    if size > 1:
        ordered = np.sort(ids)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            raise ValueError(
                f"sample_ids repeat (for example {repeated[0]}); they must be unique "
                "in the whole benchmark."
            )


def find_corrupt_samples(dataset: Any) -> list[tuple[int, str]]:
    """Read every item once and list those that cannot be used.

    :param dataset: an image-text data set, prepared or not.
    :return: ``(position, message)`` for unreadable images and bad captions.
    """
    broken = []
    for index in range(len(dataset)):
        try:
            dataset[index]
        except (CorruptSampleError, ValueError, TypeError) as error:
            broken.append((index, str(error)))
    return broken


def attribute_array(dataset: AvalancheDataset, name: str) -> np.ndarray:
    """Return a per-sample fact of a data set as one numpy array.

    :param dataset: an Avalanche data set.
    :param name: name of the attribute, for example ``"timestamp"``.
    :return: array of shape ``(len(dataset),)``.
    :raises ValueError: if the data set has no such attribute.
    """
    attribute = getattr(dataset, name, None)
    if attribute is None or not isinstance(attribute, DataAttribute):
        have = [da.name for da in dataset._data_attributes.values()]
        raise ValueError(
            f"The data set has no attribute {name!r}; it has {have}. Give it to "
            "make_image_text_dataset."
        )
    return _flat_array(attribute.data)


def _flat_array(flat: Any) -> np.ndarray:
    """Gather the values of a FlatData tree with numpy, not per sample.

    Iterating a ``FlatData`` of Avalanche 0.6.0 costs about a microsecond per
    sample and a Python object each; here every leaf is indexed once.
    """
    if isinstance(flat, np.ndarray):
        return flat
    if isinstance(flat, DataAttribute):
        return _flat_array(flat.data)
    leaves = getattr(flat, "_datasets", None)
    if leaves is None:
        if isinstance(flat, ConstantSequence):
            return np.full(len(flat), flat._constant_value)
        return np.asarray(flat)
    parts = [_flat_array(leaf) for leaf in leaves]
    whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
    indices = flat._indices
    return whole if indices is None else whole[_index_array(indices)]


def _index_array(indices: Any) -> np.ndarray:
    if isinstance(indices, LazyRange):
        return (
            np.arange(len(indices), dtype=np.int64) + indices._start + indices._offset
        )
    if isinstance(indices, LazyIndices):
        indices._to_eager()
        return np.asarray(indices._eager_list, dtype=np.int64)
    return np.asarray(indices, dtype=np.int64)


def concatenate(datasets: Sequence[AvalancheDataset]) -> AvalancheDataset:
    """Concatenate data sets, keeping attributes and collate of the first.

    Empty parts are left out, because Avalanche 0.6.0 loses attributes when the
    first operand is empty.

    :raises ValueError: if all parts are empty or there are none.
    """
    parts = [dataset for dataset in datasets if len(dataset) > 0]
    if not parts:
        raise ValueError("There is nothing to concatenate: all data sets are empty.")
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.concat(part)
    return whole


__all__ = [
    "CorruptSampleError",
    "FieldCollate",
    "ImageTextBatch",
    "attribute_array",
    "concatenate",
    "find_corrupt_samples",
    "make_image_text_dataset",
]
