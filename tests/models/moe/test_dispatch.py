import itertools

import pytest
import torch

from avalanche_clip.models.moe.dispatch import (
    PATHS,
    ExpertTensors,
    choose_path,
    mix_experts,
)
from avalanche_clip.models.moe.gating import route
from avalanche_clip.models.moe.kernels import MixtureRule
from tests.refused import refused

FAST = ["gather", "dense", "segments"]


def make_experts(width, count, bottleneck, bias=True, dtype=torch.float32):
    def new(*shape):
        return torch.randn(*shape, dtype=dtype).mul_(0.3).requires_grad_()

    return [
        ExpertTensors(
            new(bottleneck, width),
            new(bottleneck) if bias else None,
            new(width, bottleneck),
            new(width) if bias else None,
        )
        for _ in range(count)
    ]


def plain_loop(x, gates, experts, scale=0.1, relu=True):
    """The formula, row by row and expert by expert."""
    rows = []
    for b in range(len(x)):
        y = torch.zeros_like(x[b])
        for e, (v, c, u, d) in enumerate(experts):
            if gates[b, e] == 0:
                continue
            hidden = x[b] @ v.T + (0 if c is None else c)
            hidden = hidden.clamp_min(0) if relu else hidden
            y = y + gates[b, e] * scale * (hidden @ u.T + (0 if d is None else d))
        rows.append(y)
    return torch.stack(rows)


def leaves(experts):
    return [t for t in itertools.chain(*experts) if t is not None]


def gradients(output, grad, tensors):
    return torch.autograd.grad(
        output, tensors, grad, retain_graph=True, allow_unused=True
    )


