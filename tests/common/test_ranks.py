"""Processes that fail, are lost or were never joined: all stop, in words, in time."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
import torch

from avalanche_clip import distributed
from avalanche_clip.benchmarks.teacher.precompute import precompute_teacher_features
from avalanche_clip.distributed import RankError
from avalanche_clip.training import Sequential, run_stream
from tests.helpers import (
    Recorder,
    adamw,
    assert_same_weights,
    build,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
    weights,
)
from tests.processes import caught, run_in_processes
from tests.training import small_runs as runs
from tests.training.classes import class_strategy

pytestmark = pytest.mark.filterwarnings("ignore")

WAIT = 2.0
"""Seconds that processes of this file wait for each other."""


# ------------------------------------------------------------ errors of one rank
def small_training(plugin):
    model = stub_model()
    strategy = build(Sequential, model, plugins=[plugin], evaluator=runs.evaluator())
    return strategy, stub_benchmark((8, 8), model=model)


class Breaks(Recorder):
    """Do something on one rank, in a hook of the third step."""

    def __init__(self, hook, act, broken=1):
        self.act, self.broken = act, broken
        setattr(self, hook, self._now)

    def _now(self, strategy, **kwargs):
        step = strategy.clock.train_iterations
        if distributed.rank() == self.broken and step == 2:
            self.act()


def raises():
    raise ArithmeticError("the disk of rank 1 is full")


def hangs():
    time.sleep(2.5 * WAIT)


def ends():
    os._exit(3)


def broken_training(hook, act, stay=False, broken=1):
    strategy, benchmark = small_training(Breaks(hook, act, broken))
    found = caught(lambda: train_stream(strategy, benchmark))
    if stay and distributed.rank() == broken:
        time.sleep(2.5 * WAIT)  # alive, and nobody has closed its connections
    return found


def broken_run(folder, hook):
    strategy, benchmark = small_training(Breaks(hook, raises))
    return caught(lambda: run_stream(strategy, benchmark, f"{folder}/run"))


class Refuses(Recorder):
    """Refuse the benchmark on one rank."""

    def check_benchmark(self, benchmark):
        if distributed.rank() == 1:
            raises()


def refused_run(folder):
    strategy, benchmark = small_training(Refuses())
    return caught(lambda: run_stream(strategy, benchmark, f"{folder}/run"))


BROKEN = {
    "raises before the forward pass": ("before_forward", raises, True),
    "raises before the backward pass": ("before_backward", raises, True),
    "raises after the update, and closes": ("after_update", raises, False),
    "hangs in the backward pass": ("after_backward", hangs, False),
    "ends": ("after_training_iteration", ends, False),
    "main process ends": ("before_backward", ends, False, 0),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Results of the surviving rank in pools that run side by side."""

    def start(case):
        job = partial(broken_training, *BROKEN[case])
        folder = tmp_path_factory.mktemp("broken")
        return run_in_processes({case: job}, folder, timeout=WAIT, seconds=90)

    # They wait for each other most of the time.
    with ThreadPoolExecutor(3) as threads:
        return dict(zip(BROKEN, threads.map(start, BROKEN), strict=True))


@pytest.mark.parametrize("case", BROKEN)
def test_train__an_error_on_one_rank_ends_the_other_in_time(case, broken):
    survivor = 0 if len(BROKEN[case]) < 4 else 1
    kind, text, seconds = broken[case].parts[survivor][0][case]
    assert kind == "RankError" and "rank" in text, text
    assert seconds < WAIT + 15  # the set-up and two steps included
    assert f"within {WAIT:g} s" in text and "init_distributed(timeout" in text
    assert "gloo" not in text
    if "raises" in case:
        assert "rank 1 has told: ArithmeticError: the disk of rank 1 is full" in text
        assert broken[case].parts[1][0][case][0] == "ArithmeticError"


@pytest.mark.parametrize("job", [refused_run, partial(broken_run, hook="after_update")])
def test_run_stream__an_error_on_one_rank_ends_the_other(tmp_path, job):
    (tmp_path / "pool").mkdir()
    jobs = {"run": partial(job, tmp_path)}
    first, second = run_in_processes(jobs, tmp_path / "pool", timeout=WAIT)["run"]
    assert first[0] == "RankError" and "the disk of rank 1" in first[1]
    assert second[0] == "ArithmeticError"


