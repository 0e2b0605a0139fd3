"""Batches of image-text items, and how items are collated into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from avalanche_clip.benchmarks.items.marks import (
    caption_marks,
    in_evaluation,
    picture_marks,
)

_OF_CAPTIONS = ("text", "owner", "caption_key")


class ImageTextBatch(dict):
    """A mini-batch of images with their captions.

    Keys: ``image`` (float, ``(B, C, H, W)``), ``text`` (int64 token ids,
    ``(M, L)``), ``owner`` (int64, ``(M,)``, the row of the image that each
    caption belongs to), ``sample_id`` (int64, ``(B,)``), and where the data
    set has them ``targets``, ``language`` and ``timestamp`` (``(B,)``). With
    one caption per image, ``M == B`` and ``owner`` is ``arange(B)``.
    In evaluation ``caption_key`` (int64, ``(M, 2)``) and ``image_key`` (``(B, 2)``)
    are equal where the captions or pictures are, whatever the tokenizer and the
    image transform leave of them.

    ``len(batch)`` is the number of images ``B``, which stock plugins use as
    the weight of the batch.

    >>> batch = ImageTextBatch(image=torch.zeros(2, 3, 8, 8))
    >>> len(batch), tuple(batch.shape)
    (2, (2, 3, 8, 8))
    """

    def to(self, *args: Any, **kwargs: Any) -> ImageTextBatch:
        """Return a batch whose tensors were moved by ``Tensor.to``.

        A type changes floating-point tensors only: ids stay integers.
        """
        return type(self)((k, _moved(v, *args, **kwargs)) for k, v in self.items())

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

    def copy(self) -> ImageTextBatch:
        """Return a shallow copy, which is a batch again."""
        return type(self)(self)

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
            rows = slice(start, stop)
            texts = rows if owner is None else (owner >= start) & (owner < stop)
            part = type(self)(
                (key, value[texts if key in _OF_CAPTIONS else rows])
                for key, value in self.items()
            )
            if owner is not None:
                part["owner"] = part["owner"] - start
            parts.append(part)
        return parts


def _moved(value: Any, *args: Any, **kwargs: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    moved = value.to(*args, **kwargs)
    if moved.dtype == value.dtype or value.is_floating_point():
        return moved
    return value.to(moved.device)


class FieldCollate:
    """Turn data set items into ``[ImageTextBatch, targets, task]``.

    Captions are tokenised here, in one call per batch. The tokenizer is held
    by reference, so a vocabulary that grows later is seen.

    :param fields: names of the item's elements in order; the first two are
        ``image`` and ``text``, the last may be ``targets_task_labels``.
    :param tokenizer: callable ``(texts, languages) -> LongTensor (N, L)``;
        without one only pre-tokenised captions can be collated.
    :param pixels: what the model's own image transforms do, by group, where the
        data use these; for the check that they fit the model that is trained.
    :raises ValueError: while collating, when an item has another number of
        elements than ``fields``, images of a batch differ in size, a fact is no
        number, or captions are mixed (strings and token ids).
    """

    def __init__(
        self,
        fields: Sequence[str],
        tokenizer: Any = None,
        pixels: Mapping[str, str] | None = None,
    ):
        self.fields = tuple(fields)
        self.tokenizer = tokenizer
        self.pixels = dict(pixels or {})
        wrong = {"image", "text", "owner", "caption_key"} & set(self.fields[2:])
        if self.fields[:2] != ("image", "text") or wrong:
            raise ValueError(
                f"fields={self.fields!r} must begin with 'image', 'text' and go on "
                "with other names than these, 'owner' and 'caption_key'; pass the "
                "names of the item's elements in order."
            )

    def with_fields(self, fields: Sequence[str]) -> FieldCollate:
        """Return a copy for items with other elements."""
        return type(self)(fields, self.tokenizer, self.pixels)

    def __call__(self, samples: Sequence[Sequence[Any]]) -> list[Any]:
        width = len(self.fields)
        for sample in samples:
            if len(sample) != width:
                raise ValueError(
                    f"An item has {len(sample)} elements, but {width} are declared: "
                    f"{self.fields}. Facts come from the arguments of "
                    "make_image_text_dataset; after adding or dropping an attribute "
                    "call prepare_benchmark(benchmark, model) again."
                )
        columns = dict(zip(self.fields, zip(*samples, strict=True), strict=True))
        batch = ImageTextBatch(image=_stack_images(columns["image"]))
        facts = {
            name: _fact(name, columns[name])
            for name in self.fields[2:]
            if name != "targets_task_labels"
        }
        texts, owner = _flatten_captions(columns["text"])
        batch["text"] = self._tokenise(texts, owner, facts.get("language"))
        batch["owner"] = torch.as_tensor(owner)
        if in_evaluation(columns["image"]):
            batch["caption_key"] = caption_marks(texts, self._pad_id())
            pictures = picture_marks(columns["image"])
            if pictures is not None:
                batch["image_key"] = pictures
        batch.update(facts)
        size = len(samples)
        labels = facts.get("targets", facts.get("sample_id", torch.arange(size)))
        task = columns.get("targets_task_labels", (0,) * size)
        return [batch, labels, torch.as_tensor(np.asarray(task, dtype=np.int64))]

    def _pad_id(self) -> int:
        return int(getattr(self.tokenizer, "pad_id", 0) or 0)

    def _tokenise(
        self, texts: list[Any], owner: list[int], languages: Tensor | None
    ) -> Tensor:
        tensors = sum(isinstance(text, Tensor) for text in texts)
        if tensors == len(texts):
            rows = [text.to(torch.int64) for text in texts]
            return pad_sequence(rows, True, self._pad_id())
        if tensors:
            raise ValueError(
                f"{tensors} of the {len(texts)} captions of a batch are token ids, the "
                "others strings; give all of a data set in one form."
            )
        if self.tokenizer is None:
            raise ValueError(
                "Captions are strings, but no tokenizer is bound to the data. Call "
                "prepare_benchmark(benchmark, model) before training or evaluating."
            )
        codes = None
        if languages is not None:
            codes = [int(languages[o]) for o in owner]
        return self.tokenizer(texts, codes)


def _fact(name: str, values: Sequence[Any]) -> Tensor:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ValueError(
            f"The fact {name!r} has dtype {array.dtype}; facts in a batch are numbers. "
            "Use integer codes, or use_in_getitem=False for its attribute."
        )
    return torch.as_tensor(array)


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
