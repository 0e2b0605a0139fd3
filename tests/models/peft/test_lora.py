"""Low-rank updates: computed by hand, on every attention, merged."""

import pytest
import torch

from avalanche_clip.models import (
    attach_adapters,
    attach_language_adapters,
    attach_lora,
    attach_moe_adapters,
    attach_prompts,
    create_dual_encoder,
    merge_adapters,
)
from tests.helpers import assert_same_weights, weights
from tests.models.experts import OPTIONS, features, make_batch, randomise
from tests.models.kinds import KINDS

CLOSE = {"rtol": 0, "atol": 1e-6}
EVERY = ("qkv", "out", "mlp")


def custom_block(cfg, request):
    """open_clip's own attention."""
    cfg["model_cfg"]["vision_cfg"] |= {"block_type": "custom", "scale_attn": True}
    return create_dual_encoder(cfg)


@pytest.fixture(params=[*KINDS, custom_block], ids=lambda kind: kind.__name__)
def model(request, tiny_cfg):
    torch.manual_seed(0)
    return request.param(tiny_cfg, request).eval()


def test_fused__update_is_scale_times_b_a(one):
    lora = attach_lora(one, "image", rank=2, alpha=3.0, targets=("q", "v", "out"))
    randomise(lora)
    attn, parts = one.blocks("image")[0].attn, lora.branches()[0].table["0"]
    width = attn.embed_dim
    weight, out = attn.in_proj_weight.clone(), attn.out_proj.weight.clone()
    weight[:width] += 1.5 * parts.query_up @ parts.query_down
    weight[2 * width :] += 1.5 * parts.value_up @ parts.value_down
    out += 1.5 * parts.out_up @ parts.out_down
    x, mask = torch.randn(2, 5, width), torch.ones(5, 5, dtype=torch.bool).triu(1)
    q, k, v = (x @ weight.T + attn.in_proj_bias).chunk(3, -1)
    heads = []
    for h in range(attn.num_heads):
        part = slice(h * attn.head_dim, (h + 1) * attn.head_dim)
        scores = q[..., part] @ k[..., part].transpose(1, 2) / attn.head_dim**0.5
        scores = scores.masked_fill(mask, float("-inf"))
        heads.append(scores.softmax(-1) @ v[..., part])
    expected = torch.cat(heads, -1) @ out.T + attn.out_proj.bias
    floats = torch.zeros(5, 5).masked_fill(mask, float("-inf"))
    for given, needed in ((mask, False), (floats, False), (floats, True)):
        with torch.no_grad():
            found = attn(x, x, x, need_weights=needed, attn_mask=given)[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_shared_a__equals_stacked_updates(model):
    """One A for query, key and value is three updates with equal A."""
    lora = attach_lora(model, rank=2)
    randomise(lora)
    expected = features(model, make_batch(model))
    factors = [branch.table["0"] for branch in lora.branches()]
    lora.detach()
    parts = attach_lora(model, rank=2, targets=("q", "k", "v", "out"))
    with torch.no_grad():
        for branch, own in zip(parts.branches(), factors, strict=True):
            new = branch.table["0"]
            rows = own.qkv_up.chunk(3)
            for name, up in zip(("query", "key", "value"), rows, strict=True):
                getattr(new, f"{name}_down").copy_(own.qkv_down)
                getattr(new, f"{name}_up").copy_(up)
            new.out_down.copy_(own.out_down)
            new.out_up.copy_(own.out_up)
    torch.testing.assert_close(features(model, make_batch(model)), expected, **CLOSE)


@pytest.mark.parametrize("targets", [("qkv", "out"), EVERY, ("k", "v")])
def test_merge__computes_the_same_without_a_branch(model, targets):
    names = [name for name, _ in model.named_parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    lora = attach_lora(model, targets=targets, learned_scale=True)
    lora.add()
    randomise(lora)
    lora.set_ids(1)
    expected = features(model, make_batch(model))
    with lora.using_ids(-1):
        assert (features(model, make_batch(model)) - expected).abs().max() > 1e-3
    assert merge_adapters(model) is model
    torch.testing.assert_close(features(model, make_batch(model)), expected, **CLOSE)
    assert model.lora is None
    assert [name for name, _ in model.named_parameters()] == names
    assert [p.requires_grad for p in model.parameters()] == flags
    model.check_plain("test")


def test_merge__of_a_language(one):
    adapters = attach_language_adapters(one, "lora", rank=2)
    adapters.add_language(3)
    randomise(adapters)
    adapters.set_languages(3)
    expected = features(one, make_batch(one))
    merge_adapters(one)
    assert one.language_adapters is None
    torch.testing.assert_close(features(one, make_batch(one)), expected, **CLOSE)


@pytest.mark.parametrize(
    ("attach", "message"),
    [
        (lambda m: None, "Nothing is attached"),
        (lambda m: attach_moe_adapters(m, **OPTIONS), "cannot be merged"),
        (attach_adapters, "cannot be merged"),
        (lambda m: attach_language_adapters(m).add_language(1), "No id"),
        (
            lambda m: (
                attach_language_adapters(m).add_language(1),
                m.language_adapters.set_languages(1),
            ),
            "cannot be merged",
        ),
        (attach_prompts, "cannot be merged"),
        (lambda m: (attach_lora(m), attach_adapters(m)), "cannot be merged"),
        (lambda m: attach_lora(m).set_ids(-1), "No id"),
        (
            lambda m: (attach_lora(m).add(), m.lora.set_ids(torch.tensor([0, 1, 1]))),
            "several",
        ),
    ],
)
def test_merge__refusals_leave_the_model_unchanged(one, attach, message):
    attach(one)
    before = weights(one)
    flags = [p.requires_grad for p in one.parameters()]
    out = features(one, make_batch(one))
    with pytest.raises(ValueError, match=message):
        merge_adapters(one)
    assert_same_weights(one, before)
    assert [p.requires_grad for p in one.parameters()] == flags
    assert torch.equal(features(one, make_batch(one)), out)


def test_counts__are_those_of_the_papers(one):
    width, blocks, rank = 32, 2, 4
    sit = attach_lora(one)
    assert sit.num_parameters == 2 * blocks * 6 * rank * width
    sit.detach()
    coleclip = attach_lora(one, "text", rank=5, targets=("k", "v"), learned_scale=True)
    assert coleclip.num_parameters == blocks * (4 * 5 * width + 2)


def test_init__xavier_changes_features_from_the_start(one):
    plain = features(one, make_batch(one))
    lora = attach_lora(one, init="xavier")
    assert (features(one, make_batch(one)) - plain).abs().max() > 1e-5
    parts = lora.branches()[0].table["0"]
    assert parts.qkv_up.abs().max() > 0 and not parts.out_up.any()


def test_first_step__moves_b_only(one):
    lora = attach_lora(one)
    out = one.train()(make_batch(one))
    (out.image_features @ out.text_features.T).square().sum().backward()
    for name, parameter in lora.trainable_parameters():
        assert bool(parameter.grad.any()) == name.endswith("_up"), name
