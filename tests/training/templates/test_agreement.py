"""Processes that are about to train other things: all stop and show both values."""

import os
import re
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EWCPlugin

from avalanche_clip import distributed
from avalanche_clip.benchmarks import (
    ClassPrompts,
    make_image_text_dataset,
    prepare_benchmark,
    time_stamped_benchmark,
)
from avalanche_clip.training import CumulativeExp, Sequential, run_stream
from avalanche_clip.training.plugins import ContrastiveEWCPlugin as EWC
from avalanche_clip.training.plugins import PatchingPlugin
from avalanche_clip.training.plugins import WeightConsolidationPlugin as Consolidation
from avalanche_clip.training.templates import agreement
from tests.helpers import (
    IMAGE_SIZE,
    At,
    Recorder,
    StubDualEncoder,
    assert_same_weights,
    build,
    stub_benchmark,
    stub_model,
    train_stream,
    weights,
)
from tests.processes import caught, run_in_processes
from tests.training import small_runs as runs
from tests.training.classes import class_benchmark, class_strategy

pytestmark = pytest.mark.filterwarnings("ignore")


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


def other_strategy(rank):
    if rank:
        return settings({"buffer_size": 4}, cls=CumulativeExp)(rank)
    return settings({})(rank)


def plugins(second, first=()):
    return settings({"plugins": second}, {"plugins": first})


def lr(rate):
    return lambda groups: torch.optim.AdamW(groups, lr=rate)


LETTERS = [chr(97 + k % 26) * 2 for k in range(12)]
MANY = {"count": 3000, "captions": ["ab"] * 3000}
DIFFERENT = {
    # setting of each rank, and what is said: key, value of rank 0, value of rank 1
    "counts": (data({"count": 10}), "number of samples of train | 12 | 10"),
    "ids": (
        data({"sample_ids": changed(12, 5, 70)}),
        r"train\.sample_id, row 5 | 5 | 70",
    ),
    "targets": (
        data({"targets": changed(12, 11, 3)}, {"targets": changed(12, 11, 9)}),
        r"train\.targets, row 11 | 9 | 3",
    ),
    "captions": (
        data({"captions": [*LETTERS[:4], "zz", *LETTERS[5:]]}),
        r"train\.captions, row 4 | ee | zz",
    ),
    "one caption of many": (
        data({**MANY, "captions": ["ab"] * 1377 + ["zz"] + ["ab"] * 1622}, MANY),
        r"train\.captions, row 1377 | ab | zz",
    ),
    "several captions": (
        data({"captions": [*LETTERS[:11], ["ll", "mm"]]}),
        r"train\.captions, row 11 | ll | mm",
    ),
    "seed": (settings({"seed": 1}), "seed | 0 | 1"),
    "budget": (settings({"budget_iterations": 7}), r"budget\.iterations | 5 | 7"),
    "rate": (
        settings({"optimizer": lr(0.5)}),
        r"optimizer\.groups\[0\]\.lr | 0.01 | 0.5",
    ),
    "optimiser": (
        settings({"optimizer": lambda g: torch.optim.SGD(g, lr=0.01)}),
        r"optimizer\.class | AdamW | SGD",
    ),
    "strategy": (other_strategy, "strategy | Sequential | CumulativeExp"),
    "plugins": (plugins([PatchingPlugin]), r"plugins | \[\] | PatchingPlugin"),
    "order of plugins": (
        plugins([EWC, Consolidation], [Consolidation, EWC]),
        "plugins | WeightConsolidationPlugin', 'C | ContrastiveEWCPlugin', 'W",
    ),
    "plugin's setting": (
        plugins([partial(EWC, 2.0)], [partial(EWC, 3.0)]),
        "ewc_lambda | 3.0 | 2.0",
    ),
    "stock plugin's setting": (
        plugins([partial(EWCPlugin, 0.25)], [partial(EWCPlugin, 0.75)]),
        "ewc_lambda | 0.75 | 0.25",
    ),
    "weights": (
        weights_of(lambda model: stub_model(1)),
        r"model\.image_proj\.weight | bit sum | bit sum",
    ),
    "one weight": (weights_of(one_more), r"model\.token\.weight | bit sum | bit sum"),
    "frozen": (weights_of(frozen), r"model\.image_proj\.weight|optimizer |  | "),
    "shape": (
        weights_of(lambda model: stub_model(dim=6)),
        r"model\.image_proj\.weight | \[8, 192\] | \[6, 192\]",
    ),
    "steps": (trained_before, "experiences trained | 0 | 1"),
    "class names": (other_names, "class_prompts |  | "),
}


def told(case):
    """What this rank learns when it trains on its own setting."""
    make = DIFFERENT[case][0]
    strategy, benchmark = make(distributed.rank())
    return caught(lambda: train_stream(strategy, benchmark))


def other_options(**by_rank):
    """``train`` and ``run_stream`` with other arguments on rank 1."""
    rank = distributed.rank()
    return {name: values[rank] for name, values in by_rank.items()}


def train_with(*plugins, eval_every=-1, **by_rank):
    """Train; plugins come when the strategy is built already."""
    strategy, benchmark = settings({}, {"eval_every": eval_every})(0)
    strategy.plugins += [plugin() for plugin in plugins]
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


def run_on(folder, sizes=((8,), (8,)), captions=(1, 1)):
    """A run on other data on rank 1."""
    model, rank = stub_model(), distributed.rank()
    benchmark = stub_benchmark(sizes[rank], model=model, test_captions=captions[rank])
    strategy = build(Sequential, model, evaluator=runs.evaluator())
    return caught(lambda: run_stream(strategy, benchmark, f"{folder}/run"))


