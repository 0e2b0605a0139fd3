import math

import pytest
import torch

from avalanche_clip.evaluation.metrics import LossTermsMetric, loss_term_metrics
from avalanche_clip.training import ContrastiveLwF, Sequential
from avalanche_clip.training.plugins import CheckpointPlugin
from avalanche_clip.training.runs.resume import load_state
from tests.helpers import build, fit, quiet_evaluator, stub_benchmark, train_stream

END = "/train_phase/train_stream/Task000/Exp00"


def metrics(**options):
    return quiet_evaluator([loss_term_metrics(**options)])


def test_result__means_and_ratios():
    metric = LossTermsMetric()
    metric.update({"loss_criterion": torch.tensor(2.0), "share": torch.tensor(0.5)})
    metric.update({"loss_criterion": torch.tensor(4.0), "loss_lwf": torch.tensor(1.5)})
    assert metric.result() == {
        "loss_criterion": 3.0,
        "share": 0.5,
        "loss_lwf": 1.5,
        "loss_lwf_ratio": 0.5,
    }
    metric.reset()
    assert metric.result() == {}


def test_result__no_ratio_to_a_criterion_of_zero():
    metric = LossTermsMetric()
    metric.update({"loss_criterion": torch.tensor(0.0), "loss_x": torch.tensor(1.0)})
    assert metric.result() == {"loss_criterion": 0.0, "loss_x": 1.0}


def test_metric__names_of_epochs_and_iterations():
    evaluator = metrics(iteration=True)
    fit(ContrastiveLwF, steps=2, evaluator=evaluator)
    found = evaluator.get_all_metrics()
    steps, values = found[f"loss_lwf_iteration{END}1"]
    assert len(values) == 5 and steps == sorted(steps)
    (mean,) = found[f"loss_lwf{END}1"][1]
    assert mean == pytest.approx(math.fsum(values) / 5, rel=1e-6)
    assert f"loss_lwf{END}0" not in found
    assert f"loss_criterion{END}0" in found


def test_metric__training_is_the_same_with_it():
    with_it = fit(Sequential, evaluator=metrics()).model.state_dict()
    without = fit(Sequential).model.state_dict()
    assert all(torch.equal(with_it[k], without[k]) for k in without)


def test_metric__resumes_inside_an_epoch(tmp_path):
    def make(*plugins):
        evaluator = metrics()
        strategy = build(ContrastiveLwF, evaluator=evaluator, plugins=list(plugins))
        return strategy, evaluator

    whole, expected = make()
    train_stream(whole, stub_benchmark())
    part, _ = make(CheckpointPlugin(tmp_path, every_iterations=1, keep=99))
    train_stream(part, stub_benchmark())
    later, found = make()
    benchmark = stub_benchmark()
    load_state(later, tmp_path / "state_000000008.pt", benchmark)
    for experience in list(benchmark.train_stream)[1:]:
        later.train(experience, eval_streams=[])
    for name in ("loss_criterion", "loss_lwf"):
        row = found.get_all_metrics()[f"{name}{END}1"]
        assert row == expected.get_all_metrics()[f"{name}{END}1"]
