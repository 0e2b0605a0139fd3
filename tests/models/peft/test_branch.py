"""What all branches have in common, on the towers of each library."""

import copy
import pickle
from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from avalanche_clip.models import (
    attach_adapters,
    attach_language_adapters,
    attach_lora,
    attach_moe_adapters,
    attach_prompts,
    create_dual_encoder,
)
from tests.helpers import assert_same_weights, weights
from tests.models.experts import OPTIONS, features, make_batch, randomise
from tests.models.kinds import convolutional, hf_clip, hf_siglip, layer_scale, timm_vit
from tests.refused import refused


def attach_mixtures(model, tower="both", **options):
    towers = ("image", "text") if tower == "both" else tower
    return attach_moe_adapters(model, towers=towers, **{**OPTIONS, **options})


def attach_languages(model, **options):
    adapters = attach_language_adapters(model, **options)
    adapters.add_language(0)
    adapters.set_languages(0)
    return adapters


FORMS = {
    "mixture": (attach_mixtures, {"dropout": 0.0}),
    "languages": (attach_languages, {"bottleneck": 6}),
    "languages_lora": (attach_languages, {"kind": "lora", "rank": 2}),
    "lora": (attach_lora, {"targets": ("qkv", "out", "mlp")}),
    "serial": (attach_adapters, {"bottleneck": 6}),
    "parallel": (
        attach_adapters,
        {"bottleneck": 5, "form": "parallel", "shared": False, "activation": "gelu"},
    ),
    "prefix": (attach_prompts, {"length": 3, "compensate": True}),
}
CLOSE = {"rtol": 0, "atol": 2e-6}


@pytest.fixture(
    params=[layer_scale, timm_vit, hf_clip, hf_siglip], ids=lambda kind: kind.__name__
)
def model(request, tiny_cfg):
    torch.manual_seed(0)
    return request.param(tiny_cfg, request).requires_grad_(False).eval()


@pytest.fixture(params=FORMS)
def form(request):
    attach, options = FORMS[request.param]
    return lambda model, **more: attach(model, **{**options, **more})


@pytest.fixture(params=["lora", "serial", "parallel", "prefix"])
def frozen_form(request):
    """Those that take a tower and blocks, and train the parts of an id."""
    attach, options = FORMS[request.param]
    return lambda model, **more: attach(model, **{**options, **more})


def using(branches, image, text):
    """Choose ids of the towers that have branches."""
    ids = {"image": torch.tensor(image), "text": torch.tensor(text)}
    return branches.using_ids(**{tower: ids[tower] for tower in branches.towers})


def randomise_model(model):
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-3 * torch.randn_like(parameter)


def loss(model):
    out = model(make_batch(model))
    return (out.image_features @ out.text_features.T).square().sum()


