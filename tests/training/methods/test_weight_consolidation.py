from types import SimpleNamespace

import pytest
import torch

from avalanche_clip.training import Sequential
from avalanche_clip.training.methods.weight_consolidation import (
    add_consolidation_gradient,
)
from avalanche_clip.training.plugins import (
    WeightAveragingPlugin,
    WeightConsolidationPlugin,
)
from tests.helpers import (
    At,
    assert_same_weights,
    build,
    fit,
    sgd,
    stub_benchmark,
    stub_model,
    weights,
)


def terms_and_loss(strategy):
    terms = {k: float(v) for k, v in strategy.loss_terms.items()}
    return terms, float(strategy.loss.detach())


class Autograd:
    """The slow form: a term of the loss with a graph over every parameter."""

    stateless = True

    def __init__(self, weight):
        self.weight = weight
        self.values = []

    def before_backward(self, strategy, **kwargs):
        named = dict(strategy.model.named_parameters())
        if strategy.clock.train_exp_iterations == 0:
            self.start = {n: p.detach().clone() for n, p in named.items()}
        term = sum(((named[n] - s) ** 2).sum() for n, s in self.start.items())
        strategy.add_loss("slow", self.weight * term)
        self.values.append(self.weight * float(term.detach()))


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)]
)
def test_gradient__equals_autograd(dtype, tolerance):
    model = stub_model().to(dtype)
    other = stub_model(1).to(dtype)
    start = {n: p.detach() for n, p in other.named_parameters()}
    del start["image_proj.bias"]
    model.text_proj.weight.requires_grad_(False)
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    first = {n: torch.randn_like(p) for n, p in named.items()}
    for name, parameter in named.items():
        parameter.grad = None if name == "text_proj.bias" else first[name].clone()
    value = add_consolidation_gradient(model, start, 0.7)
    terms = [((p - start[n]) ** 2).sum() for n, p in named.items() if n in start]
    expected = 0.7 * sum(terms)
    gradients = dict(
        zip(named, torch.autograd.grad(expected, named.values(), allow_unused=True))
    )
    torch.testing.assert_close(value, expected.detach(), rtol=tolerance, atol=0)
    assert model.text_proj.weight.grad is None
    assert torch.equal(named["image_proj.bias"].grad, first["image_proj.bias"])
    for name, parameter in named.items():
        if gradients[name] is None:
            continue
        added = torch.zeros(()) if name == "text_proj.bias" else first[name]
        torch.testing.assert_close(
            parameter.grad, gradients[name] + added, rtol=tolerance, atol=tolerance
        )


def test_gradient__nothing_to_do_gives_zero():
    assert add_consolidation_gradient(stub_model(), {}, 1.0) == 0


def test_hand_computed_case():
    model = torch.nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, -1.0]]))
    plugin = WeightConsolidationPlugin(0.5)
    plugin.start = {"weight": torch.tensor([[1.0, 0.0]])}
    model.weight.grad = torch.tensor([[10.0, 20.0]])
    strategy = SimpleNamespace(model=model, loss=torch.tensor(7.0), loss_terms={})
    plugin.after_backward(strategy)
    assert strategy.loss_terms["consolidation"] == 2.5 and strategy.loss == 9.5
    assert model.weight.grad.tolist() == [[12.0, 19.0]]


@pytest.mark.parametrize(
    "options", [{}, {"clip_grad_norm": 0.1}, {"accumulation_steps": 2}], ids=str
)
def test_run__equals_the_autograd_form(options):
    slow = Autograd(0.3)
    note = At("after_update", terms_and_loss)
    expected = fit(Sequential, optimizer=sgd, plugins=[slow], **options)
    ours = fit(
        Sequential,
        optimizer=sgd,
        plugins=[WeightConsolidationPlugin(0.3), note],
        **options,
    )
    for name, value in expected.model.state_dict().items():
        torch.testing.assert_close(
            ours.model.state_dict()[name], value, rtol=1e-5, atol=1e-6
        )
    values = [row["consolidation"] for row, _ in note.seen]
    torch.testing.assert_close(values, slow.values, rtol=1e-4, atol=1e-6)
    for row, loss in note.seen:
        assert loss == pytest.approx(sum(row.values()), rel=1e-6)


def test_term__is_zero_at_the_first_step_of_each_experience():
    note = At("after_update", terms_and_loss)
    fit(Sequential, plugins=[WeightConsolidationPlugin(), note])
    values = [row["consolidation"] for row, _ in note.seen]
    assert [values[0], values[5], values[10]] == [0, 0, 0]
    assert min(values[1:5] + values[6:10]) > 0


def test_start__is_the_average_of_the_step_before():
    def start(strategy):
        return {k: v.clone() for k, v in plugin.start.items()}

    look = At("before_forward", start)
    plugin = WeightConsolidationPlugin()
    average = WeightAveragingPlugin(interval=2)
    strategy = build(Sequential, plugins=[plugin, average, look])
    expected = [weights(strategy.model)]
    for experience in stub_benchmark().train_stream:
        strategy.train(experience, eval_streams=[])
        expected.append(weights(strategy.model))
        assert plugin.start == {}
    for start, before in zip(look.seen[::5], expected):
        assert_same_weights(start, before)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision__gradient_is_not_scaled(precision):
    """A scale left in would change the gradient by a factor of 65536."""
    slow, weight = Autograd(0.3), 0.3
    options = {"precision": precision, "optimizer": sgd, "steps": 1}
    expected = fit(Sequential, plugins=[slow], **options).model
    ours = fit(Sequential, plugins=[WeightConsolidationPlugin(weight)], **options).model
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=2e-2, atol=2e-3)
