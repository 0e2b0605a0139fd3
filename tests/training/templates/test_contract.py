from copy import deepcopy
from enum import Enum

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin, LwFPlugin, RWalkPlugin

import avalanche_clip
from avalanche_clip import MethodPlugin
from avalanche_clip.training import Sequential, plugins, run_stream
from avalanche_clip.training.runs.resume import load_state, save_state
from avalanche_clip.training.templates.compatibility import (
    EXCLUSIVE,
    REFUSED,
    STOCK,
    contract_of,
)
from avalanche_clip.training.templates.contract import (
    FORMER,
    PluginContract,
    defines,
    routed,
)
from avalanche_clip.training.templates.settings import strategy_settings
from tests.helpers import build, fit, stub_benchmark, train_stream

DECLARED = [n for n in vars(MethodPlugin) if n[0] != "_"]
HOOKS = [n for n in DECLARED if callable(getattr(MethodPlugin, n))]


class Mode(str, Enum):
    """Text that would come back from a file as another one."""

    SLOW = "slow"


class Counter(MethodPlugin, supports_distributed=True):
    """Counts iterations, in plain attributes of every kind."""

    def __init__(self, start=0, label="a", sizes=(1, 2)):
        super().__init__()
        self.count, self.label, self.sizes = start, label, sizes
        self.start = start
        self.values = []
        self.best = None
        self.on = True
        self._last = np.float64(0.5)

    def iteration_completed(self, strategy):
        self.count += 1
        self.values.append(float(self.count))
        self.best, self.on = "yes", not self.on


def test_export__root_and_training_give_the_same_class():
    assert avalanche_clip.training.MethodPlugin is MethodPlugin
    assert avalanche_clip.training.templates.MethodPlugin is MethodPlugin


@pytest.mark.parametrize("name", plugins.__all__)
def test_our_plugins__declare_what_they_are_asked(name):
    cls = getattr(plugins, name)
    if isinstance(cls, type):
        assert issubclass(cls, MethodPlugin) and cls.supports_distributed
        asked = {n for base in cls.__mro__[:-1] for n in vars(base)}
        assert not asked & set(FORMER.values())


@pytest.mark.parametrize("name", HOOKS)
def test_hooks__say_what_they_are_for(name):
    assert getattr(MethodPlugin, name).__doc__


# ------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("befor_training_iteration", "before_training_iteration"),
        ("before_train_iteration", "before_training_iteration"),
        ("iteration_complete", "iteration_completed"),
        ("after_train_dataset_adaption", "after_train_dataset_adaptation"),
        ("beforeBackward", "before_backward"),
        ("teacher_kind", "teacher_kinds"),
    ],
)
def test_misspelt_hooks__are_refused_when_the_class_is_made(name, meant):
    with pytest.raises(TypeError, match=f"Mine.{name} is never called.*'{meant}'"):
        type("Mine", (MethodPlugin,), {name: lambda self, strategy: None})


def test_misspelt_hooks__helpers_and_data_are_none():
    names = ["prepared", "check", "restore", "keyword", "before_task", "end_of_step"]
    names += ["store_data", "my_param_groups", "before_train_batch"]
    cls = type("Mine", (MethodPlugin,), dict.fromkeys(names, lambda self: None))
    type("Mine", (cls,), {"_befor_forward": len, "iteration_complete": 3})


@pytest.mark.parametrize("bases", [(MethodPlugin,), ()])
def test_slots__are_refused_by_the_name_of_the_plugin(bases):
    slotted = {"__slots__": ("count",)}
    with pytest.raises(TypeError, match=r"Mine has __slots__ \('count',\).*leave"):
        if bases:
            type("Mine", bases, slotted)
        else:
            type("Mine", (type("Part", (), slotted), MethodPlugin), {})


@pytest.mark.parametrize("role", EXCLUSIVE)
def test_roles__one_plugin_of_a_strategy_may_have_them(role):
    one, two = (type(n, (MethodPlugin,), {role: True})() for n in ("One", "Two"))
    build(Sequential, plugins=[one])
    with pytest.raises(ValueError, match=f"One and Two .*{EXCLUSIVE[role]}.*use one"):
        build(Sequential, plugins=[one, two])


def test_excludes__names_roles_and_is_ours_to_give():
    wrong = type("Mine", (MethodPlugin,), {"excludes": {"replay_data": "{}"}})()
    with pytest.raises(ValueError, match="roles in Mine.excludes.*mean 'replays_data'"):
        build(Sequential, plugins=[wrong])
    other = type("Other", (SupervisedPlugin,), {"excludes": ["bn"], "stateless": True})
    build(Sequential, plugins=[other(), Counter()])


