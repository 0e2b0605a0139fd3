"""Adapters per language in text towers: MLA-style bottlenecks and LoRA."""

import types

import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.models import attach_language_adapters
from tests.models.experts import randomise
from tests.models.kinds import hf_clip, native
from tests.refused import refused

TEXTS = ["red dog", "blue", "green cat bird sun"]
KINDS = ("mla", "lora")


@pytest.fixture(params=[native, hf_clip], ids=lambda kind: kind.__name__)
def model(request, tiny_cfg):
    torch.manual_seed(0)
    return request.param(tiny_cfg, request).eval()


def encode(model):
    with torch.no_grad():
        return model.encode_text(model.tokenizer(TEXTS), normalize=False)


@pytest.mark.parametrize("kind", KINDS)
def test_codes__without_adapters_mean_the_base_tower(model, kind):
    plain = encode(model)
    adapters = attach_language_adapters(model, kind)
    adapters.add_language(4)
    adapters.add_language(4)
    assert adapters.codes == (4,)
    randomise(adapters)
    for codes in (None, 7, torch.tensor([7, 9, 7])):
        adapters.set_languages(codes)
        assert torch.equal(encode(model), plain)
    with adapters.languages(torch.tensor([4, 9, 4])):
        mixed = encode(model)
    assert (mixed - plain).abs().amax(1).gt(1e-3).tolist() == [True, False, True]
    assert torch.equal(encode(model), plain)
    adapters.set_languages(torch.tensor([4, 3]))
    refused("2 language codes were set for 3 texts", encode, model)
    adapters.remove(model)
    assert torch.equal(encode(model), plain)
    attach_language_adapters(model, kind)


def test_bottleneck__follows_the_perceptron(one):
    model, blocks = one, one.blocks("text")
    x = torch.randn(2, 5, 32)
    block = blocks[0].module
    with torch.no_grad():
        r = x + block.attention(block.ln_1(x))
        y = block.mlp(block.ln_2(r))
        adapters = attach_language_adapters(model, "mla")
        adapters.add_language(1)
        randomise(adapters)
        low = adapters.branches()[0].languages["1"]
        assert low.down.weight.shape == (16, 32)
        h = F.layer_norm(r + y, (32,), block.ln_2.weight, block.ln_2.bias)
        expected = r + y + low.up(torch.relu(low.down(h)))
        with adapters.languages(1):
            found = block(x)
    torch.testing.assert_close(found, expected)


def test_lora__is_of_queries_and_values(one):
    adapters = attach_language_adapters(one, "lora", rank=2, alpha=6.0)
    adapters.add_language(1)
    low = adapters.branches()[0].languages["1"]
    sides = [f"{name}_{side}" for name in ("query", "value") for side in ("down", "up")]
    assert [name for name, _ in low.named_parameters()] == sides
    assert low.scale == 3.0 and low.query_down.shape == (2, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_adaptation__trains_the_languages_of_the_experience(model, kind):
    adapters = attach_language_adapters(model, kind)
    for code in (2, 5):
        adapters.adaptation(types.SimpleNamespace(language_code=code))
    trained = {n.split(".languages.")[1][0] for n, _ in adapters.trainable_parameters()}
    assert trained == {"5"}
    with adapters.languages(torch.tensor([2, 5, 5])):
        model.encode_text(model.tokenizer(TEXTS)).sum().backward()
    grads = [(n, p.grad) for n, p in model.named_parameters() if ".languages." in n]
    assert any(".languages.5." in n and g is not None and g.any() for n, g in grads)
    assert all(".languages.5." in n or g is None for n, g in grads)
    data = types.SimpleNamespace(language=[5, 2, 2, 8])
    adapters.adaptation(types.SimpleNamespace(dataset=data))
    assert adapters.codes == (2, 5, 8)
    refused("multilingual_benchmark", adapters.adaptation, types.SimpleNamespace())


def test_codes__are_checked(one):
    adapters = attach_language_adapters(one)
    refused("has language adapters", attach_language_adapters, one)
    for code in (-1, True, 0.5):
        refused("language code", adapters.add_language, code)


@pytest.mark.parametrize("kind", KINDS)
def test_file__holds_the_languages(one, kind, tmp_path):
    adapters, path = attach_language_adapters(one, kind), tmp_path / "a.safetensors"
    for code in (4, 2):
        adapters.add_language(code)
    randomise(adapters)
    adapters.set_languages(4)
    expected = encode(one)
    adapters.save(path)
    adapters.detach()
    again = attach_language_adapters(one, kind)
    again.add_language(7)
    again.load(path)
    assert again.codes == (4, 2)
    again.set_languages(4)
    assert torch.equal(encode(one), expected)
    again.detach()
    third = attach_language_adapters(one, {"mla": "lora", "lora": "mla"}[kind])
    refused("kind=", third.load, path)
    assert third.codes == ()
