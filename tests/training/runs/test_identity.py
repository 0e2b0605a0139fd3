"""What a run is, and where two runs differ."""

import json

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EWCPlugin

from avalanche_clip.benchmarks import ClassPrompts
from avalanche_clip.benchmarks.items.content import data_summary
from avalanche_clip.common.state_files import CheckpointError
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.models import attach_adapters
from avalanche_clip.training import Sequential, run_stream
from avalanche_clip.training.plugins import WeightConsolidationPlugin
from avalanche_clip.training.runs.identity import (
    differences,
    run_differences,
    run_identity,
    strategy_identity,
)
from avalanche_clip.training.runs.resume import load_state, save_state
from avalanche_clip.training.templates import MethodPlugin
from tests.helpers import quiet_evaluator, stub_model, train_stream
from tests.training import moe_runs
from tests.training.classes import class_strategy
from tests.training.languages import language_strategy, language_stream, tiny_model
from tests.training.small_runs import build


def identity(train=(), **options):
    return whole(*build(**options), train)


def whole(strategy, benchmark, train=()):
    data = data_summary(benchmark)
    return run_identity(strategy, data, ["test"], "steps", dict(train), None)


@pytest.mark.parametrize(
    "stored, have, expected",
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["a.b is 1 there and 2 here"]),
        ({"a": 1}, {}, ["a is 1 there and missing here"]),
        ({}, {"a": None}, ["a is missing there and None here"]),
        ({"a": None}, {"a": None}, []),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": True}, {"a": 1}, ["a is True there and 1 here"]),
        ({"a": "1"}, {"a": 1}, ["a is '1' there and 1 here"]),
        ({"a": [1, 2]}, {"a": [1, 3]}, ["a is [1, 2] there and [1, 3] here"]),
        (
            {"g": [{"lr": 1, "b": [1, 2]}, {"lr": 2}]},
            {"g": [{"lr": 1, "b": [1, 3]}, {"lr": 3}]},
            ["g.0.b is [1, 2] there and [1, 3] here", "g.1.lr is 2 there and 3 here"],
        ),
        (
            {"g": [{"lr": 1}, {"lr": 2}]},
            {"g": [{"lr": 3}]},
            ["g has 2 parts there and 1 here", "g.0.lr is 1 there and 3 here"],
        ),
    ],
    ids=str,
)
def test_differences__name_the_key_and_both_values(stored, have, expected):
    assert differences(stored, have) == expected


def test_differences__are_few_and_short():
    many = {"a": {str(i): i for i in range(9)}, "z": 1}
    found = differences(many, {"a": {str(i): -1 for i in range(9)}, "z": 2})
    assert len(found) == 4 and found[-1] == "z is 1 there and 2 here"
    (long,) = differences({"a": "x" * 9999}, {"a": list(range(9999))})
    assert len(long) < 300


CHANGES = {
    "groups.0.lr": {"rate": 0.1},
    "groups.1.lr": {"optimizer": lambda g: torch.optim.AdamW(g, lr=0.1)},
    "groups.1.weight_decay": {"weight_decay": 0.3},
    "optimizer.class": {"optimizer": torch.optim.SGD},
    "train_mb_size": {"train_mb_size": 4},
    "budget.iterations": {"budget_iterations": 6},
    "plugins.0 WeightConsolidationPlugin.weight": {
        "extra": [WeightConsolidationPlugin(2.0), EWCPlugin(0.1)]
    },
    "plugins.1 EWCPlugin.ewc_lambda": {
        "extra": [WeightConsolidationPlugin(1.0), EWCPlugin(0.5)]
    },
    "options.shuffle": {"train": {"shuffle": False}},
    "criterion.class": {"criterion": torch.nn.CrossEntropyLoss()},
    "eval_every": {"eval_every": 1},
}


def with_rates(options):
    """Three groups of weights, with options of their own."""
    decay, rate = options.pop("weight_decay", 0.2), options.pop("rate", 1e-3)

    def rule(named):
        names = [name for name, _ in named]
        return [
            {"names": names[:2], "lr": rate},
            {"names": names[2:3], "weight_decay": decay},
            {"names": names[3:]},
        ]

    plugins = [WeightConsolidationPlugin(1.0), EWCPlugin(0.1)]
    return {"extra": plugins, "param_groups": rule, **options}


@pytest.mark.parametrize("key", CHANGES)
def test_run_identity__differences_name_the_setting(key):
    stored = json.loads(json.dumps(identity(**with_rates({}))))
    assert differences(stored, identity(**with_rates({}))) == []
    found = differences(stored, identity(**with_rates(dict(CHANGES[key]))))
    assert any(f".{key} is " in line or line.startswith(f"{key} is ") for line in found)


def test_run_identity__where_and_how_it_loads_is_free():
    default = identity(train={"shuffle": True, "num_workers": 2})
    assert differences(identity(), default) == []
    assert differences(identity(), identity(eval_mb_size=3)) == []


@pytest.mark.parametrize(
    "name, other",
    [("cross_lingual_weight", 0.5), ("length_groups", 2), ("warmup_fraction", 0.25)],
)
def test_run_identity__arguments_of_named_strategies_count(name, other):
    def make(**options):
        model = tiny_model()
        strategy = language_strategy(model, **options)
        return whole(strategy, language_stream(model, ["en"]))

    found = differences(make(), make(**{name: other}))
    assert any(f"{name} is " in line for line in found), found


