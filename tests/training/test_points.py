"""Evaluation points: when a run is evaluated and stored."""

import json
import re

import numpy as np
import pytest

from avalanche_clip.evaluation.report.comparison import write_comparison
from avalanche_clip.evaluation.report.page import write_report
from avalanche_clip.evaluation.report.results import (
    cumulative_budget,
    load_results,
    matrices,
)
from avalanche_clip.training.runs.checkpoint_plugin import CheckpointPlugin, checkpoints
from avalanche_clip.training.runs.points import evaluation_points
from tests.training.small_runs import Interrupted, assert_same_runs, go


@pytest.mark.parametrize(
    "at, sizes, steps, samples",
    [
        ("steps", [4, 5, 6], [0, 1, 2], [4, 9, 15]),
        # 40 samples in batches of 4: the released code evaluates at 12, 20, 28, 36.
        ({"samples": 8}, [4] * 10, [2, 4, 6, 8, 9], [12, 20, 28, 36, 40]),
        ({"samples": 8}, [8] * 4, [1, 2, 3], [16, 24, 32]),
        ({"samples": np.int64(100)}, [16, 20, 24], [2], [60]),
        ({"samples": 10}, [35, 1, 1, 3, 1], [0, 4], [35, 41]),
        ({"samples": 3}, [0, 0, 4, 0], [2, 3], [4, 4]),
        ([0, 2], [4, 5, 6, 7], [0, 2, 3], [4, 15, 22]),
        (np.array([2, 0]), [4, 5, 6], [0, 2], [4, 15]),
        (range(1), [4, 5], [0, 1], [4, 9]),
        ("steps", [], [], []),
    ],
    ids=str,
)
def test_evaluation_points__are_these(at, sizes, steps, samples):
    found = evaluation_points(at, sizes)
    assert (found.steps, found.samples) == (steps, samples)
    json.dumps(found.record())
    assert [k for k in range(len(sizes)) if k in found] == steps
    assert found.before(len(sizes)) == len(steps)


def test_evaluation_points__of_a_long_online_stream():
    found = evaluation_points({"samples": 1000}, [64] * 781 + [16])
    assert found.samples[:3] == [1024, 2048, 3008] and len(found.samples) == 50
    assert found.samples[-1] == 50_000


@pytest.mark.parametrize(
    "at, samples, curve, ends",
    [
        ({"samples": 8, "task_ends": True}, [12, 20, 28], [12, 20, 28], [20, 28]),
        ({"samples": 14, "task_ends": True}, [16, 20, 28], [16], [20, 28]),
        ({"samples": 14, "include_final": True}, [16, 28], [16, 28], []),
        ({"samples": 14, "include_final": False}, [16, 28], [16], []),
        ({"samples": 99, "task_ends": True}, [20, 28], [], [20, 28]),
        ({"task_ends": True}, [20, 28], None, [20, 28]),
        ("steps", [4, 8, 12, 16, 20, 24, 28], None, [20, 28]),
        ([4], [20, 28], None, [20, 28]),
        ([0], [4, 28], None, []),
    ],
    ids=str,
)
def test_evaluation_points__of_an_online_stream_with_tasks(at, samples, curve, ends):
    found = evaluation_points(at, [4] * 7, [4, 6])
    assert found.samples == samples
    rows = found.online()
    assert [samples[row] for row in rows["task_ends"]] == ends
    assert rows["curve"] == (curve and [samples.index(n) for n in curve])


def test_evaluation_points__all_of_them_are_one_rule():
    for at in ("steps", {"samples": 4}, [0, 1, 2], [1, 0]):
        assert (
            evaluation_points(at, [5, 6, 7][: 3 if at != [1, 0] else 2]).at == "steps"
        )


@pytest.mark.parametrize(
    "at, message",
    [
        ("step", "evaluate_at='step' is unknown; .* Did you mean 'steps'"),
        ("samples", "evaluate_at='samples' is unknown"),
        ({"sample": 3}, "evaluate_at={'sample': 3} is unknown; give evaluate_at="),
        ({"samples": 3, "steps": 1}, "is unknown; give"),
        ({}, "evaluate_at={} is unknown"),
        ({"task_ends": False}, "is unknown"),
        ({"task_ends": 1}, "is unknown; give"),
        ({"include_final": True}, "is unknown"),
        ({"task_ends": True, "include_final": True}, "is unknown"),
        ({"samples": 0}, r'evaluate_at\["samples"\]=0 must be an integer >= 1'),
        ({"samples": 2.5}, "=2.5 must be an integer"),
        ({"samples": True}, "=True must be an integer"),
        ([3], r"\[3\] are no steps; the training stream has 3 steps"),
        ([-1], r"\[-1\] are no steps"),
        ([0, 0], "each step may be named once"),
        ([], "it names no step"),
        ([1.0], "is 1.0, of type float; give an integer. For evaluate_at give"),
        ([True], "is True, of type bool"),
        (["0"], "give an integer"),
        (5, "evaluate_at=5 must be a list of integers. For evaluate_at give"),
        (None, "evaluate_at=None must be a list"),
    ],
    ids=str,
)
def test_evaluation_points__nonsense_is_refused(at, message):
    with pytest.raises(ValueError, match=message):
        evaluation_points(at, [4, 5, 6])


