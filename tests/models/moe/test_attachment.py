import pytest
import torch

from avalanche_clip.models import attach_moe_adapters
from avalanche_clip.models.peft.branch import first_of
from tests.models.experts import OPTIONS, features, make_batch, randomise, train
from tests.models.kinds import KINDS, convolutional
from tests.refused import refused


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def model(request, tiny_cfg):
    torch.manual_seed(0)
    # PyTorch picks some kernels (SigLIP's pooling) by whether weights train, and
    # attaching freezes them.
    return request.param(tiny_cfg, request).requires_grad_(False)


def test_mixture__is_added_to_the_second_branch(model):
    moe = attach_moe_adapters(model, **OPTIONS)
    randomise(moe, std=1.0)
    model.eval()
    for tower in ("image", "text"):
        view, seen = model.blocks(tower)[0], {}
        view.norm2.register_forward_pre_hook(lambda m, a, s=seen: s.update(r=a[0]))
        view.module.register_forward_hook(
            lambda m, a, out, s=seen: s.update(out=first_of(out))
        )
        with torch.no_grad():
            model(make_batch(model))
            active, added = seen["out"], moe.adapters(tower)[0](seen["r"])
            with moe.using_router(-1):
                model(make_batch(model))
        torch.testing.assert_close(active, seen["out"] + added, rtol=1e-4, atol=1e-4)


def test_gradients__reach_used_experts_and_the_router_only(model):
    moe = attach_moe_adapters(model, **OPTIONS)
    moe.start_task()
    moe.finish_task(count=0)
    assert moe.start_task() == 1
    randomise(moe, std=1.0)
    model.train()
    out = model(make_batch(model))
    (out.image_features @ out.text_features.T).square().sum().backward()
    for name, parameter in model.named_parameters():
        if ".moe." not in name or ".routers.0." in name:
            assert parameter.grad is None, name
    for adapter in moe.adapters():
        assert adapter.routers[1].gate.grad is not None
        used = adapter.counts > 0
        grads = [e.up.weight.grad is not None for e in adapter.experts]
        assert grads == used.tolist()


def test_router__is_restored_and_checked(one):
    moe = attach_moe_adapters(one, **OPTIONS)
    moe.add_router()
    moe.set_router(image=1)
    assert moe.routers == {"image": 1, "text": 0}
    with pytest.raises(RuntimeError, match="inside"), moe.using_router(-1):
        assert moe.routers == {"image": -1, "text": -1}
        raise RuntimeError("inside")
    assert moe.routers == {"image": 1, "text": 0}
    for ids in ({"router": 2}, {"image": 0, "text": 2}, {"text": torch.tensor([0, 5])}):
        refused("does not exist", moe.set_router, **ids)
    assert moe.routers == {"image": 1, "text": 0}
    moe.set_router(image=torch.tensor([0, 1]))
    refused("2 router ids for 3 rows", one, make_batch(one))


def test_tasks__old_outputs_stay_if_their_experts_are_frozen(one):
    moe = attach_moe_adapters(one, num_experts=3, top_k=2, bottleneck=6)
    batch = make_batch(one)
    plain = features(one.eval(), batch)
    for task in range(3):
        assert moe.start_task() == task
        state = one.state_dict()
        old = {k: v.clone() for k, v in state.items() if f"routers.{task}." not in k}
        frozen = [adapter.frozen.clone() for adapter in moe.adapters()]
        train(one)
        state = one.state_dict()
        for name, value in old.items():
            if ".routers." in name:
                assert torch.equal(state[name], value)
        added = moe.finish_task(count=3 if task == 0 else 2)
        assert [len(v) for v in added.values()] == [2, 2]
        for was, adapter in zip(frozen, moe.adapters(), strict=True):
            assert (adapter.frozen >= was).all()
        assert not any(adapter.counts.any() for adapter in moe.adapters())
        if task == 0:
            first = features(one, batch)
        with moe.using_router(0):
            assert torch.equal(features(one, batch), first)
        with moe.using_router(-1):
            assert torch.equal(features(one, batch), plain)
    assert moe.learned == [0, 1, 2]
    assert not torch.equal(first, plain)


def test_tasks__counting_and_trainability(one):
    moe = attach_moe_adapters(one, **OPTIONS)
    assert moe.counting
    train(one, steps=2)
    assert [int(a.counts.sum()) for a in moe.adapters()] == [12] * 4
    with moe.using_router(-1):
        train(one, steps=0)
        features(one.train(), make_batch(one))
    assert [int(a.counts.sum()) for a in moe.adapters()] == [12] * 4
    moe.finish_task()
    assert not moe.counting
    features(one.train(), make_batch(one))
    assert not any(a.counts.any() for a in moe.adapters())
    names = [n for n, _ in moe.trainable_parameters()]
    assert names and not any(".routers." in n for n in names)
    assert moe.start_task(0) == 0 and moe.start_task() == 1 and moe.start_task() == 2
    assert moe.routers == {"image": 2, "text": 2}
    named = dict(one.named_parameters())
    trainable = {n for n, p in named.items() if p.requires_grad}
    assert trainable == {n for n, _ in moe.trainable_parameters()}
    assert moe.num_trainable == sum(named[n].numel() for n in trainable)
    assert {n.split(".routers.")[1][0] for n in trainable if ".routers." in n} == {"2"}
    assert moe.num_parameters == sum(p.numel() for n, p in named.items() if ".moe" in n)
    refused("router=5", moe.start_task, 5)


def test_balance__is_part_of_the_output_in_training(one):
    moe = attach_moe_adapters(one, **OPTIONS)
    batch = make_batch(one)
    assert "balance_loss" not in one.train()(batch).aux
    moe.track_balance = True
    one(batch)
    out = one(batch)
    torch.testing.assert_close(out.aux["balance_loss"], moe.balance_loss())
    values = [adapter.balance() for adapter in moe.adapters()]
    assert min(values) > 0
    torch.testing.assert_close(out.aux["balance_loss"], torch.stack(values).sum())
    out.aux["balance_loss"].backward()
    assert all(a.routers[0].gate.grad.any() for a in moe.adapters("image"))
    assert "balance_loss" not in one.eval()(batch).aux
    one.train().encode_image(batch["image"])
    assert moe.balance_loss() > 0
    moe.clear_balance()
    assert moe.balance_loss() == 0


def test_attach__wrong_calls_leave_the_model_alone(tiny_cfg):
    model = convolutional(tiny_cfg)
    for options, message in (
        ({}, "tiny-emoji-vit"),
        ({"towers": ("text", "audio")}, "audio"),
        ({"towers": ()}, "empty"),
        ({"towers": "text", "top_k": 30}, "top_k=30"),
    ):
        refused(message, attach_moe_adapters, model, **options)
        assert not any(".moe." in name for name in model.state_dict())
        assert all(p.requires_grad for p in model.parameters())
    moe = attach_moe_adapters(model, towers="text", **OPTIONS)
    assert moe.towers == ("text",)
    refused("image", moe.set_router, image=0)
    refused("already", attach_moe_adapters, model)


def test_cost__one_pass_and_macs_grow_by_the_experts(one):
    base = one.macs(4)
    moe = attach_moe_adapters(one, **OPTIONS)
    with moe.using_router(-1):
        assert one.macs(4) == base
    randomise(moe, std=1.0)
    one._macs.clear()
    # two blocks of width 32: router; down and up for each kept expert; up biases
    expected = 2 * (32 * 4 + 4 * 2 * 2 * 32 * 6 + 2 * 32)
    assert one.macs(4)["text"] - base["text"] == expected
