"""Processes that differ, fail or were never joined: all stop, in words, in time."""

import os
import re
import time
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EWCPlugin, ReplayPlugin

from avalanche_clip import distributed
from avalanche_clip.benchmarks import (
    ClassPrompts,
    make_image_text_dataset,
    prepare_benchmark,
    time_stamped_benchmark,
)
from avalanche_clip.benchmarks.teacher_features import precompute_teacher_features
from avalanche_clip.distributed import RankError
from avalanche_clip.training import CumulativeExp, Sequential, run_stream
from avalanche_clip.training.plugins import (
    ContrastiveEWCPlugin,
    PatchingPlugin,
    WeightConsolidationPlugin,
)
from tests.helpers import (
    IMAGE_SIZE,
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
from tests.processes import run_in_processes
from tests.training import runs
from tests.training.classes import class_benchmark, class_strategy

pytestmark = pytest.mark.filterwarnings("ignore")

WAIT = 3.0
"""Seconds that processes of this file wait for each other."""


# ------------------------------------------------------------- what may differ
def rows(count=12, **columns):
    """Pairs whose caption is a pair of letters, and their facts."""
    captions = [chr(97 + k % 26) * 2 for k in range(count)]
    captions = columns.pop("captions", captions)
    images = torch.rand(count, 3, IMAGE_SIZE, IMAGE_SIZE)
    facts = {
        "sample_ids": np.arange(count),
        "targets": np.arange(count) % 5,
        "timestamps": np.zeros(count),
    }
    return make_image_text_dataset(
        list(zip(images, captions, strict=True)), **{**facts, **columns}
    )


def changed(count, place, value):
    """``0, 1, ...`` with another value at one place."""
    found = np.arange(count)
    found[place] = value
    return found


def data(second, first=None):
    """Other data on rank 1."""

    def make(rank):
        torch.manual_seed(0)
        options = second if rank else (first or {})
        model = stub_model()
        benchmark = time_stamped_benchmark(rows(**options), boundaries=[], test=rows(4))
        return build(Sequential, model), prepare_benchmark(benchmark, model)

    return make


def settings(second, first=None, cls=Sequential):
    """Other settings on rank 1."""

    def make(rank):
        options = dict(second if rank else (first or {}))
        plugins = [plugin() for plugin in options.pop("plugins", ())]
        model = stub_model()
        strategy = build(cls, model, plugins=plugins, **options)
        return strategy, stub_benchmark((8, 8), model=model)

    return make


def weights_of(change):
    """Another model on rank 1."""

    def make(rank):
        model = stub_model()
        if rank:
            model = change(model) or model
        return build(Sequential, model), stub_benchmark((8, 8), model=model)

    return make


def one_more(model):
    with torch.no_grad():
        model.token.weight[7, 3] += 1e-6


def frozen(model):
    model.image_proj.requires_grad_(False)


def trained_before(rank):
    strategy, benchmark = settings({})(rank)
    if rank:
        strategy.clock.train_exp_counter = 1
    return strategy, benchmark


def other_names(rank):
    model = stub_model()
    benchmark = class_benchmark(model)
    if rank:
        old = benchmark.class_prompts
        names = ["another", *(old.name(i) for i in sorted(old.ids)[1:])]
        benchmark.class_prompts = ClassPrompts(names, old.templates(0))
    return class_strategy(model), benchmark


def lr(rate):
    return lambda groups: torch.optim.AdamW(groups, lr=rate)


LETTERS = [chr(97 + k % 26) * 2 for k in range(12)]
DIFFERENT = {
    # data
    "counts": (data({"count": 10}), "number of samples of train", "12", "10"),
    "ids": (
        data({"sample_ids": changed(12, 5, 70)}),
        r"train\.sample_id, row 5",
        "5",
        "70",
    ),
    "targets": (
        data({"targets": changed(12, 11, 3)}, {"targets": changed(12, 11, 9)}),
        r"train\.targets, row 11",
        "9",
        "3",
    ),
    "times": (
        data({"timestamps": np.repeat([0.0, 1.5], [11, 1])}),
        r"train\.timestamp, row 11",
        "0.0",
        "1.5",
    ),
    "captions": (
        data({"captions": [*LETTERS[:4], "zz", *LETTERS[5:]]}),
        r"train\.captions, row 4",
        "ee",
        "zz",
    ),
    "several captions": (
        data({"captions": [*LETTERS[:11], ["ll", "mm"]]}),
        r"train\.captions, row 11",
        "ll",
        "mm",
    ),
    # settings
    "seed": (settings({"seed": 1}), "seed", "0", "1"),
    "batch": (settings({"train_mb_size": 2}), "train_mb_size", "4", "2"),
    "budget": (settings({"budget_iterations": 7}), r"budget\.iterations", "5", "7"),
    "rate": (
        settings({"optimizer": lr(0.5)}),
        r"optimizer\.groups\[0\]\.lr",
        "0.01",
        "0.5",
    ),
    "optimiser": (
        settings({"optimizer": lambda g: torch.optim.SGD(g, lr=0.01)}),
        r"optimizer\.class",
        "AdamW",
        "SGD",
    ),
    "strategy": (
        lambda rank: (
            settings({}, cls=(Sequential, CumulativeExp)[rank])(rank)
            if not rank
            else settings({"buffer_size": 4}, cls=CumulativeExp)(rank)
        ),
        "strategy",
        "Sequential",
        "CumulativeExp",
    ),
    "plugins": (
        settings({"plugins": [PatchingPlugin]}),
        "plugins",
        r"\[\]",
        "PatchingPlugin",
    ),
    "order of plugins": (
        settings(
            {"plugins": [ContrastiveEWCPlugin, WeightConsolidationPlugin]},
            {"plugins": [WeightConsolidationPlugin, ContrastiveEWCPlugin]},
        ),
        "plugins",
        "WeightConsolidationPlugin', 'ContrastiveEWCPlugin",
        "ContrastiveEWCPlugin', 'WeightConsolidationPlugin",
    ),
    "plugin's setting": (
        settings(
            {"plugins": [partial(ContrastiveEWCPlugin, 2.0)]},
            {"plugins": [partial(ContrastiveEWCPlugin, 3.0)]},
        ),
        "ewc_lambda",
        "3.0",
        "2.0",
    ),
    "stock plugin's setting": (
        settings(
            {"plugins": [partial(EWCPlugin, 0.25)]},
            {"plugins": [partial(EWCPlugin, 0.75)]},
        ),
        "ewc_lambda",
        "0.75",
        "0.25",
    ),
    "stock memory": (
        settings(
            {"plugins": [partial(ReplayPlugin, 6)]},
            {"plugins": [partial(ReplayPlugin, 8)]},
        ),
        "mem_size",
        "8",
        "6",
    ),
    # models
    "weights": (
        weights_of(lambda model: stub_model(1)),
        r"model\.image_proj\.weight",
        "bit sum",
        "bit sum",
    ),
    "one weight": (weights_of(one_more), r"model\.token\.weight", "bit sum", "bit sum"),
    "frozen": (weights_of(frozen), r"model\.image_proj\.weight|optimizer", "", ""),
    "shape": (
        weights_of(lambda model: stub_model(dim=6)),
        r"model\.image_proj\.weight",
        r"\[8, 192\]",
        r"\[6, 192\]",
    ),
    # steps and names
    "steps": (trained_before, "experiences trained", "0", "1"),
    "class names": (other_names, "class_prompts", "", ""),
}


def told(case):
    """What this rank learns when it trains on its own setting."""
    make = DIFFERENT[case][0]
    strategy, benchmark = make(distributed.rank())
    return caught(lambda: train_stream(strategy, benchmark))


def caught(call):
    begin = time.monotonic()
    try:
        call()
    except Exception as error:
        return type(error).__name__, str(error), time.monotonic() - begin
    return "nothing", "", time.monotonic() - begin


def other_options(**by_rank):
    """``train`` and ``run_stream`` with other arguments on rank 1."""
    rank = distributed.rank()
    return {name: values[rank] for name, values in by_rank.items()}


def train_with(**by_rank):
    strategy, benchmark = settings({})(0)
    options = other_options(**by_rank)
    return caught(lambda: train_stream(strategy, benchmark, **options))


def other_experience():
    strategy, benchmark = settings({})(0)
    experience = benchmark.train_stream[distributed.rank()]
    return caught(lambda: strategy.train(experience, eval_streams=[]))


def run_with(folder, **by_rank):
    strategy, benchmark = settings({"evaluator": runs.evaluator()})(1)
    options = {"out_dir": f"{folder}/run", **other_options(**by_rank)}
    found = caught(lambda: run_stream(strategy, benchmark, **options))
    return (*found, sorted(os.listdir(folder)))


def run_on_other_test_set(folder):
    model = stub_model()
    benchmark = stub_benchmark((8,), model=model, test_captions=1 + distributed.rank())
    strategy = build(Sequential, model, evaluator=runs.evaluator())
    return caught(lambda: run_stream(strategy, benchmark, f"{folder}/run"))


class Refuses(Recorder):
    """Refuse the benchmark on rank 0."""

    def check_benchmark(self, benchmark):
        if distributed.is_main_process():
            raise LookupError("a file is missing on this machine")


def refused_on_one(folder):
    strategy, benchmark = settings({"evaluator": runs.evaluator()})(1)
    strategy.plugins.append(Refuses())
    return caught(lambda: run_stream(strategy, benchmark, f"{folder}/refused"))


class StopEarly(Recorder):
    """End the training of one rank at a step."""

    def after_training_iteration(self, strategy, **kwargs):
        if distributed.rank() == 1 and strategy.clock.train_exp_iterations == 2:
            strategy.stop_training()


def stops_early():
    strategy, benchmark = settings({"plugins": [StopEarly]})(1)
    return caught(lambda: train_stream(strategy, benchmark))


def equal_after_all():
    """A sound training, in the processes that have refused all the others."""
    strategy, benchmark = settings({})(0)
    return weights(train_stream(strategy, benchmark).model)


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


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """What both ranks were told in all settings, in one pair of processes."""
    folder = str(tmp_path_factory.mktemp("runs"))
    jobs = {case: partial(told, case) for case in DIFFERENT}
    jobs |= {
        "exchanged": exchanged,
        "option": partial(train_with, drop_last=(True, False)),
        "evaluated": partial(train_with, eval_streams=([], None)),
        "experience": other_experience,
        "early": stops_early,
        "folder": partial(run_with, folder, out_dir=(f"{folder}/a", f"{folder}/b")),
        "resume": partial(run_with, folder, resume=(False, True)),
        "streams": partial(run_with, folder, streams=("test", ("test", "valid"))),
        "unknown": partial(run_with, folder, streams=("test", "nothing")),
        "test set": partial(run_on_other_test_set, folder),
        "refused": partial(refused_on_one, folder),
        "equal": equal_after_all,
    }
    return run_in_processes(jobs, tmp_path_factory.mktemp("pool"))


@pytest.mark.parametrize("case", DIFFERENT)
def test_train__different_processes_stop_all_and_show_both_values(case, pool):
    _, key, first, second = DIFFERENT[case]
    for kind, text, seconds in pool[case]:
        assert kind == "RankError" and seconds < 20, text
        assert re.search(f"differ in .*({key})", text), text
        assert re.search(f"{first}.* on rank 0", text), text
        assert re.search(f"{second}.* on rank 1", text), text


def test_train__other_arguments_and_experiences_stop_all(pool):
    for case, key in (("option", "drop_last"), ("evaluated", "eval_streams")):
        for kind, text, _ in pool[case]:
            assert kind == "RankError" and key in text and "rank 1" in text
    for kind, text, _ in pool["experience"]:
        assert kind == "RankError" and "train.sample_id, row 0" in text


def test_train__a_rank_with_fewer_steps_is_found_at_once(pool):
    for kind, text, seconds in pool["early"]:
        assert kind == "RankError" and seconds < 20
        assert "rank 0 is at 'step 3 of experience 0'" in text
        assert "rank 1 at 'the end of experience 0'" in text


@pytest.mark.parametrize(
    "case, key",
    [
        ("folder", "out_dir"),
        ("resume", "resume"),
        ("streams", "streams"),
        ("unknown", "streams"),
    ],
)
def test_run_stream__different_processes_stop_before_anything_is_written(
    case, key, pool
):
    for kind, text, _, files in pool[case]:
        assert kind == "RankError" and f"run_stream({key}=...)" in text
        assert "on rank 0" in text and "on rank 1" in text
        assert "a" not in files and "b" not in files and "run" not in files


def test_run_stream__other_test_set_and_a_refusal_of_one_rank_stop_all(pool):
    for kind, text, _ in pool["test set"]:
        assert kind == "RankError" and "test[0].captions, row 0" in text
    (first, _, _), (second, text, _) = pool["refused"]
    assert first == "LookupError" and second == "RankError"
    assert "rank 0 stopped" in text and "a file is missing on this machine" in text


def test_exchange__values_places_and_sizes(pool):
    for found in pool["exchanged"]:
        assert found["values"] == [(0, "rank 0"), (1, "rank 1")]
        assert found["lengths"] == [0, 1000]
        assert found["told"] == bytes(5000)
        assert found["rows"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert found["wrong"][0] == "ValueError" and "3 rows" in found["wrong"][1]
        assert found["places"][0] == "RankError" and "out of step" in found["places"][1]
        assert found["late"][0] == "ValueError" and "too late" in found["late"][1]


def test_train__processes_that_refused_go_on_with_what_is_equal(pool):
    strategy, benchmark = settings({"train_mb_size": 8})(1)
    whole = weights(train_stream(strategy, benchmark).model)
    first, second = pool["equal"]
    assert_same_weights(first, second)
    for name, value in whole.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, msg=name)


# ------------------------------------------------------------ errors of one rank
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
    time.sleep(3 * WAIT)


def ends():
    os._exit(3)


def broken_training(hook, act, stay=False, broken=1):
    plugin = partial(Breaks, hook, act, broken)
    strategy, benchmark = settings({"plugins": [plugin]})(1)
    found = caught(lambda: train_stream(strategy, benchmark))
    if stay and distributed.rank() == broken:
        time.sleep(3 * WAIT)  # alive, and nobody has closed its connections
    return found


def broken_run(folder):
    strategy, benchmark = settings({"evaluator": runs.evaluator()})(1)
    strategy.plugins.append(Breaks("after_update", raises))
    return caught(lambda: run_stream(strategy, benchmark, f"{folder}/run"))


BROKEN = {
    "raises before the forward pass": ("before_forward", raises, True),
    "raises before the backward pass": ("before_backward", raises, True),
    "raises after the update, and closes": ("after_update", raises, False),
    "hangs in the backward pass": ("after_backward", hangs, False),
    "ends": ("after_training_iteration", ends, False),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """Results of the surviving rank in pools that run side by side."""
    from concurrent.futures import ThreadPoolExecutor

    def start(case):
        job = partial(broken_training, *BROKEN[case])
        folder = tmp_path_factory.mktemp("broken")
        return run_in_processes({case: job}, folder, timeout=WAIT, seconds=90)

    with ThreadPoolExecutor(2) as threads:
        return dict(zip(BROKEN, threads.map(start, BROKEN), strict=True))


@pytest.mark.parametrize("case", BROKEN)
def test_train__an_error_on_one_rank_ends_the_other_in_time(case, broken):
    kind, text, seconds = broken[case].parts[0][0][case]
    assert kind == "RankError" and "rank" in text, text
    assert seconds < WAIT + 15  # the set-up and two steps included
    assert f"within {WAIT:g} s" in text and "init_distributed(timeout" in text
    assert "gloo" not in text
    if "raises" in case:
        assert "rank 1 has told: ArithmeticError: the disk of rank 1 is full" in text
        assert broken[case].parts[1][0][case][0] == "ArithmeticError"


def test_run_stream__an_error_on_one_rank_ends_the_other(tmp_path):
    job = {"run": partial(broken_run, tmp_path)}
    (tmp_path / "pool").mkdir()
    first, second = run_in_processes(job, tmp_path / "pool", timeout=WAIT)["run"]
    assert first[0] == "RankError" and "the disk of rank 1" in first[1]
    assert second[0] == "ArithmeticError"


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


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_init_distributed__timeout_must_be_positive(timeout):
    with pytest.raises(ValueError, match=f"timeout={timeout}"):
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
