"""What strategies take: seen in their signatures, named alike, checked by name."""

import inspect
import warnings

import pytest
import torch
from avalanche.training.plugins import LRSchedulerPlugin

from avalanche_clip.training import plugins, supervised
from avalanche_clip.training.methods.cll_clip.strategy import CLLCLIP
from avalanche_clip.training.methods.joint import JointTraining
from avalanche_clip.training.templates import ClassNameTemplate, ContrastiveTemplate
from tests.helpers import adamw, build, fit, stub_benchmark, stub_model, train_stream
from tests.refused import refused
from tests.training import classes
from tests.training.languages import language_strategy, tiny_model

STRATEGIES = [
    cls
    for cls in (getattr(supervised, name) for name in supervised.__all__)
    if isinstance(cls, type)
]
EVERYWHERE = ("model", "plugins", "evaluator", "device", "seed", "eval_mb_size")
TRAINING = (
    *("optimizer", "lr", "param_groups", "train_epochs", "train_mb_size"),
    *("budget_iterations", "schedule", "clip_grad_norm", "precision"),
)


def shown(cls):
    return inspect.signature(cls).parameters


@pytest.mark.parametrize("cls", STRATEGIES, ids=lambda cls: cls.__name__)
def test_signature__shows_what_can_be_given(cls):
    found = shown(cls)
    kinds = {parameter.kind for parameter in found.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY}
    wanted = EVERYWHERE if cls.training_free else (*EVERYWHERE, *TRAINING)
    assert set(wanted) <= set(found) and next(iter(found)) == "model"
    for former in (
        "alignment",
        "replay",
        "expansion",
        "consolidation",
        "reference_options",
    ):
        assert former not in found


def test_signature__shows_the_strategys_own_defaults():
    rates = {"FineTuning": 1e-5, "ClassNameFineTuning": 1e-5, "MoEAdapters": 1e-3}
    for name, rate in rates.items():
        assert shown(getattr(supervised, name))["lr"].default == rate
    mtil = shown(supervised.ClassNameFineTuning)
    assert (mtil["train_mb_size"].default, mtil["schedule"].default) == (64, "cosine")
    assert shown(supervised.SIT)["eval_label_space"].default == "seen"
    assert "label_space" not in shown(supervised.SIT)
    assert shown(supervised.CCLIP)["rank"].default == 16
    assert "lr" not in shown(supervised.ContinualCLIP)
    mine = type("Mine", (supervised.Sequential,), {})
    assert list(shown(mine)) == list(shown(supervised.Sequential))


def test_signature__defaults_are_those_that_hold():
    strategy = supervised.FineTuning(model=stub_model(), evaluator=None)
    for name, parameter in shown(supervised.FineTuning).items():
        if name in ("train_mb_size", "schedule", "warmup_iterations"):
            assert getattr(strategy, name) == parameter.default
    assert strategy.later_warmup_iterations == 100
    assert strategy.compute.iterations == 1001


# ------------------------------------------------------------------ learning rates
def rates_of(strategy):
    return {group["lr"] for group in strategy.optimizer.param_groups}


@pytest.mark.parametrize(
    "name", ["Sequential", "ContrastiveEWC", "FineTuning", "ModX", "Oracle", "Joint"]
)
def test_lr__is_that_of_every_strategy(name):
    cls = getattr(supervised, name)
    options = {"optimizer": None, "schedule": "constant", "warmup_iterations": 0}
    assert rates_of(build(cls, lr=0.03, **options)) == {0.03}
    own = rates_of(build(cls, **options))
    assert own and own != {0.03}
    words = "Give lr or an optimizer with its own rate, not both"
    refused(words, build, cls, lr=0.03)
    for wrong in (0, -1, float("nan"), [], "fast", [1e-3, 0]):
        refused(
            "must be a positive number, or one per",
            build,
            cls,
            lr=wrong,
            **{"optimizer": None},
        )


def test_lr__keeps_decay_and_groups_of_the_strategy():
    plain, other = (
        build(supervised.ModX, optimizer=None, **given) for given in ({}, {"lr": 0.1})
    )
    for left, right in zip(plain.optimizer.param_groups, other.optimizer.param_groups):
        assert left["weight_decay"] == right["weight_decay"]
        assert (left["betas"], right["lr"]) == (right["betas"], 0.1)
    classes_of = classes.class_strategy(lr=0.2, optimizer=None)
    assert isinstance(classes_of, ClassNameTemplate) and rates_of(classes_of) == {0.2}


def test_lr__of_a_language_strategy():
    given = {"optimizer": None, "lr": 0.25}
    strategy = language_strategy(tiny_model(), **given)
    assert isinstance(strategy, CLLCLIP) and rates_of(strategy) == {0.25}
    words = "Give lr or an optimizer"
    refused(words, language_strategy, tiny_model(), lr=0.1, optimizer=adamw)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_lr__one_per_experience(schedule):
    seen = []

    class Look(plugins.ProgressPlugin):
        def before_update(self, strategy, **kwargs):
            if strategy.clock.train_exp_iterations == 0:
                seen.append(strategy.optimizer.param_groups[0]["initial_lr"])

    rates = [0.1, 0.02, 0.3]
    fit(
        supervised.Sequential,
        optimizer=None,
        lr=rates,
        schedule=schedule,
        plugins=[Look(open("/dev/null", "w"))],
    )
    assert seen == rates
    strategy = build(supervised.Sequential, optimizer=None, lr=rates[:2])
    with pytest.raises(ValueError, match="2 learning rates.*one per experience"):
        train_stream(strategy, stub_benchmark())


