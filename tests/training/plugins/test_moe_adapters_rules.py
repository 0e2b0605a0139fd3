"""MoEAdaptersPlugin with other plugins, models and settings."""

import copy

import pytest
import torch

from avalanche_clip.models.moe.adapters import attach_moe_adapters
from avalanche_clip.training.plugins import (
    ContrastiveEWCPlugin,
    MoEAdaptersPlugin,
)
from avalanche_clip.training.templates import ClassNameTemplate
from tests.helpers import train_stream, weights
from tests.training import moe_runs
from tests.training.methods.moe_adapters.test_plugin import build, fit
from tests.training.moe_runs import ADAPTERS


def test_one_tower__works_alone():
    for tower in ("image", "text"):
        strategy, plugin, benchmark = fit(
            2, adapters={**ADAPTERS, "towers": tower}, router_for_eval="own"
        )
        assert strategy.model.moe_adapters.towers == (tower,)
        strategy.eval(benchmark.test_stream)
        assert set(plugin.routing["test"]["2,0"]) == {"0"}


def test_adapters_of_the_model__are_used():
    model = moe_runs.vit()
    moe = attach_moe_adapters(model, **ADAPTERS)
    strategy, _ = build(model, adapters=None)
    assert strategy.model.moe_adapters is moe
    with pytest.raises(ValueError, match="already has adapters"):
        build(model)


def test_second_stream__gets_routers_of_its_own():
    strategy, _, benchmark = fit(2)
    again, plugin = build(strategy.model, adapters=None)
    train_stream(again, benchmark, 1)
    assert plugin.routers == {"classes 0,1,2": 2}
    assert strategy.model.moe_adapters.learned == [0, 1, 2]


def test_reused_plugin__starts_anew():
    strategy, plugin, benchmark = fit(2)
    plugin.adapters = ADAPTERS
    model = moe_runs.vit()
    other = ClassNameTemplate(model=model, plugins=[plugin], **moe_runs.options())
    assert plugin.routers == {}
    train_stream(other, moe_runs.domains(model), 1)
    assert model.moe_adapters.learned == [0]


def test_deep_copy__goes_its_own_way():
    strategy, _, benchmark = fit(1)
    twin = copy.deepcopy(strategy.model)
    before = weights(twin)
    routers = dict(twin.moe_adapters.routers)
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert all(torch.equal(before[k], v) for k, v in twin.state_dict().items())
    assert twin.moe_adapters.routers == routers == {"image": 0, "text": 0}


def test_ewc__works_beside():
    strategy, _, _ = fit(2, plugins=[ContrastiveEWCPlugin(10.0, fisher_batch_size=6)])
    assert "fisher" in strategy.compute.experiences[0]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"count": -1}, "integer >= 0"),
        ({"count": 2.5}, "integer >= 0"),
        ({"count": True}, "integer >= 0"),
        ({"rank_over": "some"}, "rank_over"),
        ({"balance_weight": -1.0}, "negative"),
        ({"balance_weight": float("nan")}, "negative"),
        ({"router_for_eval": "best"}, "router_for_eval"),
        ({"selector_transform": "none"}, "selector_transform"),
        ({"selector": "model"}, "reference_images"),
        ({"selector": "resnet", "reference_images": []}, "unknown"),
        ({"selector": "alexnet", "reference_images": []}, "weights"),
        ({"reference_images": []}, "selector=None"),
        ({"calibration": "valid"}, "selector=None"),
    ],
)
def test_wrong_settings__are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        MoEAdaptersPlugin(**given)


def test_count_above_the_number_of_experts__is_refused_at_once():
    with pytest.raises(ValueError, match="exceeds num_experts=6"):
        build(count=7)
    build(count=7, freeze=False)
