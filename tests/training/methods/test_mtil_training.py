"""Learning rates and groups of MTIL's training."""

import torch

from avalanche_clip.training.supervised import ZSCL
from tests.helpers import (
    Recorder,
    build,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
)

TEXTS = ["ab", "cde", "f"]


def images(size=8):
    generator = torch.Generator().manual_seed(5)
    return list(torch.randn(size, 3, 8, 8, generator=generator))


class Scheduled(Recorder):
    def __init__(self):
        self.rates = []

    def before_update(self, strategy, **kwargs):
        self.rates.append([g["lr"] for g in strategy.optimizer.param_groups])


class OwnGroup(Recorder):
    def param_groups(self, strategy):
        return [{"names": ["token.weight"], "lr": 1.0, "weight_decay": 0.0}]


def zscl(*plugins, **options):
    settings = {
        "reference_images": images(),
        "reference_texts": TEXTS,
        "reference_options": {"batch_size": 4, "teach_first_experience": True},
        "optimizer": None,
        "schedule": "constant",
        "warmup_iterations": 0,
        **options,
    }
    return build(ZSCL, plugins=list(plugins), **settings)


def test_rates__one_per_experience_for_the_groups_of_the_strategy():
    seen = Scheduled()
    strategy = zscl(OwnGroup(), seen, lr=[1e-3, 2e-3, 3e-3])
    train_stream(strategy, stub_benchmark())
    for index, rows in enumerate(zip(*[iter(seen.rates)] * 5, strict=True)):
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

    seen = Scheduled()
    strategy = zscl(Change(), seen, lr=[1e-3, 2e-3, 3e-3])
    train_stream(strategy, stub_benchmark(), 2)
    assert [row[0] for row in seen.rates] == [1e-3, *[0.5] * 4, 2e-3, *[0.5] * 4]


def test_strategy_without_decay__whatever_the_groups():
    rule = lambda named: [{"names": [n for n, _ in named]}]  # noqa: E731
    strategy = ZSCL(
        model=stub_model(),
        reference_images=images(),
        reference_texts=TEXTS,
        reference_options={"teach_first_experience": True},
        param_groups=rule,
        evaluator=quiet_evaluator,
    )
    assert strategy.optimizer.param_groups[0]["weight_decay"] == 0.0
