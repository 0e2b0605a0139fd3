"""A run goes on when the next steps of its stream have arrived."""

import json
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from avalanche.training.plugins import LRSchedulerPlugin, ReplayPlugin

from avalanche_clip.models.stored import kept_steps
from avalanche_clip.training import run_stream
from avalanche_clip.training.plugins import CheckpointPlugin
from avalanche_clip.training.runs.checkpoint_plugin import checkpoints
from tests.helpers import Pairs, assert_same_weights, stub_model
from tests.processes import run_in_processes
from tests.training.classes import class_strategy, domain_benchmark
from tests.training.runs.test_folder import content
from tests.training.small_runs import Interrupted, build, first_steps, go
from tests.training.small_suites import Weights

ALL = {"keep_steps": "all"}


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Plots take longer than the runs."""
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        yield


def results(folder):
    return json.loads((folder / "results.json").read_text())


def extended(folder, *stages, run=ALL, **options):
    """A run over the first steps, then over more: 2, and all three by default."""
    for steps in stages or (2,):
        go(folder, steps=steps, run=run, resume="extend", **options)
    return go(folder, run=run, resume="extend", **options)


def assert_extended(left, right, missing=(), evaluations=True):
    """Fail unless a run ended as one over the whole stream, but for missing rows.

    :param missing: rows (0 is before the stream) without values of new test sets.
    :param evaluations: whether as many were made.
    """
    (left_strategy, left_result), (right_strategy, right_result) = left, right
    assert_same_weights(left_strategy.model, right_strategy.model)
    clocks = [dict(vars(s.clock)) for s in (left_strategy, right_strategy)]
    if missing or not evaluations:
        [clock.pop("total_iterations") for clock in clocks]
    assert clocks[0] == clocks[1]
    assert left_result.steps == right_result.steps
    for stream, metrics in right_result.matrices.items():
        assert left_result.matrices[stream].keys() == metrics.keys()
        for name, parts in metrics.items():
            have = left_result.matrices[stream][name]
            for row in range(len(parts["E"]) + 1):
                mine, other = (
                    np.vstack([found["before"][None], found["E"]])[row].copy()
                    for found in (have, parts)
                )
                if row in missing:
                    assert np.isnan(mine[-1]) and not np.isnan(other[-1]), (name, row)
                    mine, other = mine[:-1], other[:-1]
                np.testing.assert_array_equal(mine, other, f"{stream} {name} {row}")
    found = [results(r.out_dir) for _, r in (left, right)]
    for key in ("samples", "compute", "data", "config", "evaluations"):
        assert found[0][key] == found[1][key], key
    lengths = [{k: len(v) for k, v in f["seconds"].items()} for f in found]
    assert lengths[0] == lengths[1]
    if not missing:
        assert found[0]["matrices"] == found[1]["matrices"]
        assert found[0]["summary"] == found[1]["summary"]
        assert found[0]["examples"] == found[1]["examples"]
        assert found[0]["chance"] == found[1]["chance"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return go(tmp_path_factory.mktemp("whole"), run=ALL)


# ------------------------------------------------------------------ equality
METHODS = {
    "Sequential": {},
    "CumulativeExp": {"buffer_size": 10},
    "ContrastiveLwF": {},
    "Oracle": {},
    "stock replay": {"extra": partial(ReplayPlugin, mem_size=6)},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[pytest.mark.slow] * (name in ("CumulativeExp", "Oracle"))
        )
        for name in METHODS
    ],
)
def test_extend__equals_a_run_over_the_longer_stream(name, tmp_path):
    given = dict(METHODS[name])
    method = "Sequential" if name == "stock replay" else name
    make = given.pop("extra", None)

    def options():
        return {**given, "method": method, "extra": [make()] if make else []}

    straight = go(tmp_path / "a", run=ALL, **options())
    for steps in (2, None):
        longer = go(tmp_path / "b", steps=steps, resume="extend", run=ALL, **options())
    assert_extended(longer, straight)


@pytest.mark.parametrize("stages", [(1,), (1, 2)], ids=str)
def test_extend__by_several_steps_or_several_times(stages, tmp_path, whole):
    assert_extended(extended(tmp_path, *stages), whole)
    costs = [results(one)["evaluation_cost"] for one in (tmp_path, whole[1].out_dir)]
    assert costs[0] == costs[1]


def test_extend__models_that_are_gone_leave_gaps(tmp_path, whole):
    found = extended(tmp_path, run={"keep_steps": 1})
    assert_extended(found, whole, missing=(0, 1))
    stored = results(tmp_path)["matrices"]["test"]["mean_R@1"]
    assert stored["before"][2] is None and stored["E"][0][2] is None
    assert None not in stored["E"][1] + stored["E"][2]
    assert "NaN" not in (tmp_path / "results.json").read_text()


@pytest.mark.parametrize("keep, known", [(1, "2"), (2, "12"), ("all", "-012")])
def test_keep_steps__is_how_many_models_stay(keep, known, tmp_path):
    go(tmp_path, run={"keep_steps": keep})
    assert list(kept_steps(tmp_path)) == ["before" if k == "-" else k for k in known]


def test_keep_steps__of_an_own_plugin_and_wrong_values(tmp_path):
    plugin = CheckpointPlugin(tmp_path / "own", keep=1)
    go(tmp_path / "run", extra=[plugin], run={"checkpoint_iterations": None})
    assert list(kept_steps(tmp_path / "own")) == ["1", "2"]
    for wrong in (0, "most", 1.5, None, True):
        with pytest.raises(ValueError, match="keep_steps="):
            go(tmp_path / "wrong", run={"keep_steps": wrong})
    assert not (tmp_path / "wrong").exists()


# --------------------------------------------------------------- interrupted
@pytest.mark.parametrize(
    "stop, every, resume", [({"train": 13}, 2, "extend"), ({"train": 11}, None, True)]
)
def test_extend__goes_on_after_an_interruption(stop, every, resume, tmp_path, whole):
    run = {**ALL, "checkpoint_iterations": every}
    go(tmp_path, steps=2, run=run)
    before = content(tmp_path / "checkpoints")
    with pytest.raises(Interrupted):
        go(tmp_path, stop=stop, run=run, resume="extend")
    if every is None:  # nothing of the extension is there but what it is
        assert content(tmp_path / "checkpoints") == before
    assert_extended(go(tmp_path, run=run, resume=resume), whole)


def test_extend__stopped_while_the_columns_are_filled(tmp_path, whole):
    go(tmp_path, steps=2, run=ALL)
    with pytest.raises(Interrupted):
        go(tmp_path, stop={"evaluation": 3}, run=ALL, resume="extend")
    assert_extended(go(tmp_path, run=ALL, resume=True), whole)


def test_extend__of_a_run_that_was_not_finished(tmp_path, whole):
    with pytest.raises(Interrupted):
        go(tmp_path, steps=2, stop={"train": 9}, run=ALL)
    assert_extended(go(tmp_path, run=ALL, resume="extend"), whole)


def test_extend__without_a_run_or_with_a_finished_one(tmp_path, whole):
    first = go(tmp_path, run=ALL, resume="extend")
    assert_extended(first, whole)
    assert_extended(go(tmp_path, run=ALL, resume="extend"), whole)


# ------------------------------------------------------------------- refused
class Pictures(Pairs):
    """Other pictures with the same captions."""

    def __init__(self, groups, seed, captions):
        super().__init__(groups, seed + 100, captions)


REFUSED = {
    "seed": ({}, {"seed": 4}, "seed is 3 there and 4 here"),
    "method": ({}, {"method": "Restart"}, "method is 'Sequential' there"),
    "batch": ({}, {"train_mb_size": 4}, "train_mb_size is 8 there and 4 here"),
    "epochs": (
        {"train_epochs": [1, 2]},
        {},
        "There are 2 numbers of epochs for 3 training experiences",
    ),
    "longer list": (
        {"train_epochs": [1, 2]},
        {"train_epochs": [1, 2, 1]},
        r"train_epochs is \[1, 2\] there and \[1, 2, 1\] here",
    ),
    "factors": (
        {"method": "CumulativeAllStar", "budget_factors": (1, 2)},
        {},
        "There are 2 budget factors for 3 training experiences",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_extend__with_other_settings_is_refused(name, tmp_path):
    first, then, message = REFUSED[name]
    go(tmp_path, steps=2, **first)
    before = content(tmp_path)
    with pytest.raises(ValueError, match=message):
        go(tmp_path, resume="extend", **{**first, **then})
    assert content(tmp_path) == before


def test_extend__with_other_old_data_is_refused(tmp_path):
    go(tmp_path, steps=2)
    before = content(tmp_path)
    with mock.patch("tests.helpers.Pairs", Pictures):
        with pytest.raises(ValueError, match="holds another run: .*train.0 is '"):
            go(tmp_path, resume="extend")
    assert content(tmp_path) == before


def test_extend__over_fewer_steps_is_refused(tmp_path):
    go(tmp_path)
    for resume in ("extend", True):
        with pytest.raises(ValueError, match="shorter|holds another run"):
            go(tmp_path, steps=2, resume=resume)


def test_extend__is_asked_for(tmp_path):
    go(tmp_path, steps=2)
    with pytest.raises(ValueError, match="1 further steps pass resume='extend'"):
        go(tmp_path, resume=True)
    with pytest.raises(ValueError, match="resume='extend' to train further steps"):
        go(tmp_path)
    with pytest.raises(ValueError, match="resume='extended' is unknown"):
        go(tmp_path, resume="extended")


def test_extend__a_joint_training_is_another_one(tmp_path):
    for steps in (1, 2):
        go(tmp_path / str(steps), "Joint", steps=steps)
        with pytest.raises(ValueError, match="union of all steps"):
            go(tmp_path / str(steps), "Joint", resume="extend")
        go(tmp_path / str(steps), "Joint", steps=steps, resume="extend")


# --------------------------------------------------------- evaluation points
def test_extend__a_last_step_that_is_no_point_keeps_its_row(tmp_path):
    at = {"evaluate_at": {"samples": 40}, **ALL}
    straight = go(tmp_path / "a", run=at)
    assert straight[1].steps == [2]
    longer = extended(tmp_path / "b", run=at)
    assert longer[1].steps == [1, 2]
    assert_same_weights(longer[0].model, straight[0].model)
    np.testing.assert_array_equal(longer[1].E[1:], straight[1].E)
    assert not np.isnan(longer[1].E).any()
    again = go(tmp_path / "b", run=at, resume=True)
    np.testing.assert_array_equal(again[1].E, longer[1].E)


def test_extend__lists_of_points_must_agree_on_the_old_steps(tmp_path, whole):
    go(tmp_path, steps=2, run={**ALL, "evaluate_at": [0]})
    with pytest.raises(ValueError, match="evaluate_at is 'steps' there and"):
        go(tmp_path, resume="extend", run={**ALL, "evaluate_at": [1, 2]})
    every = {**ALL, "evaluate_at": [0, 1, 2]}
    assert_extended(go(tmp_path, resume="extend", run=every), whole)


def test_extend__streams_that_are_scored_at_the_ends(tmp_path):
    run = {**ALL, "streams": ("test",), "final_streams": ("valid",)}
    straight = go(tmp_path / "a", run=run)
    longer = extended(tmp_path / "b", run=run)
    assert_extended(longer, straight, evaluations=False)
    assert longer[1].matrices["valid"]["mean_R@1"]["E"].shape == (1, 3)


def test_extend__a_damaged_model_is_missing(tmp_path, whole, caplog):
    go(tmp_path, steps=2, run=ALL)
    path = kept_steps(tmp_path)["0"]
    path.write_bytes(path.read_bytes()[:-50])
    found = go(tmp_path, run=ALL, resume="extend")
    assert_extended(found, whole, missing=(1,))
    assert "is damaged" in caplog.text and "after step 0 is not kept" in caplog.text


def test_extend__files_of_the_folder_grow(tmp_path):
    extended(tmp_path)
    assert len(results(tmp_path)["data"]["labels"]["train"]) == 3
    assert json.loads((tmp_path / "run_state.json").read_text())
    assert len(checkpoints(tmp_path / "checkpoints")) == 5


# ------------------------------------------------------------------ class names
def classes(out, sizes, **options):
    """A run on class names over some domains."""
    torch.manual_seed(0)
    model = stub_model(dropout=0.2)
    strategy = class_strategy(model, **options)
    benchmark = domain_benchmark(model, sizes)
    result = run_stream(
        strategy, benchmark, out, resume="extend", keep_steps="all", verbose=0
    )
    return strategy, result


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("space", ["own", "seen"])
def test_extend__further_domains_bring_their_class_names(space, tmp_path):
    options = {"label_space": "current", "eval_label_space": space}
    straight = classes(tmp_path / "a", (3, 4, 2), **options)
    classes(tmp_path / "b", (3, 4), **options)
    assert_extended(classes(tmp_path / "b", (3, 4, 2), **options), straight)


@pytest.mark.filterwarnings("ignore")
def test_extend__a_space_of_all_classes_changes_with_them(tmp_path):
    classes(tmp_path, (3, 4), eval_label_space="all")
    before = content(tmp_path)
    with pytest.raises(ValueError, match="cannot go on over 3: the label space 'all'"):
        classes(tmp_path, (3, 4, 2), eval_label_space="all")
    with pytest.raises(ValueError, match="holds another run"):
        classes(tmp_path, (3, 5, 2), eval_label_space="all")
    assert content(tmp_path) == before


# ---------------------------------------------------- suites, several processes
def test_extend__suites_grow(tmp_path):
    def options():
        return {"suites": [Weights()], **ALL}

    straight = go(tmp_path / "a", run=options())
    go(tmp_path / "b", steps=2, run=options())
    longer = go(tmp_path / "b", resume="extend", run=options())
    assert_extended(longer, straight)
    found = [results(tmp_path / name)["suites"] for name in "ab"]
    assert found[0] == found[1] and list(found[0]["weights"]) == ["before", *"012"]
    with pytest.raises(ValueError, match="suites"):
        go(tmp_path / "b", resume="extend", run=ALL)


def test_extend__a_schedule_over_the_stream_is_refused(tmp_path):
    def schedule(reset):
        def optimizer(groups):
            made.append(torch.optim.SGD(groups, lr=0.1))
            return made[-1]

        made = []
        strategy, benchmark = build(optimizer=optimizer)
        steps = torch.optim.lr_scheduler.StepLR(strategy.optimizer, 3)
        strategy.plugins.append(LRSchedulerPlugin(steps, reset_scheduler=reset))
        return strategy, benchmark

    for reset in (True, False):
        for steps in (2, None):
            strategy, benchmark = schedule(reset)
            if steps:
                benchmark = first_steps(benchmark, steps)
            arguments = (strategy, benchmark, tmp_path / str(reset))
            if steps or reset:
                run_stream(*arguments, resume="extend", verbose=0)
                continue
            with pytest.raises(ValueError, match="one schedule over the whole stream"):
                run_stream(*arguments, resume="extend", verbose=0)


def in_two(folder):
    """Both ways to three steps, in each of two processes."""
    found = []
    for name, steps in (("a", None), ("b", 2), ("b", None)):
        strategy, benchmark = build(steps=steps)
        options = {"resume": "extend", "verbose": 0, **ALL}
        with mock.patch("avalanche_clip.training.runs.stream.write_report"):
            result = run_stream(strategy, benchmark, folder / name, **options)
        found.append((result.E, result.before, strategy.model.state_dict()))
    return found[0], found[2]


@pytest.mark.slow
def test_extend__in_two_processes(tmp_path):
    (tmp_path / "out").mkdir()
    found = run_in_processes({"in_two": partial(in_two, tmp_path)}, tmp_path / "out")
    for straight, longer in found["in_two"]:
        np.testing.assert_array_equal(straight[0], longer[0])
        np.testing.assert_array_equal(straight[1], longer[1])
        assert_same_weights(straight[2], longer[2])
    runs = [results(tmp_path / name) for name in "ab"]
    assert runs[0]["matrices"] == runs[1]["matrices"]
    assert runs[0]["samples"] == runs[1]["samples"]
