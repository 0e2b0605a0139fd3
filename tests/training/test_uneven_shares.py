"""Steps that three processes cannot share evenly, on streams no method needs."""

from functools import partial

import pytest
import torch

from avalanche_clip.benchmarks import prepare_benchmark, time_stamped_benchmark
from avalanche_clip.training.supervised import Sequential
from tests.helpers import (
    assert_same_weights,
    build,
    sgd,
    stub_benchmark,
    stub_dataset,
    stub_model,
    train_stream,
)
from tests.methods.runs import Losses
from tests.processes import run_in_processes
from tests.training import small_runs

pytestmark = pytest.mark.filterwarnings("ignore")

BATCH = 12
"""Pairs of a step over all processes: more than any experience has."""
CASES = {
    "tail": {"train_epochs": 2, "budget_iterations": None, "sizes": (15, 16)},
    "accumulation": {"accumulation_steps": 2},
    "targets": {"positives": "targets"},
    "bias": {"model": {"bias": True}},
}


def small_run(case, processes):
    options = {
        "train_mb_size": BATCH // processes,
        "budget_iterations": 3,
        "optimizer": sgd,
        **CASES[case],
    }
    model = stub_model(**options.pop("model", {}))
    sizes = options.pop("sizes", (5, 7))
    benchmark = stub_benchmark(sizes, model=model, targets=True, groups=4)
    note = Losses()
    strategy = build(Sequential, model, plugins=[note], **options)
    more = {"drop_last": False} if case == "tail" else {}
    train_stream(strategy, benchmark, **more)
    samples = strategy.compute.report()["samples"]
    return {"weights": model.state_dict(), "samples": samples, **vars(note)}


def tiny_test_set():
    """Results on test sets of one and two pairs, on untrained weights."""
    found = []
    for count in (1, 2):
        model = stub_model()
        test = stub_dataset(range(count), [0.0] * count, seed=1, first_id=50)
        train = stub_dataset(range(4), [0.0] * 4)
        benchmark = time_stamped_benchmark(train, boundaries=[], test=test)
        benchmark = prepare_benchmark(benchmark, model)
        strategy = build(Sequential, model, evaluator=small_runs.evaluator())
        found.append(strategy.eval(benchmark.test_stream))
    return found


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    """Results of three processes."""
    jobs = {case: partial(small_run, case, 3) for case in CASES}
    jobs["tiny test set"] = tiny_test_set
    return run_in_processes(jobs, tmp_path_factory.mktemp("pool"), count=3)


@pytest.mark.parametrize("case", CASES)
def test_processes__equal_one_when_a_step_is_smaller_than_the_batch(case, pool):
    first, *others = pool[case]
    whole = small_run(case, 1)
    for other in others:
        assert_same_weights(first["weights"], other["weights"])
        assert first["seen"] == other["seen"]
    for key in ("ids", "samples"):
        assert first[key] == whole[key], key
    for ours, expected in zip(first["seen"], whole["seen"], strict=True):
        assert ours == pytest.approx(expected, rel=1e-4, abs=1e-6)
    for name, value in whole["weights"].items():
        torch.testing.assert_close(
            first["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name
        )


def test_evaluation__is_exact_on_fewer_pairs_than_processes(pool):
    whole = tiny_test_set()
    assert len(whole[0]) > 1
    for found in pool["tiny test set"]:
        assert repr(found) == repr(whole)
