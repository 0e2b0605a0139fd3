"""Learning rates and groups of MTIL's training."""

import pytest
import torch.nn.functional as F

from avalanche_clip.training.supervised import (
    ZSCL,
    ClassNameFineTuning,
    FineTuning,
    MoEAdapters,
)
from tests.helpers import (
    At,
    Recorder,
    build,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
)
from tests.methods.rows import IMAGES, REFERENCE
from tests.training import moe_runs


class OwnGroup(Recorder):
    def param_groups(self, strategy):
        return [{"names": ["token.weight"], "lr": 1.0, "weight_decay": 0.0}]


def rates():
    """Notes the rates of all groups at each step."""
    return At("before_update", lambda s: [g["lr"] for g in s.optimizer.param_groups])


def zscl(*plugins, **options):
    settings = {**REFERENCE, "optimizer": None, "schedule": "constant", **options}
    return build(ZSCL, plugins=list(plugins), **settings)


def test_rates__one_per_experience_for_the_groups_of_the_strategy():
    seen = rates()
    strategy = zscl(OwnGroup(), seen, lr=[1e-3, 2e-3, 3e-3])
    train_stream(strategy, stub_benchmark())
    for index, rows in enumerate(zip(*[iter(seen.seen)] * 5, strict=True)):
        for row in rows:
            assert sorted(row) == [(index + 1) * 1e-3, 1.0]
    decays = {g["weight_decay"] for g in strategy.optimizer.param_groups}
    assert decays == {0.0}


def test_rates__set_in_a_step_stay():
    class Change(Recorder):
        def before_forward(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 1:
                for group in strategy.optimizer.param_groups:
                    group["lr"] = 0.5

    seen = rates()
    strategy = zscl(Change(), seen, lr=[1e-3, 2e-3, 3e-3])
    train_stream(strategy, stub_benchmark(), 2)
    assert [row[0] for row in seen.seen] == [1e-3, *[0.5] * 4, 2e-3, *[0.5] * 4]


def test_strategy_without_decay__whatever_the_groups():
    rule = lambda named: [{"names": [n for n, _ in named]}]  # noqa: E731
    strategy = ZSCL(
        model=stub_model(),
        reference_images=IMAGES,
        reference_texts=REFERENCE["reference_texts"],
        plugin_options={"teach_first_experience": True},
        param_groups=rule,
        evaluator=quiet_evaluator,
    )
    assert strategy.optimizer.param_groups[0]["weight_decay"] == 0.0


def test_no_groups__by_name_are_none_too():
    kinds = [FineTuning(model=stub_model()), zscl(param_groups=None)]
    kinds.append(FineTuning(model=stub_model(), param_groups=None))
    for strategy in kinds:
        assert [g["weight_decay"] for g in strategy.optimizer.param_groups] == [0.0]


@pytest.mark.parametrize("cls", [ClassNameFineTuning, MoEAdapters])
def test_label_smoothing__is_that_of_mtil_or_of_the_own_criterion(cls):
    def made(**options):
        own = {"selector": None} if cls is MoEAdapters else {}
        return cls(model=moe_runs.vit(), **own, **options)

    assert made().label_smoothing == 0.2
    assert made(label_smoothing=0.1).loss_function.label_smoothing == 0.1
    assert made(criterion=F.cross_entropy).label_smoothing == 0.0
    with pytest.raises(ValueError, match="label_smoothing=0.2"):
        made(criterion=F.cross_entropy, label_smoothing=0.2)
