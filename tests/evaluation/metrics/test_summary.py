import json
import math

import pytest
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip.evaluation.functional import continual_summary, time_transfer
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from tests.evaluation.helpers import FakeStrategy, Silent

KEY = "mean_R@5"


def make_strategy():
    metrics = retrieval_plugin_metrics(summary=(KEY,))
    return FakeStrategy(EvaluationPlugin(metrics, loggers=[Silent()]))


def row(last):
    end = "/eval_phase/test_stream/Task000/Exp"
    return [last[f"{KEY}{end}{index:03}"] for index in range(3)]


def test_continual_summary_metric__equals_the_functions_on_the_matrix():
    strategy = make_strategy()
    before, E = row(strategy.eval()), []
    for index in range(3):
        strategy.train(index)
        last = strategy.eval()
        E.append(row(last))
        expected = continual_summary(E, before)
        for name, value in expected.items():
            emitted = last[f"{KEY}_{name}/eval_phase/test_stream"]
            assert emitted == pytest.approx(value, nan_ok=True)
    for name, value in time_transfer(E).items():
        assert last[f"{KEY}_{name}/eval_phase/test_stream"] == pytest.approx(value)
    assert strategy.evaluator.metrics[1].matrix("test") == (before, E)


def test_continual_summary_metric__nested_evaluations_add_no_row():
    strategy = make_strategy()
    strategy.train(0, nested_eval=True)
    metric = strategy.evaluator.metrics[1]
    assert metric.matrix("test") == (None, [])
    strategy.eval()
    assert len(metric.matrix("test")[1]) == 1


def test_continual_summary_metric__experiences_left_out_are_nan():
    strategy = make_strategy()
    strategy.train(0)
    strategy.eval(strategy.test_stream[1:])
    metric = strategy.evaluator.metrics[1]
    _, (values,) = metric.matrix("test")
    assert math.isnan(values[0]) and not math.isnan(values[2])
    assert math.isnan(metric.result()["test"]["average_accuracy"])


def test_continual_summary_metric__resumes_from_plain_data():
    whole, first, second = make_strategy(), make_strategy(), make_strategy()
    for strategy in (whole, first):
        strategy.eval()
        strategy.train(0)
        strategy.eval()
    state = first.evaluator.metrics[1].state_dict()
    second.evaluator.metrics[1].load_state_dict(json.loads(json.dumps(state)))
    second.clock = first.clock
    for strategy in (whole, second):
        strategy.train(1)
        last = strategy.eval()
    assert repr(second.evaluator.metrics[1].result()) == repr(
        whole.evaluator.metrics[1].result()
    )
    assert f"{KEY}_forgetting/eval_phase/test_stream" in last


def trained_in(order, evaluated=None):
    """Values by row after training on steps in some order, and the strategy."""
    strategy = make_strategy()
    before, rows = row(strategy.eval()), []
    for place, index in enumerate(order):
        strategy.train(index)
        if evaluated is None or place in evaluated:
            last = strategy.eval()
        rows.append(row(last))
    found = {
        name.removeprefix(f"{KEY}_").removesuffix("/eval_phase/test_stream"): value
        for name, value in last.items()
        if name.startswith(f"{KEY}_")
    }
    return before, rows, found, strategy


def test_continual_summary_metric__gap_counts_trained_steps_only():
    before, (first, second), found, _ = trained_in([0, 2])
    assert found["average_accuracy"] == pytest.approx((second[0] + second[2]) / 2)
    best = max(before[0], first[0])
    assert found["forgetting"] == pytest.approx(best - second[0])
    assert found["backward_transfer"] == pytest.approx(second[0] - first[0])
    gains = [first[1] - before[1], first[2] - before[2], second[1] - before[1]]
    assert found["forward_transfer"] == pytest.approx(sum(gains) / 3)
    assert "in_domain" not in found


def test_continual_summary_metric__any_order_is_that_of_the_columns():
    before, rows, found, _ = trained_in([2, 0, 1])
    columns = [2, 0, 1]
    E = [[values[c] for c in columns] for values in rows]
    expected = continual_summary(E, [before[c] for c in columns]) | time_transfer(E)
    assert found == pytest.approx(expected)


def test_continual_summary_metric__repeats_are_visits_of_one_step():
    before, rows, found, _ = trained_in([0, 1, 0, 2])
    assert found["average_accuracy"] == pytest.approx(sum(rows[3]) / 3)
    losses = [max(before[j], *(r[j] for r in rows[:3])) - rows[3][j] for j in (0, 1)]
    assert found["forgetting"] == pytest.approx(sum(losses) / 2)
    since = [rows[3][0] - rows[2][0], rows[3][1] - rows[1][1]]
    assert found["backward_transfer"] == pytest.approx(sum(since) / 2)
    ahead = [rows[0][1] - before[1]] + [r[2] - before[2] for r in rows[:3]]
    assert found["forward_transfer"] == pytest.approx(sum(ahead) / 4)
    now = [rows[0][0], rows[1][1], rows[2][0], rows[3][2]]
    assert found["in_domain"] == pytest.approx(sum(now) / 4)
    old = [rows[1][0], rows[2][1], rows[3][0], rows[3][1]]
    assert found["backward"] == pytest.approx(sum(old) / 4)
    unseen = [rows[0][1], *(r[2] for r in rows[:3])]
    assert found["forward"] == pytest.approx(sum(unseen) / 4)


def test_continual_summary_metric__no_column_or_several_streams_give_no_summary():
    strategy = make_strategy()
    strategy.train(2)
    strategy.test_stream = strategy.test_stream.__class__("test", 2)
    assert not [n for n in strategy.eval() if "average_accuracy" in n]
    strategy = make_strategy()
    strategy.train(0)
    strategy.train_stream.name = "valid"
    strategy.train(1)
    assert not [n for n in strategy.eval() if "average_accuracy" in n]


def test_continual_summary_metric__rows_added_by_hand_are_in_stream_order():
    metric = make_strategy().evaluator.metrics[1]
    E = [[0.5, 0.2], [0.4, 0.6]]
    for trained, values in enumerate(E, 1):
        metric.add("test", trained, values)
    expected = continual_summary(E) | time_transfer(E)
    assert metric.result()["test"] == pytest.approx(expected, nan_ok=True)
