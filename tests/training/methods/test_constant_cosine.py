import pytest
import torch

from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import ConstantCosinePlugin
from tests.helpers import (
    At,
    assert_other_weights,
    assert_same_weights,
    build,
    stub_benchmark,
    train_stream,
    weights,
)
from tests.training.growing import GrowingEncoder, PlainGrowing


class _Trace:
    def __init__(self):
        self.starts, self.trunks, self.rates, self.steps = [], [], [], []

    def before_training_epoch(self, strategy, **kwargs):
        self.starts.append(weights(strategy.model))
        state = strategy.optimizer_state()["state"]
        self.steps.append({int(e["step"]) for e in state.values()})

    def before_forward(self, strategy, **kwargs):
        self.rates.append(strategy.optimizer.param_groups[0]["lr"])
        if strategy.clock.train_exp_iterations == 8:
            self.trunks.append(weights(strategy.model))


def run(steps=2, plugins=(), **options):
    trace = _Trace()
    strategy = build(
        Sequential,
        schedule="const-cosine",
        budget_iterations=10,
        plugins=[ConstantCosinePlugin(), trace, *plugins],
        **options,
    )
    deployed = []
    for experience in list(stub_benchmark().train_stream)[:steps]:
        strategy.train(experience, eval_streams=[])
        deployed.append(weights(strategy.model))
    return strategy, trace, deployed


def test_next_step__goes_on_from_the_trunk_and_its_moments():
    _, trace, deployed = run()
    assert_same_weights(trace.starts[1], trace.trunks[0])
    assert_other_weights(trace.starts[1], deployed[0])
    assert trace.steps == [set(), {8}]


def test_deployed_model__is_the_decayed_one():
    strategy, trace, deployed = run(1)
    assert_same_weights(strategy.model, deployed[0])
    assert_other_weights(deployed[0], trace.trunks[0])
    assert_same_weights(strategy.plugins[0].trunk["model"], trace.trunks[0])


def test_next_step__keeps_what_has_grown_since_the_trunk():
    model = GrowingEncoder()
    model.table = PlainGrowing()
    _, trace, _ = run(model=model)
    start, trunk = trace.starts[1], trace.trunks[0]
    grown, old = start["table.rows"], trunk["table.rows"]
    assert grown.shape == (3, 8) and old.shape == (2, 8)
    assert torch.equal(grown[:2], old)
    assert torch.equal(grown[2], torch.full((8,), 0.01))
    assert torch.equal(start["token.weight"], trunk["token.weight"])


def test_rates__warm_up_once_stay_and_decay_on_the_branch():
    _, trace, _ = run(warmup_iterations=2)
    first = [0.005, 0.01] + [0.01] * 6 + [0.01, 0.005]
    assert trace.rates == pytest.approx(first + [0.01] * 9 + [0.005])


def test_step_stopped_before_its_decay__leaves_no_old_trunk():
    def stop(strategy):
        clock = strategy.clock
        if clock.train_exp_counter == 1 and clock.train_exp_iterations == 3:
            strategy.stop_training()

    _, trace, deployed = run(3, plugins=[At("after_training_iteration", stop)])
    assert_same_weights(trace.starts[2], deployed[1])


def test_fraction__is_that_of_the_plugin():
    strategy = build(
        Sequential, schedule="const-cosine", plugins=[ConstantCosinePlugin(0.5)]
    )
    assert strategy.decay_fraction == 0.5
    train_stream(strategy, stub_benchmark(), 1)
    assert torch.isfinite(strategy.model.token.weight).all()
