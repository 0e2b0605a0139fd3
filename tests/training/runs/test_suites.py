"""Suites attached to a run: values, what they leave alone, resuming, refusals."""

import csv
import io
import json
import signal

import numpy as np
import pytest
from avalanche.logging import InteractiveLogger

from avalanche_clip.training.templates.contract import MethodPlugin
from tests.helpers import assert_same_weights
from tests.training.small_runs import (
    Interrupted,
    assert_same_runs,
    evaluator,
    go,
    kill,
)
from tests.training.small_suites import Weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    suites = [Weights(), Weights("double", factor=2.0)]
    suites[0].last = -1e9  # of another run
    out = tmp_path_factory.mktemp("suites")
    return suites, *go(out, "ContrastiveLwF", run={"suites": suites})


def test_run_stream__rows_of_suites_are_those_of_E(finished):
    suites, _, result = finished
    found = json.loads((result.out_dir / "results.json").read_text())["suites"]
    assert list(found) == ["weights", "double"]
    assert list(found["weights"]) == ["before", "0", "1", "2"]
    one, two = ([row["sum"]["value"] for row in found[name].values()] for name in found)
    assert len(set(one)) == 4
    np.testing.assert_allclose(two, 2 * np.array(one), rtol=1e-6)
    # What a suite kept of another run counts no more.
    assert found["weights"]["before"]["sum"]["rose"] is None
    rose = [row["sum"]["rose"] for row in found["weights"].values()][1:]
    assert rose == [float(b > a) for a, b in zip(one, one[1:], strict=False)]
    assert result.results["suites"]["double"]["1"]["two"] == {"acc1": 0.5}
    assert result.results["suites_missing"]["weights"] == suites[0].missing


def test_run_stream__suites_change_nothing_else(finished, tmp_path):
    _, strategy, result = finished
    plain, other = go(tmp_path, "ContrastiveLwF")
    assert_same_weights(plain.model, strategy.model)
    assert strategy.model.features is not None and strategy.model.features != "mine"
    for name in ("matrices", "samples", "compute", "data"):
        assert str(other.results[name]) == str(result.results[name])
    assert "suites" not in other.results and "suites_missing" not in other.results


def test_run_stream__loggers_are_told_of_suites(finished):
    _, strategy, result = finished
    with open(result.out_dir / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if "/suite/" in row["metric"]]
    mine = [r for r in rows if r["metric"] == "value/suite/double/sum"]
    assert [r["experience"] for r in mine] == ["-1", "0", "1", "2"]
    stored = result.results["suites"]["double"].values()
    assert [float(r["value"]) for r in mine] == [row["sum"]["value"] for row in stored]
    steps, values = strategy.evaluator.get_all_metrics()["acc1/suite/double/two"]
    assert steps == [0, 5, 10, 15] and values == [0.5] * 4


@pytest.mark.parametrize("stop", [1, 4])
def test_resume__interrupted_inside_a_suite(stop, tmp_path, finished):
    suites = [Weights(), Weights("double", factor=2.0, stop=stop)]
    with pytest.raises(Interrupted):
        go(tmp_path, "ContrastiveLwF", run={"suites": suites})
    suites[1].stop, suites[0].last = None, 1e9
    resumed = go(tmp_path, "ContrastiveLwF", resume=True, run={"suites": suites})
    assert_same_runs(finished[1:], resumed)
    assert str(resumed[1].results["suites"]) == str(finished[2].results["suites"])


def test_resume__killed_inside_a_suite(tmp_path, finished):
    first = [Weights(stop=3, kill=True), Weights("double", factor=2.0)]
    process = kill(tmp_path, {}, method="ContrastiveLwF", run={"suites": first})
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    again = {"suites": [Weights(), Weights("double", factor=2.0)]}
    resumed = go(tmp_path, "ContrastiveLwF", resume=True, run=again)
    assert_same_runs(finished[1:], resumed)
    assert str(resumed[1].results["suites"]) == str(finished[2].results["suites"])


def test_resume__other_suites_are_another_run(finished):
    out = finished[2].out_dir
    for suites in ([], [Weights()], [Weights(), Weights("double", factor=3.0)]):
        with pytest.raises(ValueError, match=r"holds another run: .*suites"):
            go(out, "ContrastiveLwF", resume=True, run={"suites": suites})


def test_run_stream__suites_that_are_refused(tmp_path):
    wrong = [
        (Weights(), TypeError, "give a list of suites"),
        ([Weights], TypeError, "give a list of suites"),
        ("zero-shot", TypeError, "give a list of suites"),
        ([Weights(), Weights()], ValueError, "'weights' occurs more than once"),
        ([Weights(factor=-1.0)], ValueError, "factor=-1.0 is below 0"),
    ]
    for suites, error, message in wrong:
        with pytest.raises(error, match=message):
            go(tmp_path / "run", run={"suites": suites})
        assert not (tmp_path / "run").exists()


class Routes(MethodPlugin, supports_distributed=True):
    """Chooses what images pass."""

    stateless = routes_batches = True


class Classifies(MethodPlugin, supports_distributed=True):
    """Has its own classifier."""

    stateless = True

    def class_logits(self, strategy, image_features):
        return None


@pytest.mark.parametrize("plugin", [Routes, Classifies])
def test_run_stream__suites_and_plugins_that_have_no_rule_for_them(plugin, tmp_path):
    with pytest.raises(ValueError, match=f"{plugin.__name__} chooses what each image"):
        go(tmp_path / "run", extra=[plugin()], run={"suites": [Weights()]})
    go(tmp_path / "run", extra=[plugin()])


class Told(InteractiveLogger):
    """Keeps what it would print."""

    def __init__(self):
        super().__init__()
        self.file = io.StringIO()


def test_run_stream__text_loggers_print_suites_at_once(tmp_path):
    log = Told()
    run = {"suites": [Weights()], "streams": ("test",)}
    go(tmp_path, evaluator=evaluator(loggers=[log]), run=run)
    last = log.file.getvalue().rsplit("> Suites ended.", 1)[1]
    assert "acc1/suite/weights/two = 0.5000" in last and "R@1" not in last
