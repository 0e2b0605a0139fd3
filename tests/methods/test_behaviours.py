"""What every method must do: each row of the table goes through each behaviour."""

from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_clip.checkpointing import load_state, read_state, save_state
from avalanche_clip.training.methods.joint import JointTraining
from avalanche_clip.training.plugins import CheckpointPlugin
from tests.helpers import assert_other_weights, assert_same_weights, weights
from tests.methods.rows import PLAIN, ROWS, strategies
from tests.methods.runs import ALL, rows_that
from tests.methods.variants import VARIANTS
from tests.methods.worlds import build, pretrained

pytestmark = pytest.mark.filterwarnings("ignore")

ORDER = (1, 0, 1)
STUBS = ("pairs", "classes")
DURING = {"eval_every": 2, "peval_mode": "iteration"}
"""Evaluation between the steps of an experience."""


def train(strategy, benchmark, order=ORDER, **options):
    """Train on experiences in an order; left-over random numbers must not matter.

    Methods that train once train on all of them, in any order.
    """
    torch.manual_seed(len(strategy.plugins))
    options = {"eval_streams": [], **options}
    visits = [benchmark.train_stream[index] for index in order]
    if isinstance(strategy, JointTraining):
        visits = [list(benchmark.train_stream)[::-1]] if visits else []
    for visit in visits:
        strategy.train(visit, **options)
    return strategy


class Writer(CheckpointPlugin, supports_distributed=True):
    """Save after the first step of a run, before the last of each visit, after each."""

    def iteration_completed(self, strategy):
        done = strategy.clock.train_exp_iterations
        begun = done == 1 and not strategy.visits.finished
        if begun or done == strategy.planned_iterations - 1:
            super().iteration_completed(strategy)


