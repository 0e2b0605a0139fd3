import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from avalanche_clip.models import MoEAdapter, noisy_top_k_gates
from avalanche_clip.models.moe.gating import balance_loss, expert_load, importance
from tests.refused import refused


def make(trained=True, **options):
    """An adapter of width 16; trained ones have random weights everywhere."""
    torch.manual_seed(0)
    moe = MoEAdapter(16, **{"num_experts": 5, "bottleneck": 4, **options})
    if trained:
        randomize(moe)
    return moe


def randomize(moe):
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))


def by_hand(moe, x, router):
    """Evaluation outputs from the formula, one row at a time."""
    rows = []
    for row, number in zip(x, router, strict=True):
        token = row[0] if moe.router_input == "first" else row.mean(0)
        scores = (token @ moe.routers[number].gate)[None]
        gates = noisy_top_k_gates(scores, moe.top_k)[0]
        y = sum(g * moe.experts[e](row) for e, g in enumerate(gates) if g > 0)
        rows.append(y)
    return torch.stack(rows)


def test_fresh__gives_zeros_in_both_modes():
    moe = make(trained=False)
    x = torch.randn(3, 4, 16)
    for mode in (True, False):
        assert torch.equal(moe.train(mode)(x), torch.zeros(3, 4, 16))
    assert {p.shape for p in moe.routers[0].parameters()} == {(16, 5)}
    assert all(not p.any() for p in moe.routers[0].parameters())
    down = moe.experts[0].down.weight
    assert down.abs().max() <= 16**-0.5 < 1.5 * down.abs().max()


def test_parameters__counts_of_the_paper():
    moe = MoEAdapter(768)
    assert sum(p.numel() for p in moe.experts[0].parameters()) == 99_136
    assert sum(p.numel() for p in moe.routers[0].parameters()) == 33_792
    assert len(list(moe.experts.parameters())) == 22 * 4
    lora = MoEAdapter(16, 4, activation="identity", bias=False)
    assert sum(p.numel() for p in lora.experts[0].parameters()) == 2 * 16 * 64


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"top_k": 1},
        {"top_k": 5},
        {"router_input": "mean"},
        {"activation": "identity", "bias": False},
        {"scale": 2.0},
        {"num_experts": 1, "top_k": 1},
    ],
)
def test_eval__equals_the_formula(options):
    moe = make(**options).eval()
    moe.add_router()
    randomize(moe)
    x = torch.randn(6, 3, 16)
    for router in (0, 1):
        expected = by_hand(moe, x, [router] * 6)
        torch.testing.assert_close(moe(x, router), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moe(x), moe(x, router=0), rtol=0, atol=0)
    assert torch.equal(moe(x, 1), moe(x, 1))


def test_mixed_routers__equal_single_ones():
    moe = make().eval()
    for _ in range(3):
        moe.add_router()
    randomize(moe)
    x = torch.randn(8, 3, 16, requires_grad=True)
    ids = torch.tensor([2, -1, 0, 3, 3, -1, 1, 0])
    out = moe(x, ids)
    for router in range(4):
        rows = ids == router
        single = moe(x[rows], router)
        torch.testing.assert_close(out[rows], single, rtol=0, atol=1e-6)
    assert torch.equal(out[ids == -1], torch.zeros(2, 3, 16))
    out.square().sum().backward()
    assert torch.equal(x.grad[ids == -1], torch.zeros(2, 3, 16))
    assert all(r.gate.grad is not None for r in moe.routers)


def test_router_ids__shortcuts():
    moe = make().eval()
    x = torch.randn(3, 2, 16)
    assert torch.equal(moe(x, torch.tensor([-1, -1, -1])), torch.zeros(3, 2, 16))
    assert torch.equal(moe(x, -1), torch.zeros(3, 2, 16))
    assert torch.equal(moe(x, torch.tensor([0, 0, 0])), moe(x, 0))
    assert torch.equal(moe(x, torch.tensor(0)), moe(x))
    assert torch.equal(moe(x, torch.tensor([0, 0, 0]).int()), moe(x))
    assert moe(x[:0]).shape == (0, 2, 16)
    assert moe(x[:0], torch.zeros(0).long()).shape == (0, 2, 16)
    assert torch.equal(moe(x[:, 0]), moe(x[:, :1])[:, 0])


