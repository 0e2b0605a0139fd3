import itertools
import math

import numpy as np
import pytest
import torch

from avalanche_clip.models import MoEAdapter, noisy_top_k_gates
from avalanche_clip.models.moe.gating import (
    balance_loss,
    cv_squared,
    expert_load,
    importance,
    route,
)
from tests.refused import refused


def slow_gates(logits, k):
    """Rank with Python's stable sort, row by row."""
    rows = []
    for row in logits.tolist():
        kept = sorted(range(len(row)), key=lambda e: -row[e])[:k]
        top = max(row[e] for e in kept)
        total = sum(math.exp(row[e] - top) for e in kept)
        rows.append(
            [math.exp(x - top) / total if e in kept else 0.0 for e, x in enumerate(row)]
        )
    return torch.tensor(rows, dtype=logits.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape, k", [((7, 22), 2), ((1, 3), 3), ((5, 4), 1)])
def test_gates__equal_a_slow_version(dtype, shape, k):
    logits = torch.randn(shape, dtype=dtype)
    gates = noisy_top_k_gates(logits, k)
    assert gates.dtype == dtype
    torch.testing.assert_close(gates, slow_gates(logits, k))
    assert (gates > 0).sum(1).tolist() == [k] * shape[0]
    torch.testing.assert_close(gates.sum(1), torch.ones(shape[0], dtype=dtype))


def test_gates__ties_go_to_the_lowest_index():
    for scores in itertools.product([0.0, 1.0], repeat=6):
        logits = torch.tensor([scores])
        assert torch.equal(noisy_top_k_gates(logits, 3) > 0, slow_gates(logits, 3) > 0)
    gates = noisy_top_k_gates(torch.zeros(3, 4), 2)
    assert torch.equal(gates, torch.tensor([[0.5, 0.5, 0.0, 0.0]]).expand(3, 4))


def test_gates__empty_batch_keeps_its_shape():
    assert noisy_top_k_gates(torch.zeros(0, 5), 2).shape == (0, 5)


def test_gates__large_scores_stay_finite():
    gates = noisy_top_k_gates(torch.tensor([[1e4, -1e4, 9e3]]), 2)
    assert torch.equal(gates, torch.tensor([[1.0, 0.0, 0.0]]))


def test_noise__is_drawn_only_when_asked_for():
    logits = torch.randn(4, 6)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    plain = noisy_top_k_gates(logits, 2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noisy_top_k_gates(logits, 2, 0.0), plain)
    assert not torch.equal(torch.get_rng_state(), state)


def test_noise__repeats_with_the_seed():
    logits = torch.zeros(20, 8)

    def draw(seed):
        return noisy_top_k_gates(logits, 2, 0.7, torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    expected = 0.7 * torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(draw(1), slow_gates(expected, 2))


@pytest.mark.parametrize("shape", [(), (8,), (1, 8), (20, 1), (20, 8)])
def test_noise__scale_broadcasts(shape):
    scale = torch.full(shape, 0.5)
    generator = torch.Generator().manual_seed(0)
    gates = noisy_top_k_gates(torch.zeros(20, 8), 2, scale, generator)
    same = noisy_top_k_gates(
        torch.zeros(20, 8), 2, 0.5, torch.Generator().manual_seed(0)
    )
    assert torch.equal(gates, same)


def test_gates__gradient_passes_kept_scores_only():
    clean = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    std = torch.rand(5, 6, dtype=torch.float64, requires_grad=True)

    def gates(clean, std):
        return noisy_top_k_gates(clean, 2, std, torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(gates, (clean, std))
    out = gates(clean, std)
    (out * torch.randn_like(out)).sum().backward()
    kept = out > 0
    assert torch.equal(clean.grad != 0, kept)
    assert torch.equal(std.grad != 0, kept)


def test_gates__one_expert_has_weight_one_and_no_gradient():
    clean = torch.randn(4, 3, requires_grad=True)
    gates = noisy_top_k_gates(clean, 1)
    assert torch.equal(gates.max(1).values, torch.ones(4))
    (gates * torch.randn(4, 3)).sum().backward()
    assert torch.equal(clean.grad, torch.zeros(4, 3))


@pytest.mark.parametrize(
    "logits, k, std, message",
    [
        (torch.zeros(3), 1, None, r"\(B, E\)"),
        (torch.zeros(2, 3, dtype=torch.long), 1, None, "floating"),
        (torch.zeros(2, 3), 4, None, "E=3"),
        (torch.zeros(2, 3), 1, torch.tensor([-1.0, 1.0, 1.0]), "negative"),
        (np.zeros((2, 3)), 1, None, "ndarray"),
        (torch.zeros(2, 3), 2, -0.1, "negative"),
        (torch.zeros(2, 3), 2, torch.full((2, 3), float("nan")), "NaN"),
        (torch.zeros(2, 3), 2, torch.ones(4, 3), r"\(4, 3\)"),
        (torch.zeros(2, 3), 2, torch.ones(5, 2, 3), r"\(5, 2, 3\)"),
    ],
)
def test_gates__wrong_arguments_are_explained(logits, k, std, message):
    refused(message, noisy_top_k_gates, logits, k, std)


def test_counts__equal_the_support():
    routing = route(torch.randn(30, 7), 3)
    assert torch.equal(routing.counts(), (routing.gates() > 0).sum(0))
    assert routing.counts().dtype == torch.int64
    assert torch.equal(route(torch.zeros(0, 4), 2).counts(), torch.zeros(4).long())


def test_load__equals_loops_over_rows_and_experts():
    clean = torch.randn(6, 5, dtype=torch.float64)
    std = torch.rand(6, 5, dtype=torch.float64) + 0.1
    logits = clean + std * torch.randn(6, 5, dtype=torch.float64)
    expected = torch.zeros(5, dtype=torch.float64)
    for b in range(6):
        ranked = sorted(logits[b].tolist(), reverse=True)
        for e in range(5):
            threshold = ranked[2] if logits[b, e] > ranked[2] else ranked[1]
            z = (clean[b, e] - threshold) / std[b, e]
            expected[e] += 0.5 * (1 + math.erf(z / math.sqrt(2)))
    torch.testing.assert_close(expert_load(clean, logits, 2, std), expected)


def test_load__without_noise_counts_rows():
    logits = torch.randn(9, 4)
    load = expert_load(logits, logits, 2)
    assert torch.equal(load, (noisy_top_k_gates(logits, 2) > 0).sum(0).float())
    assert torch.equal(expert_load(logits, logits, 4, 0.5), torch.full((4,), 9.0))


def test_cv_squared__hand_computed():
    assert cv_squared(torch.full((5,), 3.0)) == 0
    torch.testing.assert_close(cv_squared(torch.eye(4)[1]), torch.tensor(4.0))
    assert cv_squared(torch.tensor([7.0])) == 0
    assert cv_squared(torch.zeros(4)) == 0


def test_balance__value_and_gradient():
    clean = torch.randn(8, 5, dtype=torch.float64, requires_grad=True)
    std = (torch.rand(8, 5, dtype=torch.float64) + 0.3).requires_grad_()

    def loss(clean, std):
        routing = route(clean, 2, std, torch.Generator().manual_seed(0))
        total = importance(routing.gates())
        return balance_loss(total, expert_load(clean, routing.logits, 2, std))

    assert torch.autograd.gradcheck(loss, (clean, std))
    routing = route(clean, 2, std, torch.Generator().manual_seed(0))
    total = importance(routing.gates())
    torch.testing.assert_close(total.sum(), torch.tensor(8.0, dtype=torch.float64))
    load = expert_load(clean, routing.logits, 2, std)
    expected = sum(v.var() / v.mean() ** 2 for v in (total, load)) * 0.01
    torch.testing.assert_close(loss(clean, std), expected)


def test_balance__wrong_shapes_are_refused():
    zeros = torch.zeros
    refused(".", importance, zeros(3))
    refused(".", expert_load, zeros(2, 3), zeros(2, 4), 1)
    refused(".", expert_load, zeros(2, 3), zeros(2, 3), 4)
    refused(".", cv_squared, zeros(0))
    refused(".", cv_squared, zeros(2, 2))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 3])
def test_noisy_top_k_gates__scores_without_gates_are_refused(value, place):
    scores = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 0.0, 0.0, 0.0]])
    scores[0, place] = value
    refused("NaN or infinite", noisy_top_k_gates, scores, 2)
    refused("noise_std", noisy_top_k_gates, torch.ones(2, 3), 1, noise_std=value)
    # an expert may be left out by the lowest score
    scores[0, place] = -torch.inf
    assert noisy_top_k_gates(scores, 2).sum(1).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("noise", [True, "1", 0, float("inf")])
def test_expert_load__noise_is_a_number_above_zero(noise):
    scores = torch.randn(3, 4)
    refused("noise_std", expert_load, scores, scores, k=2, noise_std=noise)


@pytest.mark.parametrize("options", [{"scale": True}, {"dropout": True}])
def test_mixture__flags_are_no_numbers(options):
    refused(next(iter(options)), MoEAdapter, 8, 2, 1, 4, **options)
