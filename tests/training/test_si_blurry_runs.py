"""Runs on Si-Blurry: what is evaluated when, results, resuming, end streams."""

import json
import warnings
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import (
    attribute_array,
    prepare_benchmark,
    si_blurry_benchmark,
    split_online,
)
from avalanche_clip.evaluation.functional import incremental_accuracy, online_accuracy
from avalanche_clip.evaluation.report.comparison import write_comparison
from avalanche_clip.evaluation.report.page import write_report
from avalanche_clip.evaluation.report.results import load_results, matrices
from avalanche_clip.training import run_stream
from avalanche_clip.training.supervised import ClassNameJoint
from tests.helpers import stub_model, weights
from tests.processes import run_in_processes
from tests.training import small_runs as runs
from tests.training.classes import (
    TEMPLATES,
    Labelled,
    class_benchmark,
    class_strategy,
    cycle,
    domain,
    names_of,
)

POINTS = {"samples": 10, "task_ends": True}
pytestmark = pytest.mark.filterwarnings("ignore")


def blurry(model, online=4):
    benchmark = si_blurry_benchmark(
        Labelled(cycle(8, 6)),
        Labelled([*cycle(8, 2), 2, 2, 3]),
        names_of(0, 8),
        TEMPLATES,
        num_tasks=3,
        blurry_percent=30,
        zero_shot=[domain(3, 20, 7, name="held")],
    )
    benchmark = split_online(benchmark, online) if online else benchmark
    return prepare_benchmark(benchmark, model)


def go(out, stop=None, resume=False, online=4, run=None, benchmark=None, **options):
    torch.manual_seed(0 if stop is None else 99)
    model = stub_model(dropout=0.2, noise=0.1)
    benchmark = (benchmark or blurry)(model, online)
    settings = {"eval_label_space": "seen", "budget_iterations": 2, "train_mb_size": 4}
    strategy = class_strategy(
        model,
        plugins=[runs.StopPlugin(**(stop or {}))],
        **{**settings, **options},
    )
    given = {"evaluate_at": POINTS, "final_streams": ("zero_shot",), **(run or {})}
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        result = run_stream(
            strategy, benchmark, out, resume=resume, checkpoint_iterations=None, **given
        )
    return strategy, result


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return go(tmp_path_factory.mktemp("whole"))


def test_run__evaluates_the_classes_that_have_occurred(whole):
    strategy, result = whole
    benchmark = blurry(stub_model())
    seen, samples = [set()], [0]
    for part in benchmark.train_stream:
        targets = attribute_array(part.dataset, "targets").tolist()
        seen.append(seen[-1] | set(targets))
        samples.append(samples[-1] + len(targets))
    columns = [e.class_ids[0] for e in benchmark.test_stream]
    wanted = [[c in seen[step + 1] for c in columns] for step in result.steps]
    np.testing.assert_array_equal(~np.isnan(result.E), wanted)
    assert np.isnan(result.before).all()
    assert strategy.seen_classes and set(strategy.seen_classes) == seen[-1]
    sizes = blurry(stub_model(), online=0).task_sizes
    found = result.results["online"]
    taken = result.results["evaluations"]["samples"]
    assert [taken[row] for row in found["task_ends"]] == np.cumsum(sizes).tolist()
    due = [next(n for n in samples if n > p) for p in (10, 20, 30)]
    assert [taken[row] for row in found["curve"]] == due
    assert found["streams"] == ["test"]


def test_run__accuracy_is_among_the_classes_that_have_occurred(whole):
    strategy, result = whole
    known = sorted(strategy.seen_classes)
    benchmark = blurry(strategy.model)
    with torch.no_grad():
        strategy.model.eval()
        matrix = strategy.class_matrix(known)
        for column, experience in enumerate(benchmark.test_stream):
            items = [item[0] for item in experience.dataset]
            scores = strategy.model.encode_image(torch.stack(items)) @ matrix.T
            own = known.index(experience.class_ids[0])
            wanted = (scores.argmax(1) == own).float().mean().item()
            assert result.E[-1, column] == pytest.approx(wanted)