@pytest.mark.parametrize(
    "router, kind, message",
    [
        (1, ValueError, "does not exist"),
        (-2, ValueError, "-2"),
        (torch.tensor([0, 1, 0]), ValueError, "Router 1"),
        (torch.tensor([0, -2, 0]), ValueError, "-2"),
        (torch.tensor([0, 0]), ValueError, "2 router ids for 3 rows"),
        (torch.zeros(3, 1).long(), ValueError, "shape"),
        (torch.zeros(3), TypeError, "float32"),
        (torch.zeros(3).bool(), TypeError, "bool"),
        (0.0, TypeError, "0.0"),
        (True, TypeError, "True"),
        ("0", TypeError, "'0'"),
    ],
)
def test_router_ids__wrong_ones_are_explained(router, kind, message):
    refused(message, make(), torch.randn(3, 2, 16), router, error=kind)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"top_k": 6}, "top_k=6 exceeds num_experts=5"),
        ({"top_k": 0}, "top_k=0"),
        ({"dropout": 1.5}, "dropout=1.5"),
        ({"scale": float("nan")}, "scale"),
        ({"activation": "gelu"}, "relu"),
        ({"router_input": "last"}, "first"),
        ({"noise_floor": -1.0}, "noise_floor"),
    ],
)
def test_constructor__wrong_options_are_explained(options, message):
    refused(message, make, **options)


@pytest.mark.parametrize("shape", [(16,), (2, 3, 8), (2, 3, 4, 16)])
def test_forward__wrong_shapes_are_refused(shape):
    refused("D=16", make(), torch.randn(shape))


def test_noise__follows_the_mode_and_the_seed():
    moe = make(trained=False, dropout=0.0)
    with torch.no_grad():
        for expert in moe.experts:
            expert.up.weight.normal_()
    x = torch.randn(6, 3, 16)

    def draw(seed):
        torch.manual_seed(seed)
        return moe(x)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    moe.eval()
    assert torch.equal(draw(1), draw(2))
    state = torch.get_rng_state()
    moe(x)
    assert torch.equal(torch.get_rng_state(), state)


def test_first_step__only_the_up_side_of_used_experts_moves():
    moe = make(trained=False, num_experts=8)
    x = torch.randn(3, 4, 16)
    torch.manual_seed(5)
    routing = moe.routing(x)
    torch.manual_seed(5)
    (moe(x) * torch.randn(3, 4, 16)).sum().backward()
    used = set(routing.indices.flatten().tolist())
    assert 0 < len(used) < 8
    for number, expert in enumerate(moe.experts):
        grads = [p.grad for p in expert.parameters()]
        if number not in used:
            assert grads == [None] * 4
            continue
        assert not expert.down.weight.grad.any() and not expert.down.bias.grad.any()
        assert expert.up.weight.grad.any() and expert.up.bias.grad.any()
    assert torch.equal(moe.routers[0].gate.grad, torch.zeros(16, 8))
    assert torch.equal(moe.routers[0].noise.grad, torch.zeros(16, 8))


def test_counts__rows_per_expert_in_training_only():
    moe = make()
    x = torch.randn(9, 2, 16)
    torch.manual_seed(1)
    expected = moe.routing(x).counts()
    torch.manual_seed(1)
    moe(x)
    assert torch.equal(moe.counts, expected)
    assert moe.counts.sum() == 18
    moe.eval()(x)
    moe.train().counting = False
    moe(x)
    assert torch.equal(moe.counts, expected)
    moe.counting = True
    moe(x, torch.tensor([0] * 4 + [-1] * 5))
    assert moe.counts.sum() == 18 + 8
    moe.clear_counts()
    assert moe.counts.tolist() == [0] * 5


def test_freeze__most_used_with_ties_to_the_lowest_index():
    moe = make()
    moe.counts = torch.tensor([3, 7, 7, 0, 7])
    assert moe.freeze_most_used(2) == [1, 2]
    assert moe.frozen.tolist() == [False, True, True, False, False]
    assert moe.freeze_most_used(2) == []
    assert moe.freeze_most_used(2, rank_over="unfrozen") == [4, 0]
    assert moe.freeze_most_used(3, rank_over="unfrozen") == []  # nobody used 3
    assert moe.frozen.tolist() == [True, True, True, False, True]
    assert all(p.requires_grad for p in moe.experts[3].parameters())
    assert all(p.requires_grad for p in moe.routers.parameters())
    assert make().freeze_most_used(0) == make().freeze_most_used(2) == []
    single = make()
    single.counts = torch.tensor([0, 0, 5, 0, 0])  # published: always two
    assert single.freeze_most_used(2) == [2, 0]
    refused("count=6", moe.freeze_most_used, 6)
    refused("unfrozen", moe.freeze_most_used, 1, rank_over="rest")


