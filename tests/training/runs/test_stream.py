"""Whole runs: what they evaluate, return and write."""

import json

import numpy as np
import pytest
from avalanche.evaluation import PluginMetric
from avalanche.logging import CSVLogger

from avalanche_clip.benchmarks import RandomCaption, prepare_benchmark
from avalanche_clip.benchmarks.items.scenario import make_scenario
from avalanche_clip.evaluation.metrics import spatial_disorder_metrics
from avalanche_clip.evaluation.metrics._values import metric_values
from avalanche_clip.training import (
    ContrastiveEWC,
    ContrastiveLwF,
    CumulativeAllStar,
    Oracle,
    Sequential,
    run_stream,
)
from avalanche_clip.training.runs.checkpoint_plugin import CheckpointPlugin, checkpoints
from avalanche_clip.training.runs.record import nominal_units
from avalanche_clip.training.runs.resume import load_state
from tests.helpers import assert_same_weights, fit, quiet_evaluator, stub_benchmark
from tests.training.small_runs import SIZES, Interrupted, build, evaluator, go


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    logger = CSVLogger(str(out / "stock"))
    strategy, benchmark = build("ContrastiveLwF", evaluator=evaluator(loggers=[logger]))
    before = strategy.eval(benchmark.test_stream)
    result = run_stream(strategy, benchmark, out / "run", streams=("test", "valid"))
    return strategy, benchmark, result, before


def test_run_stream__shapes_and_values(finished):
    strategy, benchmark, result, before = finished
    assert result.E.shape == (3, 3) and result.before.shape == (3,)
    start = "mean_R@1/eval_phase/test_stream/"
    names = [n for n in sorted(before) if n.startswith(start) and "Exp" in n]
    np.testing.assert_array_equal(result.before, [before[n] for n in names])
    last = strategy.eval(benchmark.test_stream)
    np.testing.assert_array_equal(result.E[-1], [last[n] for n in names])
    assert result.matrix("image_to_text_R@1", "valid").shape == (3, 3)
    assert list(result.matrices) == ["test", "valid"]


def test_run_stream__results_file_is_complete(finished):
    strategy, benchmark, result, _ = finished
    found = json.loads((result.out_dir / "results.json").read_text())
    assert found["method"] == "ContrastiveLwF" and found["seed"] == 3
    assert found["config"]["train_mb_size"] == 8
    assert found["config"]["optimizer"]["groups"][0]["lr"] == 5e-4
    assert {"python", "torch", "avalanche-lib", "avalanche_clip"} <= {
        *found["versions"]
    }
    assert set(found["revision"]) == {"commit", "dirty"}
    assert found["data"]["counts"] == {
        "train": [*SIZES],
        "test": [6] * 3,
        "valid": [6] * 3,
    }
    assert found["data"]["labels"]["train"] == ["step 0", "step 1", "step 2"]
    assert len(found["data"]["hash"]) == 64
    assert found["samples"] == [40, 40, 40]
    assert [set(row) for row in found["macs"]["macs"]] == [
        {"train"},
        {"train", "teacher"},
        {"train", "teacher"},
    ]
    assert len(found["seconds"]["train"]) == 3 and len(found["seconds"]["eval"]) == 4
    assert all(s > 0 for row in found["seconds"].values() for s in row)
    stored = found["matrices"]["test"]["mean_R@1"]
    np.testing.assert_array_equal(stored["E"], result.E)
    np.testing.assert_array_equal(stored["before"], result.before)
    assert {"in_domain", "backward", "forward", "final"} <= {
        *found["summary"]["test"]["mean_R@1"]
    }


