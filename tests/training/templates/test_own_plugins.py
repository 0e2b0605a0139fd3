"""Plugins of users: plain attributes go on, misspelt hooks are refused."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import ReplayPlugin

from avalanche_clip import MethodPlugin
from avalanche_clip.training import ContrastiveTemplate, Sequential, run_stream
from avalanche_clip.training.runs.resume import load_state, save_state
from avalanche_clip.training.templates.settings import strategy_settings
from tests.helpers import (
    adamw,
    assert_same_weights,
    build,
    stub_benchmark,
    stub_model,
    train_stream,
)
from tests.training.small_runs import Interrupted, StopPlugin, evaluator


def pull_of(base):
    """A home-made method: a constructor of plain numbers, and one hook."""

    class Pull(base):
        def __init__(self, weight=0.5, every=2, label="a"):
            super().__init__()
            self.weight, self.every, self.label = weight, every, label
            self.count, self.history, self.last = 0, [], None

        def before_backward(self, strategy, **kwargs):
            self.count += 1
            if self.count % self.every == 0:  # so that a lost counter shows
                features = strategy.global_features.image_features
                strategy.add_loss("pull", self.weight * features[:, 0].mean())
            self.history.append(round(float(strategy.loss), 6))
            self.last = "seen"

    return Pull


BASES = {"ours": MethodPlugin, "Avalanche's": SupervisedPlugin}
PULLS = {name: pull_of(base) for name, base in BASES.items()}


@pytest.fixture(params=PULLS)
def pull(request):
    return PULLS[request.param]


def run(out, pull, stop=None, resume=False, **settings):
    model = stub_model(dropout=0.2)
    plugin = pull(**settings)
    strategy = ContrastiveTemplate(
        model=model,
        optimizer=adamw,
        plugins=[plugin, StopPlugin(train=stop)],
        train_mb_size=4,
        budget_iterations=5,
        evaluator=evaluator(),
    )
    benchmark = stub_benchmark((12, 12), model=model)
    written = pytest.MonkeyPatch()
    written.setattr("avalanche_clip.training.runs.stream.write_report", lambda p: None)
    with warnings.catch_warnings(), written.context():
        warnings.simplefilter("ignore")
        result = run_stream(
            strategy, benchmark, out, checkpoint_iterations=2, resume=resume
        )
    written.undo()
    return strategy, plugin, result


@cache
def whole(name):
    import tempfile

    return run(tempfile.mkdtemp(), PULLS[name])


@pytest.mark.parametrize("stop", [3, 5, 8])
@pytest.mark.parametrize("name", PULLS)
def test_home_made_plugin__works_and_resumes_without_more(name, stop, tmp_path):
    full, plugin, expected = whole(name)
    with pytest.raises(Interrupted):
        run(tmp_path / "run", PULLS[name], stop=stop)
    again, resumed, found = run(tmp_path / "run", PULLS[name], resume=True)
    assert vars(resumed) == vars(plugin) and resumed.count == 10
    assert len(resumed.history) == 10 and resumed.last == "seen"
    assert_same_weights(full.model, again.model)
    np.testing.assert_array_equal(found.E, expected.E)
    (recorded,) = found.results["config"]["plugins"][:1]
    assert recorded == {"class": "Pull", "every": 2, "label": "a", "weight": 0.5}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weight": 0.4}, r"Pull\.weight is 0\.5 there and 0\.4 here"),
        ({"every": 3}, r"Pull\.every is 2 there and 3 here"),
        ({"label": "b"}, r"Pull\.label is 'a' there and 'b' here"),
    ],
)
def test_settings__others_are_refused(pull, settings, words, tmp_path):
    data = stub_benchmark()
    strategy = train_stream(build(Sequential, plugins=[pull()]), data, 1)
    save_state(strategy, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=words):
        load_state(
            build(Sequential, plugins=[pull(**settings)]), tmp_path / "state.pt", data
        )


def test_settings__stateless_ones_are_neither_recorded_nor_compared(pull, tmp_path):
    mute = type("Mute", (pull,), {"stateless": True})
    plugin, data = mute(), stub_benchmark()
    plugin.extra = {1}
    strategy = train_stream(build(Sequential, plugins=[plugin]), data, 1)
    assert strategy_settings(strategy)["plugins"] == {}
    save_state(strategy, tmp_path / "state.pt")
    resumed = build(Sequential, plugins=[mute(weight=3.0)])
    load_state(resumed, tmp_path / "state.pt", data)
    assert (resumed.plugins[0].count, resumed.plugins[0].weight) == (0, 3.0)


def test_counter__may_live_in_the_class(tmp_path):
    class Counts(SupervisedPlugin):
        count = 0

        def after_update(self, strategy, **kwargs):
            self.count += 1

    data, other = stub_benchmark(), Counts()
    strategy = train_stream(build(Sequential, plugins=[Counts()]), data, 1)
    save_state(strategy, tmp_path / "state.pt")
    load_state(build(Sequential, plugins=[other]), tmp_path / "state.pt", data)
    assert other.count == 5
    with pytest.raises(ValueError, match="Counts"):  # it may have changed the loss
        load_state(build(Sequential), tmp_path / "state.pt", data)


def test_setting_and_counter_in_one__of_a_plugin_with_a_state_of_its_own(tmp_path):
    class Own(SupervisedPlugin):
        def __init__(self, seen=0, rate=0.5):
            super().__init__()
            self.seen, self.rate = seen, rate

        def after_update(self, strategy, **kwargs):
            self.seen += 1

        def state_dict(self):
            return {"seen": self.seen}

        def load_state_dict(self, state):
            self.seen = state["seen"]

    data, other = stub_benchmark(), Own()
    strategy = train_stream(build(Sequential, plugins=[Own()]), data, 1)
    save_state(strategy, tmp_path / "state.pt")
    load_state(build(Sequential, plugins=[other]), tmp_path / "state.pt", data)
    assert other.seen == 5
    with pytest.raises(ValueError, match=r"Own\.rate is 0\.5 there and 0\.1 here"):
        load_state(
            build(Sequential, plugins=[Own(rate=0.1)]), tmp_path / "state.pt", data
        )


@pytest.mark.parametrize(
    "value", [{}, {1}, [[1]], torch.zeros(1), np.zeros(2), object(), len]
)
def test_other_attributes__are_refused_by_name_before_the_first_evaluation(
    pull, value, tmp_path
):
    plugin, evaluated = pull(), []
    plugin.extra = value
    look = type("Look", (SupervisedPlugin,), {"stateless": True})()
    look.before_eval = lambda strategy, **kwargs: evaluated.append(1)
    strategy = build(Sequential, plugins=[plugin, look])
    with pytest.raises(TypeError, match=r"Pull\.extra is a .*stateless = True"):
        run_stream(strategy, stub_benchmark(), tmp_path / "run")
    assert not evaluated and not (tmp_path / "run").exists()


# --------------------------------------------------------------------------- names
NEAR = [
    ("befor_backward", "before_backward"),
    ("before_backwards", "before_backward"),
    ("before_train_exp", "before_training_exp"),
    ("before_training_experience", "before_training_exp"),
    ("afterTrainIter", "after_training_iteration"),
    ("after_evaluation", "after_eval"),
    ("iteration_complete", "iteration_completed"),
]


@pytest.mark.parametrize(("name", "meant"), NEAR)
def test_misspelt_hook__is_refused_with_the_one_that_was_meant(name, meant):
    hook = {name: lambda self, strategy, **kwargs: None}
    words = rf"(Mine|Mixed)\.{name} is never called\. Did you mean '{meant}'\?"
    with pytest.raises(TypeError, match=words):
        type("Mine", (MethodPlugin,), hook)
    part = type("Part", (), hook)
    with pytest.raises(TypeError, match=words):
        type("Mixed", (part, MethodPlugin), {})
    plain = type("Mine", (SupervisedPlugin,), hook)
    with pytest.raises(TypeError, match=words):
        build(Sequential, plugins=[plain()])
    strategy = build(Sequential)
    strategy.plugins.append(plain())
    with pytest.raises(TypeError, match=words):
        strategy.train(stub_benchmark().train_stream[0])
    replay = type("Mine", (ReplayPlugin,), hook)
    with pytest.raises(TypeError, match=words):
        build(Sequential, plugins=[replay(3)])


def test_helpers__are_no_misspelt_hooks():
    names = ["prepared", "restore", "before_task", "end_of_step", "before_train_batch"]
    names += ["train_exp", "my_param_groups", "eval_step", "check", "on_epoch_end"]
    helpers = dict.fromkeys(names, lambda self: None)
    type("Mine", (MethodPlugin,), helpers)
    build(Sequential, plugins=[type("Mine", (SupervisedPlugin,), helpers)()])


def test_slots__of_plain_plugins_are_refused_too():
    slotted = type("Slotted", (SupervisedPlugin,), {"__slots__": ("count",)})
    with pytest.raises(TypeError, match=r"Slotted has __slots__ \('count',\)"):
        build(Sequential, plugins=[slotted()])
    build(Sequential, plugins=[type("Mute", (slotted,), {"stateless": True})()])
