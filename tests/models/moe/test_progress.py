"""Progress of expert adapters in states, flags and copies."""

import copy
import io
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avalanche_clip.models import (
    MoEAdapter,
    attach_moe_adapters,
    create_dual_encoder,
    load_moe_adapters,
)
from tests.helpers import assert_same_weights, weights
from tests.models.experts import OPTIONS, train
from tests.refused import refused


@pytest.fixture
def make(tiny_cfg):
    def build(attach=True, **options):
        kind = {k: options.pop(k) for k in ("precision",) if k in options}
        torch.manual_seed(0)
        model = create_dual_encoder(tiny_cfg, **kind)
        if attach:
            attach_moe_adapters(model, **{**OPTIONS, **options})
        return model

    return build


def trainable(moe):
    return [name for name, _ in moe.trainable_parameters()]


def two_tasks(model):
    moe = model.moe_adapters
    for _ in range(2):
        moe.start_task()
        train(model, steps=2)
        moe.finish_task(count=1)
    return moe


def test_model_state__brings_routers_and_progress(make):
    model = make()
    moe = two_tasks(model)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    fresh = make()
    fresh.load_state_dict(torch.load(file, weights_only=True))
    other = fresh.moe_adapters
    assert other.growth_state() | {"counting": False} == moe.growth_state()
    assert trainable(other) == trainable(moe)
    before = [weights(a.routers) for a in other.adapters()]
    assert other.start_task() == 2
    train(fresh, steps=2)
    for adapter, kept in zip(other.adapters(), before, strict=True):
        assert_same_weights(adapter.routers[:2], kept)


def test_model_state__running_task_goes_on(make):
    model = make()
    moe = two_tasks(model)
    moe.start_task()
    fresh = make()
    fresh.load_state_dict(model.state_dict())
    assert trainable(fresh.moe_adapters) == trainable(moe)
    assert fresh.moe_adapters.routers == {"image": 2, "text": 2}


def test_model_state__a_frozen_copy_stays_frozen(make):
    model = make()
    moe = two_tasks(model)
    moe.start_task()
    twin = copy.deepcopy(make()).requires_grad_(False)
    twin.load_state_dict(model.state_dict())
    assert not any(p.requires_grad for p in twin.parameters())
    assert twin.moe_adapters.learned == [0, 1]


def test_model_state__plain_state_changes_nothing(make):
    plain = make(attach=False).state_dict()
    model = make()
    moe = two_tasks(model)
    before = moe.growth_state()
    model.load_state_dict(plain)
    assert moe.growth_state() == before


def test_model_state__adapters_of_one_tower_are_missing_keys(make):
    state = make(towers="text").state_dict()
    both = make()
    refused("Missing", both.load_state_dict, state, error=RuntimeError)
    missing = both.load_state_dict(state, strict=False).missing_keys
    assert missing and all(".moe." in n for n in missing)
    copy.deepcopy(both).load_state_dict(both.state_dict())


def test_model_state__progress_of_routers_that_are_not_there_is_left(make):
    model = make()
    two_tasks(model)
    model.moe_adapters.start_task(0)
    state = {k: v for k, v in model.state_dict().items() if "moe_adapters" in k}
    fresh = make()
    before = fresh.moe_adapters.growth_state()
    fresh.load_state_dict(state, strict=False)
    assert fresh.moe_adapters.growth_state() == before


EARLIER = Path(__file__).parent / "earlier"


@pytest.mark.parametrize("kind", ["state", "adapters"])
def test_earlier_format__is_read(make, kind):
    """Stored in a third task, when progress was one tensor of numbers."""
    model = make(attach=False)
    small = {"num_experts": 3, "top_k": 1, "bottleneck": 1}
    if kind == "adapters":
        path = EARLIER / "adapters.safetensors"
        moe = load_moe_adapters(model, path, check_base=False)
    else:
        moe = attach_moe_adapters(model, **small)
        stored = load_file(EARLIER / "state.safetensors")
        model.load_state_dict({**make(attach=False).state_dict(), **stored})
    assert moe.learned == [0, 1] and moe.moe.in_task
    assert moe.num_routers == 3 and moe.active_router == 2
    assert moe.routers == {"image": 2, "text": -1}
    assert {n.split(".routers.")[1][0] for n in trainable(moe) if ".routers." in n} == {
        "2"
    }
    stored = load_file(EARLIER / "state.safetensors")
    ours = model.state_dict()
    assert stored.pop("moe_adapters.moe.progress").tolist() == [1, 1, 2, 2, -1, 0, 1]
    assert all(torch.equal(ours[name], value) for name, value in stored.items())
    names = {name for name, _ in moe.named_buffers()}
    assert names == {f"moe.{n}" for n in moe.moe.state_dict()}
    assert not any("progress" in name for name in ours)
    moe.finish_task()
    assert moe.learned == [0, 1, 2] and moe.start_task() == 3


def test_growth__other_options_are_refused(make):
    state = make().moe_adapters.growth_state()
    refused("top_k=2, these 1", make(top_k=1).moe_adapters.load_growth_state, state)
    refused("towers", make(towers="text").moe_adapters.load_growth_state, state)


@pytest.mark.parametrize(
    "damage",
    [
        lambda f: f.pop("routers"),
        lambda f: f.update(learned=[7]),
        lambda f: f.update(num_routers="2"),
        lambda f: f.update(in_task=None),
        lambda f: f.pop("base"),
        lambda f: f.update(towers=3),
        lambda f: f.update(options={"speed": 1}),
    ],
)
def test_damaged_facts__change_nothing(make, damage):
    model = make()
    moe = two_tasks(model)
    state = moe.adapter_state_dict()
    damage(state["facts"])
    fresh = make()
    before = weights(fresh)
    refused(".", fresh.moe_adapters.load_adapter_state_dict, state, check_base=False)
    assert_same_weights(fresh, before)


def test_fingerprint__sees_modules_outside_the_wrapped_model(make):
    model = make()
    moe = model.moe_adapters
    model.add_module("prompt", torch.nn.Linear(2, 2))
    kinds = (moe.base_fingerprint, lambda: moe.fingerprint("text", 0))
    before = [kind() for kind in kinds]
    with torch.no_grad():
        model.prompt.weight.add_(1)
    assert all(old != kind() for old, kind in zip(before, kinds, strict=True))
    before = [moe.base_fingerprint(), model.state_fingerprint("text")]
    moe.set_router(-1)
    assert before == [moe.base_fingerprint(), model.state_fingerprint("text")]


def test_freeze__leaves_adapters_in_float32(make):
    model = make(precision="bf16")
    moe = model.moe_adapters
    moe.start_task()
    model.freeze("image")
    assert {p.dtype for a in moe.adapters() for p in a.parameters()} == {torch.float32}


def test_arguments__of_a_wrong_type_are_refused():
    whole = torch.zeros(1, 2, 4, dtype=torch.int64)
    refused("int64", MoEAdapter(4, 2), whole, error=TypeError)
    refused(r"top_k=1\.5", MoEAdapter, 4, 2, 1.5, error=TypeError)


def test_paused__tower_neither_counts_nor_balances():
    moe = MoEAdapter(4, 3).train()
    moe.track_balance, moe.paused = True, True
    moe(torch.randn(2, 3, 4))
    assert moe.counts.sum() == 0 and moe.balance() == 0
    moe.paused = False
    moe(torch.randn(2, 3, 4))
    assert moe.counts.sum() == 4 and moe.balance() > 0
