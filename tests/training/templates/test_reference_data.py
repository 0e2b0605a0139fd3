import pytest
import torch
from torch.utils.data import Subset, TensorDataset

from avalanche_clip.training.templates.reference_data import (
    ReferenceImages,
    ReferenceSampler,
    ReferenceTexts,
    SharedOrder,
)
from tests.helpers import (
    StubTokenizer,
    StubTransform,
    stub_benchmark,
    stub_model,
)


class Counting(torch.utils.data.Dataset):
    """Images that say which they are, and note when they are read."""

    def __init__(self, size):
        self.size, self.read = size, []

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index >= self.size:
            raise IndexError
        self.read.append(index)
        return torch.full((1, 2, 2), float(index)), f"text {index}"


# -------------------------------------------------------------------- images
def test_images__from_every_kind_of_source():
    data = stub_benchmark((4, 6)).train_stream
    expected = {
        "data": (Counting(3), 3),
        "subset": (Subset(Counting(5), [4, 1]), 2),
        "tensors": (TensorDataset(torch.rand(3, 1, 2, 2)), 3),
        "list of images": ([torch.rand(1, 2, 2)] * 4, 4),
        "list of data": ([Counting(2), Counting(3)], 5),
        "experience": (data[0], 4),
        "stream": (data, 10),
        "list of experiences": ([data[1], data[0]], 10),
        "data set": (data[1].dataset, 6),
        "mappings": ([{"image": torch.zeros(1)}], 1),
    }
    for name, (source, size) in expected.items():
        images = ReferenceImages(source, transform=None)
        assert len(images) == size, name
        assert isinstance(images[size - 1], torch.Tensor), name
    both = ReferenceImages([Counting(2), Counting(3)], transform=None)
    assert [float(both[i].mean()) for i in range(5)] == [0, 1, 0, 1, 2]


def test_images__prepared_data_go_through_their_evaluation_transform():
    model = stub_model(noise=1.0)
    benchmark = stub_benchmark(model=model)
    images = ReferenceImages(benchmark.train_stream).bind(model)
    assert images.fixed
    assert torch.equal(images[3], images[3])
    raw = stub_benchmark(prepare=False).train_stream
    bare = ReferenceImages(raw).bind(model)
    assert bare.fixed and torch.equal(bare[3], images[3])
    noisy = ReferenceImages(raw, transform=StubTransform(noise=1.0))
    assert not noisy.fixed
    assert not ReferenceImages(raw, transform=None).fixed
    assert ReferenceImages(raw, transform=None, fixed=True).fixed


def test_images__are_read_when_they_are_needed():
    data = Counting(100)
    order = SharedOrder(len(data), 4, seed=0, experience=0)
    source = ReferenceSampler(ReferenceImages(data, transform=None), order, False)
    assert data.read == []
    batch = source.batch(0, 10)
    assert data.read == batch.indices.tolist()
    assert batch.images[:, 0, 0, 0].tolist() == batch.indices.tolist()


@pytest.mark.parametrize(
    "source, error",
    [
        ([], ValueError),
        (iter([1]), TypeError),
        ("images", TypeError),
        (3, TypeError),
        (Counting(0), ValueError),
    ],
)
def test_images__wrong_sources_raise(source, error):
    with pytest.raises(error, match="[Rr]eference.images"):
        ReferenceImages(source)


def test_images__wrong_settings_and_items_raise():
    with pytest.raises(ValueError, match="transform='train'"):
        ReferenceImages(Counting(1), transform="train")
    with pytest.raises(ValueError, match="integer >= 0"):
        ReferenceImages(Counting(1), num_workers=-1)
    with pytest.raises(TypeError, match="not a tensor"):
        ReferenceImages([("no image", "text")], transform=None)[0]
    mixed = ReferenceImages([torch.rand(1, 2, 2), torch.rand(1, 3, 3)], transform=None)
    with pytest.raises(ValueError, match="differ in shape"):
        order = SharedOrder(2, 2, seed=0, experience=0)
        ReferenceSampler(mixed, order, False).batch(0, 1)


# --------------------------------------------------------------------- texts
def test_texts__tokens_of_strings_and_ids():
    tokenizer = StubTokenizer()
    strings = ReferenceTexts(["ab", "c", "abcd"])
    ids = tokenizer(["ab", "c", "abcd"])
    assert torch.equal(strings.tokens(slice(0, 2), tokenizer), ids[:2])
    assert torch.equal(strings.tokens(torch.tensor([2, 0]), tokenizer), ids[[2, 0]])
    tensor = ReferenceTexts(ids)
    assert torch.equal(tensor.tokens(slice(0, 2), tokenizer), ids[:2, :4])
    assert torch.equal(tensor.tokens(torch.tensor([1]), tokenizer), ids[1:2, :3])
    assert strings.fingerprint() != tensor.fingerprint()
    assert ReferenceTexts(["ab", "c", "abcd"]).fingerprint() == strings.fingerprint()


def test_texts__padding_that_is_the_end_token_keeps_one():
    class Same(StubTokenizer):
        pad_id = eot_id = 2

    ids = torch.tensor([[1, 5, 6, 2, 2, 2], [1, 5, 2, 2, 2, 2]])
    cut = ReferenceTexts(ids).tokens(slice(0, 2), Same())
    assert torch.equal(cut, ids[:, :4])


@pytest.mark.parametrize(
    "texts, error",
    [
        ("a photo", TypeError),
        ([1, 2], TypeError),
        ([], ValueError),
        (torch.zeros(0, 4, dtype=torch.int64), ValueError),
        (torch.zeros(3, 4), ValueError),
        (torch.zeros(3, dtype=torch.int64), ValueError),
    ],
)
def test_texts__wrong_ones_raise(texts, error):
    with pytest.raises(error, match="[Rr]eference texts"):
        ReferenceTexts(texts)


def test_reference_images__with_random_transforms_of_their_own_are_not_kept():
    def images(own, **options):
        data = Counting(4)
        data.transform = own
        return ReferenceImages(data, transform=StubTransform(), **options)

    assert images(None).fixed and images(StubTransform()).fixed
    assert not images(lambda image: image).fixed
    assert images(torch.nn.Identity(), fixed=True).fixed


def test_reference_texts__of_padding_only_raise():
    texts = ReferenceTexts(torch.zeros(2, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="nothing but the padding id 0"):
        texts.tokens(slice(None), stub_model().tokenizer)
