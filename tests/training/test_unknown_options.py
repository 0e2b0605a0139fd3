"""Options, choices and keywords that do not exist."""

import pytest
from avalanche.core import SupervisedPlugin

from avalanche_clip.benchmarks import make_image_text_dataset
from avalanche_clip.training import Sequential, run_stream
from avalanche_clip.training.plugins import BudgetedReplayPlugin, WeightAveragingPlugin
from tests.helpers import build, stub_benchmark
from tests.training.classes import class_strategy


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
    with pytest.raises(error, match=f"Did you mean '{meant}'"):
        class_strategy(**options)


def test_plugins_and_benchmarks__name_the_choice_that_was_probably_meant():
    for make, meant in (
        (lambda: BudgetedReplayPlugin("eqal"), "equal"),
        (lambda: WeightAveragingPlugin(mode="wies"), "wise"),
        (lambda: make_image_text_dataset([], empty_captions="rise"), "raise"),
        (lambda: make_image_text_dataset([], in_item=("target",)), "targets"),
    ):
        with pytest.raises(ValueError, match=f"Did you mean '{meant}'"):
            make()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_worker": 1}, "Did you mean 'num_workers'"),
        ({"prefetch": 2, "drop_lst": True}, "Did you mean 'drop_last'"),
        ({"batch_size": 3}, "'batch_size', which has no effect"),
        ({"collate_fn": list}, "'collate_fn', which has no effect"),
    ],
)
def test_train_eval_and_run__refuse_keywords_that_go_nowhere(options, words, tmp_path):
    strategy, data = build(Sequential), stub_benchmark()
    calls = [
        lambda: strategy.train(data.train_stream[0], eval_streams=[], **options),
        lambda: strategy.eval(data.test_stream, **options),
        lambda: run_stream(strategy, data, tmp_path / "run", **options),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=words):
            call()
    assert strategy.clock.train_iterations == 0 and not list(tmp_path.iterdir())


def test_run_stream__names_its_own_option():
    with pytest.raises(TypeError, match="'stream', .*Did you mean 'streams'"):
        run_stream(build(Sequential), stub_benchmark(), "never", stream=("valid",))


def test_train__passes_keywords_of_plugins():
    class Reads(SupervisedPlugin):
        found = None

        def before_training_exp(self, strategy, *, note=None, **kwargs):
            self.found = note, kwargs.get("anything_else")

    plugin = Reads()
    strategy = build(Sequential, plugins=[plugin])
    data = stub_benchmark()
    strategy.train(data.train_stream[0], eval_streams=[], note=1, anything_else=2)
    assert plugin.found == (1, 2)
