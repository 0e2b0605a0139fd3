"""What every method must do: one matrix of tests over all of them."""

import pytest
import torch

from avalanche_clip.training import TIC_STRATEGIES, Sequential
from avalanche_clip.training.plugins import (
    ConstantCosinePlugin,
    ContrastiveEWCPlugin,
    ContrastiveLwFPlugin,
    FrozenLogitScalePlugin,
    OffDiagonalAlignmentPlugin,
    PatchingPlugin,
    ReferenceDistillationPlugin,
    VocabularyReplayPlugin,
    WeightAveragingPlugin,
    WeightConsolidationPlugin,
)
from avalanche_clip.training.supervised import ZSCL, FineTuning, ModX, VRLwF
from tests.helpers import (
    assert_other_weights,
    assert_same_weights,
    fit,
    stub_benchmark,
    stub_model,
)

METHODS = {**TIC_STRATEGIES, "mod-x": ModX, "vr-lwf": VRLwF, "zscl": ZSCL}
# Methods that do not train the logit scale: the class whose first step they share,
# its options, and what switches off the parts that work without a teacher.
FROZEN_SCALE = {
    "vr-lwf": (Sequential, {}, {}),
    "zscl": (
        FineTuning,
        {"warmup_iterations": 0},
        {"consolidation_weight": 0.0, "averaging_interval": None},
    ),
}
OPTIONS = {
    "cumulative-all-star": {"budget_factors": [1, 1, 2]},
    "ewc": {"ewc_lambda": 100.0, "fisher_batch_size": 4},
    "lwf": {"lwf_weight": 5.0},
    "mod-x": {"alpha": 50.0, "alignment": {"row_filter": "none"}},
    "vr-lwf": {"num_texts": 20, "replay": {"text_length": 3}},
    "zscl": {
        "reference_images": torch.randn(
            12, 3, 8, 8, generator=torch.Generator().manual_seed(5)
        ),
        "reference_texts": ["ab", "cd", "e"],
        "reference_options": {
            "batch_size": 4,
            "teach_first_experience": False,
            "teacher": "previous",
        },
        "averaging_interval": 2,
        "warmup_iterations": 0,
    },
    "patching": {"grid": (0.0, 0.5, 0.9)},
}


def run(name, steps=None, **options):
    return fit(METHODS[name], steps=steps, **{**OPTIONS.get(name, {}), **options})


@pytest.fixture(scope="module")
def sequential():
    return [fit(Sequential, steps=steps).model.state_dict() for steps in (1, 2, 3)]


@pytest.mark.parametrize("name", [n for n in METHODS if n not in FROZEN_SCALE])
def test_first_step__is_the_same_for_all_methods(name, sequential):
    assert_same_weights(run(name, 1).model, sequential[0])


@pytest.mark.parametrize("name", FROZEN_SCALE)
def test_first_step__is_plain_training_with_a_frozen_scale(name, sequential):
    cls, plain, without = FROZEN_SCALE[name]
    expected = fit(cls, steps=1, plugins=[FrozenLogitScalePlugin()], **plain).model
    assert_same_weights(run(name, 1, **without).model, expected)
    assert_other_weights(expected, sequential[0])


@pytest.mark.parametrize("name", [n for n in METHODS if n != "sequential"])
def test_second_step__differs_from_sequential(name, sequential):
    steps = 3 if name == "cumulative-all-star" else 2
    assert_other_weights(run(name, steps).model, sequential[steps - 1])


NEUTRAL = {
    "lwf": lambda: [ContrastiveLwFPlugin(0.0)],
    "ewc": lambda: [ContrastiveEWCPlugin(0.0)],
    "mod-x": lambda: [OffDiagonalAlignmentPlugin(0.0)],
    "vr-lwf": lambda: [
        VocabularyReplayPlugin(
            image_weight=0, text_weight=0, text_length=3, freeze_logit_scale=False
        )
    ],
    "zscl": lambda: [
        ReferenceDistillationPlugin(
            torch.zeros(4, 3, 8, 8), ["a"], image_weight=0, text_weight=0
        ),
        WeightConsolidationPlugin(0.0),
        WeightAveragingPlugin("wise", alpha=1.0),
    ],
    "patching": lambda: [PatchingPlugin([1.0])],
}