def said_of(out, benchmark=None, **options):
    """What a short run warns of, and its values."""
    given = {"evaluate_at": POINTS, "streams": ("test",), "final_streams": ()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, result = go(out, run=given, benchmark=benchmark, online=0, **options)
    said = [str(w.message) for w in caught if "Si-Blurry" in str(w.message)]
    return [text for text in said if "A_Avg" in text], result.summary["test"]


@pytest.mark.parametrize("space", ["seen", "all", "own"])
def test_run__says_that_its_label_space_has_no_online_values(space, tmp_path):
    said, summary = said_of(tmp_path, eval_label_space=space)
    assert ("A_Last" in summary["Top1_Acc_Exp"]) == (space == "seen") == (not said)
    for text in said:
        assert f"eval_label_space={space!r}; use 'seen'" in text


@pytest.mark.parametrize(
    "seed, empty, values", [(2, [0], True), (21, [0, 1, 2], False)]
)
def test_run__says_which_tasks_do_not_count(seed, empty, values, tmp_path):
    def few(model, online):
        sizes = {"num_tasks": 4, "disjoint_percent": 100, "seed": seed}
        data = Labelled(cycle(4, 6)), Labelled(cycle(4, 2)), names_of(0, 4), TEMPLATES
        benchmark = si_blurry_benchmark(*data, **sizes)
        assert [k for k, n in enumerate(benchmark.task_sizes) if not n] == empty
        return prepare_benchmark(split_online(benchmark, 4), model)

    (said,), summary = said_of(tmp_path, few)
    assert f"the tasks {empty} have none and do not count" in said
    assert ("A_Avg" in summary["Top1_Acc_Exp"]) == values


def test_run__summary_is_that_of_the_counts(whole):
    result = whole[1]
    counts = result.results["data"]["counts"]["test"]
    assert len(set(counts)) > 1
    online = result.results["online"]
    wanted = online_accuracy(
        result.E, counts, curve=online["curve"], task_ends=online["task_ends"]
    )
    found = result.summary["test"]["Top1_Acc_Exp"]
    assert {k: found[k] for k in wanted} == pytest.approx(wanted)
    assert found["final"] == pytest.approx(result.E[-1].mean())
    assert found["average"] == pytest.approx(np.nanmean(result.E))
    stored = json.loads((result.out_dir / "results.json").read_text())
    assert stored["summary"]["test"]["Top1_Acc_Exp"] == found


def test_run__final_streams_have_one_row_and_their_own_classes(whole):
    strategy, result = whole
    clock = dict(vars(strategy.clock))
    parts = result.matrices["zero_shot"]["Top1_Acc_Exp"]
    assert parts["E"].shape == (1, 1) and parts["before"].shape == (1,)
    held = blurry(strategy.model).streams["zero_shot"]
    torch.manual_seed(0)
    values = strategy.eval(held)
    name = next(k for k in values if k.startswith("Top1_Acc_Exp") and "zero_shot" in k)
    assert parts["E"][0, 0] == values[name]
    assert set(result.summary["zero_shot"]["Top1_Acc_Exp"]) == {"average", "final"}
    assert next(iter(result.matrices)) == "test"
    widths = []
    forward = type(strategy).forward

    def watched(self):
        widths.append(forward(self).shape[1])
        return forward(self)

    with mock.patch.object(type(strategy), "forward", watched):
        strategy.eval(held)
    assert set(widths) == {3}
    vars(strategy.clock).update(clock)


def test_report__shows_the_curve_of_the_classes_so_far(whole):
    page = write_report(whole[1].out_dir).read_text()
    for words in ("A_AUC", "F_Last", "after 36 samples", "at equal distances"):
        assert words.replace("_", " ") in page or words in page
    found = matrices(load_results(whole[1].out_dir))
    assert found["test"]["Top1_Acc_Exp"].before is None
    assert found["test"]["Loss_Exp"].protocol_values() == {}
    assert found["zero_shot"]["Top1_Acc_Exp"].row_labels == ["36 samples"]


def test_comparison__of_other_streams_shows_their_values(tmp_path, whole):
    first = load_results(whole[1].out_dir)
    other = {**first, "seed": 1 + first["seed"], "evaluations": {}, "matrices": {}}
    for key in ("steps", "samples"):
        other["evaluations"][key] = first["evaluations"][key][1:]
    other["evaluations"]["at"] = first["evaluations"]["at"]
    for stream, metrics in first["matrices"].items():
        rows = slice(1 if stream == "test" else 0, None)
        other["matrices"][stream] = {
            name: {**parts, "E": parts["E"][rows]} for name, parts in metrics.items()
        }
    other["online"] = {"streams": ["test"], "curve": [0, 1], "task_ends": []}
    page = write_comparison(tmp_path, [first, other]).read_text()
    assert "A AUC" in page and page.count("Mean matrices") == 1  # of zero_shot
    values = json.loads((tmp_path / "comparison.json").read_text())
    runs_of = values["test"]["Top1_Acc_Exp"]["ClassNameTemplate"]["A_Last"]["runs"]
    assert runs_of == [whole[1].summary["test"]["Top1_Acc_Exp"]["A_Last"]] * 2
    same = {**first, "seed": 1 + first["seed"]}
    page = write_comparison(tmp_path, [first, same]).read_text()
    assert page.count("Mean matrices") == 2


@pytest.mark.parametrize("stop", [{"train": 12}, {"evaluation": 9}], ids=str)
def test_run__resumes_exactly(stop, tmp_path, whole):
    with pytest.raises(runs.Interrupted):
        go(tmp_path, stop)
    runs.assert_same_runs(whole, go(tmp_path, resume=True))


def shared(out, size):
    """A run without chance, in one process or in several."""
    model = stub_model()
    settings = {"eval_label_space": "seen", "budget_iterations": 2}
    strategy = class_strategy(model, train_mb_size=size, **settings)
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        result = run_stream(
            strategy,
            blurry(model, online=7),  # tasks of 13, 12 and 11: no batch of one image
            out,
            evaluate_at=POINTS,
            final_streams=("zero_shot",),
            checkpoint_iterations=None,
        )
    return result.matrices, result.summary, weights(model)


def test_run__two_processes_are_one(tmp_path):
    (tmp_path / "results").mkdir()
    jobs = {"run": partial(shared, tmp_path / "two", 4)}
    pair = run_in_processes(jobs, tmp_path / "results")["run"]
    alone = shared(tmp_path / "one", 8)
    for matrices_of, summary, trained in pair:
        assert summary == alone[1]
        for stream in ("test", "zero_shot"):
            for key in ("before", "E"):
                found = matrices_of[stream]["Top1_Acc_Exp"][key]
                wanted = alone[0][stream]["Top1_Acc_Exp"][key]
                np.testing.assert_array_equal(found, wanted)
        for name, value in trained.items():
            torch.testing.assert_close(value, alone[2][name])


def test_run__resuming_with_other_end_streams_is_refused(tmp_path):
    with pytest.raises(runs.Interrupted):
        go(tmp_path, {"train": 3})
    with pytest.raises(ValueError, match="final_streams is .* there and missing here"):
        go(tmp_path, resume=True, run={"final_streams": ()})


@pytest.mark.parametrize(
    "final, words",
    [
        (("test",), "'test' occurs more than once among the streams and final"),
        (("zero",), r"streams \['zero'\] are not in the benchmark.*zero_shot"),
        ("zero_shot", "final_streams='zero_shot' is a str; give a list"),
    ],
)
def test_run__wrong_end_streams_are_refused(tmp_path, final, words):
    with pytest.raises((ValueError, TypeError), match=words):
        go(tmp_path / "run", run={"final_streams": final})
    assert not (tmp_path / "run").exists()


def test_run__what_is_not_measured_is_left_out(tmp_path):
    _, plain = go(tmp_path / "a", online=0, run={"evaluate_at": "steps"})
    found = plain.summary["test"]["Top1_Acc_Exp"]
    assert {"A_Avg", "A_Last", "F_Last"} <= set(found) and "A_AUC" not in found
    _, rare = go(tmp_path / "b", run={"evaluate_at": {"samples": 20}})
    found = rare.summary["test"]["Top1_Acc_Exp"]
    assert "A_AUC" in found and not {"A_Avg", "F_Last"} & set(found)
    with pytest.warns(UserWarning, match="steps alone|classes of that step alone"):
        _, own = go(tmp_path / "c", eval_label_space="own", online=12)
    assert not {"A_AUC", "A_Last"} & set(own.summary["test"]["Top1_Acc_Exp"])


def test_run__joint_training_has_its_accuracy_at_the_end(tmp_path):
    run = {"evaluate_at": "steps"}
    options = {"cls": ClassNameJoint, "budget_iterations": 101}
    _, result = go(tmp_path, run=run, **options)
    counts = result.results["data"]["counts"]["test"]
    found = result.summary["test"]["Top1_Acc_Exp"]
    assert set(found) == {"average", "final", "A_Last"}
    assert found["A_Last"] == pytest.approx(np.average(result.E[0], weights=counts))
    assert np.isnan(result.before).all()


def test_run__ends_of_tasks_are_the_steps_of_a_class_incremental_stream(tmp_path):
    def steps(model, online):
        given = class_benchmark(model, classes=6, increment=2)
        return split_online(given, online)

    run = {"evaluate_at": {"task_ends": True}, "final_streams": ()}
    _, result = go(tmp_path, benchmark=steps, run=run)
    assert result.E.shape == (3, 3) and result.steps == [2, 5, 8]
    wanted = incremental_accuracy(result.E, [6, 6, 6])
    found = result.summary["test"]["Top1_Acc_Exp"]
    assert found["incremental_last"] == pytest.approx(wanted["last"])
    assert found["incremental_average"] == pytest.approx(wanted["average"])
    assert "forgetting" in found and "online" not in result.results
