import pytest
import torch

from avalanche_clip.benchmarks import ImageTextBatch
from avalanche_clip.losses import contrastive_loss
from avalanche_clip.models.encoders.output import CLIPOutput
from avalanche_clip.training import Sequential
from avalanche_clip.training.templates.accumulation import FeatureCache
from tests.helpers import build, stub_model


def batch_of(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ImageTextBatch(
        image=torch.randn(size, 3, 8, 8, generator=generator),
        text=torch.randint(1, 32, (size, 6), generator=generator),
        owner=torch.arange(size),
        sample_id=torch.arange(size),
    )


def loss_of(output):
    return contrastive_loss(*output[:3])


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters()}


def whole(model, batch):
    model.zero_grad()
    loss_of(model(batch)).backward()
    return gradients(model)


def cached(model, batch, chunks):
    model.zero_grad()
    cache = FeatureCache(batch, chunks, torch.device("cpu"))
    loss_of(cache.forward(model)).backward()
    cache.backward(model, model)
    return gradients(model)


@pytest.mark.parametrize("size, chunks", [(8, 2), (7, 3), (5, 5), (3, 8), (6, 1)])
def test_gradients__equal_those_of_the_whole_batch(size, chunks):
    model, batch = stub_model(), batch_of(size)
    ours, expected = cached(model, batch, chunks), whole(model, batch)
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)
    assert expected["logit_scale"].abs() > 0


def test_dropout__is_replayed_in_the_second_pass():
    model, batch = stub_model(dropout=0.5), batch_of(8)
    passes = []

    def encode(part):
        output = model(part)
        passes.append(output.image_features.detach())
        return output

    cache = FeatureCache(batch, 3, torch.device("cpu"))
    loss_of(cache.forward(encode)).backward()
    cache.backward(encode, encode)
    assert all(torch.equal(a, b) for a, b in zip(passes[:3], passes[3:], strict=True))
    assert not torch.equal(passes[0], model(cache.parts[0]).image_features)


def test_generator__goes_on_from_where_it_was_between_the_passes():
    model, batch = stub_model(dropout=0.5), batch_of(8)
    cache = FeatureCache(batch, 2, torch.device("cpu"))
    loss_of(cache.forward(model)).backward()
    torch.rand(3)  # a plugin draws
    expected = torch.get_rng_state()
    cache.backward(model, model)
    assert torch.equal(torch.get_rng_state(), expected)


def test_balance_loss__is_weighted_by_the_size_of_the_chunks():
    values = iter([1.0, 4.0])

    def encode(part):
        features = torch.zeros(len(part), 2)
        aux = {"balance_loss": torch.tensor(next(values))}
        return CLIPOutput(features, features, torch.tensor(1.0), aux)

    cache = FeatureCache(batch_of(5), 2, torch.device("cpu"))
    sizes = cache.sizes
    joined = cache.forward(encode).aux["balance_loss"]
    assert joined.item() == pytest.approx((sizes[0] + 4 * sizes[1]) / 5)


def test_batch_norm__warns():
    model = stub_model()
    model.norm = torch.nn.BatchNorm1d(4)
    with pytest.warns(UserWarning, match="batch normalisation"):
        build(Sequential, model, accumulation_steps=2)
