"""One training on the union of a stream."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EarlyStoppingPlugin

from avalanche_clip.benchmarks import merge_experiences
from avalanche_clip.checkpointing import load_state, save_state
from avalanche_clip.evaluation.report import write_comparison
from avalanche_clip.training import (
    ClassNameFineTuning,
    ClassNameJoint,
    Joint,
    Sequential,
    run_stream,
)
from avalanche_clip.training.methods.cll_clip.strategy import CLLCLIP
from avalanche_clip.training.methods.joint import JointTraining
from avalanche_clip.training.plugins import BestEpochPlugin
from tests.helpers import Recorder, assert_same_weights, stub_benchmark, stub_model
from tests.refused import refused
from tests.training import classes, languages
from tests.training.small_runs import (
    Interrupted,
    assert_same_runs,
    csv_without_times,
    evaluator,
    go,
    kill,
)

pytestmark = pytest.mark.filterwarnings("ignore")


def build(cls=Joint, sizes=(13, 11, 10), **options):
    """A strategy on a stub, and its stream."""
    model = stub_model(dropout=0.2, noise=0.1)
    benchmark = stub_benchmark(sizes, model=model)
    settings = {"train_mb_size": 8, "budget_iterations": 6, "seed": 3, **options}
    return cls(model=model, evaluator=evaluator(), **settings), benchmark


def trained(strategy, experiences, **options):
    torch.manual_seed(len(str(options)))
    strategy.train(experiences, **{"eval_streams": [], **options})
    return strategy


def by_names(cls, **options):
    """A strategy on class names, and a stream of domains."""
    model = stub_model(dropout=0.2, noise=0.1)
    benchmark = classes.domain_benchmark(model)
    settings = {"budget_iterations": 6, "warmup_iterations": 0, **options}
    return classes.class_strategy(model, cls, **settings), benchmark


class Seen(Recorder):
    """Notes what is trained, and where."""

    def __init__(self):
        super().__init__()
        self.ids, self.experiences = [], []

    def before_training_exp(self, strategy, **kwargs):
        self.experiences.append(strategy.experience)

    def after_training_iteration(self, strategy, **kwargs):
        self.ids += strategy.mb_x["sample_id"].tolist()


def test_train__is_one_visit_of_each_sample():
    seen = Seen()
    strategy, benchmark = build(
        plugins=[seen], budget_iterations=None, train_mb_size=17
    )
    trained(strategy, benchmark.train_stream)
    assert sorted(seen.ids) == list(range(34))
    assert strategy.clock.train_exp_counter == 1
    assert strategy.clock.train_iterations == 2
    assert strategy.compute.report()["samples"] == [34]
    (experience,) = seen.experiences
    assert experience.time_label == "2020..2022" or ".." in experience.time_label
    assert experience.merged == (0, 1, 2)
    assert strategy.experience is None


@pytest.mark.parametrize(
    "make, cls, plain",
    [(build, Joint, Sequential), (by_names, ClassNameJoint, ClassNameFineTuning)],
)
def test_one_experience__is_plain_training_bit_for_bit(make, cls, plain):
    for place in (0, 2):
        found = []
        for kind, wrap in ((cls, lambda e: [e]), (cls, lambda e: e), (plain, None)):
            strategy, benchmark = make(kind)
            step = benchmark.train_stream[place]
            found.append(trained(strategy, wrap(step) if wrap else step).model)
        assert_same_weights(found[0], found[2])
        assert_same_weights(found[1], found[2])


@pytest.mark.parametrize(
    "make, cls, plain",
    [(build, Joint, Sequential), (by_names, ClassNameJoint, ClassNameFineTuning)],
)
def test_union__is_plain_training_on_the_merged_experience(make, cls, plain):
    strategy, benchmark = make(cls)
    orders = [benchmark.train_stream, list(benchmark.train_stream)[::-1]]
    found = [trained(make(cls)[0], order).model for order in orders]
    other = trained(make(plain)[0], merge_experiences(benchmark.train_stream)).model
    for model in found:
        assert_same_weights(model, other)


def test_class_names__of_the_union_are_told_apart():
    class Columns(Recorder):
        def after_forward(self, strategy, **kwargs):
            self.found = strategy.label_ids
            assert strategy.mb_output.shape[1] == len(self.found)

    columns = Columns()
    strategy, benchmark = by_names(ClassNameJoint, plugins=[columns])
    trained(strategy, benchmark.train_stream)
    assert columns.found == tuple(sorted(benchmark.class_prompts.ids))
    assert set(strategy.seen_classes) == set(columns.found)
    values = strategy.eval(benchmark.test_stream)
    assert sum("Top1_Acc_Exp" in name for name in values) == 3


def test_any_strategy__can_be_made_joint():
    class JointCLL(JointTraining, CLLCLIP):
        pass

    found = []
    for cls in (JointCLL, CLLCLIP):
        model = languages.tiny_model()
        benchmark = languages.language_stream(model)
        strategy = cls(
            model=model,
            optimizer=languages.adamw,
            vocab_size=300,
            budget_iterations=3,
            train_mb_size=4,
            evaluator=evaluator(),
        )
        stream = benchmark.train_stream
        whole = stream if cls is JointCLL else merge_experiences(stream)
        found.append(trained(strategy, whole).model)
    assert_same_weights(*found)


def test_refused__what_is_no_union():
    strategy, benchmark = build()
    stream = benchmark.train_stream
    refused("nothing to merge", strategy.train, [])
    refused("stream of a benchmark", strategy.train, benchmark, error=TypeError)
    other = build()[1].train_stream
    refused("2 benchmarks", strategy.train, [stream[0], other[1]])
    for given in (benchmark.test_stream, benchmark.test_stream[1]):
        refused("'test'.*to be evaluated", strategy.train, given)
    mixed = [stream[0], benchmark.test_stream[0]]
    refused("the streams", strategy.train, mixed)
    refused("more than once", strategy.train, [stream[0], stream[0]])
    assert strategy.clock.train_iterations == 0
    trained(strategy, stream)
    for again in (stream, stream[0]):
        refused(
            "trains once.*the whole stream", strategy.train, again, error=RuntimeError
        )
    rates = partial(by_names, ClassNameJoint, optimizer=None)
    refused("give it one rate", rates, lr=[1e-3, 1e-4])
    assert rates(lr=1e-3)[0].learning_rates == rates(lr=[1e-3])[0].learning_rates


# ------------------------------------------------------------------- whole runs
def test_run__has_one_row_and_all_columns(tmp_path, with_report):
    strategy, result = go(tmp_path / "joint", "Joint", report=True)
    assert result.E.shape == (1, 3) and result.before.shape == (3,)
    assert result.steps == [0] and strategy.clock.train_exp_counter == 1
    results = json.loads((result.out_dir / "results.json").read_text())
    assert results["data"]["counts"]["train"] == [60]
    assert [len(results["samples"]), len(results["seconds"]["train"])] == [1, 1]
    summary = results["summary"]["test"]["mean_R@1"]
    assert summary == {"average": result.E.mean(), "final": result.E.mean()}
    page = (result.out_dir / "report.html").read_text()
    for word in ("forgetting", "retention", "average accuracy", "in domain"):
        assert f"<th>{word}" not in page
    assert "<th>final" in page
    rows = csv_without_times(result.out_dir)
    assert {row[0] for row in rows[1:]} == {"-1", "0"}
    # the same as a plain strategy on the merged benchmark
    plain, benchmark = build(Sequential, (16, 20, 24), budget_iterations=5)
    other = run_stream(
        plain, merge_experiences(benchmark.train_stream).benchmark, tmp_path / "plain"
    )
    np.testing.assert_array_equal(other.E, result.E)
    _, over_time = go(tmp_path / "time", "Sequential")
    folders = [r.out_dir for r in (result, over_time)]
    text = write_comparison(tmp_path / "both", folders).read_text()
    assert "Joint" in text and "Sequential" in text


def test_comparison__of_other_test_sets_is_still_refused(tmp_path):
    folders = []
    for sizes in ((16, 20, 24), (16, 20)):
        strategy, benchmark = build(sizes=sizes)
        result = run_stream(
            strategy, benchmark, tmp_path / str(len(sizes)), method=str(sizes)
        )
        folders.append(result.out_dir)
    refused("have shapes", write_comparison, tmp_path / "c", folders)


def test_run__killed_in_the_training_ends_as_if_never_stopped(tmp_path):
    expected = go(tmp_path / "whole", "Joint")
    process = kill(tmp_path / "cut", {"train": 3}, method="Joint")
    process.join()
    assert process.exitcode == -9
    assert_same_runs(go(tmp_path / "cut", "Joint", resume=True), expected)
    with pytest.raises(Interrupted):
        go(tmp_path / "later", "Joint", stop={"evaluation": 9})
    assert_same_runs(go(tmp_path / "later", "Joint", resume=True), expected)
    # finished: nothing is left to do
    assert_same_runs(go(tmp_path / "cut", "Joint", resume=True), expected)


def test_state__of_a_part_needs_its_own_benchmark(tmp_path):
    strategy, benchmark = build()
    part = benchmark.train_stream[:2]
    path = save_state(trained(strategy, part), tmp_path / "part.pt")
    fresh, again = build()
    refused("on other samples", load_state, fresh, path, again)
    own = merge_experiences(again.train_stream[:2]).benchmark
    assert load_state(fresh, path, own) == 1
    assert_same_weights(fresh.model, strategy.model)


# ------------------------------------------------------- evaluations in training
LONG = {"eval_every": 1, "train_epochs": 2, "budget_iterations": None}


def test_run__validates_on_the_union(tmp_path):
    class Watched(Recorder):
        sizes: list

        def before_eval_exp(self, strategy, **kwargs):
            if strategy.in_training:
                self.sizes.append(len(strategy.experience.dataset))

    watched = Watched()
    watched.sizes = []
    stop = EarlyStoppingPlugin(5, "valid_stream", "mean_R@1")
    strategy, benchmark = build(plugins=[watched, stop], **LONG)
    held = sum(len(e.dataset) for e in benchmark.streams["valid"])
    run_stream(strategy, benchmark, tmp_path)
    assert set(watched.sizes) == {held} and stop.best_val is not None


def test_watchers__of_one_step_alone_are_refused():
    make = partial(EarlyStoppingPlugin, 5, "valid_stream", "mean_R@1")
    strategy, benchmark = build(plugins=[make()], **LONG)
    train, valid = (benchmark.streams[name] for name in ("train", "valid"))
    message = "first experience alone.*union of 3.*merge_experiences"
    refused(message, strategy.train, train, eval_streams=[valid])
    strategy, benchmark = build(plugins=[make()], **LONG)
    train, valid = (benchmark.streams[name] for name in ("train", "valid"))
    strategy.train(train, eval_streams=[merge_experiences(valid)])


def test_best_epoch__is_chosen_on_all_steps():
    best = BestEpochPlugin()
    strategy, benchmark = build(plugins=[best], train_epochs=2)
    found = []
    best._retrieve = lambda strategy, data: found.append(len(data)) or 0.5
    trained(strategy, benchmark.train_stream)
    sizes = [len(e.dataset) for e in benchmark.streams["valid"]]
    assert found[:3] == sizes
