"""Image-text items, batches and collation for Avalanche data sets.

A data set item is ``(image, text)`` followed by the per-sample facts that
were asked for; a mini-batch is ``[ImageTextBatch, targets, task]``, the
layout that stock Avalanche plugins (EWC, A-GEM, replay) can run a model on.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TransformGroups
from avalanche.benchmarks.utils.classification_dataset import (
    TaskAwareSupervisedClassificationDataset,
)
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.benchmarks.utils.flat_data import (
    ConstantSequence,
    LazyIndices,
    LazyRange,
)
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from avalanche_clip.benchmarks.items.batch import FieldCollate
from avalanche_clip.benchmarks.items.given import ItemsError, check_item, check_source
from avalanche_clip.benchmarks.items.skipped import SampleFault, Skipped
from avalanche_clip.benchmarks.items.streamed import STREAM_ADVICE, StreamedItems
from avalanche_clip.benchmarks.items.times import timestamp_column
from avalanche_clip.common.checks import (
    require_array,
    require_choice,
    require_known,
    require_some,
    require_type,
)
from avalanche_clip.common.columns import as_integer_array
from avalanche_clip.common.pictures import decoded

IN_ITEM_DEFAULT = ("sample_id", "targets", "language")
"""Facts that every item carries when the data set has them."""

_ATTRIBUTE_ORDER = ("sample_id", "targets", "language", "timestamp")


class CorruptSampleError(ValueError, RuntimeError):
    """Raised when a raw item of an image-text data set cannot be read."""


class MissingSampleError(CorruptSampleError, FileNotFoundError):
    """Raised when the file of an item is not there."""


class SkippedSampleError(CorruptSampleError):
    """Raised for an item that its source leaves out: loaders count and pass it over."""

    fault: Exception
    skipped: Skipped


class CheckedPairs:
    """Raw items, with read errors and empty captions named by position.

    Where the source has an object :class:`Skipped`, they are to be counted there.
    """

    def __init__(self, pairs: Any, sample_ids: np.ndarray, empty_captions: str):
        self.pairs = pairs
        self.sample_ids = sample_ids
        self.empty_captions = empty_captions

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        where = self._where(index)
        try:
            item = self.pairs[index]
            check_item(item, where)
            image, text = item[0], item[1]
            if isinstance(image, Image.Image):
                # PIL reads lazily; errors should name the item, not a transform.
                decoded(image)
        except ItemsError:
            raise
        # Decoders raise nearly anything, and an IndexError that got out would end
        # a loop over the data set early, without a word.
        except Exception as error:
            absent = isinstance(error, FileNotFoundError)
            kind = MissingSampleError if absent else CorruptSampleError
            words = (
                f"{where} cannot be read: "
                f"{type(error).__name__}: {error}. Repair the file, or leave the item "
                "out: find_corrupt_samples(dataset) lists all such positions, and "
                "dataset.subset(list_of_positions_to_keep) drops them."
            )
            raise self._error(kind, words, error) from error
        return image, self._checked(text, where)

    def text(self, index: int) -> Any:
        """The text of an item; its picture is not touched where the source can."""
        read = getattr(self.pairs, "text", None)  # the user's own, who may have none
        if not callable(read):
            return CheckedPairs.__getitem__(self, index)[1]
        where = self._where(index)
        try:
            text = read(index)
        except SampleFault as fault:
            words = f"{where} cannot be read: {fault}"
            raise self._error(CorruptSampleError, words, fault) from fault
        return self._checked(text, where)

    def _error(self, kind: type[Exception], words: str, fault: Exception) -> Exception:
        """Make the error of an item, of another kind if it is to be left out."""
        skipped = getattr(self.pairs, "skipped", None)  # the user's own, see above
        if not isinstance(skipped, Skipped):
            return kind(words)
        error = SkippedSampleError(words)
        error.fault, error.skipped = fault, skipped
        return error

    def _where(self, index: int) -> str:
        return f"Item {index} (sample_id {self.sample_ids[index]})"

    def _checked(self, text: Any, where: str) -> Any:
        """Refuse a text that is no caption."""
        if isinstance(text, Tensor) and text.dim() == 2:
            text = list(text)
        captions = text if isinstance(text, (list, tuple)) else (text,)
        require_some(captions, f"captions in {where}")
        for caption in captions:
            if isinstance(caption, Tensor):
                what, give = f"{where}: token ids", "or (K, L) for K captions"
                require_array(caption, what, "*", "integer", give=give, error=TypeError)
                continue
            allowed = "strings, lists of strings, or tensors of token ids"
            require_type(caption, str, f"{where}: a caption", allowed)
            if self.empty_captions == "raise" and not caption.strip():
                words = (
                    f"{where} has an empty caption. Leave the item out, or pass "
                    "empty_captions='keep' to train on it as an empty text."
                )
                raise self._error(ValueError, words, SampleFault("no caption", words))
        return text


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
        same image, or token ids: integers ``(L,)``, or ``(K, L)`` for K captions.
    :param sample_ids: int64, ``(N,)``, unique in the whole benchmark;
        default ``0 .. N-1``.
    :param targets: int64 group ids, ``(N,)``: class, concept or caption group.
    :param timestamps: ``(N,)`` seconds UTC, ``datetime64``, datetimes or ISO
        strings; kept as float64 seconds, missing ones as NaN. Default
        ``pairs.timestamps``, where the source has an array of that name.
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
    :raises ItemsError: when the data are no pairs: rows by name, a table, a
        generator; the message shows how to convert them.
    :raises ValueError: when a column has a wrong length or type, sample ids
        repeat, or an argument is not among the allowed values.
    """
    check_source(pairs)
    size = len(pairs)
    require_choice("empty_captions", empty_captions, ("raise", "keep"))
    require_known(in_item, _ATTRIBUTE_ORDER, "in_item")
    ids = np.arange(size) if sample_ids is None else sample_ids
    ids = _column("sample_ids", ids, size)
    twice = repeated(ids)
    if twice.size:
        raise ValueError(
            f"sample_ids repeat (for example {twice[0]}); they must be unique in the "
            "whole benchmark."
        )
    columns = {"sample_id": ids}
    if targets is not None:
        columns["targets"] = _column("targets", targets, size)
    if languages is not None:
        columns["language"] = _column("languages", languages, size)
    if timestamps is None:
        found = getattr(pairs, "timestamps", None)  # the source may be the user's own
        timestamps = found if isinstance(found, np.ndarray) else None
    if timestamps is not None:
        columns["timestamp"] = timestamp_column(timestamps)
        require_array(
            columns["timestamp"], "timestamps", str(size), give="one per pair"
        )
    labels: Any = task_labels
    if isinstance(task_labels, numbers.Integral):
        labels = ConstantSequence(int(task_labels), size)
    elif task_labels is not None:
        labels = _column("task_labels", task_labels, size)
    attributes = [
        DataAttribute(column, name, use_in_getitem=name in in_item)
        for name, column in columns.items()
    ]
    fields = ["image", "text"] + [a.name for a in attributes if a.use_in_getitem]
    if task_labels is not None:
        attributes.append(TaskLabels(labels))
        fields.append("targets_task_labels")
    cls = AvalancheDataset
    if targets is not None and task_labels is not None:
        # Class-balanced buffers need `task_set`, which only this class has.
        cls = TaskAwareSupervisedClassificationDataset
    return cls(
        [CheckedPairs(pairs, ids, empty_captions)],
        data_attributes=attributes,
        transform_groups=transform_groups,
        collate_fn=FieldCollate(fields),
    )


