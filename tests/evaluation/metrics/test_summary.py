import json
import math

import pytest
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip.evaluation.functional import continual_summary, time_transfer
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from tests.evaluation.helpers import FakeStrategy
from tests.evaluation.metrics.test_retrieval import Silent

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


def test_continual_summary_metric__levels_wait_for_the_whole_matrix():
    strategy = make_strategy()
    strategy.train(0)
    last = strategy.eval()
    assert f"{KEY}_average_accuracy/eval_phase/test_stream" in last
    assert f"{KEY}_in_domain/eval_phase/test_stream" not in last


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