# ------------------------------------------------------------------------- state
def test_copied_strategy__knows_its_own_plugins():
    counter = Counter()
    strategy = fit(Sequential, steps=1, plugins=[counter, Plain(stateless=True)])
    copied = deepcopy(strategy)
    assert [c.wrapped for c in copied.contracts] == copied.plugins
    assert copied.contracts[1] is not strategy.contracts[1]
    copied.contracts[0].start = 9
    assert strategy_settings(copied) == strategy_settings(strategy)
    copied.plugins[0] = Counter(9)
    assert strategy_settings(copied)["plugins"]["0 Counter"]["start"] == 9


def test_state__plain_attributes_go_on_where_they_were(tmp_path):
    data = stub_benchmark()
    strategy = fit(Sequential, data, 1, plugins=[Counter()])
    save_state(strategy, tmp_path / "state.pt")
    other = Counter()
    resumed = build(Sequential, plugins=[other])
    load_state(resumed, tmp_path / "state.pt", data)
    assert other.count == 5 and other.values == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert (other.best, other.on, other.sizes, other._last) == (
        "yes",
        False,
        (1, 2),
        0.5,
    )
    for experience in list(data.train_stream)[1:2]:
        resumed.train(experience)
        strategy.train(experience)
    assert vars(other) == vars(strategy.plugins[0])


def test_state__tensors_are_stored_where_they_are_named():
    class Anchor(Counter):
        state_attributes = ("anchor",)

        def __init__(self):
            super().__init__()
            self.anchor, self.scratch = {"w": torch.ones(2)}, {}

    plugin, other = Anchor(), Anchor()
    state = plugin.state_dict()
    assert "scratch" not in state and state["anchor"]["w"] is plugin.anchor["w"]
    other.load_state_dict(state)
    other.anchor["w"] += 1  # an average changes in place
    assert plugin.anchor["w"].tolist() == [1, 1]


def test_state__a_counter_may_be_named_like_an_argument(tmp_path):
    class Seen(MethodPlugin):
        def __init__(self, seen=0, rate=0.5):
            super().__init__()
            self.seen, self.rate = seen, rate

        def iteration_completed(self, strategy):
            self.seen += 1

    def resumed(path, **settings):
        strategy = build(Sequential, plugins=[Seen(**settings)])
        load_state(strategy, path, data)
        return strategy

    data, first = stub_benchmark(), tmp_path / "first.pt"
    save_state(fit(Sequential, data, 1, plugins=[Seen()]), first)
    strategy = resumed(first)
    assert strategy.plugins[0].seen == 5
    strategy.train(data.train_stream[1])
    save_state(strategy, tmp_path / "second.pt")
    assert resumed(tmp_path / "second.pt").plugins[0].seen == 10
    with pytest.raises(ValueError, match=r"Seen\.rate is 0\.5 there and 0\.4 here"):
        resumed(first, rate=0.4)
    with pytest.raises(ValueError, match=r"Seen\.seen is 0 there and 2 here"):
        resumed(first, seen=2)


def test_state__settings_changed_before_training_count(tmp_path):
    strategy = build(Sequential, plugins=[Counter()])
    strategy.plugins[0].label = "b"
    save_state(train_stream(strategy, stub_benchmark(), 1), tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"Counter\.label is 'b' there and 'a' here"):
        load_state(
            build(Sequential, plugins=[Counter()]),
            tmp_path / "state.pt",
            stub_benchmark(),
        )


def test_state_attributes__one_string_is_refused():
    with pytest.raises(TypeError, match="Mine.state_attributes='anchor' is one string"):
        type("Mine", (MethodPlugin,), {"state_attributes": "anchor"})


def test_state__lists_are_not_shared():
    counter = Counter()
    counter.load_state_dict(state := counter.state_dict())
    counter.values.append(1.0)
    assert state["values"] == []


@pytest.mark.parametrize(
    "value", [{}, {1}, [[1]], torch.zeros(1), np.zeros(2), object(), len, Mode.SLOW]
)
def test_state__other_attributes_are_refused_before_the_first_evaluation(
    value, tmp_path
):
    counter, evaluated = Counter(), []
    counter.extra = value
    counter.before_eval = lambda strategy, **kwargs: evaluated.append(1)
    with pytest.raises(TypeError, match=r"Counter\.extra is a .*stateless = True"):
        counter.state_dict()
    strategy = build(Sequential, plugins=[counter])
    with pytest.raises(TypeError, match=r"Counter\.(extra|before_eval)"):
        run_stream(strategy, stub_benchmark(), tmp_path / "run")
    assert not evaluated
    counter.stateless = True
    save_state(strategy, tmp_path / "state.pt")


def test_identity__arguments_are_settings_and_counters_are_not():
    settings = strategy_settings(build(Sequential, plugins=[Counter(3, "b")]))[
        "plugins"
    ]
    assert settings == {"0 Counter": {"label": "b", "sizes": [1, 2], "start": 3}}