def test_run_stream__writes_the_folder(finished):
    _, _, result, _ = finished
    out = result.out_dir
    assert (out / "report.html").stat().st_size > 1000
    assert list(out.rglob("*.png"))
    assert list((out / "tensorboard").glob("events.*"))
    assert "mean_R@1" in (out / "metrics.csv").read_text()
    assert [p.name for p in checkpoints(out / "checkpoints")] == [
        "state_000000010_eval.pt",
        "state_000000015_end.pt",
        "state_000000015_eval.pt",
    ]
    # The user's own logger ran beside ours.
    assert (out.parent / "stock" / "training_results.csv").read_text().count("\n") > 1


def test_run_stream__leaves_the_strategy_as_it_was(finished):
    strategy, _, _, _ = finished
    assert not any(isinstance(p, CheckpointPlugin) for p in strategy.plugins)
    assert [type(log) for log in strategy.evaluator.loggers] == [CSVLogger]


def test_run_stream__resuming_with_other_transforms_or_streams_raises(finished):
    _, _, result, _ = finished
    strategy, benchmark = build("ContrastiveLwF")
    with pytest.raises(ValueError, match="streams is"):
        run_stream(strategy, benchmark, result.out_dir, resume=True)
    other = prepare_benchmark(
        benchmark, strategy.model, train_text_transform=RandomCaption(0.5)
    )
    with pytest.raises(ValueError, match=r"transforms\.train is"):
        run_stream(
            strategy, other, result.out_dir, streams=("test", "valid"), resume=True
        )


def test_run_stream__unknown_stream_raises(tmp_path):
    strategy, benchmark = build()
    for streams in (("test", "gallery"), ()):
        with pytest.raises(ValueError, match="are not in the benchmark, which has"):
            run_stream(strategy, benchmark, tmp_path, streams=streams)
    assert not any(tmp_path.iterdir())


def test_run_stream__too_few_budget_factors_raise_before_training(tmp_path):
    with pytest.raises(ValueError, match="2 budget factors for 3 training"):
        go(tmp_path / "run", "CumulativeAllStar", budget_factors=[1, 1])
    assert not (tmp_path / "run").exists()


def test_run_stream__unprepared_benchmark_raises(tmp_path):
    strategy, _ = build()
    with pytest.raises(ValueError, match="prepare_benchmark"):
        run_stream(strategy, stub_benchmark(SIZES, prepare=False), tmp_path)
    assert not any(tmp_path.iterdir())


def test_run_stream__folder_of_a_run_that_failed_at_once_can_be_used(tmp_path):
    strategy, _ = build(evaluator=quiet_evaluator())
    with pytest.raises(ValueError, match="retrieval_plugin_metrics"):
        run_stream(strategy, build()[1], tmp_path)
    assert not (tmp_path / "run_state.json").exists()
    assert not (tmp_path / "metrics.csv").exists()
    go(tmp_path)


def test_run_stream__stream_of_another_length(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "avalanche_clip.training.runs.stream.write_report", lambda out: None
    )
    strategy, benchmark = build(budget_iterations=2)
    gallery = [benchmark.test_stream[1]]
    whole = make_scenario({**benchmark.streams, "gallery": gallery})
    result = run_stream(strategy, whole, tmp_path, streams=("test", "gallery"))
    E = result.matrix("mean_R@1", "gallery")
    assert E.shape == (3, 1)
    assert result.matrices["gallery"]["mean_R@1"]["before"].shape == (1,)
    # The gallery is the second test set.
    np.testing.assert_array_equal(E[:, 0], result.E[:, 1])
    summary = result.summary["gallery"]["mean_R@1"]
    assert summary == {"final": E[-1, 0], "average": pytest.approx(E.mean())}
    assert "backward" in result.summary["test"]["mean_R@1"]


def test_run_stream__uses_the_users_checkpoint_plugin(tmp_path):
    def make():
        plugin = CheckpointPlugin(tmp_path / "mine", every_iterations=2, keep=4)
        return {"extra": [plugin]}

    with pytest.raises(Interrupted):
        go(tmp_path / "out", stop={"train": 8}, **make())
    assert not (tmp_path / "out" / "checkpoints").exists()
    assert len(checkpoints(tmp_path / "mine")) == 4
    resumed, _ = go(tmp_path / "out", resume=True, **make())
    full, _ = go(tmp_path / "full", **{"extra": []})
    assert_same_weights(full.model, resumed.model)


