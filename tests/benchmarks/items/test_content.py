"""Hashes of what data sets hold."""

import random

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.benchmarks import (
    make_image_text_dataset,
    prepare_benchmark,
    time_stamped_benchmark,
    with_facts,
)
from avalanche_clip.benchmarks.items.content import SAMPLED, content_hash
from avalanche_clip.benchmarks.items.flat import raw_item
from avalanche_clip.benchmarks.items.items import concatenate
from tests.benchmarks.small_streams import Add, CharModel, CountedPairs, ListedPairs


def picture(number, mode="RGB"):
    image = Image.new("RGB", (4, 4), (number % 256, number // 256, 7))
    return image.convert(mode)


def items(count, captions=1):
    texts = [[f"{i}.{k}" for k in range(captions)] for i in range(count)]
    return [(picture(i), t if captions > 1 else t[0]) for i, t in enumerate(texts)]


def dataset(content, **columns):
    return make_image_text_dataset(ListedPairs(content), **columns)


def changed(content, index, image=None, text=None):
    other = list(content)
    old = other[index]
    other[index] = (
        old[0] if image is None else image,
        old[1] if text is None else text,
    )
    return other


def places(count):
    return np.unique(np.linspace(0, count - 1, SAMPLED).round().astype(int)).tolist()


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 400])
def test_content_hash__knows_pictures_and_captions_of_sampled_items(count):
    content = items(count)
    hashes = {content_hash(dataset(content))}
    sampled = places(count)
    assert sampled[0] == 0 and sampled[-1] == count - 1
    for index in sampled:
        for change in ({"image": picture(9999)}, {"text": "other"}):
            hashes.add(content_hash(dataset(changed(content, index, **change))))
    assert len(hashes) == 1 + 2 * len(sampled)
    assert content_hash(dataset(items(count))) in hashes


def test_content_hash__knows_order_and_number():
    content = items(40)
    swapped = [content[-1], *content[1:-1], content[0]]
    variants = [content, content[::-1], swapped, content[:-1], [*content, content[0]]]
    assert len({content_hash(dataset(v)) for v in variants}) == len(variants)


@pytest.mark.parametrize("at", [0, 777, 998])
def test_content_hash__knows_every_value_of_the_facts(at):
    content, count = items(999), 999
    columns = {
        "sample_ids": np.arange(count) * 2,
        "targets": np.zeros(count, int),
        "languages": np.zeros(count, int),
        "timestamps": np.arange(count, dtype=float),
        "task_labels": np.zeros(count, int),
    }
    hashes = {content_hash(dataset(content, **columns))}
    for name in columns:
        other = {k: v.copy() for k, v in columns.items()}
        other[name][at] += 1
        hashes.add(content_hash(dataset(content, **other)))
    hashes.add(content_hash(dataset(content)))
    assert len(hashes) == len(columns) + 2


def test_content_hash__tells_kinds_of_items_apart():
    tensor = torch.zeros(3, 4, 4)
    black = Image.new("RGB", (4, 4))
    pictures = [
        *(tensor, tensor.to(torch.uint8), tensor.to(torch.bfloat16), tensor[:, :2]),
        *(black, black.convert("L"), black.convert("RGBA"), black.resize((2, 8))),
        *(tensor.numpy(), np.zeros((3, 4, 4), np.uint8)),
    ]
    texts = ["a b", ["a b"], ["a", "b"], ["ab", ""], torch.tensor([1, 2]), "ä b"]
    made = [dataset([(i, "a")] * 2, empty_captions="keep") for i in pictures] + [
        dataset([(tensor, t)] * 2, empty_captions="keep") for t in texts
    ]
    hashes = [content_hash(data) for data in made]
    assert len({*hashes}) == len(hashes) and not any("(" in h for h in hashes)


def test_content_hash__does_not_depend_on_preparation_or_generators():
    content = items(40, captions=3)
    bare = dataset(content, timestamps=np.arange(40.0))
    benchmark = time_stamped_benchmark(bare, num_experiences=4, test=bare)
    expected = [content_hash(e.dataset) for e in benchmark.train_stream]
    assert len({*expected}) == 4
    prepared = prepare_benchmark(benchmark, CharModel(), eval_transform=Add(3))
    torch.manual_seed(7)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert [content_hash(e.dataset) for e in prepared.train_stream] == expected
    assert [content_hash(e.dataset.eval()) for e in prepared.train_stream] == expected
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()
    # Parts of parts, and parts that were joined.
    parts = [bare.subset(list(range(20))), bare.subset(list(range(20, 40)))]
    assert content_hash(concatenate(parts)) == content_hash(bare)
    assert raw_item(prepared.train_stream[1].dataset, 2)[1] == content[12][1]


class Drawn(CountedPairs):
    """Items of which a part is drawn at random."""

    def __init__(self, part, generator):
        super().__init__(30)
        self.part, self.generator = part, generator

    def __getitem__(self, index):
        image, text = super().__getitem__(index)
        draw = float(self.generator())
        if self.part == "pictures":
            return image + draw, text
        return image, text + ("a" if draw < 0.5 else "b")


@pytest.mark.parametrize("part", ["pictures", "captions"])
@pytest.mark.parametrize(
    "draw", [random.random, np.random.rand, lambda: torch.rand(())]
)
def test_content_hash__items_from_the_seeded_generators_are_covered(part, draw):
    hashes = {content_hash(make_image_text_dataset(Drawn(part, draw))) for _ in "123"}
    assert len(hashes) == 1 and "random" not in hashes.pop()


@pytest.mark.parametrize("part", ["pictures", "captions"])
def test_content_hash__what_is_random_is_left_out_in_words(part):
    generator = np.random.default_rng(0)
    found = [
        content_hash(make_image_text_dataset(Drawn(part, generator.random)))
        for _ in range(5)
    ]
    assert {*found} == {found[0]} and found[0].endswith(f" ({part} are random)")
    # The other part still counts.
    other = Drawn(part, generator.random)
    other.size = 31
    other.__class__ = type("Other", (Drawn,), {"__len__": lambda self: 30})
    read = other.__class__.__getitem__
    other.__class__.__getitem__ = lambda self, i: read(self, i + 1)
    assert content_hash(make_image_text_dataset(other)) != found[0]


class Broken(CountedPairs):
    """Some items cannot be read."""

    def __getitem__(self, index):
        if index in (0, 5):
            raise OSError(f"{id(self)} is truncated")
        return super().__getitem__(index)


def test_content_hash__what_cannot_be_read_is_left_out_in_words():
    found = [content_hash(make_image_text_dataset(Broken(16))) for _ in range(2)]
    assert found[0] == found[1] and found[0].endswith(" (2 of 16 items cannot be read)")
    assert found[0][:16] != content_hash(make_image_text_dataset(CountedPairs(16)))


class Counting(CountedPairs):
    """Counts how often items are read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_content_hash__cost_is_bounded():
    pairs = Counting(300_000)
    data = make_image_text_dataset(pairs, timestamps=np.arange(300_000.0))
    content_hash(data)
    assert pairs.reads == 2 * SAMPLED


def test_content_hash__of_nothing_and_of_facts_that_are_not_covered():
    data = dataset(items(3))
    assert content_hash(data.subset([])) != content_hash(data)
    more = with_facts(data, {"vector": np.random.rand(3, 2)})
    assert content_hash(more) == content_hash(data)
