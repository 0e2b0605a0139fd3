"""What distillation plugins refuse, warn of, or leave alone."""

import warnings
from functools import partial

import pytest
import torch

from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import (
    ContrastiveLwFPlugin,
    FrozenLogitScalePlugin,
    OffDiagonalAlignmentPlugin,
    ReferenceDistillationPlugin,
    VocabularyReplayPlugin,
    WeightConsolidationPlugin,
)
from tests.helpers import (
    At,
    assert_same_weights,
    fit,
    stub_model,
)
from tests.methods.rows import IMAGES
from tests.methods.variants import TEXTS


def reference(**options):
    defaults = {"batch_size": 4, "teach_first_experience": True}
    return ReferenceDistillationPlugin(IMAGES, TEXTS[:3], **{**defaults, **options})


@pytest.mark.parametrize("teacher", ["initial", "previous"])
def test_reference__second_run_with_the_same_plugin_is_a_fresh_one(teacher):
    used = reference(teacher=teacher)
    fit(Sequential, plugins=[used], model=stub_model(7))
    again = fit(Sequential, plugins=[used], model=stub_model(8))
    fresh = fit(Sequential, plugins=[reference(teacher=teacher)], model=stub_model(8))
    assert_same_weights(again.model, fresh.model)
    assert again.compute.experiences == fresh.compute.experiences


@pytest.mark.parametrize("given", [None, False, True])
@pytest.mark.parametrize("tag", [None, "a tag"])
@pytest.mark.parametrize(
    "make",
    [
        partial(OffDiagonalAlignmentPlugin, alpha=5.0),
        partial(VocabularyReplayPlugin, num_texts=9, text_length=2),
        partial(reference, teacher="previous"),
        ContrastiveLwFPlugin,
    ],
    ids=["mod-x", "vocabulary", "reference", "lwf"],
)
def test_first_experience__is_taught_when_pretrained_or_told(make, tag, given):
    model, plugin = stub_model(), make(teach_first_experience=given)
    model.pretrained = tag
    spent = fit(Sequential, plugins=[plugin], model=model, steps=2).compute.experiences
    expected = tag is not None if given is None else given
    assert ("teacher" in spent[0]) is expected and "teacher" in spent[1]


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
    def gap(strategy):
        terms = sum(float(v) for v in strategy.loss_terms.values())
        return abs(terms - strategy.loss.item())

    gaps = At("before_update", gap)
    plugins = [reference(), reference(teacher="previous")]
    plugins += [WeightConsolidationPlugin(3.0), WeightConsolidationPlugin(2.0), gaps]
    fit(Sequential, plugins=plugins)
    assert max(gaps.seen) < 1e-4