def test_run_stream__nonsense_touches_nothing(tmp_path):
    with pytest.raises(ValueError, match="no steps; the training stream has 3 steps"):
        go(tmp_path / "run", run={"evaluate_at": [7]})
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return go(tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module")
def some(tmp_path_factory):
    return go(tmp_path_factory.mktemp("some"), run={"evaluate_at": [0]})


def test_run_stream__rows_are_those_of_the_points(whole, some):
    for stream, metrics in whole[1].matrices.items():
        for name, parts in metrics.items():
            found = some[1].matrices[stream][name]
            np.testing.assert_array_equal(found["before"], parts["before"])
            np.testing.assert_array_equal(found["E"], parts["E"][[0, 2]])
    assert some[1].steps == [0, 2] and whole[1].steps == [0, 1, 2]
    found = json.loads((some[1].out_dir / "results.json").read_text())
    assert found["evaluations"] == {"at": [0], "steps": [0, 2], "samples": [16, 60]}
    assert [len(found["seconds"][key]) for key in ("train", "eval")] == [3, 3]
    # A row is not the step of the column of its number.
    assert set(found["summary"]["test"]["mean_R@1"]) == {"final", "average"}


def test_run_stream__samples_are_those_of_the_stream(tmp_path, whole):
    _, result = go(tmp_path, run={"evaluate_at": {"samples": 30}})
    assert result.steps == [1, 2]
    np.testing.assert_array_equal(result.E, whole[1].E[1:])
    assert result.results["evaluations"]["at"] == {"samples": 30}


def test_run_stream__checkpoints_follow_the_points(tmp_path):
    own = CheckpointPlugin(tmp_path / "own", keep=99)
    go(tmp_path / "run", extra=[own], run={"evaluate_at": [1]})
    names = [path.name for path in checkpoints(tmp_path / "own")]
    assert [re.sub(r"\D*0*(\d+)", r"\1", name[:15]) for name in names] == [
        *("0", "10", "10", "15", "15")
    ]
    assert own.points is None


@pytest.mark.parametrize(
    "stop", [{"train": 3}, {"train": 8}, {"train": 13}, {"evaluation": 9}], ids=str
)
def test_run_stream__resumes_exactly_with_points(stop, tmp_path, some):
    run = {"evaluate_at": [0]}
    with pytest.raises(Interrupted):
        go(tmp_path, stop=stop, run=run)
    assert_same_runs(some, go(tmp_path, resume=True, run=run))


def test_run_stream__resumes_between_points_from_the_last_one(tmp_path, some):
    run = {"evaluate_at": [0], "checkpoint_iterations": None}
    with pytest.raises(Interrupted):
        go(tmp_path, stop={"train": 12}, run=run)
    assert [path.name[6:15] for path in checkpoints(tmp_path / "checkpoints")] == [
        *("000000005", "000000005")
    ]
    assert_same_runs(some, go(tmp_path, resume=True, run=run))


def test_run_stream__resuming_with_other_points_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        go(tmp_path, stop={"train": 8}, run={"evaluate_at": {"samples": 30}})
    for at in ("steps", {"samples": 40}, [1]):
        with pytest.raises(ValueError, match=r"evaluate_at\S* is .* there and"):
            go(tmp_path, resume=True, run={"evaluate_at": at})
    go(tmp_path, resume=True, run={"evaluate_at": {"samples": 30}})


def test_report__names_the_steps_and_frames_no_diagonal(tmp_path, whole, some):
    results = load_results(some[1].out_dir)
    found = matrices(results)["test"]["mean_R@1"]
    assert found.row_labels == ["step 0", "step 2"] and not found.by_step
    assert found.summary().keys() == {"average", "final"}
    assert cumulative_budget(results, found.points) == cumulative_budget(
        load_results(whole[1].out_dir), [0, 2]
    )
    page = write_report(some[1].out_dir).read_text()
    assert "after step 2" in page and "2 evaluations on 3 test sets" in page
    assert 'class="own"' not in page
    with pytest.raises(ValueError, match="with the same evaluate_at"):
        other = {**json.loads((whole[1].out_dir / "results.json").read_text())}
        write_comparison(tmp_path, [some[1].out_dir, {**other, "method": "other"}])