def test_routers__are_added_without_any_effect():
    moe = make().eval()
    x = torch.randn(3, 2, 16)
    out = moe(x)
    assert (moe.add_router(), moe.add_router()) == (1, 2)
    assert moe.num_routers == 3
    assert torch.equal(moe(x), out)
    moe.activate_router(2)
    assert moe.active_router == 2
    assert torch.equal(moe(x), moe(x, 2))
    assert [r.gate.requires_grad for r in moe.routers] == [False, False, True]
    for wrong in (3, -1):
        refused(str(wrong), moe.activate_router, wrong)


def test_balance__equals_its_parts_and_has_a_gradient():
    moe = make(dropout=0.0)
    moe.track_balance = True
    x = torch.randn(6, 3, 16)
    torch.manual_seed(2)
    moe(x)
    torch.manual_seed(2)
    routing = moe.routing(x)
    clean, std = moe._scores(x, 0)
    load = expert_load(clean, routing.logits, 2, std)
    expected = balance_loss(importance(routing.gates()), load)
    torch.testing.assert_close(moe.balance(), expected)
    moe.balance().backward()
    assert moe.routers[0].gate.grad.any()
    moe(x)
    assert moe.balance() > expected
    moe.clear_balance()
    assert moe.balance() == 0
    moe.eval()(x)
    assert moe.balance() == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing__same_gradients_and_counts(reentrant):
    moe = make()
    moe.track_balance = True
    x = torch.randn(6, 3, 16, requires_grad=True)
    results = []
    for wrap in (False, True):
        moe.clear_counts()
        moe.zero_grad()
        x.grad = None
        torch.manual_seed(7)
        out = checkpoint(moe, x, use_reentrant=reentrant) if wrap else moe(x)
        loss = out.square().sum()
        if not reentrant:
            loss = loss + moe.balance()
        loss.backward()
        moe.clear_balance()
        grads = [p.grad for p in moe.parameters()]
        results.append((out, x.grad, moe.counts, *grads))
    for one, other in zip(*results, strict=True):
        assert one is other is None or torch.equal(one, other)


def test_autocast__scores_stay_in_float32():
    moe, x = make(), torch.randn(4, 3, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = moe.eval().routing(x)
    assert routing.logits.dtype is torch.float32
    assert torch.equal(routing.logits, x[:, 0] @ moe.routers[0].gate)


def test_double__gradcheck_of_the_whole_module():
    moe = make(dropout=0.0).double()
    x = torch.randn(3, 2, 16, dtype=torch.float64, requires_grad=True)
    assert moe(x).dtype == torch.float64
    parameters = [*moe.routers.parameters(), *moe.experts.parameters()]

    def run(x, *_):
        torch.manual_seed(1)
        return moe(x)

    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


def test_state__round_trip_grows_routers():
    moe = make()
    moe.add_router()
    moe(torch.randn(5, 2, 16))
    moe.freeze_most_used(2)
    other = make(trained=False)
    other.load_state_dict(moe.state_dict())
    assert other.num_routers == 2
    assert torch.equal(other.frozen, moe.frozen)
    assert torch.equal(other.counts, moe.counts)
    trainable = [p.requires_grad for p in moe.experts.parameters()]
    assert [p.requires_grad for p in other.experts.parameters()] == trainable
    x = torch.randn(5, 2, 16)
    for router in (0, 1):
        assert torch.equal(other.eval()(x, router), moe.eval()(x, router))
    for state in (make().state_dict(), {}):
        refused("Missing", moe.load_state_dict, state, error=RuntimeError)
    names = list(moe.state_dict())
    assert len(names) == len(set(names)) == 5 * 4 + 2 * 2 + 2


def test_copies__are_independent():
    moe = make()
    moe.track_balance = True
    moe(torch.randn(5, 2, 16))
    x = torch.randn(5, 2, 16)
    for other in (copy.deepcopy(moe), pickle.loads(pickle.dumps(moe))):
        assert torch.equal(other.eval()(x), moe.eval()(x))
        assert other.balance() == 0
        other.freeze_experts([1])
        other.counts += 1
        assert not moe.frozen.any()
        assert not torch.equal(moe.counts, other.counts)
