import random

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks.items.batch import ImageTextBatch
from avalanche_clip.evaluation.metrics._probe import Probe
from tests.helpers import stub_benchmark, stub_model


def prepared(size=9, captions=1, **options):
    """The test data of a prepared benchmark."""
    benchmark = stub_benchmark((4, 4), test_captions=captions, **options)
    return benchmark.test_stream[0].dataset


def embed_by_hand(model, dataset, indices):
    """First captions, one item at a time."""
    model.eval()
    images, texts = [], []
    with torch.no_grad():
        for index in indices:
            image, captions = dataset.eval()[index][:2]
            caption = captions if isinstance(captions, str) else captions[0]
            images.append(model.encode_image(image[None])[0])
            texts.append(model.encode_text(model.tokenizer([caption]))[0])
    return torch.stack(images), torch.stack(texts)


@pytest.mark.parametrize("captions", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_probe__embeds_the_first_caption_of_each_image(captions, batch_size):
    model, dataset = stub_model(dropout=0.5), prepared(captions=captions)
    found = Probe(dataset, batch_size=batch_size).embed(model, torch.device("cpu"))
    expected = embed_by_hand(model, dataset, range(len(dataset)))
    for ours, theirs in zip(found, expected):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_probe__takes_pairs_at_equal_distances():
    dataset = prepared()
    assert Probe(dataset, max_pairs=3).indices == [0, 2, 4]
    assert Probe(dataset, max_pairs=6).indices == list(range(6))
    assert Probe(dataset).indices == list(range(6))
    assert len(Probe(dataset, max_pairs=1)) == 1


def test_probe__uses_evaluation_transforms_of_training_data():
    model = stub_model(noise=5.0)
    dataset = stub_benchmark((8,), model=model).train_stream[0].dataset
    device = torch.device("cpu")
    first, again = (Probe(dataset).embed(model, device) for _ in range(2))
    expected = embed_by_hand(model, dataset, range(8))
    assert torch.equal(first.image_features, again.image_features)
    assert torch.allclose(first.image_features, expected[0], atol=1e-6)


def test_probe__leaves_modes_features_and_generators_alone():
    model = stub_model(dropout=0.5)
    model.train()
    model.text_proj.eval()
    model.features = kept = torch.ones(3)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    # a transform that draws makes no difference either
    dataset = prepared(
        eval_transform=lambda x: (
            x.float() + torch.rand(()) + random.random() + np.random.rand()
        )
    )
    probe = Probe(dataset, num_workers=0)
    one = probe.embed(model, torch.device("cpu"))
    torch.rand(7)
    two = probe.embed(model, torch.device("cpu"))
    assert torch.equal(one.image_features, two.image_features)
    assert model.training and model.dropout.training and not model.text_proj.training
    assert model.features is kept
    torch.set_rng_state(states[2])
    probe.embed(model, torch.device("cpu"))
    assert random.getstate() == states[0]
    assert (np.random.get_state()[1] == states[1]).all()
    assert torch.equal(torch.get_rng_state(), states[2])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_probe__failure_puts_everything_back():
    model = stub_model()
    probe = Probe(prepared())
    before = torch.get_rng_state()
    model.image_proj = None
    with pytest.raises(TypeError):
        probe.embed(model.train(), torch.device("cpu"))
    assert model.training and torch.equal(torch.get_rng_state(), before)


def test_probe__full_precision_inside_autocast():
    model, dataset = stub_model(), prepared()
    plain = Probe(dataset).embed(model, torch.device("cpu"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = Probe(dataset).embed(model, torch.device("cpu"))
    assert torch.equal(plain.image_features, inside.image_features)


def test_probe__owners_in_any_order():
    from avalanche_clip.evaluation.metrics._probe import _first_captions

    batch = ImageTextBatch(
        image=torch.zeros(3, 1),
        text=torch.arange(6)[:, None],
        owner=torch.tensor([2, 0, 2, 1, 0, 1]),
    )
    first = _first_captions(batch)
    assert first["text"].tolist() == [[1], [3], [0]]
    assert first["owner"].tolist() == [0, 1, 2] and len(batch["text"]) == 6
