"""Names that were probably meant."""

import pytest

from avalanche_clip._suggest import closest, did_you_mean, require_choice

SCHEDULES = ("constant", "cosine", "const-cosine")


@pytest.mark.parametrize(
    "given, meant",
    [
        ("cosin", "cosine"),
        ("COSINE", "cosine"),
        ("const_cosine", "const-cosine"),
        ("linear", None),
        (3, None),
        (None, None),
        ("", None),
    ],
)
def test_closest__finds_the_neighbour_in_spelling(given, meant):
    assert closest(given, SCHEDULES) == meant


def test_did_you_mean__takes_the_first_of_several_that_has_a_neighbour():
    assert did_you_mean(["zzz", "train_epoch"], ["train_epochs", "seed"]) == (
        " Did you mean 'train_epochs'?"
    )
    assert did_you_mean("zzz", SCHEDULES) == ""


@pytest.mark.parametrize("value", ["cosin", ["cosine"], 1, None])
def test_require_choice__refuses_and_says_what_is_allowed(value):
    with pytest.raises(ValueError, match="schedule=.* is unknown; use one of 'const"):
        require_choice("schedule", value, SCHEDULES)


def test_require_choice__lets_what_is_allowed_pass():
    for value in SCHEDULES:
        require_choice("schedule", value, SCHEDULES)
    require_choice("selector", None, (None, "resnet18"))


@pytest.mark.parametrize(
    "options, error, meant",
    [
        ({"train_epoch": 2}, TypeError, "train_epochs"),
        ({"label_spaces": "all"}, TypeError, "label_space"),
        ({"schedule": "cosin"}, ValueError, "cosine"),
        ({"precision": "fp23"}, ValueError, "fp32"),
        ({"label_space": "sen"}, ValueError, "seen"),
        ({"eval_label_space": "al"}, ValueError, "all"),
    ],
)
def test_strategy__names_the_option_that_was_probably_meant(options, error, meant):
    from tests.training.classes import class_strategy

    with pytest.raises(error, match=f"Did you mean '{meant}'"):
        class_strategy(**options)


def test_plugins_and_benchmarks__name_the_choice_that_was_probably_meant():
    from avalanche_clip.benchmarks import make_image_text_dataset
    from avalanche_clip.training.plugins import (
        BudgetedReplayPlugin,
        WeightAveragingPlugin,
    )

    for build, meant in (
        (lambda: BudgetedReplayPlugin("eqal"), "equal"),
        (lambda: WeightAveragingPlugin(mode="eam"), "ema"),
        (lambda: make_image_text_dataset([], empty_captions="rise"), "raise"),
        (lambda: make_image_text_dataset([], in_item=("target",)), "targets"),
    ):
        with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
            build()
