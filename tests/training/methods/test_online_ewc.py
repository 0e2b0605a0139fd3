"""Online EWC: summed Fishers, growing tables, the weight of the penalty."""

import pytest
import torch

from avalanche_clip.training.plugins import OnlineEWCPlugin
from avalanche_clip.training.supervised import Sequential
from tests.helpers import Recorder, fit, stub_model


class Keep(Recorder):
    """Notes the Fisher of each experience and the losses."""

    def __init__(self):
        self.found, self.losses, self.penalties = [], [], []

    def after_training_exp(self, strategy, **kwargs):
        plugin = plugin_of(strategy)
        self.found.append({n: f.clone() for n, f in plugin.fisher.items()})

    def after_backward(self, strategy, **kwargs):
        self.losses.append(float(strategy.loss_terms.get("ewc", 0.0)))
        self.penalties.append(plugin_of(strategy).penalty(strategy.model).item())


def plugin_of(strategy):
    return next(p for p in strategy.plugins if isinstance(p, OnlineEWCPlugin))


def test_fisher__is_summed_over_experiences():
    single = []

    class Spy(OnlineEWCPlugin):
        def compute_fisher(self, strategy):
            fisher = super().compute_fisher(strategy)
            single.append({n: f.clone() for n, f in fisher.items()})
            return fisher

    for gamma in (1.0, 0.5, 0.0):
        single.clear()
        keep = Keep()
        plugin = Spy(gamma=gamma, fisher_batch_size=4)
        fit(Sequential, plugins=[plugin, keep])
        for name in single[0]:
            total = single[0][name]
            for step in (1, 2):
                total = single[step][name] + gamma * total
                torch.testing.assert_close(keep.found[step][name], total)


def test_penalty__has_no_factor_one_half():
    keep = Keep()
    fit(Sequential, plugins=[OnlineEWCPlugin(3.0, fisher_batch_size=4), keep], steps=2)
    assert keep.losses[:5] == [0.0] * 5
    assert keep.losses[5] == pytest.approx(0.0, abs=1e-9)
    assert max(keep.losses) > 0
    for loss, penalty in zip(keep.losses[5:], keep.penalties[5:], strict=True):
        assert loss == pytest.approx(3.0 * penalty, rel=1e-5, abs=1e-12)


def test_grown_rows__are_free_and_old_rows_keep_their_importance():
    model = stub_model()
    strategy = fit(
        Sequential, model=model, steps=1, plugins=[OnlineEWCPlugin(fisher_batch_size=4)]
    )
    plugin = plugin_of(strategy)
    rows = plugin.fisher["token.weight"].clone()
    old = model.token.weight.detach()
    grown = torch.cat([old, torch.randn(3, old.shape[1])])
    model.token.weight = torch.nn.Parameter(grown.clone())
    assert float(plugin.penalty(model)) == 0.0
    with torch.no_grad():
        model.token.weight[-3:] += 5.0
    assert float(plugin.penalty(model)) == 0.0
    with torch.no_grad():
        model.token.weight[:2] += 1.0
    assert float(plugin.penalty(model)) == pytest.approx(
        float(rows[:2].sum()), rel=1e-5
    )

    new = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    new["token.weight"] += 1.0
    plugin.compute_fisher = lambda strategy: new
    plugin.after_training_exp(strategy)
    merged = plugin.fisher["token.weight"]
    assert torch.equal(merged[:-3], rows + 1.0)
    assert torch.equal(merged[-3:], torch.ones(3, rows.shape[1]))
    assert torch.equal(plugin.anchor["token.weight"], model.token.weight)


def test_frozen_parameters__keep_what_they_had():
    strategy = fit(Sequential, steps=1, plugins=[OnlineEWCPlugin(fisher_batch_size=4)])
    plugin = plugin_of(strategy)
    before = plugin.fisher["image_proj.weight"].clone()
    plugin.compute_fisher = lambda strategy: {}
    plugin.after_training_exp(strategy)
    assert torch.equal(plugin.fisher["image_proj.weight"], before)


def test_fisher__counts_what_is_not_a_number_as_zero():
    strategy = fit(Sequential, steps=1, plugins=[OnlineEWCPlugin(fisher_batch_size=4)])
    plugin = plugin_of(strategy)

    def criterion(output, targets):
        return output.image_features.sum() * float("nan")

    strategy._criterion = criterion
    strategy.experience = None
    loader = [(b, y) for b, y, _ in _batches(strategy)]
    plugin._loader = lambda strategy: loader
    fisher = plugin.compute_fisher(strategy)
    assert all(torch.equal(f, torch.zeros_like(f)) for f in fisher.values())


def _batches(strategy):
    from tests.helpers import stub_benchmark

    data = stub_benchmark(model=strategy.model).train_stream[0].dataset
    return [data.collate_fn([data[k] for k in range(4)])]