@pytest.mark.parametrize(
    "kind, plugins, schedule",
    [
        ("Sequential", [EWCPlugin], "cosine"),
        ("CumulativeExp", [], "cosine"),
        ("Oracle", [], "cosine"),
    ],
)
def test_run_identity__is_the_same_after_training(kind, plugins, schedule):
    extra = tuple(plugin(0.1) for plugin in plugins)
    strategy, benchmark = build(kind, extra=extra, schedule=schedule)
    before = whole(strategy, benchmark)
    train_stream(strategy, benchmark)
    rates = [group["lr"] for group in strategy.optimizer.param_groups]
    assert rates != [group["initial_lr"] for group in strategy.optimizer.param_groups]
    assert differences(before, whole(strategy, benchmark)) == []


def test_strategy_identity__class_prompts_of_its_own_count():
    model = stub_model()
    stored, have = (
        strategy_identity(class_strategy(model, class_prompts=prompts))
        for prompts in (None, ClassPrompts(["ab", "cd"], ["a {}"]))
    )
    (found,) = differences(stored, have)
    assert found.startswith("settings.class_prompts is None there and ")


class Listed(MethodPlugin):
    def __init__(self, captions):
        super().__init__()
        self.captions = captions


def test_run_identity__long_lists_are_hashed():
    def make(last):
        return identity(extra=[Listed(["a caption"] * 999 + [last])])

    assert differences(make("x"), make("x")) == []
    (found,) = differences(make("x"), make("y"))
    assert "1000 values, " in found and len(json.dumps(make("x"))) < 5000


def test_run_identity__numbers_of_other_types_count():
    def make(rate):
        return identity(optimizer=lambda g: torch.optim.SGD(g, lr=rate))

    stored = make(torch.tensor(0.5))
    assert differences(stored, make(0.5)) == []
    found = differences(stored, make(torch.tensor(0.25)))
    assert "settings.optimizer.groups.0.lr is 0.5 there and 0.25 here" in found
    plugin = WeightConsolidationPlugin(1.0)
    plugin.weight = np.float32(0.5)
    stored = identity(extra=[plugin])
    plugin.weight = np.float32(0.75)
    (found,) = differences(stored, identity(extra=[plugin]))
    assert found.endswith(".weight is 0.5 there and 0.75 here")


def test_run_identity__infinity_is_a_value():
    stored = identity(optimizer=lambda g: torch.optim.SGD(g, lr=0.1, momentum=0.5))
    for group in stored["settings"]["optimizer"]["groups"]:
        group["momentum"] = float("inf")
    again = json.loads(json.dumps(stored))
    assert differences(stored, again) == []


def began(seed=0, *, adapters=None, pretrained="tag"):
    """A run from the weights of a seed, under the same name."""
    model = moe_runs.vit(seed)
    model.pretrained = pretrained
    if adapters is not None:
        torch.manual_seed(adapters)
        attach_adapters(model)
    strategy = Sequential(
        model=model,
        train_mb_size=4,
        eval_mb_size=4,
        budget_iterations=1,
        evaluator=quiet_evaluator([retrieval_plugin_metrics(ks=(1,))]),
    )
    return strategy, moe_runs.pairs(model, 1)


OTHER = "it began from other pretrained weights than 'tag' has now"


def test_run_identity__pretrained_weights_of_the_same_name_are_compared():
    first = json.loads(json.dumps(whole(*began())))
    assert run_differences(first, whole(*began())) == []
    assert run_differences(first, whole(*began(1))) == [OTHER]
    strategy, benchmark = began()
    with torch.no_grad():  # changed between loading and the run
        strategy.model.logit_scale.add_(0.5)
    changed = whole(strategy, benchmark)
    assert run_differences(first, changed) == [OTHER]
    train_stream(strategy, benchmark)
    assert run_differences(changed, whole(strategy, benchmark)) == []


def test_run_identity__what_is_drawn_anew_is_not_compared():
    random = [whole(*began(seed, pretrained=None)) for seed in (0, 1)]
    assert run_differences(*random) == []
    beside = [whole(*began(adapters=seed)) for seed in (0, 1)]
    assert run_differences(*beside) == []
    first = whole(*began(adapters=0))
    assert run_differences(first, whole(*began(1, adapters=0))) == [OTHER]


def test_run_identity__runs_stored_without_their_start_go_on():
    old = whole(*began())
    del old["start weights"]
    assert run_differences(old, whole(*began(1))) == []


@pytest.mark.parametrize("left", ["checkpoint", "state file"])
def test_resume__a_finished_run_of_replaced_weights_is_refused(left, tmp_path):
    strategy, benchmark = began()
    run_stream(strategy, benchmark, tmp_path)
    if left == "state file":
        for path in (tmp_path / "checkpoints").iterdir():
            path.unlink()
    again = run_stream(strategy, benchmark, tmp_path, resume=True)
    assert again.E.shape == (1, 1)
    with pytest.raises(CheckpointError, match=f"{OTHER}.*in another folder"):
        run_stream(*began(1), tmp_path, resume=True)
    run_stream(*began(), tmp_path, resume=True)


def test_load_state__replaced_weights_are_refused(tmp_path):
    strategy, benchmark = began()
    train_stream(strategy, benchmark)
    path = save_state(strategy, tmp_path / "state.pt")
    other, benchmark = began(1)
    with pytest.raises(CheckpointError, match=OTHER):
        load_state(other, path, benchmark)
    assert load_state(began()[0], path, benchmark) == 1
