import pytest
import torch

from avalanche_clip.models import attach_moe_adapters, create_dual_encoder
from tests.models.experts import (
    OPTIONS,
    TEXTS,
    features,
    make_batch,
    randomize,
)


@pytest.fixture
def one(tiny_cfg):
    torch.manual_seed(0)
    return create_dual_encoder(tiny_cfg)


def gradients(model, ids, batch):
    """Gradients of one step whose router is gone before the backward pass."""
    model.zero_grad()
    torch.manual_seed(3)
    with model.moe_adapters.using_router(ids):
        out = model(batch)
    loss = (out.image_features @ out.text_features.T).square().sum()
    if "balance_loss" in out.aux:
        loss = loss + out.aux["balance_loss"]
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters()}


@pytest.mark.parametrize("track", [False, True])
def test_checkpointing__same_gradients_after_the_router_has_changed(one, track):
    moe = attach_moe_adapters(one, **OPTIONS)
    moe.add_router()
    randomize(one)
    moe.start_task(1)
    moe.set_router(0)
    moe.track_balance = track
    batch = make_batch(one)
    one.train()
    expected = gradients(one, 1, batch)
    counts = [a.counts.clone() for a in moe.adapters()]
    one.clip.set_grad_checkpointing(True)
    for adapter in moe.adapters():
        adapter.clear_counts()
    found = gradients(one, 1, batch)
    assert any(g is not None and g.any() for g in expected.values())
    for name, grad in expected.items():
        assert (grad is None) == (found[name] is None), name
        if grad is not None:
            torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)
    for adapter, before in zip(moe.adapters(), counts, strict=True):
        assert torch.equal(adapter.counts, before)


def test_layout__sequence_first_towers_give_the_same(one):
    moe = attach_moe_adapters(one, **OPTIONS)
    randomize(one)
    batch = make_batch(one)
    one.eval()
    expected = features(one, batch)
    grads = gradients(one, 0, batch)
    for transformer in (one.clip.transformer, one.clip.visual.transformer):
        transformer.batch_first = False
        for block in transformer.resblocks:
            block.attn.batch_first = False
    moe.detach()
    attach_moe_adapters(one, **OPTIONS)
    randomize(one)
    assert not one.moe_adapters.adapters("text")[0].view.batch_first
    torch.testing.assert_close(features(one, batch), expected, rtol=0, atol=1e-6)
    for name, grad in gradients(one, 0, batch).items():
        if grad is None:
            assert grads[name] is None
        else:
            torch.testing.assert_close(grad, grads[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision__adapters_train_in_float32_on_a_16_bit_base(tiny_cfg, precision):
    torch.manual_seed(0)
    model = create_dual_encoder(tiny_cfg, precision=precision)
    batch = make_batch(model)
    before = features(model, batch)
    moe = attach_moe_adapters(model, **OPTIONS)
    assert {p.dtype for a in moe.adapters() for p in a.parameters()} == {torch.float32}
    assert torch.equal(features(model, batch), before)
    out = model.train()(batch)
    (out.image_features @ out.text_features.T).sum().backward()
    grads = [p.grad for _, p in moe.trainable_parameters() if p.grad is not None]
    assert grads and all(g.isfinite().all() for g in grads)
    moe.detach()
    assert torch.equal(features(model, batch), before)


def test_autocast__features_stay_close_and_finite(one):
    attach_moe_adapters(one, **OPTIONS)
    randomize(one)
    one.eval()
    batch = make_batch(one)
    exact = features(one, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = features(one, batch)
    assert (found * exact).sum(1).min() > 0.98


def test_attention__weights_thawed_on_purpose_get_gradients(one):
    moe = attach_moe_adapters(one, **OPTIONS)
    moe.set_router(-1)
    weight = one.blocks("image")[0].attn.in_proj_weight.requires_grad_(True)
    one(make_batch(one)).image_features[0, 0].backward()
    assert weight.grad.any()


def test_cost__one_pass_and_macs_grow_by_the_experts(one):
    base = one.macs(4)
    moe = attach_moe_adapters(one, **OPTIONS)
    with moe.using_router(-1):
        assert one.macs(4) == base
    randomize(one)
    one._macs.clear()
    # two blocks of width 32: router; down and up for each kept expert; up biases
    expected = 2 * (32 * 4 + 4 * 2 * 2 * 32 * 6 + 2 * 32)
    assert one.macs(4)["text"] - base["text"] == expected


def test_accumulation__second_pass_gives_the_same_features(one):
    attach_moe_adapters(one, **OPTIONS)
    randomize(one)
    one.train()
    state = torch.get_rng_state()
    first = features(one, make_batch(one))
    torch.set_rng_state(state)
    out = one(make_batch(one))
    again = torch.cat([out.image_features, out.text_features])
    torch.testing.assert_close(again, first, rtol=0, atol=1e-6)
    assert len(TEXTS) == 3
