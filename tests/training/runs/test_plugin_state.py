"""What checkpoints store of plugins and metrics."""

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metrics import forgetting_metrics, loss_metrics
from avalanche.training.plugins import (
    EarlyStoppingPlugin,
    EWCPlugin,
    FeatureDistillationPlugin,
    LRSchedulerPlugin,
    ReplayPlugin,
    RWalkPlugin,
    SynapticIntelligencePlugin,
)
from avalanche.training.storage_policy import (
    ParametricBuffer,
)

from avalanche_clip.common.plain import plain
from avalanche_clip.common.state_files import read_state
from avalanche_clip.training.runs.checkpoint_plugin import CheckpointPlugin
from avalanche_clip.training.runs.metric_state import apply_object_state, object_state
from avalanche_clip.training.runs.plugin_state import register_plugin_state
from avalanche_clip.training.runs.resume import load_state, save_state
from avalanche_clip.training.templates import ContrastiveTemplate
from tests.helpers import At, assert_same_weights, stub_benchmark, stub_model
from tests.training.small_runs import evaluator


def scheduler_plugin(optimizer):
    return LRSchedulerPlugin(torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5))


def plateau_plugin(optimizer):
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    return LRSchedulerPlugin(scheduler, metric="train_loss", reset_scheduler=False)


# Memories of every policy are resumed in tests/training/templates/test_visits.py.
STOCK = {
    "replay": lambda o: ReplayPlugin(mem_size=9),
    "ewc-separate": lambda o: EWCPlugin(3.0),
    "ewc-online": lambda o: EWCPlugin(3.0, mode="online", decay_factor=0.5),
    "early-stopping": lambda o: EarlyStoppingPlugin(
        1, "test_stream", metric_name="mean_R@1"
    ),
    "scheduler": scheduler_plugin,
    "plateau": plateau_plugin,
    "si": lambda o: SynapticIntelligencePlugin(1.0),
    "distillation": lambda o: FeatureDistillationPlugin(),
}


def build(make=None, extra=(), **options):
    model = stub_model(dropout=0.2)
    benchmark = stub_benchmark((12, 12, 12), model=model, targets=True, groups=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    plugins = [*([] if make is None else [make(optimizer)]), *extra]
    strategy = ContrastiveTemplate(
        model=model,
        optimizer=optimizer,
        plugins=plugins,
        train_mb_size=4,
        train_epochs=3,
        evaluator=evaluator(forgetting_metrics(experience=True)),
        eval_every=1,
        **options,
    )
    return strategy, benchmark


def train(strategy, benchmark, first, last):
    for experience in list(benchmark.train_stream)[first:last]:
        strategy.train(experience, eval_streams=[benchmark.test_stream])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", STOCK)
def test_stock_plugin__resumes_exactly_between_experiences(name, tmp_path):
    full, benchmark = build(STOCK[name])
    train(full, benchmark, 0, 3)
    part, benchmark = build(STOCK[name])
    train(part, benchmark, 0, 2)
    save_state(part, tmp_path / "state.pt")
    later, benchmark = build(STOCK[name])
    torch.manual_seed(77)
    assert load_state(later, tmp_path / "state.pt", benchmark) == 2
    train(later, benchmark, 2, 3)
    assert_same_weights(full.model, later.model)
    assert full.evaluator.get_all_metrics() == later.evaluator.get_all_metrics()
    assert full.evaluator.get_last_metrics() == later.evaluator.get_last_metrics()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["ewc-separate", "scheduler", "si"])
def test_stock_plugin__resumes_exactly_inside_an_experience(name, tmp_path):
    full, benchmark = build(STOCK[name])
    train(full, benchmark, 0, 3)
    folder = CheckpointPlugin(tmp_path, every_iterations=5, keep=99)
    part, benchmark = build(STOCK[name], extra=[folder])
    train(part, benchmark, 0, 2)
    inside = sorted(tmp_path.glob("state_*[0-9].pt"))[-1]
    later, benchmark = build(STOCK[name])
    assert load_state(later, inside, benchmark) == 1
    train(later, benchmark, 1, 3)
    assert_same_weights(full.model, later.model)
    assert full.evaluator.get_last_metrics() == later.evaluator.get_last_metrics()


def test_stock_replay__is_stored_as_sample_ids(tmp_path):
    strategy, benchmark = build(STOCK["replay"])
    train(strategy, benchmark, 0, 2)
    save_state(strategy, tmp_path / "state.pt")
    entries = read_state(tmp_path / "state.pt")["plugins"]
    (state,) = [e["state"] for e in entries if "buffers" in e["state"]]
    groups = state["buffers"]
    assert [len(g["sample_ids"]) for g in groups.values()] == [5, 4]
    assert set(groups[1]["sample_ids"].tolist()) <= set(range(12, 24))