@pytest.mark.parametrize("stateless", [True, False])
def test_identity__stateless_plugins_have_no_settings(stateless):
    counter = Counter()
    counter.stateless = stateless
    settings = strategy_settings(build(Sequential, plugins=[counter]))["plugins"]
    assert bool(settings) is not stateless


# ----------------------------------------------------------------------- moments
def test_prepare__once_before_the_first_experience(tmp_path):
    seen = []

    class Ready(MethodPlugin):
        def prepare(self, strategy, dataset):
            seen.append((dataset, strategy.clock.train_iterations))

        def before_train_dataset_adaptation(self, strategy, **kwargs):
            assert seen

    data = stub_benchmark()
    strategy = fit(Sequential, data, 2, plugins=[Ready()])
    assert seen == [(data.train_stream[0].dataset, 0)]
    save_state(strategy, tmp_path / "state.pt")
    resumed = build(Sequential, plugins=[Ready()])
    load_state(resumed, tmp_path / "state.pt", data)
    resumed.train(data.train_stream[2])
    assert len(seen) == 1


def test_routed__ends_the_route_of_every_plugin_after_an_error():
    calls = []

    class Route(MethodPlugin):
        def route_batch(self, strategy, batch):
            calls.append(batch)

        def end_route(self, strategy):
            calls.append("end")

    strategy = build(Sequential, plugins=[Route(), Route()])
    with pytest.raises(RuntimeError), routed(strategy, "batch"):
        raise RuntimeError
    assert calls == ["batch", "batch", "end", "end"]


# --------------------------------------------------------------------- questions
@pytest.mark.parametrize(
    ("name", "answer", "error", "message"),
    [
        ("teacher_kinds", ("previuos",), ValueError, "unknown.*mean 'previous'"),
        ("teacher_kinds", "previous", TypeError, r"Asked.teacher_kinds\(\)='previous'"),
        ("teacher_kinds", None, TypeError, r"Asked.teacher_kinds\(\)=None"),
        ("budget_factor", 0, ValueError, r"Asked.budget_factor\(\)=0 must be"),
        ("budget_factor", float("nan"), ValueError, r"Asked.budget_factor\(\)=nan"),
        ("budget_factor", None, ValueError, r"Asked.budget_factor\(\)=None must be"),
        ("param_groups", None, ValueError, "of Asked 0 must return a list.*not None"),
        ("param_groups", {"names": []}, ValueError, "must return a list of dicts"),
        ("param_groups", [{"lr": 0.1}], ValueError, "must return a list of dicts"),
        ("param_groups", [{"names": "a"}], ValueError, "must return a list of dicts"),
    ],
)
def test_questions__answers_that_are_none_are_refused(name, answer, error, message):
    asked = type("Asked", (MethodPlugin,), {name: lambda self, strategy: answer})()
    with pytest.raises(error, match=message):
        fit(Sequential, steps=1, plugins=[asked])


def test_teacher_kinds__the_initial_model_must_still_be_there():
    class Late(MethodPlugin):
        def teacher_kinds(self, strategy):
            return ("initial",)

    strategy = fit(Sequential, steps=1)
    strategy.plugins.append(Late())
    with pytest.raises(ValueError, match="The initial model is gone"):
        strategy.train(stub_benchmark().train_stream[1])


# --------------------------------------------------- plugins that are none of ours
class Plain:
    """A plugin of another package, with names of the contract."""

    def __init__(self, **names):
        vars(self).update(names)


def test_contracts__are_made_once_and_follow_the_plugins():
    plain, ours = Plain(), Counter()
    strategy = build(Sequential, plugins=[plain, ours])
    first = strategy.contracts
    assert [c.wrapped for c in first] == strategy.plugins
    assert first[1] is ours and type(first[0]) is PluginContract
    strategy.plugins.insert(0, Plain())
    again = strategy.contracts
    assert again[1] is first[0] and again[0].wrapped is strategy.plugins[0]


@pytest.mark.parametrize("name", [n for n in DECLARED if n != "wrapped"])
def test_plain_plugin__gets_the_default_of_every_name(name):
    contract, default = contract_of(Plain()), getattr(MethodPlugin, name)
    if callable(default):
        assert callable(getattr(contract, name)) and not defines(contract, name)
    elif name not in ("stateless", "keeps_per_weight_state"):
        assert getattr(contract, name) == default


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("check_compatible", ["strategy"]),
        ("check_benchmark", ["benchmark"]),
        ("teacher_kinds", ["strategy"]),
        ("param_groups", ["strategy"]),
        ("budget_factor", ["strategy"]),
        ("class_logits", ["strategy", "features"]),
        ("restore_data", ["benchmark"]),
        ("load_state_dict", [{"a": 1}]),
        ("state_dict", []),
    ],
)
def test_plain_plugin__what_it_defines_is_asked(name, arguments):
    plain = Plain(**{name: lambda *given: given})
    assert getattr(contract_of(plain), name)(*arguments) == tuple(arguments)
    assert defines(contract_of(plain), name)


