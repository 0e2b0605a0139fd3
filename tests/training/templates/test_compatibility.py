import pytest
import torch
from avalanche.training.plugins import (
    AGEMPlugin,
    EWCPlugin,
    GDumbPlugin,
    LRSchedulerPlugin,
    ReplayPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.plugins.feature_distillation import FeatureDistillationPlugin

from avalanche_clip.training import Sequential
from tests.helpers import (
    At,
    adamw,
    assert_other_weights,
    assert_same_weights,
    build,
    fit,
    stub_benchmark,
    stub_model,
    train_stream,
    weights,
)

WORKING = {
    "replay": lambda: ReplayPlugin(mem_size=6, batch_size_mem=4),
    "ewc-online": lambda: EWCPlugin(100.0, mode="online", decay_factor=0.9),
    "ewc-separate": lambda: EWCPlugin(100.0, mode="separate"),
    "si": lambda: SynapticIntelligencePlugin(si_lambda=100.0),
    "agem": lambda: AGEMPlugin(patterns_per_experience=6, sample_size=6),
    "gdumb": lambda: GDumbPlugin(mem_size=8),
    "distillation": lambda: FeatureDistillationPlugin(alpha=5.0),
    "rwalk": lambda: RWalkPlugin(ewc_lambda=1.0, delta_t=2),
}


@pytest.mark.parametrize("name", WORKING)
def test_stock_plugin__works_over_two_experiences(name):
    data = stub_benchmark(targets=True)
    # The others must leave the first experience as it is; GDumb never does.
    steps = [1, 2, 3] if name != "gdumb" else [2]
    for steps_done in steps:
        plain = fit(Sequential, data, steps_done)
        strategy = fit(Sequential, data, steps_done, plugins=[WORKING[name]()])
        assert all(torch.isfinite(p).all() for p in strategy.model.parameters())
        if steps_done == 1 and name not in ("rwalk",):
            assert_same_weights(plain.model, strategy.model)
        elif steps_done == 3 or name == "gdumb":
            assert_other_weights(plain.model, strategy.model)


def test_synaptic_intelligence__upstream_still_needs_the_repair():
    # Fails when avalanche-lib copies the weights itself: drop the repair then.
    import inspect

    from avalanche.training.plugins import synaptic_intelligence

    source = inspect.getsource(synaptic_intelligence)
    assert "target[name].data = param.detach().cpu().flatten()\n" in source


def test_replay__memory_is_drawn_and_counted():
    look = At("before_backward", lambda s: s.mb_x["sample_id"].tolist())
    plugins = [ReplayPlugin(mem_size=6, batch_size_mem=4), look]
    strategy = fit(Sequential, stub_benchmark(), 2, plugins=plugins)
    assert strategy.compute.report()["steps"] == [5, 5]
    assert strategy.compute.report()["samples"][0] == 20
    second = look.seen[5:]
    assert all(any(i < 12 for i in batch) for batch in second)
    assert all(any(i >= 12 for i in batch) for batch in second)
    assert strategy.compute.report()["samples"][1] == sum(map(len, second)) > 20


def test_replay__counts_memory_against_a_budget_in_samples():
    strategy = build(
        Sequential,
        plugins=[ReplayPlugin(mem_size=8, batch_size_mem=4)],
        budget_iterations=None,
        budget_samples=24,
    )
    train_stream(strategy, stub_benchmark(), 2)
    assert strategy.compute.report()["steps"] == [6, 3]


def test_gdumb__data_without_targets_are_refused_in_words():
    with pytest.raises(ValueError, match="GDumbPlugin keeps as many.*Give targets"):
        fit(Sequential, stub_benchmark(), 1, plugins=[GDumbPlugin(mem_size=8)])


def test_gdumb__trains_on_its_memory_only():
    look = At("before_training_exp", lambda strategy: len(strategy.adapted_dataset))
    data = stub_benchmark(targets=True, groups=4)
    model = stub_model()
    strategy = fit(
        Sequential, data, 2, model=model, plugins=[GDumbPlugin(mem_size=8), look]
    )
    assert look.seen == [8, 8]
    # GDumb replaces the model object; the optimiser must have followed it.
    assert strategy.model is not model
    held = {id(p) for g in strategy.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in strategy.model.parameters()}
    assert_other_weights(strategy.model, stub_model())


def test_scheduler_plugin__takes_over_with_a_warning():
    look = At("before_update", lambda s: s.optimizer.param_groups[0]["lr"])
    model = stub_model()
    optimizer = adamw(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    plugin = LRSchedulerPlugin(scheduler, step_granularity="iteration")
    with pytest.warns(UserWarning, match="schedule='cosine'"):
        strategy = build(Sequential, model, optimizer=optimizer, plugins=[plugin, look])
    assert strategy.schedule is None
    train_stream(strategy, stub_benchmark(), 2)
    assert look.seen == pytest.approx([0.01 * 0.5**k for k in range(5)] * 2)


def test_scheduler_plugin__with_groups_added_by_a_plugin_raises():
    class Head:
        def param_groups(self, strategy):
            return [{"names": ["text_proj.weight"]}]

    model = stub_model()
    optimizer = adamw(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    plugins = [LRSchedulerPlugin(scheduler), Head()]
    strategy = build(
        Sequential, model, optimizer=optimizer, plugins=plugins, schedule="constant"
    )
    with pytest.raises(ValueError, match="knows 1 only"):
        train_stream(strategy, stub_benchmark(), 1)


def test_ewc__stock_fisher_equals_a_loop_over_batches():
    data = stub_benchmark()
    plugin = EWCPlugin(1.0, mode="separate")
    strategy = fit(Sequential, data, 1, plugins=[plugin])
    dataset = data.train_stream[0].dataset
    total = torch.zeros_like(strategy.model.token.weight)
    for start in range(0, 12, 4):
        batch, ids, _ = dataset.collate_fn(
            [dataset[i] for i in range(start, start + 4)]
        )
        strategy.model.zero_grad()
        strategy._criterion(strategy.model(batch), ids).backward()
        total += strategy.model.token.weight.grad**2
    torch.testing.assert_close(plugin.importances[0]["token.weight"].data, total / 3)
    assert weights(strategy.model)