@pytest.mark.parametrize("path", [*PATHS, None])
@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6, 5, 12, 7, 2), (4, 3, 8, 5, 1), (3, 9, 8, 3, 3)])
def test_mixture__equals_a_plain_loop(path, activation, bias, shape):
    torch.manual_seed(0)
    rows, tokens, width, count, k = shape
    experts = make_experts(width, count, 4, bias)
    x = torch.randn(rows, tokens, width, requires_grad=True)
    clean = torch.randn(rows, count, requires_grad=True)
    routing = route(clean, k)
    expected = plain_loop(x, routing.gates(), experts, relu=activation == "relu")
    out = mix_experts(x, routing, experts, MixtureRule(0.1, activation), path=path)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    grad = torch.randn_like(out)
    wanted = [x, clean, *leaves(experts)]
    found = gradients(out, grad, wanted)
    for one, other in zip(found, gradients(expected, grad, wanted), strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("bias", [True, False])
def test_mixture__gradcheck(path, activation, bias):
    torch.manual_seed(1)
    experts = make_experts(5, 4, 3, bias, torch.float64)
    x = torch.randn(3, 2, 5, dtype=torch.float64, requires_grad=True)
    clean = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    rule = MixtureRule(0.7, activation)

    def mixture(x, clean, *_):
        return mix_experts(x, route(clean, 2), experts, rule, path=path)

    assert torch.autograd.gradcheck(
        mixture, (x, clean, *leaves(experts)), fast_mode=True
    )


@pytest.mark.parametrize("path", [*PATHS, None])
def test_mixture__unused_experts_have_no_gradient(path):
    experts = make_experts(6, 5, 4)
    clean = torch.tensor([[3.0, 0, 2, 0, 0], [3.0, 0, 0, 2, 0]])
    out = mix_experts(
        torch.randn(2, 3, 6), route(clean, 2), experts, MixtureRule(), path=path
    )
    out.sum().backward()
    used = [all(t.grad is not None for t in e) for e in experts]
    none = [all(t.grad is None for t in e) for e in experts]
    assert used == [True, False, True, True, False]
    assert none == [False, True, False, False, True]
    for expert in experts:
        assert all(t.grad is None or t.grad.shape == t.shape for t in expert)


@pytest.mark.parametrize("path", FAST)
def test_mixture__frozen_tensors_have_no_gradient(path):
    experts = make_experts(6, 3, 4)
    for tensor in experts[0]:
        tensor.requires_grad_(False)
    experts[1].up_bias.requires_grad_(False)
    x = torch.randn(4, 3, 6)
    routing = route(torch.randn(4, 3), 3)
    mix_experts(x, routing, experts, MixtureRule(), path=path).sum().backward()
    assert [t.grad is None for t in experts[0]] == [True] * 4
    assert [t.grad is None for t in experts[1]] == [False, False, False, True]
    assert [t.grad is None for t in experts[2]] == [False] * 4


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded"])
def test_mixture__any_memory_layout(path, layout):
    torch.manual_seed(2)
    experts = make_experts(6, 4, 3)
    contiguous = torch.randn(5, 7, 6)
    if layout == "transposed":
        x = contiguous.transpose(0, 1).contiguous().transpose(0, 1)
    elif layout == "strided":
        x = torch.stack([contiguous, -contiguous], 3)[..., 0]
    else:
        contiguous = contiguous[:1].expand(5, 7, 6)
        x = contiguous
    routing = route(torch.randn(5, 4), 2)
    results = []
    for tokens in (x, contiguous.contiguous()):
        leaf = tokens.detach().requires_grad_()
        out = mix_experts(leaf, routing, experts, MixtureRule(), path=path)
        # The gradient of a sum comes expanded, with strides of 0.
        grads = torch.autograd.grad(
            out.sum(), [leaf, *leaves(experts)], retain_graph=True, allow_unused=True
        )
        weighted = (out.transpose(0, 1) * torch.arange(6.0)).sum()
        more = torch.autograd.grad(
            weighted, [leaf, *leaves(experts)], allow_unused=True
        )
        results.append([out, *grads, *more])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("path", FAST)
@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_dropout__repeats_with_the_seed_and_scales_kept_units(path, activation):
    torch.manual_seed(3)
    experts = make_experts(6, 3, 8, dtype=torch.float64)
    x = torch.randn(4, 5, 6, dtype=torch.float64, requires_grad=True)
    clean = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    rule = MixtureRule(0.5, activation, 0.4)

    def mixture(x, clean, *_):
        torch.manual_seed(11)
        return mix_experts(x, route(clean, 2), experts, rule, path=path)

    assert torch.equal(mixture(x, clean), mixture(x, clean))
    assert torch.autograd.gradcheck(
        mixture, (x, clean, *leaves(experts)), fast_mode=True
    )
    many = x.detach()[:1].expand(4000, 5, 6)
    routing = route(clean.detach()[:1].expand(4000, 3), 2)
    with torch.no_grad():
        mean = mix_experts(many, routing, experts, rule, path=path).mean(0)
        kept = MixtureRule(0.5, activation, 0.0)
        plain = mix_experts(many[:1], route(clean[:1], 2), experts, kept)[0]
    assert (mean - plain).abs().max() < 0.1 * plain.abs().max()


@pytest.mark.parametrize("path", FAST)
def test_dropout__of_one_leaves_the_biases(path):
    experts = make_experts(6, 3, 8)
    x = torch.randn(4, 5, 6, requires_grad=True)
    routing = route(torch.randn(4, 3), 2)
    out = mix_experts(x, routing, experts, MixtureRule(1.0, "relu", 1.0), path=path)
    biases = torch.stack([e.up_bias for e in experts])
    expected = (routing.gates() @ biases)[:, None].expand(4, 5, 6)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast__is_close_and_keeps_the_types(path, dtype):
    torch.manual_seed(4)
    experts = make_experts(16, 4, 8)
    x = torch.randn(5, 6, 16).to(dtype).requires_grad_()
    routing = route(torch.randn(5, 4), 2)
    exact = mix_experts(x.float(), routing, experts, MixtureRule())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mix_experts(x, routing, experts, MixtureRule(), path=path)
        assert out.dtype == dtype
        out.float().square().sum().backward()
    assert x.grad.dtype == dtype
    assert {t.grad.dtype for t in leaves(experts) if t.grad is not None} == {
        torch.float32
    }
    assert (out.float() - exact).abs().max() < 0.03 * exact.abs().max()


def test_types__half_input_without_autocast_is_computed_in_float32():
    experts, x = make_experts(8, 3, 4), torch.randn(2, 3, 8).half()
    routing = route(torch.randn(2, 3), 2)
    exact = mix_experts(x.float(), routing, experts, MixtureRule())
    assert torch.equal(mix_experts(x, routing, experts, MixtureRule()), exact.half())


@pytest.mark.parametrize("shape", [(0, 4, 6), (3, 0, 6)])
@pytest.mark.parametrize("path", [*PATHS, None])
def test_mixture__nothing_to_do(path, shape):
    experts = make_experts(6, 4, 3)
    x = torch.randn(shape, requires_grad=True)
    out = mix_experts(
        x, route(torch.zeros(shape[0], 4), 2), experts, MixtureRule(), path=path
    )
    assert out.shape == shape
    out.sum().backward()
    assert x.grad.shape == shape


def test_mixture__saves_input_and_hidden_units_only():
    rows, tokens, width, bottleneck = 8, 50, 64, 16
    experts = make_experts(width, 6, bottleneck)
    x = torch.randn(rows, tokens, width, requires_grad=True)
    routing = route(torch.randn(rows, 6), 2)
    own = {t.data_ptr() for t in leaves(experts)}
    for path in FAST[::2]:
        saved = []

        def pack(tensor, saved=saved):
            if tensor.data_ptr() not in own:
                saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            mix_experts(x, routing, experts, MixtureRule(0.1, "relu", 0.1), path=path)
        limit = x.numel() + rows * tokens * 2 * bottleneck + 100
        assert sum(saved) <= limit


@pytest.mark.parametrize(
    "shape, active, expected",
    [
        ((64, 197, 768), 22, "gather"),
        ((100, 77, 512), 2, "dense"),
        ((16, 197, 768), 2, "dense"),
        ((64, 50, 256), 8, "segments"),
        ((8, 17, 64), 22, "gather"),
        ((1, 1, 4), 1, "dense"),
    ],
)
def test_rule__follows_the_shape(shape, active, expected):
    assert choose_path(*shape, active=active, top_k=2, bottleneck=64) == expected


def test_path__unknown_names_are_refused():
    x, experts = torch.zeros(1, 1, 2), make_experts(2, 1, 1)
    routing = route(torch.zeros(1, 1), 1)
    refused("fastest", mix_experts, x, routing, experts, MixtureRule(), path="fastest")
