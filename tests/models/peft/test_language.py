"""Adapters per language in text towers: MLA-style bottlenecks and LoRA."""

import copy
import types

import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.models import attach_language_adapters, create_dual_encoder

TEXTS = ["red dog", "blue", "green cat bird sun"]
KINDS = ("mla", "lora")


@pytest.fixture(params=["open_clip", "transformers"])
def model(request, tiny_cfg):
    torch.manual_seed(0)
    if request.param == "open_clip":
        return create_dual_encoder(tiny_cfg).eval()
    folder = request.getfixturevalue("hf_clip_folder")
    return create_dual_encoder(f"hf:{folder}").eval()


def encode(model):
    with torch.no_grad():
        return model.encode_text(model.tokenizer(TEXTS), normalize=False)


def randomise(adapters, seed=1):
    torch.manual_seed(seed)
    for part in adapters.branches():
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)


@pytest.mark.parametrize("kind", KINDS)
def test_attached__is_the_base_tower_until_a_language_is_chosen(model, kind):
    plain = encode(model)
    names = {n for n, _ in model.named_parameters()}
    adapters = attach_language_adapters(model, kind)
    assert {n for n, _ in model.named_parameters()} == names
    assert torch.equal(encode(model), plain)
    adapters.add_language(4)
    adapters.add_language(4)
    assert adapters.codes == (4,)
    assert torch.equal(encode(model), plain)
    adapters.set_languages(7)  # not learned: the base tower
    assert torch.equal(encode(model), plain)
    adapters.set_languages(4)  # a new language starts from the base tower
    torch.testing.assert_close(encode(model), plain, rtol=1e-5, atol=1e-6)
    randomise(adapters)
    assert (encode(model) - plain).abs().max() > 1e-3
    adapters.set_languages(None)
    assert torch.equal(encode(model), plain)
    adapters.remove(model)
    assert {n for n, _ in model.named_parameters()} == names
    assert torch.equal(encode(model), plain)
    attach_language_adapters(model, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_rows__pass_the_adapters_of_their_language(model, kind):
    plain = encode(model)
    adapters = attach_language_adapters(model, kind)
    for code in (0, 3):
        adapters.add_language(code)
    randomise(adapters)
    alone = {}
    for code in (0, 3):
        with adapters.languages(code):
            alone[code] = encode(model)
    assert (alone[0] - alone[3]).abs().max() > 1e-3
    with adapters.languages(torch.tensor([3, 9, 0])):
        mixed = encode(model)
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(mixed[0], alone[3][0], **close)
    torch.testing.assert_close(mixed[1], plain[1], **close)
    torch.testing.assert_close(mixed[2], alone[0][2], **close)
    assert torch.equal(encode(model), plain)
    adapters.set_languages(torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="2 language codes were set for 3 texts"):
        encode(model)


def test_bottleneck__follows_the_perceptron(tiny_cfg):
    torch.manual_seed(0)
    model = create_dual_encoder(tiny_cfg).eval()
    blocks = model.blocks("text")
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


def test_lora__changes_queries_and_values(tiny_cfg):
    torch.manual_seed(0)
    model = create_dual_encoder(tiny_cfg).eval()
    attention = model.blocks("text")[0].attn
    adapters = attach_language_adapters(model, "lora", rank=2, alpha=6.0)
    adapters.add_language(1)
    randomise(adapters)
    low = adapters.branches()[0].languages["1"]
    other = copy.deepcopy(model.blocks("text")[0].attn)
    vars(other).pop("forward")
    with torch.no_grad():
        weight = other.in_proj_weight
        weight[:32] += 3.0 * low.query_up @ low.query_down
        weight[64:] += 3.0 * low.value_up @ low.value_down
        x = torch.randn(2, 5, 32)
        for mask in (None, torch.full((5, 5), float("-inf")).triu(1)):
            boolean = None if mask is None else mask < 0
            with adapters.languages(1):
                found = attention(x, x, x, need_weights=False, attn_mask=mask)[0]
                same = attention(x, x, x, need_weights=False, attn_mask=boolean)[0]
            expected = other(x, x, x, need_weights=False, attn_mask=mask)[0]
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(same, expected, rtol=1e-5, atol=1e-5)
        with adapters.languages(1):
            found = attention(x, x, x)
        for one, two in zip(found, other(x, x, x), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_training__moves_the_languages_of_the_experience_only(model, kind):
    adapters = attach_language_adapters(model, kind)
    for code in (2, 5):
        adapters.adaptation(types.SimpleNamespace(language_code=code))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = None
    with adapters.languages(torch.tensor([2, 5, 5])):
        model.encode_text(model.tokenizer(TEXTS)).sum().backward()
    for name, parameter in model.named_parameters():
        if ".languages.5." in name:
            assert parameter.requires_grad
        elif ".languages.2." in name:
            assert not parameter.requires_grad and parameter.grad is None
    moved = [
        n
        for n, p in model.named_parameters()
        if ".languages.5." in n and p.grad is not None and p.grad.abs().sum() > 0
    ]
    assert moved
    data = types.SimpleNamespace(language=[5, 2, 2, 8])
    adapters.adaptation(types.SimpleNamespace(dataset=data))
    assert adapters.codes == (2, 5, 8)
    with pytest.raises(ValueError, match="multilingual_benchmark"):
        adapters.adaptation(types.SimpleNamespace())


@pytest.mark.parametrize("kind", KINDS)
def test_weights__load_after_the_growth_is_restored(tiny_cfg, kind):
    torch.manual_seed(0)
    model = create_dual_encoder(tiny_cfg).eval()
    adapters = attach_language_adapters(model, kind)
    for code in (3, 0):
        adapters.add_language(code)
    randomise(adapters)
    other = create_dual_encoder(tiny_cfg).eval()
    fresh = attach_language_adapters(other, kind)
    fresh.load_growth_state(adapters.growth_state())
    other.load_state_dict(model.state_dict())
    assert fresh.codes == (3, 0)
    for code in (3, 0):
        adapters.set_languages(code)
        fresh.set_languages(code)
        assert torch.equal(encode(model), encode(other))


def test_options__are_checked(tiny_cfg):
    model = create_dual_encoder(tiny_cfg)
    for options, message in (
        ({"kind": "prefix"}, "kind="),
        ({"bottleneck": 0}, "bottleneck=0"),
        ({"kind": "lora", "rank": 0}, "rank=0"),
        ({"kind": "lora", "alpha": -1.0}, "alpha=-1"),
    ):
        with pytest.raises(ValueError, match=message):
            attach_language_adapters(model, **options)
    adapters = attach_language_adapters(model)
    with pytest.raises(ValueError, match="has language adapters"):
        attach_language_adapters(model)
    for code in (-1, True, 0.5):
        with pytest.raises(ValueError, match="language code"):
            adapters.add_language(code)


@pytest.mark.parametrize("kind", KINDS)
def test_file__holds_the_languages(tiny_cfg, kind, tmp_path):
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(create_dual_encoder(tiny_cfg).eval())
        attach_language_adapters(models[-1], kind)
    one, other = (model.language_adapters for model in models)
    for code in (4, 2):
        one.add_language(code)
    randomise(one)
    one.set_languages(4)
    one.save(tmp_path / "a.safetensors")
    other.add_language(7)
    other.load(tmp_path / "a.safetensors")
    assert other.codes == (4, 2)
    other.set_languages(4)
    assert torch.equal(encode(models[1]), encode(models[0]))
    other.detach()
    options = {"kind": {"mla": "lora", "lora": "mla"}[kind]}
    third = attach_language_adapters(models[1], **options)
    with pytest.raises(ValueError, match="kind="):
        third.load(tmp_path / "a.safetensors")
    assert third.codes == ()
