import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from avalanche_clip.models import (
    attach_moe_adapters,
    create_dual_encoder,
    load_moe_adapters,
)
from avalanche_clip.models.moe.adapters import _RULES, NAME
from avalanche_clip.models.peft import storage
from tests.damage import not_refused
from tests.helpers import assert_same_weights, weights
from tests.models.experts import OPTIONS, features, make_batch, randomise, train
from tests.models.selectors import through_file
from tests.refused import refused


def build(cfg):
    torch.manual_seed(0)
    return create_dual_encoder(cfg).eval()


@pytest.fixture
def learned(tiny_cfg):
    """A model that has learned two tasks, with one more router."""
    model = build(tiny_cfg)
    moe = attach_moe_adapters(model, **OPTIONS, router_input="mean", scale=0.5)
    for _ in range(2):
        moe.start_task()
        train(model, steps=3)
        moe.finish_task(count=1)
    moe.add_router()
    return model


def test_file__restores_outputs_on_a_fresh_base(learned, tiny_cfg, tmp_path):
    moe = learned.moe_adapters
    path = tmp_path / "adapters.safetensors"
    moe.save(path)
    fresh = build(tiny_cfg)
    loaded = load_moe_adapters(fresh, path)
    assert fresh.moe_adapters is loaded
    batch = make_batch(learned)
    for router in (-1, 0, 1, 2):
        with moe.using_router(router), loaded.using_router(router):
            assert torch.equal(features(fresh, batch), features(learned, batch))
    assert loaded.learned == [0, 1] and loaded.num_routers == 3
    assert loaded.active_router == 1 and loaded.routers == moe.routers
    assert loaded.adapters()[0].options() == moe.adapters()[0].options()
    for one, other in zip(loaded.adapters(), moe.adapters(), strict=True):
        assert torch.equal(one.frozen, other.frozen) and one.frozen.any()
    assert path.stat().st_size < moe.num_parameters * 4 + 100_000
    assert [p.name for p in tmp_path.iterdir()] == ["adapters.safetensors"]


def test_file__the_next_task_trains_to_the_same_bytes(learned, tiny_cfg, tmp_path):
    moe = learned.moe_adapters
    moe.save(tmp_path / "adapters.safetensors")
    fresh = build(tiny_cfg)
    loaded = load_moe_adapters(fresh, tmp_path / "adapters.safetensors")
    for model in (learned, fresh):
        torch.manual_seed(9)
        assert model.moe_adapters.start_task() == 3
        train(model, steps=3)
        model.moe_adapters.finish_task()
    assert_same_weights(learned, fresh)
    assert loaded.learned == moe.learned


def test_state__inside_a_task_goes_on_with_its_counts(learned, tiny_cfg):
    moe = learned.moe_adapters
    moe.start_task(2)
    train(learned, steps=2)
    state = moe.adapter_state_dict()
    fresh = build(tiny_cfg)
    other = attach_moe_adapters(fresh, **OPTIONS, router_input="mean", scale=0.5)
    for _ in range(4):
        other.add_router()
    other.counting = False
    other.load_adapter_state_dict(state)
    assert other.num_routers == 3 and other.counting
    names = [n for n, _ in moe.trainable_parameters()]
    assert [n for n, _ in other.trainable_parameters()] == names
    assert any(".routers.2." in n for n in names)
    assert other.finish_task() == moe.finish_task()


def test_file__another_base_is_refused(learned, tiny_cfg, tmp_path):
    path = tmp_path / "adapters.safetensors"
    learned.moe_adapters.save(path)
    other = build(tiny_cfg)
    with torch.no_grad():
        other.clip.visual.class_embedding[3] += 1e-6
    before = features(other, make_batch(other))
    refused("trained on other weights", load_moe_adapters, other, path)
    assert not any(".moe." in name for name in other.state_dict())
    assert torch.equal(features(other, make_batch(other)), before)
    load_moe_adapters(other, path, check_base=False)


def test_state__other_options_or_damage_change_nothing(learned, tiny_cfg):
    state = learned.moe_adapters.adapter_state_dict()
    fresh = build(tiny_cfg)
    moe = attach_moe_adapters(fresh, **OPTIONS)
    refused("router_input='mean'", moe.load_adapter_state_dict, state)
    moe.detach()
    moe = attach_moe_adapters(fresh, **OPTIONS, router_input="mean", scale=0.5)
    before = weights(fresh)
    gone = dict(state["tensors"])
    name = next(n for n in gone if n.startswith("text.1."))
    del gone[name]
    for tensors, message in (
        (gone, "missing"),
        ({**gone, name: torch.zeros(7)}, "needed"),
        ({**state["tensors"], "extra": torch.zeros(1)}, "extra"),
    ):
        damaged = {**state, "tensors": tensors}
        refused(message, moe.load_adapter_state_dict, damaged)
    for wrong in ({}, {"facts": {"format": 99}, "tensors": {}}):
        refused(".", moe.load_adapter_state_dict, wrong)
    assert_same_weights(fresh, before)


