"""Prefixes against a slow attention, prompt tokens and their mask."""

import copy
import math

import pytest
import torch

from avalanche_clip.models import attach_prompts
from avalanche_clip.models.peft.prompt import prompt_mask
from tests.models.experts import features, make_batch, randomise
from tests.models.kinds import KINDS

INF = float("inf")


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def model(request, tiny_cfg):
    torch.manual_seed(0)
    return request.param(tiny_cfg, request).requires_grad_(False).eval()


def slow_attention(attn, x, keys, values, compensate, causal):
    """Token by token, head by head."""
    size = attn.head_dim
    q, k, v = (x @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, -1)
    out = torch.zeros_like(x)
    for b in range(len(x)):
        for i in range(x.shape[1]):
            for h in range(attn.num_heads):
                part = slice(h * size, (h + 1) * size)
                seen = i + 1 if causal else x.shape[1]
                every = torch.cat([keys[:, part], k[b, :seen, part]])
                weights = (every @ q[b, i, part] / math.sqrt(size)).softmax(0)
                own = weights[: len(keys)]
                if compensate:
                    own = own / own.sum()
                mixed = own @ values[:, part] + weights[len(keys) :] @ v[b, :seen, part]
                out[b, i, part] = mixed
    return out @ attn.out_proj.weight.T + attn.out_proj.bias


@torch.no_grad()
@pytest.mark.parametrize("compensate", [False, True])
@pytest.mark.parametrize("mask", [None, "float", "bool"])
def test_prefix__equals_a_slow_attention(one, compensate, mask):
    prompts = attach_prompts(one, "text", length=3, scale=1.0, compensate=compensate)
    randomise(prompts, std=1.0)
    parts = prompts.branches()[0].table["0"]
    parts.scale.fill_(1.0)
    attn, x = one.blocks("text")[0].attn, torch.randn(2, 5, 32)
    upper = torch.ones(5, 5, dtype=torch.bool).triu(1)
    given = {None: None, "bool": upper, "float": torch.zeros(5, 5)}[mask]
    if mask == "float":
        given = given.masked_fill(upper, -INF)
    found = attn(x, x, x, need_weights=False, attn_mask=given)[0]
    expected = slow_attention(attn, x, parts.key, parts.value, compensate, bool(mask))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    parts.scale.fill_(0.25)
    with prompts.using_ids(-1):
        plain = attn(x, x, x, need_weights=False, attn_mask=given)[0]
    found = attn(x, x, x, need_weights=False, attn_mask=given)[0]
    between = plain + 0.25 * (expected - plain)
    torch.testing.assert_close(found, between, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="weights"):
        attn(x, x, x)


def test_mask__of_two_tasks_and_two_tokens():
    expected = torch.tensor(
        [[0, -INF, 0, 0], [0, 0, 0, 0], [-INF, -INF, 0, 0], [-INF, -INF, 0, 0]]
    )
    assert torch.equal(prompt_mask([1, 1], 2), expected)


def three_tasks(model, length=2):
    prompts = attach_prompts(model, "image", kind="tokens", length=length)
    for key in (1, 2):
        assert prompts.add() == key
    randomise(prompts, std=1.0)
    prompts.train_ids([0, 1, 2])
    return prompts


def test_tokens__plain_features_stay_and_later_prompts_change_nothing(model):
    batch = make_batch(model)
    plain = features(model, batch)
    raw = model.encode_image(batch["image"], normalize=False)
    prompts = three_tasks(model)
    close = {"rtol": 0, "atol": 1e-5}
    read = {}
    for key in (0, 1, 2):
        prompts.set_ids(key)
        torch.testing.assert_close(features(model, batch), plain, **close)
        feature, read[key], ids = prompts.encode_image(batch["image"])
        assert ids == list(range(key + 1)) and read[key].shape[1] == key + 1
        torch.testing.assert_close(feature, raw, **close)
    torch.testing.assert_close(read[2][:, :2], read[1], **close)
    torch.testing.assert_close(read[1][:, :1], read[0], **close)
    assert (read[2][:, 1] - read[2][:, 2]).abs().max() > 1e-3
    found = read[2].detach()
    with torch.no_grad():
        tokens = prompts.branches()[0].table["1"].tokens
        tokens.add_(torch.randn(tokens.shape))
    _, again, _ = prompts.encode_image(batch["image"])
    torch.testing.assert_close(again[:, 0], found[:, 0], **close)
    assert (again[:, 1:] - found[:, 1:]).abs().amax((0, 2)).min() > 1e-4
    prompts.set_ids(-1)
    feature, none, ids = prompts.encode_image(batch["image"])
    assert torch.equal(features(model, batch), plain)
    assert ids == [] and none.shape[1] == 0


def test_tokens__gradient_of_the_active_id_only(one):
    prompts = three_tasks(one, length=1)
    prompts.set_ids(1)
    _, read, _ = prompts.encode_image(make_batch(one)["image"])
    read.square().sum().backward()
    grads = [prompts.branches()[0].table[str(key)].tokens.grad for key in (0, 1, 2)]
    assert grads[0] is None and grads[1].any() and grads[2] is None


def test_tokens__checkpointing_gives_the_same_gradients(model):
    prompts = three_tasks(model)
    if hasattr(model.clip, "set_grad_checkpointing"):
        enable = model.clip.set_grad_checkpointing
    else:
        enable = model.clip.gradient_checkpointing_enable
    found = []
    for start in (lambda: None, enable):
        start()
        model.train().zero_grad()
        image, total = make_batch(model)["image"], 0.0
        for ids in (1, 2, torch.tensor([0, 2, 1]), 1):
            prompts.set_ids(ids)
            total = total + prompts.encode_image(image)[1].square().sum()
        with torch.no_grad(), prompts.using_ids(2):
            prompts.encode_image(image)  # a pass in between changes nothing
        total.backward()
        table = prompts.branches()[0].table.values()
        found.append(torch.stack([parts.tokens.grad for parts in table]))
    assert found[0].flatten(1).any(1).all()
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)


def test_tokens__copies_and_rows_have_their_own(one):
    image = make_batch(one)["image"]
    prompts = three_tasks(one, length=1)
    prompts.set_ids(torch.tensor([1, -1, 0]))
    plain, read, ids = prompts.encode_image(image)
    assert ids == [0, 1]
    twin = copy.deepcopy(one)
    randomise(prompts, seed=7)
    other, again, _ = twin.prompts.encode_image(image)
    assert torch.equal(again, read) and torch.equal(other, plain)
    twin.prompts.detach()
    assert twin.prompts is None and prompts.encode_image(image)[2] == [0, 1]


def test_tokens__equal_the_block_with_its_mask(one):
    """open_clip's own transformer, run by hand on prompts and tokens."""
    prompts = three_tasks(one, length=1)
    prompts.set_ids(1)
    image = make_batch(one)["image"]
    with torch.no_grad():
        _, read, _ = prompts.encode_image(image)
        own = [prompts.branches()[0].table[str(key)].tokens for key in (0, 1)]
        prompts.detach()
        visual = one.clip.visual
        x = visual._embeds(image)
        x = torch.cat([visual.ln_pre(torch.cat(own)).expand(3, -1, -1), x], 1)
        x = visual.transformer(x, attn_mask=prompt_mask([1, 1], x.shape[1] - 2))
        expected = visual.ln_post(x[:, :2]) @ visual.proj
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-5)
