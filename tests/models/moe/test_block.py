import pytest
import torch

from avalanche_clip.models import attach_moe_adapters, create_dual_encoder
from tests.models.experts import (
    OPTIONS,
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
