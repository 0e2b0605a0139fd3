"""Accuracy in both label spaces, in one run."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics

from avalanche_clip.benchmarks.items.scenario import make_scenario
from avalanche_clip.evaluation import label_space_metrics
from avalanche_clip.training import ClassNameFineTuning, Sequential, run_stream
from avalanche_clip.training.runs.checkpoint_plugin import checkpoints
from avalanche_clip.training.runs.resume import load_state
from tests.helpers import build as build_pairs
from tests.helpers import quiet_evaluator, stub_benchmark, stub_model, train_stream
from tests.methods.rows import ROWS
from tests.methods.worlds import build
from tests.refused import refused
from tests.training import classes
from tests.training.small_runs import Interrupted, StopPlugin

pytestmark = pytest.mark.filterwarnings("ignore")
PARTS = ("accuracy_own", "accuracy_seen", "Top1_Acc_Exp")


def go(folder, strategy, benchmark, **options):
    """The matrices of a run that writes no report, and its results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avalanche_clip.training.runs.stream.write_report", lambda p: 0)
        result = run_stream(strategy, benchmark, folder, verbose=0, **options)
    found = result.matrices["test"]
    return {n: np.vstack([found[n]["before"], found[n]["E"]]) for n in PARTS}, result


def domains(space, batch=4):
    model = stub_model()
    strategy = classes.class_strategy(
        model,
        eval_label_space=space,
        eval_mb_size=batch,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=2.0),
    )
    return strategy, classes.domain_benchmark(model)


@cache
def top1(space):
    import tempfile

    return go(tempfile.mkdtemp(), *domains(space))[0]["Top1_Acc_Exp"]


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("space", ["own", "current", "seen", "open", "all"])
def test_run__has_what_runs_in_either_space_have(space, batch, tmp_path):
    found, result = go(tmp_path / "run", *domains(space, batch))
    np.testing.assert_allclose(found["accuracy_own"], top1("own"), atol=1e-6)
    np.testing.assert_allclose(found["accuracy_seen"], top1("seen"), atol=1e-6)
    assert not np.array_equal(top1("own"), top1("seen"))
    np.testing.assert_array_equal(found["accuracy_own"][0], found["accuracy_seen"][0])
    np.testing.assert_array_equal(result.E, found["Top1_Acc_Exp"][1:])
    stored = json.loads((tmp_path / "run" / "results.json").read_text())
    for name in PARTS:
        np.testing.assert_array_equal(
            stored["matrices"]["test"][name]["E"], found[name][1:]
        )


@pytest.mark.parametrize("name", ["MoEAdapters", "CoLeCLIP"])
def test_methods__that_score_classes_themselves_do_so_in_both(name):
    strategy, benchmark = build(ROWS[name])
    strategy.evaluator.metrics.extend(label_space_metrics())
    train_stream(strategy, benchmark, 2)
    values = {}
    for space in ("own", "seen"):
        strategy.eval_label_space = space
        found = strategy.eval(benchmark.test_stream)
        values[space] = [
            [v for k, v in found.items() if k.startswith(f"{part}/") and "/Exp" in k]
            for part in PARTS
        ]
        assert [len(row) for row in values[space]] == [3, 3, 3]
    own, seen = (np.array(values[space]) for space in values)
    np.testing.assert_allclose(own[:2], seen[:2], atol=1e-6)
    np.testing.assert_allclose(own[2], own[0], atol=1e-6)
    np.testing.assert_allclose(seen[2], own[1], atol=1e-6)


def test_class_incremental__summaries_are_of_the_strategys_space(tmp_path):
    model = stub_model()
    strategy = classes.class_strategy(model, eval_label_space="own")
    _, result = go(tmp_path / "run", strategy, classes.class_benchmark(model))
    summary = result.results["summary"]["test"]
    assert not [k for name in PARTS for k in summary[name] if "incremental" in k]
    assert summary["accuracy_own"]["final"] >= summary["accuracy_seen"]["final"]


def test_resumed_and_loaded__as_without_the_metric(tmp_path):
    full, _ = go(tmp_path / "full", *domains("own"))
    strategy, benchmark = domains("own")
    strategy.plugins.insert(0, StopPlugin(train=7))
    with pytest.raises(Interrupted):
        go(tmp_path / "run", strategy, benchmark)
    assert len(strategy.evaluator.metrics) == len(domains("own")[0].evaluator.metrics)
    again, benchmark = domains("own")
    found, _ = go(tmp_path / "run", again, benchmark, resume=True)
    for name in PARTS:
        np.testing.assert_array_equal(full[name], found[name])
    strategy, benchmark = domains("own")
    path = (
        tmp_path
        / "run"
        / "checkpoints"
        / checkpoints(tmp_path / "run/checkpoints")[-1].name
    )
    assert load_state(strategy, path, benchmark) == 3


def test_evaluator__may_have_the_metric_itself(tmp_path):
    model = stub_model()
    metrics = [accuracy_metrics(experience=True), label_space_metrics()]
    strategy = classes.class_strategy(
        model,
        ClassNameFineTuning,
        warmup_iterations=1,
        evaluator=quiet_evaluator(metrics),
    )
    benchmark = classes.domain_benchmark(model)
    found = strategy.eval(benchmark.test_stream)
    place = "eval_phase/test_stream/Task001/Exp001"
    assert found[f"accuracy_own/{place}"] == pytest.approx(
        found[f"Top1_Acc_Exp/{place}"]
    )
    _, result = go(tmp_path / "run", strategy, benchmark)
    assert len(strategy.evaluator.metrics) == 2
    assert result.matrix("accuracy_seen").shape == (3, 3)


def test_pairs__have_no_label_spaces(tmp_path):
    words = "LabelSpaceAccuracy needs classes, which Sequential has none of"
    given = quiet_evaluator([label_space_metrics()])
    refused(words, build_pairs, Sequential, evaluator=given)
    from tests.training.small_runs import evaluator

    model = stub_model()
    strategy = build_pairs(Sequential, model, evaluator=evaluator())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avalanche_clip.training.runs.stream.write_report", lambda p: 0)
        result = run_stream(strategy, stub_benchmark(model=model), tmp_path / "run")
    assert not {"accuracy_own", "accuracy_seen"} & set(result.matrices["test"])


def test_other_streams__with_a_space_of_their_own(tmp_path):
    strategy, benchmark = domains("seen")
    streams = dict(benchmark.streams)
    last = streams["test"][-1]
    given = make_scenario({**streams, "zero_shot": [last]}, benchmark)
    for experience in given.streams["zero_shot"]:
        experience.eval_label_space = "own"
    _, result = go(tmp_path / "run", strategy, given, streams=("test", "zero_shot"))
    table = result.matrices["zero_shot"]
    np.testing.assert_allclose(
        table["accuracy_own"]["E"], table["Top1_Acc_Exp"]["E"], atol=1e-6
    )
    np.testing.assert_allclose(
        table["accuracy_seen"]["E"][:, 0],
        result.matrix("accuracy_seen", "test")[:, -1],
        atol=1e-6,
    )