def test_stock_replay__saving_inside_an_experience_warns_once(tmp_path):
    saves = At("iteration_completed", lambda s: save_state(s, tmp_path / "s.pt"))
    strategy, benchmark = build(STOCK["replay"], extra=[saves])
    train(strategy, benchmark, 0, 1)
    with pytest.warns(UserWarning, match="between experiences only") as caught:
        train(strategy, benchmark, 1, 2)
    assert len([w for w in caught if "between experiences" in str(w.message)]) == 1


def test_checkpoint_plugin__leaves_out_what_cannot_resume_inside(tmp_path):
    folder = CheckpointPlugin(tmp_path, every_iterations=1, keep=99)
    strategy, benchmark = build(STOCK["replay"], extra=[folder])
    with pytest.warns(UserWarning, match="no checkpoint is written inside"):
        train(strategy, benchmark, 0, 2)
    names = [p.name for p in sorted(tmp_path.glob("*.pt"))]
    assert names == [
        *[f"state_{n:09d}.pt" for n in range(1, 10)],
        "state_000000009_end.pt",
        f"state_{strategy.clock.train_iterations:09d}_end.pt",
    ]


def test_stock_replay__unknown_policy_raises(tmp_path):
    policy = ParametricBuffer(9)
    strategy, _ = build(lambda o: ReplayPlugin(9, storage_policy=policy))
    with pytest.raises(TypeError, match="ParametricBuffer"):
        save_state(strategy, tmp_path / "state.pt")


class Counter(SupervisedPlugin):
    def __init__(self, value=0):
        super().__init__()
        self.count = value


class StatefulCounter(Counter):
    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_save_state__attributes_that_are_not_plain_raise(tmp_path):
    strategy, _ = build(extra=[Counter([[0]])])
    with pytest.raises(TypeError, match=r"Counter\.count is a list, which.*Give"):
        save_state(strategy, tmp_path / "state.pt")
    assert not (tmp_path / "state.pt").exists()


def test_save_state__stock_plugins_of_unknown_state_raise(tmp_path):
    strategy, _ = build(lambda o: RWalkPlugin(delta_t=2))
    with pytest.raises(TypeError, match=r"RWalkPlugin may have state \(\['checkpoint"):
        save_state(strategy, tmp_path / "state.pt")


@pytest.mark.parametrize("only", ["state_dict", "load_state_dict"])
def test_save_state__one_half_of_a_state_raises(only, tmp_path):
    half = type("Half", (Counter,), {only: vars(StatefulCounter)[only]})
    strategy, _ = build(extra=[half()])
    with pytest.raises(TypeError, match=f"Half has {only}.* but no .*_dict.*both"):
        save_state(strategy, tmp_path / "state.pt")


def test_save_state__plugin_state_that_is_not_plain_raises(tmp_path):
    strategy, _ = build(extra=[StatefulCounter({1, 2})])
    with pytest.raises(TypeError, match=r"StatefulCounter\['count'\] is a .*set"):
        save_state(strategy, tmp_path / "state.pt")


def test_register_plugin_state__covers_subclasses(tmp_path):
    class Registered(Counter):
        pass

    class Below(Registered):
        pass

    register_plugin_state(
        Registered, lambda p: {"n": p.count}, lambda p, s: setattr(p, "count", s["n"])
    )
    strategy, _ = build(extra=[Below(5), StatefulCounter(6)])
    save_state(strategy, tmp_path / "state.pt")
    plugins = [Below(), StatefulCounter()]
    strategy, benchmark = build(extra=plugins)
    load_state(strategy, tmp_path / "state.pt", benchmark)
    assert [p.count for p in plugins] == [5, 6]


class UserMetric(PluginMetric):
    """A metric of a user's module, with everything a metric may hold."""

    def __init__(self, filled=False):
        super().__init__()
        self.counts = {(0, 1): 2} if filled else {}
        self.seen = {3, 4} if filled else set()
        self.curve = [0.5] * 20 if filled else []
        self.parts = [torch.ones(2), np.float64(0.25)] if filled else []
        self.function = len

    def result(self):
        return None

    def reset(self):
        pass


def test_object_state__user_metric_comes_back():
    state = plain(object_state(UserMetric(filled=True)))
    fresh = UserMetric()
    apply_object_state(fresh, state)
    assert fresh.counts == {(0, 1): 2} and fresh.seen == {3, 4}
    assert fresh.curve == [0.5] * 20 and fresh.function is len
    assert torch.equal(fresh.parts[0], torch.ones(2)) and fresh.parts[1] == 0.25


def test_evaluator__user_metric_is_readable_with_weights_only(tmp_path):
    strategy, _ = build()
    strategy.evaluator.metrics += [UserMetric(filled=True), *loss_metrics(stream=True)]
    save_state(strategy, tmp_path / "state.pt")
    read_state(tmp_path / "state.pt")
