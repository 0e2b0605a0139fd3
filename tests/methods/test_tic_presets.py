"""Presets of TiC-CLIP: the budgets of all methods, and strategies made of them."""

import pytest
import torch

from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training.methods.tic import TIC_STRATEGIES
from avalanche_clip.training.methods.tic_presets import TIC_PRESETS
from tests.refused import refused


@pytest.mark.parametrize(
    ("name", "macs"),
    [
        ("yfcc", 3.366e18),
        ("redcaps", 3.366e18),
        ("datacomp-medium", 2.945e18),
        ("datacomp-medium-released", 9.535e17),
        ("datacomp-large", 2.651e19),
        ("datacomp-xlarge", 2.657e20),
    ],
)
def test_preset__plain_methods_cost_what_the_paper_says(name, macs):
    preset = TIC_PRESETS[name]
    for method in TIC_STRATEGIES:
        ratio = preset.macs(method) / macs
        plain = method not in ("oracle", "cumulative-all-star", "lwf", "ewc")
        if plain:
            assert ratio == pytest.approx(1, abs=5e-4)
    steps = 4 if name in ("yfcc", "redcaps") else 7
    assert preset.macs("oracle") / macs == pytest.approx((steps + 1) / 2, abs=2e-3)
    assert preset.macs("lwf") / macs == pytest.approx(1.2, abs=1e-3)
    star = {4: 1.06, 7: 1.5 if name == "datacomp-large" else 1.3}[steps]
    assert preset.macs("cumulative-all-star") / macs == pytest.approx(star, abs=1e-3)


def test_preset__factors_are_units_of_the_budget():
    large = TIC_PRESETS["datacomp-large"]
    assert sum(large.factors("sequential")) == 7
    assert sum(large.factors("lwf")) == pytest.approx(8.4)
    assert large.factors("cumulative-all-star") == (1, 1, 1, 1, 1.5, 2, 3)
    assert sum(large.factors("oracle")) == 28
    refused("did you mean|Did you mean", large.factors, "sequentiel")


@pytest.mark.parametrize("method", TIC_STRATEGIES)
@pytest.mark.parametrize("name", ["yfcc", "datacomp-xlarge"])
def test_preset__strategies_are_made_of_it(name, method):
    preset = TIC_PRESETS[name]
    options = preset.options(method, processes=16)
    assert options["train_mb_size"] == preset.batch_size // 16
    model = create_dual_encoder("tiny-emoji")
    strategy = TIC_STRATEGIES[method](model=model, **options)
    assert strategy.compute.iterations == preset.iterations
    assert strategy.schedule == "cosine" and strategy.precision == "fp16"
    xl = name == "datacomp-xlarge"
    warmups = strategy.warmup_iterations, strategy.later_warmup_iterations
    assert warmups == ((10_000, 2000) if xl else (500, 0))
    optimizer = options["optimizer"]([torch.nn.Parameter(torch.ones(2))])
    assert optimizer.defaults["lr"] == (1e-3 if xl else 5e-4)
    assert optimizer.defaults["betas"] == (0.9, 0.98)


def test_preset__medium_has_three_forms():
    found = {
        name: (preset.model, preset.iterations)
        for name, preset in TIC_PRESETS.items()
        if "medium" in name
    }
    assert found == {
        "datacomp-medium": ("ViT-B-16", 5000),
        "datacomp-medium-readme": ("ViT-B-16", 4500),
        "datacomp-medium-released": ("ViT-B-32", 4500),
    }


def test_preset__processes_divide_the_batch():
    refused("divide", TIC_PRESETS["yfcc"].options, "lwf", processes=3)
    refused("processes", TIC_PRESETS["yfcc"].options, "lwf", processes=0)
    refused("method", TIC_PRESETS["yfcc"].options, "LwF")
