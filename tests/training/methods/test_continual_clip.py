"""Continual-CLIP: nothing is trained, classes are texts."""

import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from avalanche.training.plugins import ReplayPlugin

from avalanche_clip.benchmarks import (
    ClassPrompts,
    class_incremental_benchmark,
    split_online,
)
from avalanche_clip.checkpointing import read_state
from avalanche_clip.training import plugins as p
from avalanche_clip.training import run_stream
from avalanche_clip.training.supervised import ContinualCLIP
from tests.helpers import At, assert_same_weights, stub_model, train_stream, weights
from tests.training.classes import (
    TEMPLATES,
    Labelled,
    accuracy_evaluator,
    class_benchmark,
    domain_benchmark,
    names_of,
)
from tests.training.given import GivenFeatures, given_benchmark

pytestmark = pytest.mark.filterwarnings("ignore")


def frozen(model=None, **options):
    return ContinualCLIP(
        model=model or stub_model(), evaluator=accuracy_evaluator(), **options
    )


def row(strategy, stream):
    """Accuracy on each experience."""
    found = strategy.eval(stream)
    return [v for k, v in sorted(found.items()) if "Top1_Acc_Exp" in k]


def test_accuracy__worked_example_of_the_specification():
    model = GivenFeatures([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    ab = ([[1.0, 0.2], [0.1, 1.0], [0.9, 0.8]], [0, 1, 1])
    c = ([[-1.0, 0.1]], [2])
    benchmark = given_benchmark(model, [ab, c], [ab, c])
    strategy = frozen(model)
    accuracies = []
    for step, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[])
        found = row(strategy, benchmark.test_stream[: step + 1])
        accuracies.append(np.average(found, weights=[3, 1][: step + 1]))
        assert found[0] == pytest.approx(2 / 3)
    assert accuracies == pytest.approx([2 / 3, 0.75])
    assert np.mean(accuracies) == pytest.approx(0.7083333)
    assert model.texts == 3  # each class was encoded once


def run_of(folder, **options):
    """A run over six classes, without its plots."""
    model = stub_model()
    strategy, start = frozen(model, **options), weights(model)
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        result = run_stream(strategy, class_benchmark(model), folder, resume=True)
    assert_same_weights(model, start)
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    return strategy, result


def test_last__depends_neither_on_the_order_nor_on_the_steps():
    lasts, firsts = set(), set()
    sizes = [[1, 1, 1, 1, 1, 1], [2, 2, 2], [3, 1, 2]]
    for order, parts in itertools.product([range(6), (3, 5, 0, 1, 4, 2)], sizes):
        model = stub_model()
        benchmark = class_benchmark(
            model, class_order=order, sizes=parts, increment=None
        )
        strategy, rows = frozen(model), []
        for experience in benchmark.train_stream:
            strategy.train(experience, eval_streams=[])
            rows.append(row(strategy, benchmark.test_stream))
        for column, values in enumerate(np.transpose(rows)):
            # Candidates only become more.
            assert (np.diff(values[column:]) <= 1e-9).all()
        lasts.add(round(float(np.average(rows[-1], weights=parts)), 9))
        firsts.add(round(rows[0][0], 9))
    assert len(lasts) == 1 and len(firsts) > 1 and 0.2 < lasts.pop() < 1


def test_run__costs_nothing_and_stores_no_weights(tmp_path):
    strategy, result = run_of(tmp_path)
    assert result.results["samples"] == [0, 0, 0]
    assert result.compute["steps"] == [0, 0, 0]
    assert result.compute["total_macs"] == result.compute["full_macs"] == 0
    assert [count["trainable"] for count in result.results["parameters"]] == [0] * 3
    assert strategy.optimizer.state_dict()["state"] == {}
    assert strategy.clock.train_exp_counter == 3
    assert strategy.clock.train_iterations == 0
    assert strategy.seen_classes == tuple(range(6))
    state = read_state(p.latest_checkpoint(tmp_path / "checkpoints"))
    assert state["model"] == {}


def test_run__resumed_equals_an_uninterrupted_one(tmp_path):
    def stop(strategy):
        if strategy.experience_index == 1:
            raise KeyboardInterrupt

    _, expected = run_of(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_of(tmp_path / "cut", plugins=[At("after_training_exp", stop)])
    strategy, found = run_of(tmp_path / "cut")
    np.testing.assert_array_equal(found.E, expected.E)
    assert strategy.seen_classes == tuple(range(6))
    assert found.results["samples"] == [0, 0, 0]


@pytest.mark.parametrize(
    ("space", "expected"), [("seen", [3, 7, 9]), ("all", [9] * 3), ("own", [3] * 3)]
)
def test_spaces__candidates_of_the_first_domain(space, expected):
    model, look = stub_model(), At("before_eval_exp", lambda s: len(s.label_ids))
    benchmark = domain_benchmark(model)
    strategy = frozen(model, eval_label_space=space, plugins=[look])
    found = []
    for experience in benchmark.train_stream:
        strategy.train(experience, eval_streams=[])
        found.append(row(strategy, benchmark.test_stream[:1]))
    assert look.seen == expected
    assert (len({tuple(r) for r in found}) == 1) or space == "seen"


def test_online__a_new_class_is_one_new_text():
    model = GivenFeatures(torch.eye(5).tolist())
    parts = [([[1.0, 0, 0, 0, 0]], [k]) for k in range(5)]
    benchmark = given_benchmark(model, parts, parts)
    strategy, counts = frozen(model), []
    for step, experience in enumerate(benchmark.train_stream):
        strategy.train(experience, eval_streams=[])
        row(strategy, benchmark.test_stream[: step + 1])
        counts.append(model.texts)
        strategy.class_matrix(strategy.seen_classes)  # also between experiences
    assert counts == [1, 2, 3, 4, 5] and model.texts == 5


def test_class_without_a_name__is_refused_when_it_comes():
    model = stub_model()
    strategy = frozen(model, class_prompts=ClassPrompts(["a", "b"]))
    with pytest.raises(ValueError, match="Class id 2 is unknown"):
        train_stream(strategy, class_benchmark(model))


def test_online__stream_of_small_batches_is_registered():
    model = stub_model()
    benchmark = split_online(class_benchmark(model), 4)
    strategy = train_stream(frozen(model), benchmark)
    assert strategy.clock.train_exp_counter == len(benchmark.train_stream) == 9
    assert strategy.seen_classes == tuple(range(6))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"optimizer": torch.optim.SGD}, "optimizer"),
        ({"train_epochs": 2, "budget_iterations": 3}, "budget_iter.*train_epochs"),
        ({"plugins": [p.BudgetedReplayPlugin("exp", 4)]}, "BudgetedReplayPlugin"),
        ({"plugins": [ReplayPlugin(4)]}, "ReplayPlugin"),
        ({"plugins": [p.ContrastiveLwFPlugin()]}, "ContrastiveLwFPlugin"),
        ({"eval_label_space": "batch"}, "eval_label_space"),
    ],
)
def test_options__of_a_training_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        frozen(**options)


def test_domains__labels_are_places_in_the_class_order():
    benchmark = class_incremental_benchmark(
        Labelled([0, 1, 2, 1]),
        Labelled([0, 1, 2, 1]),
        names_of(0, 3),
        TEMPLATES,
        class_order=[2, 0, 1],
        sizes=[3],
    )
    found = benchmark.test_stream[0].dataset._data_attributes["targets"].data
    assert list(found) == [1, 2, 0, 2]