@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_setting__gives_sequential_bit_for_bit(name, sequential):
    strategy = fit(Sequential, plugins=NEUTRAL[name]())
    assert_same_weights(strategy.model, sequential[2])


@pytest.mark.parametrize("name", METHODS)
def test_seed__same_gives_the_same_run_and_another_does_not(name):
    def once(seed):
        model = stub_model(noise=0.2, dropout=0.2)
        data = stub_benchmark(model=model, captions=2)
        options = {**OPTIONS.get(name, {}), "model": model, "seed": seed}
        return fit(METHODS[name], data, **options).model

    first = once(3)
    assert_same_weights(first, once(3))
    assert_other_weights(first, once(4))


@pytest.mark.parametrize("name", METHODS)
def test_frozen_tower__is_identical_after_training(name):
    model = stub_model()
    model.image_proj.requires_grad_(False)
    strategy = run(name, 2, model=model)
    expected = stub_model().image_proj.weight
    assert torch.equal(strategy.model.image_proj.weight, expected)
    assert_other_weights(strategy.model, stub_model())


@pytest.mark.parametrize("name", METHODS)
def test_bf16_and_accumulation__stay_finite(name):
    strategy = run(name, 2, precision="bf16", accumulation_steps=2)
    assert all(torch.isfinite(p).all() for p in strategy.model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_accumulation__equals_the_big_batch(name):
    def once(chunks):
        optimizer = lambda groups: torch.optim.SGD(groups, lr=0.05)  # noqa: E731
        options = {"optimizer": optimizer, "accumulation_steps": chunks}
        return run(name, 2, **options).model.state_dict()

    ours, expected = once(3), once(1)
    for key, value in expected.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_state__round_trips_through_plain_data(name):
    strategy, other = run(name, 2), run(name, 1)
    for ours, theirs in zip(strategy.plugins, other.plugins, strict=True):
        if hasattr(ours, "state_dict") and type(ours).__module__.startswith(
            "avalanche_c"
        ):
            theirs.load_state_dict(ours.state_dict())
            assert str(theirs.state_dict()) == str(ours.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_plugin__supports_several_processes(name):
    for plugin in run(name, 1).plugins:
        if type(plugin).__module__.startswith("avalanche_clip.training"):
            assert plugin.supports_distributed


def test_all_plugins_together__compose():
    plugins = [ContrastiveLwFPlugin(), ContrastiveEWCPlugin(1.0, fisher_batch_size=4)]
    plugins.append(PatchingPlugin())
    strategy = fit(METHODS["cumulative-exp"], plugins=plugins)
    assert set(strategy.compute.experiences[2]) == {
        "train",
        "teacher",
        "fisher",
        "search",
    }


def test_plugins_that_start_from_other_weights__are_refused():
    with pytest.raises(ValueError, match="use one"):
        fit(METHODS["restart"], plugins=[PatchingPlugin()])
    with pytest.raises(ValueError, match="use one"):
        fit(
            METHODS["patching"],
            plugins=[ConstantCosinePlugin()],
            schedule="const-cosine",
        )
    with pytest.raises(ValueError, match="use one"):
        fit(
            METHODS["restart"],
            plugins=[ConstantCosinePlugin()],
            schedule="const-cosine",
        )


def test_patching__comes_before_plugins_that_copy_the_weights():
    strategy = fit(METHODS["ewc"], plugins=[PatchingPlugin([0.5])], steps=2)
    patching, ewc = strategy.plugins[:2]
    assert patching.chosen == [1.0, 0.5]
    assert_same_weights(ewc.anchor, dict(strategy.model.named_parameters()))
