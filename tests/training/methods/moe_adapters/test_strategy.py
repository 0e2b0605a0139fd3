"""MoEAdapters as a strategy."""

import pytest
import torch

from avalanche_clip.training.supervised import (
    CLASS_INCREMENTAL,
    MTIL_RATES,
    MoEAdapters,
)
from tests.helpers import At, quiet_evaluator, train_stream
from tests.training import moe_runs


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
    widths = [
        At(hook, lambda strategy: strategy.mb_output.shape[1])
        for hook in ("after_forward", "after_eval_forward")
    ]
    strategy.plugins += widths
    train_stream(strategy, benchmark)
    strategy.eval(benchmark.test_stream)
    # In training the classes of the step alone.
    assert [set(look.seen) for look in widths] == [{2}, {6}]
    moe = strategy.model.moe_adapters
    assert moe.num_routers == 1 and moe.adapters()[0].num_experts == 2
    assert not any(a.frozen.any() for a in moe.adapters())
    assert strategy.compute.iterations is None and strategy.label_smoothing == 0.0


def test_published_size_of_the_class_incremental_form():
    """12 blocks of width 768 and 512: 4,027,392 trainable numbers."""
    image = 2 * (2 * 768 * 64 + 64 + 768) + 2 * 768 * 2
    text = 2 * (2 * 512 * 64 + 64 + 512) + 2 * 512 * 2
    assert 12 * (image + text) == 4_027_392
    options = {"selector": None, "num_experts": 2, "bottleneck": 64}
    strategy = MoEAdapters(model=moe_runs.vit(), evaluator=quiet_evaluator, **options)
    expert = 2 * 64 * 64 + 64 + 64
    expected = 2 * 2 * (2 * expert + 2 * 64 * 2)
    assert strategy.model.moe_adapters.num_trainable == expected