def _column(name: str, values: Any, size: int) -> np.ndarray:
    give = "one per pair (of languages and classes, integer codes)"
    return np.ascontiguousarray(as_integer_array(values, name, str(size), give=give))


def repeated(*columns: np.ndarray) -> np.ndarray:
    """Return the integers that occur more than once in some columns, ascending."""
    # Sorted: many times faster than numpy 2.4's `unique` on a million distinct ids.
    ordered = np.sort(np.concatenate([np.empty(0, np.int64), *columns]))
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


class ReadableItems(Dataset[Any]):
    """Items of a data set, read batch by batch; those left out are passed over.

    :param dataset: image-text data; items that their source leaves out raise
        :class:`SkippedSampleError`.
    """

    def __init__(self, dataset: Any):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[Any]) -> list[Any]:
        """Read the items of a batch, which are fewer where some are left out.

        :raises CorruptSampleError: if none of them can be read.
        """
        items, last = [], None
        for index in indices:
            try:
                items.append(self._read(index))
            except SkippedSampleError as error:
                error.skipped.add(error.fault)
                last = error
        if last is not None and not items:
            raise CorruptSampleError(
                f"None of the {len(indices)} samples of a batch can be read; the last: "
                f"{last}"
            ) from last
        return items

    def _read(self, index: Any) -> Any:
        return self.dataset[index]


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
    # Not `getattr(dataset, name)`: that stays behind `update_data_attribute`.
    if isinstance(dataset, StreamedItems):
        raise ValueError(f"The column {name!r} {STREAM_ADVICE}")
    attribute = dataset._data_attributes.get(name)
    if attribute is None:
        have = list(dataset._data_attributes)
        raise ValueError(
            f"The data set has no attribute {name!r}; it has {have}. Give it to "
            "make_image_text_dataset."
        )
    return _flat_array(attribute.data)


def item_fields(dataset: AvalancheDataset) -> tuple[str, ...]:
    """Return the names of the elements of an image-text item, in order."""
    facts = [a.name for a in dataset._data_attributes.values() if a.use_in_getitem]
    return ("image", "text", *facts)


def _flat_array(flat: Any) -> np.ndarray:
    """Gather the values of a FlatData tree with numpy, not per sample.

    Iterating a ``FlatData`` of Avalanche 0.6.0 costs about a microsecond per
    sample and a Python object each; here every leaf is indexed once. The result
    may be the stored column itself.
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
    if not leaves:
        return np.empty(0, dtype=np.int64)
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

    :raises ValueError: if all parts are empty or there are none, or items of
        the parts hold different facts.
    """
    parts = [dataset for dataset in datasets if len(dataset) > 0]
    if not parts:
        raise ValueError("There is nothing to concatenate: all data sets are empty.")
    fields = {item_fields(part) for part in parts}
    if len(fields) > 1:
        raise ValueError(
            f"The items of the data sets hold different facts: {sorted(fields)}. "
            "Give all of them the same facts in make_image_text_dataset."
        )
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.concat(part)
    return whole
