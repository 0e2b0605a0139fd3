import pytest
import torch

from avalanche_clip.training import Oracle, Restart, Sequential
from avalanche_clip.training.plugins import BudgetFactorPlugin, RestartPlugin
from tests.helpers import (
    At,
    assert_other_weights,
    assert_same_weights,
    build,
    fit,
    stub_model,
    weights,
)


def starts(seed=0, cls=Restart, **options):
    recorder = At(
        "before_training_epoch", lambda s: (weights(s.model), len(s.optimizer.state))
    )
    fit(cls, seed=seed, plugins=[recorder], **options)
    return recorder.seen


def test_restart__keeps_the_first_and_draws_fresh_weights_later():
    seen = starts()
    assert_same_weights(seen[0][0], stub_model())
    for later, other in [(1, 0), (2, 0), (1, 2)]:
        assert_other_weights(seen[later][0], seen[other][0])
    assert [moments for _, moments in seen] == [0, 0, 0]


def test_restart__depends_on_seed_and_step_only():
    first, second, other = starts(1), starts(1), starts(2)
    for index in (1, 2):
        assert_same_weights(first[index][0], second[index][0])
        assert_other_weights(first[index][0], other[index][0])


@pytest.mark.parametrize("cls", [Restart, Oracle])
def test_restart__goes_back_to_the_weights_before_training(cls):
    seen = starts(cls=cls, restart_from="initial")
    assert len(seen) == 3
    for state, moments in seen:
        assert_same_weights(state, stub_model())
        assert moments == 0


@pytest.mark.parametrize("restart_from", ["random", "initial"])
def test_restart__replaces_weights_in_place(restart_from):
    model = stub_model()
    parameter = model.token.weight
    strategy = fit(Restart, steps=2, model=model, restart_from=restart_from)
    assert strategy.model.token.weight is parameter


def test_restart__needs_a_model_that_can():
    model = stub_model()
    model.reinitialize = None
    with pytest.raises(ValueError, match="reinitialize"):
        build(Sequential, model, plugins=[RestartPlugin()])
    build(Sequential, model, plugins=[RestartPlugin("initial")])
    with pytest.raises(ValueError, match="restart_from='first' is unknown"):
        RestartPlugin("first")


def test_two_factor_plugins__multiply():
    plugins = [BudgetFactorPlugin([2, 2]), BudgetFactorPlugin()]
    strategy = fit(Sequential, steps=2, plugins=plugins)
    assert strategy.compute.report()["steps"] == [10, 20]
    assert torch.isfinite(strategy.model.token.weight).all()
