import pytest
import torch

from avalanche_clip.losses import cross_lingual_loss, cross_modal_loss
from avalanche_clip.training import ContrastiveEWC, Sequential
from avalanche_clip.training.plugins import (
    ContrastiveEWCPlugin,
    LanguageAdapterPlugin,
    OnlineEWCPlugin,
)
from tests.helpers import (
    At,
    assert_same_weights,
    fit,
    train_stream,
)
from tests.training.languages import language_strategy, language_stream, tiny_model
from tests.training.templates.test_optim import GrowingEncoder


def plugin_of(strategy):
    return next(p for p in strategy.plugins if isinstance(p, ContrastiveEWCPlugin))


def test_fisher__is_the_mean_squared_batch_gradient():
    keep = At("after_training_exp", lambda s: [*plugin_of(s)._loader(s)])
    strategy = fit(ContrastiveEWC, steps=1, fisher_batch_size=4, plugins=[keep])
    plugin, model = plugin_of(strategy), strategy.model
    (batches,) = keep.seen
    assert len(batches) == 3
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for batch, ids, _ in batches:
        model.zero_grad()
        strategy._criterion(model(batch), ids).backward()
        for name, parameter in model.named_parameters():
            expected[name] += parameter.grad**2 / 3
    for name, value in expected.items():
        torch.testing.assert_close(plugin.fisher[name], value)
    assert_same_weights(plugin.anchor, model)


def test_penalty__equals_a_hand_written_loop():
    strategy = fit(ContrastiveEWC, steps=1, fisher_batch_size=4)
    plugin, model = plugin_of(strategy), strategy.model
    assert float(plugin.penalty(model)) == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    total = 0.0
    for name, parameter in model.named_parameters():
        rows = zip(
            plugin.fisher[name].flatten().tolist(),
            parameter.flatten().tolist(),
            plugin.anchor[name].flatten().tolist(),
        )
        total += sum(f * (p - a) ** 2 for f, p, a in rows)
    assert float(plugin.penalty(model)) == pytest.approx(total, rel=1e-4)


def test_loss__has_half_of_lambda_times_the_penalty():
    def both(strategy):
        if "ewc" in strategy.loss_terms:
            penalty = plugin_of(strategy).penalty(strategy.model)
            return float(strategy.loss_terms["ewc"]), float(penalty)

    look = At("after_backward", both)
    fit(ContrastiveEWC, steps=2, ewc_lambda=10.0, plugins=[look])
    seen = [row for row in look.seen if row]
    assert len(seen) == 5 and seen[-1][0] > 0
    assert all(ours == pytest.approx(5 * p) for ours, p in seen)


def test_fisher__is_renewed_or_accumulated():
    plain = plugin_of(fit(ContrastiveEWC, steps=2, fisher_batch_size=4))
    summed = ContrastiveEWCPlugin(1.0, fisher_batch_size=4, decay=0.5)
    fit(Sequential, steps=2, plugins=[summed])
    first = plugin_of(fit(ContrastiveEWC, steps=1, fisher_batch_size=4))
    for name, value in plain.fisher.items():
        expected = value + 0.5 * first.fisher[name]
        torch.testing.assert_close(summed.fisher[name], expected)


def test_fisher__number_of_batches_and_cost():
    strategy = fit(ContrastiveEWC, steps=1, fisher_batch_size=4, fisher_batches=5)
    assert strategy.compute.experiences[0]["fisher"]["images"] == 20
    strategy = fit(ContrastiveEWC, steps=1)
    assert strategy.compute.experiences[0]["fisher"]["images"] == 12


def test_fisher__leaves_modes_gradients_and_half_precision_alone():
    strategy = fit(ContrastiveEWC, steps=1, precision="fp16", fisher_batch_size=4)
    assert strategy.model.training
    fisher = plugin_of(strategy).fisher["token.weight"]
    assert torch.isfinite(fisher).all() and float(fisher.max()) > 0


def test_penalty__of_a_frozen_model_is_zero():
    strategy = fit(ContrastiveEWC, steps=1)
    strategy.model.requires_grad_(False)
    assert float(plugin_of(strategy).penalty(strategy.model)) == 0


def test_grown_parameter__keeps_the_old_fisher_of_its_old_rows():
    found = []

    class Spy(ContrastiveEWCPlugin):
        def compute_fisher(self, strategy):
            fisher = super().compute_fisher(strategy)
            found.append(fisher["token.weight"].clone())
            return fisher

    plugin = Spy(1.0, fisher_batch_size=4, decay=0.5)
    fit(Sequential, steps=2, model=GrowingEncoder(), plugins=[plugin])
    old, new = found
    assert len(new) > len(old)
    new[: len(old)] += 0.5 * old
    torch.testing.assert_close(plugin.fisher["token.weight"], new)


@pytest.mark.parametrize("plugin", [ContrastiveEWCPlugin, OnlineEWCPlugin])
@pytest.mark.parametrize("adapters", [False, True])
def test_fisher__is_of_the_loss_that_is_trained(plugin, adapters):
    losses, passes = [], []

    class Note(plugin):
        def batch_loss(self, strategy, batch, targets):
            loss = super().batch_loss(strategy, batch, targets)
            codes = batch["language"] if adapters else None
            if adapters:
                strategy.model.language_adapters.set_languages(codes)
            raw = strategy.model.encode_text(batch["text"], normalize=False)
            if adapters:
                strategy.model.language_adapters.set_languages(None)
            expected = cross_lingual_loss(raw, batch["teacher_text"])
            expected = expected + 0.01 * cross_modal_loss(
                raw,
                batch["teacher_image"],
                strategy.model.cross_modal.tau,
                image_ids=targets,
            )
            losses.append((loss.item(), expected.item()))
            return loss

    model = tiny_model()
    model.clip.visual.register_forward_hook(lambda *a: passes.append(1))
    extra = [LanguageAdapterPlugin("mla")] if adapters else []
    ewc = Note(1.0, fisher_batch_size=4)
    strategy = language_strategy(model, plugins=[*extra, ewc])
    train_stream(strategy, language_stream(model), 2)
    assert not passes and len(losses) == 6
    assert all(found == pytest.approx(value, rel=1e-5) for found, value in losses)
    fisher = strategy.compute.experiences[1]["fisher"]
    assert fisher == {"images": 0, "texts": 12, "steps": 0}
    assert ewc.fisher["clip.token_embedding.weight"].any()
    if adapters:
        assert model.language_adapters.ids == {"text": -1}