class LongerPlan(Recorder):
    """Plan twice the steps on rank 1."""

    def budget_multiplier(self, strategy):
        return 1.0 + distributed.rank()


class NeverWorks(Recorder):
    """Cannot work on rank 1."""

    def check_compatible(self, strategy):
        if distributed.rank():
            raise ValueError("it never works")


def other_pool(strategy):
    """Train on other samples on rank 1 than its experience holds."""
    first = distributed.rank()
    part = range(first, first + 6)
    strategy.adapted_dataset = strategy.adapted_dataset.subset(part)


def stop_early(strategy):
    """End the training of one rank at a step."""
    if distributed.rank() == 1 and strategy.clock.train_exp_iterations == 2:
        strategy.stop_training()


def run_on_other_images(folder):
    """The hash of the data sees what the facts and captions do not show."""
    found = {"hash": f"of rank {distributed.rank()}"}
    with mock.patch.object(agreement, "data_summary", lambda _: found):
        return run_on(folder)


class NormedEncoder(StubDualEncoder):
    """Its image features pass a batch norm."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(8)

    def _raw_image(self, image):
        return self.norm(super()._raw_image(image))


def batch_norm():
    """Statistics after two experiences, of which each process has seen a part."""
    model = NormedEncoder()
    strategy = build(Sequential, model, evaluator=runs.evaluator())
    benchmark = stub_benchmark((16, 16), model=model)
    train_stream(strategy, benchmark)
    found = strategy.eval(benchmark.test_stream)
    return weights(model), {k: v for k, v in found.items() if "R@" in k}


def equal_after_all():
    """A sound training, in the processes that have refused all the others."""
    strategy, benchmark = settings({})(0)
    return weights(train_stream(strategy, benchmark).model)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """What both ranks were told in all settings, in one pair of processes."""
    folder = str(tmp_path_factory.mktemp("runs"))
    jobs = {case: partial(told, case) for case in DIFFERENT}
    jobs |= {
        "option": partial(train_with, drop_last=(True, False)),
        "evaluated": partial(train_with, eval_every=1, eval_streams=([], None)),
        "appended": partial(train_with, NeverWorks),
        "experience": other_experience,
        "early": partial(
            train_with, partial(At, "after_training_iteration", stop_early)
        ),
        "folder": partial(run_with, folder, out_dir=(f"{folder}/a", f"{folder}/b")),
        "resume": partial(run_with, folder, resume=(False, True)),
        "streams": partial(run_with, folder, streams=("test", ("test", "valid"))),
        "unknown": partial(run_with, folder, streams=("test", "nothing")),
        "test set": partial(run_on, folder, captions=(1, 2)),
        "planned": partial(train_with, LongerPlan),
        "pool": partial(
            train_with, partial(At, "after_train_dataset_adaptation", other_pool)
        ),
        "images": partial(run_on_other_images, folder),
        "longer": partial(run_on, folder, sizes=((8, 8), (8, 8, 8))),
        "batch norm": batch_norm,
        "equal": equal_after_all,
    }
    return run_in_processes(jobs, tmp_path_factory.mktemp("pool"))


@pytest.mark.parametrize("case", DIFFERENT)
def test_train__different_processes_stop_all_and_show_both_values(case, pool):
    key, first, second = DIFFERENT[case][1].split(" | ")
    for kind, text, seconds in pool[case]:
        assert kind == "RankError" and seconds < 20, text
        assert re.search(f"differ in .*({key})", text), text
        assert re.search(f"{first}.* on rank 0", text), text
        assert re.search(f"{second}.* on rank 1", text), text


def test_train__other_arguments_and_experiences_stop_all(pool):
    for case, key in (("option", "drop_last"), ("evaluated", "eval_streams")):
        for kind, text, _ in pool[case]:
            assert kind == "RankError" and key in text and "rank 1" in text
    (_, text, seconds), (kind, own, _) = pool["appended"]
    assert kind == "ValueError" and own == "it never works" and seconds < 20
    assert "rank 1" in text and own in text, text
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


def test_train__other_plans_and_pools_stop_before_the_first_step(pool):
    for kind, text, _ in pool["planned"]:
        assert kind == "RankError" and "differ in the planned iterations" in text
        assert "5 on rank 0, 10 on rank 1" in text
    for kind, text, _ in pool["pool"]:
        assert kind == "RankError" and "the training pool.sample_id, row 0" in text
        assert "0 on rank 0, 1 on rank 1" in text


def test_run_stream__other_data_stop_all(pool):
    for kind, text, _ in pool["test set"]:
        assert kind == "RankError" and "test[0].captions, row 0" in text
    for kind, text, _ in pool["longer"]:
        assert kind == "RankError" and "the number of experiences of train" in text
        assert "2 on rank 0, 3 on rank 1" in text
    for kind, text, _ in pool["images"]:
        assert kind == "RankError" and "the hash of the data" in text
        assert "'of rank 0' on rank 0, 'of rank 1' on rank 1" in text


def test_train__processes_that_refused_go_on_with_what_is_equal(pool):
    strategy, benchmark = settings({"train_mb_size": 8})(1)
    whole = weights(train_stream(strategy, benchmark).model)
    first, second = pool["equal"]
    assert_same_weights(first, second)
    for name, value in whole.items():
        torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_train__running_statistics_are_those_of_the_main_process(pool):
    (first, found), (second, same) = pool["batch norm"]
    assert_same_weights(first, second)
    assert repr(found) == repr(same)
    assert not torch.equal(first["norm.running_mean"], torch.zeros(8))