def test_attached__features_stay(model, form):
    batch, names = make_batch(model), [n for n, _ in model.named_parameters()]
    plain = {mode: features(model.train(mode), batch) for mode in (True, False)}
    branches = form(model)
    assert not branches.training and all(not b.training for b in branches.branches())
    for mode in plain:
        found = features(model.train(mode), batch)
        torch.testing.assert_close(found, plain[mode], **CLOSE)
        if branches.name == "moe_adapters":  # x + 0.0 is x
            assert torch.equal(found, plain[mode])
    randomise(branches)
    assert (features(model, batch) - plain[False]).abs().max() > 1e-4
    with branches.using_ids(-1):
        for mode in plain:
            assert torch.equal(features(model.train(mode), batch), plain[mode])
        assert not loss(model).requires_grad
    branches.detach()
    assert getattr(model, branches.name) is None
    assert [n for n, _ in model.named_parameters()] == names
    assert not any("forward" in vars(m) for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.equal(features(model, batch), plain[False])


def test_rows__of_several_ids_equal_separate_passes(model, form):
    batch = make_batch(model)
    branches = form(model)
    assert branches.add() == 1
    randomise(branches)
    separate = {}
    for key in (-1, 0, 1):
        with branches.using_ids(key):
            separate[key] = features(model, batch)
    assert (separate[0] - separate[1]).abs().max() > 1e-4
    with using(branches, [1, -1, 0], [0, 1, -1]):
        mixed = features(model, batch)
    for row, key in enumerate((1, -1, 0, 0, 1, -1)):
        torch.testing.assert_close(mixed[row], separate[key][row], **CLOSE)


def test_gradients__reach_the_ids_in_use_only(model, frozen_form):
    model.requires_grad_(True)
    branches = frozen_form(model)
    branches.add()
    branches.train_ids([0, 1])
    randomise(branches)
    branches.set_ids(1)
    loss(model.train()).backward()
    own = {name for name, _ in branches.trainable_parameters()}
    for name, parameter in model.named_parameters():
        if name in own and ".entries.1." in name:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        else:
            assert parameter.grad is None, name
    branches.train_ids([0])
    assert all(".entries.0." in name for name, _ in branches.trainable_parameters())
    branches.detach()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies__are_their_own(one, form, way):
    one.freeze()
    batch, plain = make_batch(one), features(one, make_batch(one))
    branches = form(one)
    randomise(branches)
    out = features(one, batch)
    other = copy.deepcopy(one) if way == "deepcopy" else pickle.loads(pickle.dumps(one))
    twin = getattr(other, branches.name)
    assert twin.model is other and torch.equal(features(other, batch), out)
    randomise(branches, seed=5)
    branches.set_ids(-1)
    assert torch.equal(features(other, batch), out)
    twin.detach()
    assert torch.equal(features(other, batch), plain)
    assert torch.equal(features(one, batch), plain)
    branches.set_ids(0)
    assert not torch.equal(features(one, batch), plain)


def test_state__brings_its_ids_and_a_plain_one_changes_nothing(one, form, tiny_cfg):
    original = weights(one)
    branches = form(one)
    key = branches.add()
    randomise(branches)
    if branches.name == "moe_adapters":
        refused("start_task", branches.train_ids, [key])
        branches.start_task(key)
    else:
        branches.train_ids([key])
    branches.set_ids(key)
    state = one.state_dict()
    assert original.keys() < state.keys()
    torch.manual_seed(0)
    other = create_dual_encoder(tiny_cfg).eval()
    twin = form(other)
    other.load_state_dict(state)
    assert twin.keys == (0, key)
    twin.load_growth_state(branches.growth_state())
    if twin.name == "language_adapters":  # an experience's choice
        twin.train_ids([key])
    twin.load_forward_state(branches.forward_state())
    assert torch.equal(features(other, make_batch(one)), features(one, make_batch(one)))
    names = [name for name, _ in branches.trainable_parameters()]
    assert names == [name for name, _ in twin.trainable_parameters()]
    before = features(one, make_batch(one))
    one.load_state_dict(original)
    assert torch.equal(features(one, make_batch(one)), before)
    del state[names[0]]
    refused("Missing", other.load_state_dict, state, error=RuntimeError)


def test_file__restores_outputs_or_changes_nothing(
    one, frozen_form, tiny_cfg, tmp_path
):
    branches = frozen_form(one)
    branches.add(3)
    randomise(branches)
    branches.set_ids(3)
    branches.save(tmp_path / "a.safetensors")
    torch.manual_seed(0)
    other = create_dual_encoder(tiny_cfg).eval()
    twin = frozen_form(other)
    twin.set_ids(twin.add(7))
    twin.load(tmp_path / "a.safetensors")
    assert twin.keys == (0, 3) and set(twin.ids.values()) == {-1}
    twin.set_ids(3)
    batch = make_batch(one)
    assert torch.equal(features(other, batch), features(one, batch))
    state = branches.adapter_state_dict()
    twin.detach()
    twin = frozen_form(other, tower="text")
    before = weights(other)
    refused("tower='both', these 'text'", twin.load, tmp_path / "a.safetensors")
    other.logit_scale.data += 1
    refused("trained on other weights", twin.load_adapter_state_dict, state)
    other.logit_scale.data -= 1
    state["facts"]["config"]["tower"] = "text"
    refused("unknown tensors", twin.load_adapter_state_dict, state)
    state["facts"]["ids"] = [0, -3]
    refused("'ids' is missing or wrong", twin.load_adapter_state_dict, state)
    assert_same_weights(other, before)


def checkpoint_blocks(model, reentrant=False):
    """Turn on the library's own switch."""
    if hasattr(model.clip, "set_grad_checkpointing"):
        model.clip.set_grad_checkpointing()
    else:
        options = {"use_reentrant": reentrant}
        model.clip.gradient_checkpointing_enable(options)


def branch_gradients(model, branches, passes, again=lambda f: f):
    """Gradients of one backward over passes with ids of their own."""
    model.zero_grad()
    torch.manual_seed(3)
    encode = again(model.encode_image), again(model.encode_text)
    total = 0.0
    for seed, ids in enumerate(passes):
        batch = make_batch(model, seed)
        with using(branches, ids, ids):
            for one, values in zip(encode, batch.values(), strict=True):
                total = total + (one(values) * torch.arange(1, 4)[:, None]).sum()
    total.backward()  # the ids of the passes are gone
    return [p.grad for b in branches.branches() for p in b.parameters()]


def check_same(found, expected):
    assert any(grad is not None and grad.any() for grad in expected)
    for grad, other in zip(found, expected, strict=True):
        assert (grad is None) == (other is None)
        if grad is not None:
            torch.testing.assert_close(grad, other, rtol=1e-4, atol=1e-5)


def with_two_ids(model, form):
    branches = form(model.train())
    branches.add()
    randomise(branches)
    for branch in branches.branches():
        branch.requires_grad_(True)
    return branches


MIXED = [0, 1, -1]
PASSES = {
    "same": [MIXED, MIXED],
    "different": [[0] * 3, MIXED, MIXED, [-1] * 3, [1] * 3, [1, 0, 0]],
}


def test_checkpointing__gives_the_same_gradients(model, form):
    branches, passes = with_two_ids(model, form), PASSES["different"]
    expected = branch_gradients(model, branches, passes)
    checkpoint_blocks(model)
    check_same(branch_gradients(model, branches, passes), expected)


def test_checkpointing__reentrant_too(tiny_cfg, request, form):
    torch.manual_seed(0)
    model = hf_clip(tiny_cfg, request)
    branches = with_two_ids(model, form)
    model.clip.requires_grad_(True)  # or no input of a block has a gradient
    passes = PASSES["different"]
    expected = branch_gradients(model, branches, passes)
    checkpoint_blocks(model, reentrant=True)
    check_same(branch_gradients(model, branches, passes), expected)


def test_checkpointing__of_a_tower_is_right_or_refused(one, form):
    branches = with_two_ids(one, form)
    same = PASSES["same"]
    expected = branch_gradients(one, branches, same)
    whole = lambda f: partial(checkpoint, f, use_reentrant=False)  # noqa: E731
    check_same(branch_gradients(one, branches, same, whole), expected)
    with pytest.raises(RuntimeError, match="checkpoint single blocks"):
        branch_gradients(one, branches, PASSES["different"], whole)
    check_same(branch_gradients(one, branches, same, whole), expected)


def test_functional__transforms_pass_branches(one, frozen_form):
    branches = frozen_form(one)
    randomise(branches)
    images = make_batch(one)["image"]
    each = torch.func.vmap(lambda image: one.encode_image(image[None])[0])(images)
    torch.testing.assert_close(each, one.encode_image(images), **CLOSE)


def test_rows__ids_are_those_of_the_call(one, frozen_form):
    branches = frozen_form(one)
    branches.add()
    randomise(branches)
    images = make_batch(one)["image"]
    ids = torch.zeros(len(images), dtype=torch.long)
    ids[0] = 1
    branches.set_ids(image=ids)
    expected = one.encode_image(images)
    ids.fill_(-1)
    assert torch.equal(one.encode_image(images), expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_bf16__stays_finite_and_close(tiny_cfg, form, precision):
    torch.manual_seed(0)
    model = create_dual_encoder(tiny_cfg, precision=precision).eval()
    batch = make_batch(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = features(model, batch)
        branches = form(model)
        torch.testing.assert_close(features(model, batch), plain, rtol=0, atol=0.03)
        loss(model.train()).backward()
        with branches.using_ids(-1):
            assert torch.equal(features(model.eval(), batch), plain)
    assert {p.dtype for b in branches.branches() for p in b.parameters()} == {
        torch.float32
    }
    grads = [p.grad for _, p in branches.trainable_parameters() if p.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


def test_layout__sequence_first_towers_give_the_same(one, form):
    branches = form(one)
    branches.add()
    randomise(branches)
    with using(branches, [0, 1, -1], [1, 0, -1]):
        expected = features(one, make_batch(one))
    branches.detach()
    for transformer in (one.clip.transformer, one.clip.visual.transformer):
        transformer.batch_first = False
        for block in transformer.resblocks:
            block.attn.batch_first = False
    again = form(one)
    again.add()
    randomise(again)
    with using(again, [0, 1, -1], [1, 0, -1]):
        torch.testing.assert_close(features(one, make_batch(one)), expected, **CLOSE)


def test_towers__and_blocks_are_chosen(one, frozen_form):
    one.freeze()
    batch = make_batch(one)
    plain = features(one, batch)
    branches = frozen_form(one, tower="text", blocks=[1])
    randomise(branches)
    assert branches.towers == ("text",)
    assert all("resblocks.1." in name for name, _ in branches.trainable_parameters())
    found = features(one, batch)
    assert torch.equal(found[:3], plain[:3]) and not torch.equal(found[3:], plain[3:])
    refused("'image' has no", branches.set_ids, image=0)


def test_wrong_calls__leave_the_model_alone(tiny_cfg, frozen_form):
    model = convolutional(tiny_cfg)
    for options, message in (
        ({}, "tiny-emoji-vit"),
        ({"tower": "audio"}, "tower='audio'"),
        ({"tower": "text", "blocks": [2]}, "blocks 0 to 1"),
        ({"tower": "text", "blocks": []}, "blocks"),
        ({"tower": "text", "blocks": [0.5]}, "blocks"),
    ):
        refused(message, frozen_form, model, **options)
        assert all(p.requires_grad for p in model.parameters())
        assert not any("forward" in vars(m) for m in model.modules())
    branches = frozen_form(model, tower="text")
    refused("already", frozen_form, model, tower="text")
    for wrong, kind in ((5, ValueError), (-2, ValueError), (0.5, TypeError)):
        refused(".", branches.set_ids, wrong, error=kind)
    for wrong in (-1, 0.5, True):
        refused("key", branches.add, wrong)
        refused(".", branches.train_ids, [wrong, 9])
    assert branches.ids == {"text": 0} and branches.keys == (0,)
    branches.add()
    branches.set_ids(text=torch.tensor([0, 1]))
    refused("2 ids for 3 rows", features, model, make_batch(model))


def test_freezing__leaves_the_stored_weights_as_they_are(tiny_cfg, form):
    """Towers that trained in float32 stay so, in a model of 16-bit weights."""
    model = create_dual_encoder(tiny_cfg, precision="bf16").eval()
    model.unfreeze()
    randomise_model(model)
    before = weights(model)
    plain = features(model, make_batch(model))
    branches = form(model)
    with branches.using_ids(-1):
        assert torch.equal(features(model, make_batch(model)), plain)
    branches.detach()
    assert_same_weights(model, before)
    model.check_trainable()


def test_freezing__is_repeated_by_the_next_set(one):
    attach_lora(one)
    one.unfreeze()
    attach_adapters(one)
    trains = {n for n, p in one.named_parameters() if p.requires_grad}
    own = one.lora.trainable_parameters() + one.adapters.trainable_parameters()
    assert trains == {name for name, _ in own}


def test_together__updates_adapters_and_prompts(one):
    batch = make_batch(one)
    plain, parts = features(one, batch), {}
    for name in ("lora", "serial", "prefix"):
        attach, options = FORMS[name]
        parts[name] = attach(one, **options)
        randomise(parts[name])
    together = features(one, batch)
    flags = {n for n, p in one.named_parameters() if p.requires_grad}
    assert all(".entries.0." in name for name in flags)
    for name, branches in parts.items():
        with branches.using_ids(-1):
            assert not torch.allclose(features(one, batch), together, atol=1e-5), name
    parts["lora"].detach()
    assert not one.logit_scale.requires_grad
    parts["prefix"].detach()
    parts["serial"].detach()
    assert one.logit_scale.requires_grad
    assert torch.equal(features(one, batch), plain)


def test_order__of_updates_and_prefix_does_not_matter(one):
    found = []
    for order in ((attach_lora, attach_prompts), (attach_prompts, attach_lora)):
        for attach in order:
            attach(one)
        for name, seed in (("lora", 1), ("prompts", 2)):
            randomise(getattr(one, name), seed)
        found.append(features(one, make_batch(one)))
        one.lora.detach()
        one.prompts.detach()
    torch.testing.assert_close(found[0], found[1], **CLOSE)


def test_unfreeze__keeps_what_branches_have_frozen(one):
    branches = attach_lora(one)
    branches.add()
    one.unfreeze()
    assert one.logit_scale.requires_grad
    assert all(".entries.0." in name for name, _ in branches.trainable_parameters())
