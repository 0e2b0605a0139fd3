"""MoEAdapters as a strategy, and ZSCL and fine-tuning on class names."""

import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_clip.training.supervised import (
    CLASS_INCREMENTAL,
    MTIL_RATES,
    MoEAdapters,
)
from tests.helpers import (
    quiet_evaluator,
)
from tests.training import moe_runs

SHORT = {
    "train_mb_size": 6,
    "budget_iterations": 5,
    "warmup_iterations": 2,
    "evaluator": quiet_evaluator,
}


def adapters(**options):
    given = {
        "selector": None,
        "num_experts": 4,
        "bottleneck": 4,
        **SHORT,
        **options,
    }
    given.setdefault("model", moe_runs.vit())
    return MoEAdapters(**given)


def test_defaults__are_the_published_ones():
    model = moe_runs.vit()
    strategy = MoEAdapters(
        model=model, reference_images=moe_runs.reference(), evaluator=quiet_evaluator
    )
    (image, *_) = model.moe_adapters.adapters("image")
    options = image.options()
    expected = {"num_experts": 22, "top_k": 2, "bottleneck": 64, "scale": 0.1}
    assert expected.items() <= options.items()
    assert isinstance(strategy.optimizer, torch.optim.AdamW)
    assert strategy.train_mb_size == 64 and strategy.label_smoothing == 0.2
    assert strategy.compute.iterations == 1001 and strategy.schedule == "cosine"
    assert strategy.warmup_iterations == strategy.later_warmup_iterations == 100
    assert strategy.learning_rates == (1e-3,)
    plugin = strategy.moe
    assert plugin in strategy.plugins
    assert (plugin.freeze, plugin.count, plugin.rank_over) == (True, 2, "all")
    assert plugin.balance_weight == 0 and plugin.auto_selector.extractor == "model"
    assert plugin.auto_selector.granularity == "sample"
    assert [len(r) for r in MTIL_RATES.values()] == [11, 11]


def test_selector_by_default__needs_reference_images():
    with pytest.raises(ValueError, match="reference_images"):
        MoEAdapters(model=moe_runs.vit())


def test_class_incremental_form__two_experts_one_router_seen_classes():
    preset = {**CLASS_INCREMENTAL, "train_mb_size": 2, "warmup_iterations": 1}
    strategy = MoEAdapters(
        model=moe_runs.vit(), evaluator=quiet_evaluator, bottleneck=4, **preset
    )
    benchmark = moe_runs.classes_over_time(strategy.model)
    widths = []

    class Widths(SupervisedPlugin):
        stateless = True

        def after_forward(self, strategy, **kwargs):
            widths.append(strategy.mb_output.shape[1])

        def after_eval_forward(self, strategy, **kwargs):
            widths.append(strategy.mb_output.shape[1])

    strategy.plugins.append(Widths())
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
    assert set(widths) == {2}  # training: the classes of the step alone
    widths.clear()
    strategy.eval(benchmark.test_stream)
    assert set(widths) == {6}
    moe = strategy.model.moe_adapters
    assert moe.num_routers == 1 and moe.adapters()[0].num_experts == 2
    assert not any(a.frozen.any() for a in moe.adapters())
    assert strategy.compute.iterations is None and strategy.label_smoothing == 0.0


def test_published_size_of_the_class_incremental_form():
    """12 blocks of width 768 and 512: 4,027,392 trainable numbers."""
    image = 2 * (2 * 768 * 64 + 64 + 768) + 2 * 768 * 2
    text = 2 * (2 * 512 * 64 + 64 + 512) + 2 * 512 * 2
    assert 12 * (image + text) == 4_027_392
    strategy = adapters(num_experts=2, bottleneck=64)
    expert = 2 * 64 * 64 + 64 + 64
    expected = 2 * 2 * (2 * expert + 2 * 64 * 2)
    assert strategy.model.moe_adapters.num_trainable == expected


# ------------------------------------------------------------ ZSCL and fine-tuning
