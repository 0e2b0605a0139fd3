"""Tiny data whose every value can be read off, for tests of the data layer."""

from __future__ import annotations

import numpy as np
import torch

from avalanche_clip.benchmarks import (
    attribute_array,
    make_image_text_dataset,
    time_stamped_benchmark,
)


class CountedPairs:
    """Item ``i``: an image filled with ``i`` and ``captions`` texts naming ``i``."""

    def __init__(self, size, captions=1, size_of_image=4):
        self.size = size
        self.captions = captions
        self.size_of_image = size_of_image

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        side = self.size_of_image
        image = torch.full((3, side, side), float(index))
        texts = [f"{index}" if k == 0 else f"{index}.{k}" for k in range(self.captions)]
        return image, texts[0] if self.captions == 1 else texts


class ListedPairs:
    """A list of (image, text) items."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


class Texts(CountedPairs):
    """Texts that are known without their pictures, which cannot be read."""

    def __init__(self, *texts):
        super().__init__(len(texts))
        self.texts = texts

    def __getitem__(self, index):
        raise AssertionError("a picture was read")

    def text(self, index):
        return self.texts[index]


class CharTokenizer:
    """Character codes plus ``offset``, padded with -1; remembers its calls."""

    pad_id = -1

    def __init__(self):
        self.offset = 0
        self.calls = []

    def __call__(self, texts, languages=None):
        self.calls.append((list(texts), languages))
        rows = torch.full((len(texts), 6), self.pad_id, dtype=torch.int64)
        for k, text in enumerate(texts):
            codes = [ord(c) + self.offset for c in text[:6]]
            rows[k, : len(codes)] = torch.tensor(codes, dtype=torch.int64)
        return rows


class Add:
    """Add a constant: applying it twice shows."""

    def __init__(self, amount):
        self.amount = amount

    def __call__(self, image):
        return image + self.amount


class Noise:
    """Add noise from torch's generator."""

    def __call__(self, image):
        return image + torch.rand(image.shape)


class CharModel:
    """The two things that data need of a model: +1000 in training, +2000 else."""

    def __init__(self):
        self.tokenizer = CharTokenizer()

    def transform(self, train):
        return Add(1000.0 if train else 2000.0)


def counted_dataset(times, *, first_id=0, captions=1, **options):
    """A data set of :class:`CountedPairs` with the given timestamps."""
    size = len(times)
    options.setdefault("sample_ids", np.arange(first_id, first_id + size))
    return make_image_text_dataset(
        CountedPairs(size, captions), timestamps=times, **options
    )


def counted_benchmark(*, captions=1, **options):
    """Three steps of 4 training and 2 test samples, not prepared."""
    train = np.repeat([0.0, 1.0, 2.0], 4)
    return time_stamped_benchmark(
        counted_dataset(train, captions=captions, **options),
        boundaries=[1.0, 2.0],
        labels=["a", "b", "c"],
        test=counted_dataset(
            np.repeat([0.0, 1.0, 2.0], 2), first_id=100, captions=captions, **options
        ),
    )


def ids_of(dataset):
    """Sample ids of a data set as a list, read without help of the package."""
    return [int(i) for i in dataset._data_attributes["sample_id"]]


def sizes_of(stream):
    """Number of samples of each experience."""
    return [len(experience.dataset) for experience in stream]


def column(experience, name="targets"):
    """The values of one fact of an experience."""
    return attribute_array(experience.dataset, name)


def check_ids_differ(benchmark):
    """Sample ids differ in the whole benchmark; their number."""
    experiences = [e for stream in benchmark.streams.values() for e in stream]
    ids = [i for e in experiences for i in ids_of(e.dataset)]
    assert len(set(ids)) == len(ids)
    return len(ids)