@dataclass
class Whole:
    """An uninterrupted run, and what was stored on its way."""

    strategy: Any
    benchmark: Any
    start: dict[str, torch.Tensor]
    folder: Path
    ends: np.ndarray
    """Iterations that were done after each visit."""

    def state(self, visits):
        """What was stored after so many visits."""
        return read_state(self.end(visits))

    def end(self, visits):
        return self.folder / f"state_{self.ends[visits - 1]:09d}_end.pt"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of a row, from its first checkpoint on."""

    @lru_cache(2)  # tests of one row follow each other
    def run(name):
        folder = tmp_path_factory.mktemp("whole")
        writer = Writer(folder, every_iterations=1, keep=99)
        strategy, benchmark = build(ALL[name], writer)
        save_state(strategy, folder / "first.pt")
        start = weights(strategy.model)
        train(strategy, benchmark)
        steps = strategy.compute.report()["steps"]
        return Whole(strategy, benchmark, start, folder, np.cumsum(steps))

    return run


@pytest.fixture(scope="module")
def plain():
    """Model of a plain row after two steps."""
    return cache(lambda name: train(*build(PLAIN[name]), (0, 1)).model)


def test_rows__hold_every_named_strategy():
    assert {row.strategy for row in ROWS.values()} >= set(strategies())


def test_rows__give_a_reason_for_what_they_cannot_do():
    for name, row in ROWS.items():
        assert (row.neutral is None) == ("neutral" in row.cannot), name
        assert all(reason.endswith(".") for reason in row.cannot.values()), name


@pytest.mark.parametrize("name", rows_that("neutral"))
def test_neutral_setting__is_plain_training_bit_for_bit(name, plain):
    row = ROWS[name]
    neutral = train(*build(row, neutral=True), (0, 1)).model
    assert_same_weights(neutral, plain(row.plain))
    assert_other_weights(train(*build(row), (0, 1)).model, neutral)


@pytest.mark.parametrize("name", ROWS)
def test_training__moves_what_it_says_and_nothing_else(name, whole):
    row, run = ROWS[name], whole(name)
    trained = 0
    for key, value in run.strategy.model.named_parameters():
        wanted = any(part in key for part in row.moves) and key not in row.still
        moved = key not in run.start or not torch.equal(value, run.start[key])
        assert wanted or not moved, key
        assert moved or row.some or not wanted, key
        trained += moved
    assert bool(trained) != row.idle


@pytest.mark.parametrize("name", [n for n, r in ROWS.items() if r.world in STUBS])
def test_frozen_tower__is_identical_after_training(name):
    model, start = pretrained(), pretrained().image_proj.state_dict()
    model.image_proj.requires_grad_(False)
    strategy, benchmark = build(ROWS[name], model=model)
    train(strategy, benchmark, (0, 1))
    assert_same_weights(model.image_proj, start)
    assert_other_weights(model.text_proj, pretrained().text_proj)


@pytest.mark.parametrize("name", [*rows_that("resume"), *VARIANTS])
def test_run__resumed_anywhere_equals_an_uninterrupted_one(name, whole, tmp_path):
    run, row = whole(name), ALL[name]
    order = (0,) if row.once else ORDER
    # File, visits that were finished, and those after which the runs are compared:
    # what is stored after a visit is all that the next one begins with.
    places = [
        ("first.pt", 0, 1),
        (f"state_{1:09d}.pt", 0, 1),
        (run.end(1).name, 1, len(order)),
        (f"state_{run.ends[-1] - 1:09d}.pt", len(order) - 1, len(order)),
    ]
    if name in rows_that("reload"):  # loads its first state over a later one
        del places[0]
    if row.idle:  # each file replaces the one before
        places = [(f"state_{0:09d}_end.pt", len(order), len(order))]
    for file, visit, last in places:
        strategy, benchmark = build(row)
        index = load_state(strategy, run.folder / file, benchmark)
        if file != "first.pt":
            assert index == (order[visit - 1] + 1 if "end" in file else order[visit])
        train(strategy, benchmark, order[visit:last])
        if visit < last:
            assert_stored(strategy, run, last, tmp_path)
    expected = run.strategy
    assert_same_weights(expected.model, strategy.model)
    assert vars(strategy.clock) == vars(expected.clock)
    assert strategy.compute.experiences == expected.compute.experiences
    found = strategy.eval(benchmark.test_stream)
    assert_equal(found, expected.eval(run.benchmark.test_stream))


@pytest.mark.parametrize("name", rows_that("reload"))
def test_state__is_loaded_over_a_later_one(name, whole, tmp_path):
    """What a strategy has learned or made since leaves no trace."""
    run = whole(name)
    strategy, benchmark = build(ROWS[name])
    visits = len(run.ends) if ROWS[name].idle else min(2, len(run.ends))
    load_state(strategy, run.end(visits), benchmark)
    load_state(strategy, run.folder / "first.pt", benchmark)
    train(strategy, benchmark, ORDER[:visits])
    assert_stored(strategy, run, visits, tmp_path)


def assert_stored(strategy, run, visits, folder):
    """Fail unless all that is stored of a strategy is what was stored then."""
    found = read_state(save_state(strategy, folder / "found.pt"))
    expected = run.state(visits)
    if not any(run.ends):  # nothing has drawn random numbers
        del found["rng"], expected["rng"]
    assert_equal(found, expected)


class Idle(SupervisedPlugin, supports_distributed=True):
    """Listens to every hook, does nothing."""

    stateless = True

    def __init__(self):
        super().__init__()
        self.calls = 0
        for name in dir(self):
            if name.startswith(("before_", "after_")):
                setattr(self, name, self._count)

    def _count(self, strategy, *args, **kwargs):
        self.calls += 1


@pytest.mark.parametrize("name", ROWS)
def test_evaluation_and_idle_plugins__leave_no_trace(name, tmp_path, whole):
    idle = Idle()
    strategy, benchmark = build(ROWS[name], idle, **DURING)
    streams = [
        benchmark.test_stream[::2]
    ]  # a step that is trained, and one that is not
    first = len(ORDER) if ROWS[name].once else 1
    train(strategy, benchmark, ORDER[:first], eval_streams=streams)
    states, found = [], []
    for number in range(3):
        state = read_state(save_state(strategy, tmp_path / f"{number}.pt"))
        del state["clock"]["total_iterations"]  # which counts evaluation too,
        del state["compute"]["evaluation"]  # and what it cost
        state["plugins"] = [p for p in state["plugins"] if "metrics" not in p["state"]]
        states.append(state)
        found.append(strategy.eval(benchmark.test_stream))
    assert_equal(states[1], states[2])
    assert_equal(found[1], found[2])
    for state in states:  # a plugin may note how it evaluated
        del state["plugins"]
    assert_equal(states[0], states[1])
    train(strategy, benchmark, ORDER[first:], eval_streams=streams)
    expected = whole(name).strategy
    assert_same_weights(expected.model, strategy.model)
    assert losses(strategy) == losses(expected)
    assert losses(expected) or ROWS[name].idle
    assert idle.calls


def losses(strategy):
    """Training metrics of a run."""
    found = strategy.evaluator.get_all_metrics()
    return {k: v for k, v in found.items() if k.startswith("Loss_Epoch")}


def assert_equal(left, right, place=""):
    """Fail unless two nested values are equal to the last bit."""
    assert type(left) is type(right), place
    if isinstance(left, dict):
        assert left.keys() == right.keys(), place
        for key in left:
            assert_equal(left[key], right[key], f"{place}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), place
        for number, pair in enumerate(zip(left, right)):
            assert_equal(*pair, f"{place}.{number}")
    elif isinstance(left, torch.Tensor):
        same = partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)
        same(left, right, msg=place)
    else:
        assert left == right or (left != left and right != right), place


@pytest.mark.parametrize("name", [n for n, r in ROWS.items() if not r.idle])
def test_seed__another_one_gives_another_run(name, whole):
    strategy, benchmark = build(ROWS[name], seed=4)
    found = train(strategy, benchmark, ORDER[:1]).model.state_dict()
    expected = whole(name).state(1)["model"]
    assert_other_weights({key: found[key] for key in expected}, expected)