# --------------------------------------------------------------------- exchanges
def exchanged():
    rank = distributed.rank()
    long = distributed.exchange("somewhere", list(range(1000 * rank)))
    return {
        "values": distributed.exchange("somewhere", (rank, f"rank {rank}")),
        "lengths": [len(value) for value in long],
        "told": distributed.broadcast_object(bytes([rank]) * 5000),
        "rows": distributed.gather_rows(torch.full((rank + 1, 2), float(rank))),
        "wrong": caught(lambda: distributed.gather_rows(torch.ones(3), [1, 1])),
        "places": caught(lambda: distributed.exchange(f"place {rank}")),
        "late": caught(lambda: distributed.init_distributed(timeout=5)),
    }


def stops_together():
    def fail():
        with distributed.together("a check"):
            if distributed.rank() == 1:
                raises()

    def wait():
        with distributed.together("a check"):
            if distributed.rank() == 1:
                raises()
            distributed.barrier()

    return caught(fail), caught(wait), distributed.exchange("afterwards", "in step")


def differs_on_the_last():
    rank = distributed.rank()
    rows = {"rows": [1, 2, 3 + rank // 2]}

    def facts():
        return {"equal": 1.5, "rows": f"hash {rank // 2}", "later": rank}

    return caught(lambda: distributed.agree("a place", facts, rows.get))


def test_agree__the_first_rank_and_value_that_differ_are_named(tmp_path):
    job = {"agree": differs_on_the_last}
    for kind, text, _ in run_in_processes(job, tmp_path, count=3)["agree"]:
        assert kind == "RankError" and "differ in rows, row 2 at a place" in text
        assert "3 on rank 0, 4 on rank 2" in text


def test_exchange__values_places_and_sizes(tmp_path):
    jobs = {"exchanged": exchanged, "together": stops_together}
    results = run_in_processes(jobs, tmp_path, timeout=60)
    for found in results["exchanged"]:
        assert found["values"] == [(0, "rank 0"), (1, "rank 1")]
        assert found["lengths"] == [0, 1000]
        assert found["told"] == bytes(5000)
        assert found["rows"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert found["wrong"][0] == "ValueError" and "3 rows" in found["wrong"][1]
        assert found["places"][0] == "RankError" and "out of step" in found["places"][1]
        assert found["late"][0] == "ValueError" and "too late" in found["late"][1]
    first, second = results["together"]
    for told, own in zip(first[:2], second[:2], strict=True):
        assert told[0] == "RankError" and own[0] == "ArithmeticError"
        assert "rank 1 stopped in a check: ArithmeticError: the disk" in told[1]
        assert max(told[2], own[2]) < 20
    assert first[2] == second[2] == ["in step", "in step"]


# -------------------------------------------------------------------- torchrun
@pytest.fixture
def launched(monkeypatch):
    """An environment as torchrun makes it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")


def refused(call):
    match = r"WORLD_SIZE=2.*rank 1 of 2.*init_distributed\(\)"
    with pytest.raises(RuntimeError, match=match):
        call()


def test_launched__a_strategy_without_a_group_is_refused(launched):
    refused(lambda: Sequential(model=stub_model(), evaluator=quiet_evaluator()))
    refused(lambda: class_strategy())
    refused(distributed.rank)
    refused(distributed.is_main_process)


def test_launched__nothing_runs_without_a_group(monkeypatch, tmp_path, request):
    model = stub_model()
    strategy = build(Sequential, model, optimizer=adamw, evaluator=runs.evaluator())
    benchmark = stub_benchmark((8,), model=model)
    before = weights(model)
    request.getfixturevalue("launched")
    refused(lambda: strategy.train(benchmark.train_stream[0]))
    refused(lambda: strategy.eval(benchmark.test_stream))
    refused(lambda: run_stream(strategy, benchmark, tmp_path / "run"))
    data = benchmark.train_stream[0].dataset
    refused(lambda: precompute_teacher_features(model, data, tmp_path / "store"))
    assert_same_weights(before, model)
    assert os.listdir(tmp_path) == []
    monkeypatch.setenv("WORLD_SIZE", "1")
    strategy.train(benchmark.train_stream[0], eval_streams=[])


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), timedelta(0)])
def test_init_distributed__timeout_must_be_positive(timeout):
    with pytest.raises(ValueError, match=r"timeout=.* must be a positive number"):
        distributed.init_distributed(timeout=timeout)


def test_one_process__nothing_is_compared():
    def unused():
        raise AssertionError

    distributed.agree("here", unused)
    assert distributed.exchange("here", 3) == [3]
    with pytest.raises(ZeroDivisionError), distributed.together("here"):
        1 / 0  # noqa: B018
    with pytest.raises(RankError), distributed.guarded("here"):
        raise RankError("as it was")