def test_run_stream__checkpoint_of_another_kind_raises(tmp_path):
    plugin = CheckpointPlugin(tmp_path / "checkpoints")
    strategy, benchmark = build(extra=[plugin])
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    with pytest.raises(ValueError, match="go on with load_state"):
        go(tmp_path, resume=True)
    strategy, benchmark = build()
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    assert load_state(strategy, newest, benchmark) == 1


@pytest.mark.parametrize(
    ("cls", "options", "expected"),
    [
        (Sequential, {}, 2.0),
        (ContrastiveLwF, {}, 2.4),
        (ContrastiveEWC, {}, 2.4),
        (Oracle, {}, 3.0),
        (CumulativeAllStar, {"budget_factors": (1, 2)}, 3.0),
    ],
)
def test_nominal_units__are_those_of_the_paper(cls, options, expected):
    strategy = fit(cls, budget_iterations=2, steps=2, **options)
    assert nominal_units(strategy) == pytest.approx(expected)


def test_nominal_units__without_a_budget_are_unknown():
    assert nominal_units(fit(Sequential, steps=1, budget_iterations=None)) is None


def test_run_stream__method_name_and_results_of_metrics(tmp_path):
    def make():
        strategy, benchmark = build()
        (metric,) = spatial_disorder_metrics(benchmark.test_stream[0].dataset)
        strategy.evaluator.metrics.append(metric)
        return strategy, benchmark, metric

    strategy, benchmark, metric = make()
    result = run_stream(strategy, benchmark, tmp_path, method="mine")
    found = json.loads((tmp_path / "results.json").read_text())
    assert result.method == found["method"] == "mine"
    (curves,) = found["metrics"].values()
    expected = metric.result()["previous"]["imd_mean"]
    assert curves["previous"]["imd_mean"] == pytest.approx(expected)
    assert len(expected) == len(benchmark.train_stream)
    # A finished run, opened again, tells the same.
    again, benchmark, _ = make()
    reopened = run_stream(again, benchmark, tmp_path, method="mine", resume=True)
    assert str(reopened.results["metrics"]) == str(result.results["metrics"])
    again, benchmark, _ = make()
    with pytest.raises(ValueError, match="method is 'mine' there and 'Sequential'"):
        run_stream(again, benchmark, tmp_path, resume=True)


def test_run_stream__metrics_of_an_earlier_run_are_forgotten(tmp_path):
    strategy, benchmark = build()
    (metric,) = spatial_disorder_metrics(benchmark.test_stream[0].dataset)
    strategy.evaluator.metrics.append(metric)
    run_stream(strategy, benchmark, tmp_path / "one")
    result = run_stream(strategy, benchmark, tmp_path / "two")
    (curves,) = result.results["metrics"].values()
    assert curves["initial"]["trained"] == [1, 2, 3]


class Sometimes(PluginMetric):
    """Has a value in some evaluations only."""

    def result(self):
        return None

    def reset(self):
        pass

    def after_eval_exp(self, strategy):
        trained = strategy.clock.train_exp_counter
        values = {"now and then": float(trained)} if trained in (0, 2) else {}
        return metric_values(self, strategy, values)


def test_run_stream__a_metric_without_a_value_has_gaps_in_its_matrix(tmp_path):
    strategy, benchmark = build(budget_iterations=1)
    strategy.evaluator.metrics.append(Sometimes())
    found = run_stream(strategy, benchmark, tmp_path).matrices["test"]["now and then"]
    assert found["before"].tolist() == [0, 0, 0]
    nan = [np.nan] * 3
    np.testing.assert_array_equal(found["E"], [nan, [2, 2, 2], nan])
