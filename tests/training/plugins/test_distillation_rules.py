"""What distillation plugins refuse, warn of, or leave alone."""

import warnings

import pytest
import torch

from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import (
    FrozenLogitScalePlugin,
    ReferenceDistillationPlugin,
    VocabularyReplayPlugin,
    WeightConsolidationPlugin,
)
from avalanche_clip.training.supervised import ZSCL
from avalanche_clip.training.templates.reference_data import (
    ReferenceImages,
    ReferenceTexts,
)
from tests.helpers import (
    Recorder,
    assert_same_weights,
    build,
    fit,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
)

TEXTS = ["ab", "cde", "f"]


def images(size=8):
    generator = torch.Generator().manual_seed(5)
    return list(torch.randn(size, 3, 8, 8, generator=generator))


def reference(**options):
    defaults = {"batch_size": 4, "teach_first_experience": True}
    return ReferenceDistillationPlugin(images(), TEXTS, **{**defaults, **options})


@pytest.mark.parametrize("teacher", ["initial", "previous"])
def test_reference__second_run_with_the_same_plugin_is_a_fresh_one(teacher):
    used = reference(teacher=teacher)
    fit(Sequential, plugins=[used], model=stub_model(7))
    again = fit(Sequential, plugins=[used], model=stub_model(8))
    fresh = fit(Sequential, plugins=[reference(teacher=teacher)], model=stub_model(8))
    assert_same_weights(again.model, fresh.model)
    assert again.compute.experiences == fresh.compute.experiences


def frozen():
    model = stub_model()
    model.image_proj.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    "make, fine",
    [
        (reference, lambda: reference(text_side="student")),
        (
            lambda: VocabularyReplayPlugin(num_texts=9, text_length=2),
            lambda: VocabularyReplayPlugin(
                num_texts=9, text_length=2, student_text=True
            ),
        ),
    ],
    ids=["reference", "vocabulary"],
)
def test_frozen_image_tower__is_warned_about_once(make, fine):
    with pytest.warns(UserWarning, match="change nothing") as caught:
        fit(Sequential, plugins=[make()], model=frozen())
    assert sum("change nothing" in str(w.message) for w in caught) == 1
    for plugin, model in ((make(), stub_model()), (fine(), frozen())):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fit(Sequential, plugins=[plugin], model=model)


@pytest.mark.parametrize("value", [-0.5, 4.7])
def test_frozen_scale__is_not_clamped(value):
    model = stub_model()
    with torch.no_grad():
        model.logit_scale.fill_(value)
    before = model.logit_scale.detach().clone()
    fit(Sequential, plugins=[FrozenLogitScalePlugin()], model=model, steps=1)
    assert torch.equal(model.logit_scale, before)


def test_two_plugins_of_a_kind__terms_add_up():
    class Sums(Recorder):
        def __init__(self):
            self.gaps = []

        def before_update(self, strategy, **kwargs):
            terms = sum(float(v) for v in strategy.loss_terms.values())
            self.gaps.append(abs(terms - strategy.loss.item()))

    sums = Sums()
    plugins = [reference(), reference(teacher="previous")]
    plugins += [WeightConsolidationPlugin(3.0), WeightConsolidationPlugin(2.0), sums]
    fit(Sequential, plugins=plugins)
    assert max(sums.gaps) < 1e-4


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


class Fixed:
    deterministic = True

    def __call__(self, image):
        return image


def test_reference_images__with_random_transforms_of_their_own_are_not_kept():
    class Data(torch.utils.data.Dataset):
        def __init__(self, transform=None):
            self.transform = transform

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.zeros(3, 8, 8), 0

    def fixed(own):
        return ReferenceImages(Data(own), transform=Fixed()).fixed

    assert fixed(None) and fixed(Fixed()) and not fixed(lambda image: image)
    given = ReferenceImages(Data(torch.nn.Identity()), transform=Fixed(), fixed=True)
    assert given.fixed


def test_reference_texts__of_padding_only_raise():
    texts = ReferenceTexts(torch.zeros(2, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="nothing but the padding id 0"):
        texts.tokens(slice(None), stub_model().tokenizer)