def test_lr__without_effect_is_refused():
    def rule(named):
        return [{"names": [name for name, _ in named], "lr": 0.5}]

    words = "lr=0.1 has no effect: each group of param_groups"
    options = {"optimizer": None, "param_groups": rule}
    refused(words, build, supervised.Sequential, lr=0.1, **options)
    assert issubclass(supervised.Joint, JointTraining)
    words = "a rate per experience, but Joint trains once"
    refused(words, build, supervised.Joint, lr=[0.1, 0.2], optimizer=None)
    optimizer = torch.optim.SGD(stub_model().parameters(), lr=0.1)
    plugin = LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 1))
    words = "LRSchedulerPlugin sets the learning rate, so that"
    options = {"optimizer": None, "plugins": [plugin]}
    refused(words, build, supervised.Sequential, lr=[0.1, 0.2], **options)


# -------------------------------------------------------------------- further options
FURTHER = {
    "ContrastiveLwF": ({"teach_first_experience": True}, "teach_first_experiance"),
    "ContrastiveEWC": ({"decay": 0.5}, "decai"),
    "ModX": ({"row_filter": "none"}, "row_filtr"),
    "VRLwF": ({"text_length": 3}, "text_lenght"),
}


@pytest.mark.parametrize("name", FURTHER)
def test_plugin_options__reach_the_plugin_and_are_checked(name):
    cls, (given, wrong) = getattr(supervised, name), FURTHER[name]
    strategy = build(cls, plugin_options=given)
    (key, value), own = *given.items(), strategy._own[0]
    assert getattr(own, key) == value and type(own).__name__.endswith("Plugin")
    with pytest.raises(TypeError, match=rf"\['{wrong}'\].*Did you mean '{key}'"):
        build(cls, plugin_options={wrong: value})
    with pytest.raises(TypeError, match="plugin_options is"):
        build(cls, plugin_options=[key])
    with pytest.raises(TypeError, match="Did you mean 'plugin_options'"):
        build(cls, plugin_option=given)


def test_plugin_options__what_the_strategy_takes_is_given_to_it():
    for name, key in (("ModX", "alpha"), ("ContrastiveLwF", "lwf_weight")):
        cls = getattr(supervised, name)
        with pytest.raises(TypeError, match=f"{key}.*gets already"):
            build(cls, plugin_options={key: 1.0})


def test_plugin_options__of_methods_with_data_and_tokens():
    images = torch.randn(4, 3, 8, 8)
    for cls, make in (
        (supervised.ZSCL, build),
        (supervised.ClassNameZSCL, lambda c, **o: classes.class_strategy(cls=c, **o)),
    ):
        data = {"reference_images": images, "reference_texts": ["a", "b"]}
        data |= {"warmup_iterations": 1, "optimizer": None}
        given = {"batch_size": 2, "teach_first_experience": True}
        strategy = make(cls, plugin_options=given, **data)
        assert strategy.distillation.batch_size == 2
        with pytest.raises(TypeError, match="Did you mean 'batch_size'"):
            make(cls, plugin_options={"batchsize": 2}, **data)
    strategy = language_strategy(tiny_model(), plugin_options={"count_replay": True})
    assert strategy.expansion.count_replay
    with pytest.raises(TypeError, match="Did you mean 'count_replay'"):
        language_strategy(tiny_model(), plugin_options={"countreplay": True})


def test_plugin_options__former_names_still_work():
    with pytest.warns(DeprecationWarning, match="alignment is called plugin_options"):
        strategy = build(supervised.ModX, alignment={"row_filter": "none"})
    assert strategy._own[0].row_filter == "none"
    both = {"alignment": {}, "plugin_options": {}}
    with pytest.raises(TypeError, match="alignment is called plugin_options now"):
        build(supervised.ModX, **both)
    with pytest.raises(TypeError, match="unknown argument"), warnings.catch_warnings():
        build(supervised.VRLwF, alignment={})


def test_templates__show_their_keywords_too():
    for cls in (ContrastiveTemplate, ClassNameTemplate):
        assert {"lr", "label_space", "positives"} & set(shown(cls))
        assert set(TRAINING) <= set(shown(cls))


@pytest.mark.parametrize(
    ("make", "meant"),
    [
        (lambda: plugins.LoRAPlugin(rnk=3), "rank"),
        (lambda: plugins.LanguageAdapterPlugin("mla", bottlneck=3), "bottleneck"),
        (lambda: plugins.CoLeCLIPPlugin(peft_options={"rankk": 2}), "rank"),
    ],
)
def test_options_of_what_is_attached__are_checked_when_they_are_given(make, meant):
    with pytest.raises(TypeError, match=f"does not take.*Did you mean '{meant}'"):
        make()