def test_plain_plugin__values_may_change_later():
    plain = Plain(count=1)
    contract = contract_of(plain)
    assert (contract.stateless, contract.keeps_per_weight_state) == (False, None)
    plain.stateless, plain.nominal_cost = True, 1.5
    assert (contract.stateless, contract.nominal_cost) == (True, 1.5)
    assert contract.keeps_per_weight_state is False


@pytest.mark.parametrize(
    ("former", "given", "name", "expected"),
    [
        ("replaces_deployed", True, "replaces_deployed_weights", True),
        ("fresh_start", True, "starts_fresh", True),
        ("active_rows_safe", True, "keeps_per_weight_state", False),
        ("budget_multiplier", lambda strategy: 2.0, "budget_factor", 2.0),
    ],
)
def test_former_names__count_for_plain_plugins_and_are_told_to_methods(
    former, given, name, expected
):
    found = getattr(contract_of(Plain(**{former: given})), name)
    assert (found(None) if callable(found) else found) == expected
    with pytest.raises(TypeError, match=f"Old defines {former}.* it is {name} now"):
        type("Old", (MethodPlugin,), {former: given})


def test_plain_plugin__its_settings_are_those_it_tells():
    plain = Plain(identity=lambda: {"alpha": 2}, state_dict=dict)
    found = strategy_settings(build(Sequential, plugins=[plain]))["plugins"]
    assert found == {"0 Plain": {"alpha": 2}}


# ----------------------------------------------------------------- the stock table
@pytest.mark.parametrize("cls", STOCK, ids=lambda cls: cls.__name__)
def test_stock_table__covers_subclasses(cls):
    made = type("Mine", (cls,), {"__init__": lambda self: None})
    made.__abstractmethods__ = frozenset()
    contract = contract_of(made())
    assert type(contract) is STOCK[cls]
    if cls in REFUSED:
        # Even with a check of its own.
        contract.wrapped.check_compatible = lambda strategy: None
        with pytest.raises(ValueError, match="Mine cannot be used with .*; use "):
            contract.check_compatible(None)


def test_stock_table__covers_methods_that_are_stock_plugins_too(tmp_path):
    class Walk(MethodPlugin, RWalkPlugin):
        state_attributes = ("scores",)

        def __init__(self, delta_t):
            RWalkPlugin.__init__(self, delta_t=delta_t)
            self.scores, self.count = {}, 0

        def iteration_completed(self, strategy):
            self.count += 1

    with pytest.raises(ValueError, match=r"RWalkPlugin\(delta_t=9\) needs at least"):
        fit(Sequential, steps=1, plugins=[Walk(9)])
    data, walk = stub_benchmark(), Walk(2)
    save_state(fit(Sequential, data, 1, plugins=[Walk(2)]), tmp_path / "state.pt")
    load_state(build(Sequential, plugins=[walk]), tmp_path / "state.pt", data)
    assert walk.count == 5
    contract = contract_of(walk)
    assert contract.keeps_per_weight_state is None
    assert not defines(contract, "class_logits")
    assert defines(contract, "iteration_completed")
    refused = type("Both", (MethodPlugin, LwFPlugin), {})
    with pytest.raises(ValueError, match="Both cannot be used with"):
        build(Sequential, plugins=[refused()])


def test_stock_table__scheduler_takes_over_the_learning_rate():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    contract = contract_of(LRSchedulerPlugin(scheduler))
    assert contract.sets_learning_rate and contract.keeps_per_weight_state is False
    assert not Sequential(model=build(Sequential).model).contracts[0].starts_fresh


def test_load_state__asks_appended_plugins_before_it_compares(tmp_path):
    def built():
        model = build(Sequential).model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rates = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        strategy = build(Sequential, model, optimizer=optimizer, schedule="constant")
        strategy.plugins.append(LRSchedulerPlugin(rates))
        return strategy

    data = stub_benchmark()
    save_state(train_stream(built(), data, 1), tmp_path / "state.pt")
    assert load_state(built(), tmp_path / "state.pt", data) == 1


def test_run_stream__asks_appended_plugins_before_the_first_evaluation(tmp_path):
    class No(MethodPlugin):
        def check_compatible(self, strategy):
            raise ValueError("not with this one")

    strategy = build(Sequential)
    strategy.plugins.append(No())
    with pytest.raises(ValueError, match="not with this one"):
        run_stream(strategy, stub_benchmark(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
