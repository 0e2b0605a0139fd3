from itertools import repeat
from unittest import mock

import pytest
import torch

from avalanche_clip.training import Patching, Sequential
from avalanche_clip.training.methods import patching
from avalanche_clip.training.methods.patching import mix
from avalanche_clip.training.plugins import ContrastiveEWCPlugin, PatchingPlugin
from tests.helpers import (
    At,
    assert_same_weights,
    build,
    fit,
    stub_benchmark,
    weights,
)


def scalar(value):
    return {"w": torch.tensor(float(value))}


def test_mix__published_numbers():
    assert mix(scalar(4), scalar(8), 0.25)["w"] == 5
    second = mix(scalar(0), scalar(10), 0.5)
    assert second["w"] == 5
    assert mix(second, scalar(9), 0.5)["w"] == 7


def test_mix__ends_are_exact_and_integers_are_those_of_the_trained():
    old = {"w": torch.randn(3), "n": torch.tensor(1)}
    new = {"w": torch.randn(3), "n": torch.tensor(2), "extra": torch.ones(1)}
    assert torch.equal(mix(old, new, 1.0)["w"], new["w"])
    zero = mix(old, new, 0.0)
    assert torch.equal(zero["w"], old["w"])
    assert zero["n"] == 2 and "extra" in zero


def test_mix__grown_parameter_raises():
    with pytest.raises(ValueError, match="equal shapes"):
        mix({"w": torch.ones(2)}, {"w": torch.ones(3)}, 0.5)


def test_chain__goes_on_from_the_patched_weights():
    looks = [
        At(hook, lambda strategy: weights(strategy.model))
        for hook in ("before_training_exp", "after_training_iteration")
    ]
    strategy = build(Patching, grid=[0.25], plugins=looks)
    for index, experience in enumerate(stub_benchmark().train_stream):
        before = weights(strategy.model)
        strategy.train(experience, eval_streams=[])
        start, trained = (look.seen[-1] for look in looks)
        assert_same_weights(start, before)
        share = 0.25 if index else 1.0
        for name, value in strategy.model.state_dict().items():
            expected = (1 - share) * before[name] + share * trained[name]
            torch.testing.assert_close(value, expected)


def test_missing_stream__is_reported_before_training():
    with pytest.raises(ValueError, match="stream 'valid'.*split_validation"):
        fit(Patching, stub_benchmark(valid=False))
    assert fit(Patching, stub_benchmark(valid=False), 2, grid=[0.5])


def searched(scores, order=(0, 1, 2), grid=(0.0, 0.5, 1.0), **options):
    """Train with scores that are given; return choices and steps that were scored."""
    data, calls = stub_benchmark(), []
    plugin = PatchingPlugin(grid, **options)
    places = {id(e.dataset): k for k, e in enumerate(data.streams["valid"])}

    def fake(model, dataset, **kwargs):
        calls[-1].append(places[id(dataset)])
        return {"mean_R@1": next(scores)}

    strategy = build(Sequential, plugins=[plugin])
    with mock.patch.object(patching, "evaluate_retrieval", fake):
        for index in order:
            calls.append([])
            strategy.train(data.train_stream[index], eval_streams=[])
    return plugin.chosen, calls


def test_search__ties_take_the_larger_coefficient():
    assert searched(repeat(0.5))[0] == [1.0, 1.0, 1.0]


def test_search__takes_the_best_mean_of_previous_and_current():
    # Order of the search: 1, 0.5, 0; two data sets in step 2, three in step 3.
    scores = [0.1, 0.3, 0.4, 0.2, 0.2, 0.1] + [0.1, 0.1, 0.1] * 2 + [0.9, 0, 0]
    chosen, calls = searched(iter(scores))
    assert chosen == [1.0, 0.5, 0.0]
    assert calls == [[], [0, 1] * 3, [0, 1, 2] * 3]


def test_search__previous_only():
    chosen, calls = searched(iter([0.0, 0.1, 0.1] + [0.0] * 6), select_on="previous")
    assert chosen == [1.0, 0.5, 1.0]
    assert calls == [[], [0] * 3, [0, 1] * 3]


def test_search__costs_are_booked_and_generators_left_alone():
    strategy = fit(Patching, stub_benchmark(), 2, grid=[0.0, 0.5, 1.0])
    search = strategy.compute.experiences[1]["search"]
    assert search["images"] == 3 * 2 * 6
    assert "search" not in strategy.compute.experiences[0]
    assert strategy.model.training


@pytest.mark.parametrize(
    "order, current, previous",
    [
        ([0, 2], [0, 2], [0]),
        ([2, 0], [2, 0], [2]),
        ([0, 1, 0, 2], [1, 0, 2], [1, 0]),
        ([1, 1], [1], []),
    ],
    ids=str,
)
def test_search__scores_the_steps_that_were_trained(order, current, previous):
    options = {"scores": repeat(0.0), "order": order, "grid": [0.5, 1.0]}
    assert searched(**options)[1][-1] == current * 2
    chosen, calls = searched(**options, select_on="previous")
    assert calls[-1] == previous * 2
    if not previous:  # nothing to keep: the trained weights stay
        assert chosen == [1.0, 1.0]


def test_search__step_without_validation_data_is_reported_before_training():
    data = stub_benchmark()
    strategy = build(Sequential, plugins=[PatchingPlugin([0.5, 1.0])])
    strategy.train(data.streams["test"][0], eval_streams=[])
    with pytest.raises(ValueError, match="no experience for"):
        strategy.train(stub_benchmark((9, 9)).train_stream[1], eval_streams=[])


def test_patching__comes_before_plugins_that_copy_the_weights():
    plugins = [ContrastiveEWCPlugin(1.0), PatchingPlugin([0.5])]
    strategy = fit(Sequential, plugins=plugins, steps=2)
    first, ewc = strategy.plugins[:2]
    assert first.chosen == [1.0, 0.5]
    assert_same_weights(ewc.anchor, dict(strategy.model.named_parameters()))