def test_state__is_plain_data_and_a_copy(learned):
    moe = learned.moe_adapters
    state = through_file(moe.adapter_state_dict())
    assert state["facts"] == json.loads(json.dumps(state["facts"]))
    held = moe.adapter_state_dict()["tensors"]
    randomise(moe, std=1.0)
    assert all(torch.equal(held[k], v) for k, v in state["tensors"].items())
    moe.load_adapter_state_dict(state)
    again = moe.adapter_state_dict()["tensors"]
    assert all(torch.equal(again[k], v) for k, v in held.items())


def test_file__other_files_are_refused(learned, tmp_path):
    moe = learned.moe_adapters
    refused("safetensors", moe.save, tmp_path / "adapters.pt")
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, str(path))
    refused("no expert adapters", moe.load, path)
    path.write_bytes(b"nothing")
    refused("valid", moe.load, path)
    moe.save(path)
    with safe_open(str(path), framework="pt") as file:
        assert json.loads(file.metadata()["moe_adapters"])["num_routers"] == 3


def test_fingerprint__changes_with_what_a_router_uses(learned):
    moe = learned.moe_adapters

    def prints():
        return [moe.fingerprint(t, r) for t in ("image", "text") for r in (-1, 0, 2)]

    before, base = prints(), moe.base_fingerprint()
    assert len(set(before)) == 6
    moe.start_task(2)
    with torch.no_grad():
        moe.adapters("text")[0].routers[2].gate += 1
    assert [a == b for a, b in zip(prints(), before)] == [True] * 5 + [False]
    with torch.no_grad():
        moe.adapters("image")[1].experts[3].up.bias += 1
    same = [a == b for a, b in zip(prints(), before)]
    assert same == [True, False, False, True, True, False]
    moe.adapters("image")[0].counts += 1
    assert [a == b for a, b in zip(prints(), before)] == same
    assert moe.base_fingerprint() == base
    state = learned.state_fingerprint()
    with torch.no_grad():
        moe.adapters("image")[1].experts[3].up.bias -= 1
    assert learned.state_fingerprint() != state
    with torch.no_grad():
        learned.clip.visual.class_embedding += 1
    assert moe.base_fingerprint() != base
    refused("does not exist", moe.fingerprint, "text", 7)


def test_file__no_damage_is_read(learned, tmp_path):
    path = tmp_path / "adapters.safetensors"
    learned.moe_adapters.save(path)
    read = lambda: storage.read(path, NAME, "expert adapters", _RULES)  # noqa: E731
    assert not_refused(path, read, count=150) == []
    copied = tmp_path / "elsewhere.bin"
    copied.write_bytes(path.read_bytes())
    state = storage.read(copied, NAME, "expert adapters", _RULES)
    for name, tensor in learned.moe_adapters.adapter_state_dict()["tensors"].items():
        assert torch.equal(state["tensors"][name], tensor)


def test_file__of_other_adapters_is_named(learned, tiny_cfg, tmp_path):
    path = tmp_path / "adapters.safetensors"
    learned.moe_adapters.save(path)
    state = learned.moe_adapters.adapter_state_dict()
    other = attach_moe_adapters(build(tiny_cfg), **OPTIONS)
    refused(r"adapters\.safetensors.*router_input='mean'", other.load, path)
    fresh, nowhere = build(tiny_cfg), tmp_path / "nowhere"
    for words, change in (
        ("routers", {"learned": [7]}),
        ("options are damaged", {"options": {**state["facts"]["options"], "speed": 1}}),
    ):
        facts = {**state["facts"], **change}
        storage.write({**state, "facts": facts}, path, NAME)
        refused(rf"adapters\.safetensors.*{words}", load_moe_adapters, fresh, path)
    assert fresh.moe_adapters is None
    refused("nowhere", load_moe_adapters, fresh, nowhere, error=FileNotFoundError)
    refused("already", load_moe_adapters, learned, path)


@pytest.mark.parametrize("scale", [np.float32(0.5), torch.tensor(0.5)])
def test_file__numbers_of_numpy_are_numbers(tiny_cfg, tmp_path, scale):
    path = tmp_path / "adapters.safetensors"
    options = {**OPTIONS, "bottleneck": np.int64(4), "scale": scale}
    moe = attach_moe_adapters(build(tiny_cfg), **options)
    moe.save(path)
    loaded = load_moe_adapters(build(tiny_cfg), path).adapters()[0].options()
    found = {name: (type(loaded[name]), loaded[name]) for name in options}
    assert found["bottleneck"] == (int, 4) and found["scale"] == (float, 0.5)
    state = moe.adapter_state_dict()
    state["facts"]["options"]["scale"] = float("nan")
    whole = path.read_bytes()
    refused("cannot hold", storage.write, state, path, NAME)
    assert path.read_bytes() == whole
