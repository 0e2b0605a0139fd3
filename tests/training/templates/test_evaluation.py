"""Evaluations of several streams, and evaluations that fail."""

import random

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation.metrics import (
    StreamConfusionMatrix,
    accuracy_metrics,
    amca_metrics,
    forgetting_metrics,
    loss_metrics,
)
from avalanche.logging import TextLogger

from avalanche_clip.evaluation.loggers import MetricsCSVLogger
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import WeightAveragingPlugin
from avalanche_clip.training.templates.evaluation import by_stream
from tests.helpers import (
    At,
    Recorder,
    assert_same_weights,
    build,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
    weights,
)
from tests.training.classes import class_benchmark, class_strategy


def metrics():
    return [
        accuracy_metrics(epoch=True, experience=True, stream=True),
        loss_metrics(epoch=True, experience=True),
        forgetting_metrics(experience=True, stream=True),
    ]


def pairs(**options):
    model = stub_model(dropout=0.1)
    evaluator = quiet_evaluator([*metrics(), retrieval_plugin_metrics(ks=(1,))])
    strategy = build(Sequential, model, evaluator=evaluator, **options)
    return strategy, stub_benchmark(model=model)


def classes(**options):
    model = stub_model()
    found = [*metrics(), StreamConfusionMatrix(save_image=False), amca_metrics()]
    strategy = class_strategy(
        model, eval_label_space="seen", evaluator=quiet_evaluator(found), **options
    )
    return strategy, class_benchmark(model)


# ------------------------------------------------------------------ what is given
def test_by_stream__groups_what_is_nested_and_counts_it_once():
    data = stub_benchmark()
    test, valid = data.test_stream, data.valid_stream
    groups = by_stream([test[1], [valid[0], [test[0]]], valid, test[1]])
    names = [[(e.origin_stream.name, e.current_experience) for e in g] for g in groups]
    assert names == [
        [("test", 1), ("test", 0)],
        [("valid", 0), ("valid", 1), ("valid", 2)],
    ]
    assert by_stream(test[2]) == [[test[2]]]
    assert by_stream(test) == [list(test)]


def test_by_stream__refuses_what_it_cannot_tell_apart_or_know():
    left, right = stub_benchmark(), stub_benchmark()
    with pytest.raises(ValueError, match="Two different experiences 0 .*'test'"):
        by_stream([left.test_stream[0], right.test_stream[0]])
    for wrong in ("test", left, 3, None, left.test_stream[0].dataset):
        with pytest.raises(TypeError, match=r"benchmark\.test_stream"):
            by_stream([wrong] if wrong is not None else None)
    strategy, _ = pairs()
    with pytest.raises(ValueError, match="nothing to evaluate"):
        strategy.eval([])
    alone = type(left.test_stream[0])(dataset=left.test_stream[0].dataset)
    with pytest.raises(ValueError, match="outside any stream"):
        strategy.eval(alone)
    # Without evaluation in training any experiences can be trained in one call.
    strategy.train([left.train_stream[0], right.train_stream[0]])
    strategy.evaluator.strict_checks = True
    assert strategy.eval(left.test_stream)


@pytest.mark.parametrize("make", [pairs, classes])
@pytest.mark.parametrize("form", ["experiences", "streams", "mixed", "generator"])
def test_eval__of_several_equals_one_after_the_other(make, form):
    strategy, data = make()
    other = "valid" if "valid" in data.streams else "train"
    left, right = data.test_stream, data.streams[other]
    given = {
        "experiences": lambda: [left[0], right[0], left[1], right[1]],
        "streams": lambda: [left, right],
        "mixed": lambda: [left, right[1], right[0]],
        "generator": lambda: (e for s in (left, right) for e in s),
    }[form]
    expected = {}
    for group in by_stream(list(given())):
        expected |= strategy.eval(group)
    strategy.evaluator.reset_last_metrics()
    found = strategy.eval(given())
    for name, value in expected.items():
        if name.startswith(("Top1_Acc", "Loss", "mean_R")):
            assert found[name] == value, name
    for stream in ("test", other):
        assert any(f"/{stream}_stream" in name for name in found)


def test_train__returns_metrics_and_groups_what_it_evaluates():
    strategy, data = pairs(eval_every=0)
    look = At(
        "before_eval", lambda s: [e.current_experience for e in s.current_eval_stream]
    )
    strategy.plugins.append(look)
    given = [data.test_stream[0], data.valid_stream, data.test_stream[2]]
    found = strategy.train(data.train_stream[0], eval_streams=given)
    assert look.seen == [[0, 2], [0, 1, 2]] * 2
    assert found["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp002"] >= 0
    assert "Loss_Epoch/train_phase/train_stream/Task000" in found


# -------------------------------------------------------------------- failures
class Failing(SupervisedPlugin):
    """Fails once, in evaluation iteration ``at``."""

    stateless = True

    def __init__(self, at, error):
        super().__init__()
        self.at, self.error, self.count = at, error, 0

    def after_eval_iteration(self, strategy, **kwargs):
        self.count += 1
        if self.count == self.at:
            strategy.mbatch = "nonsense"
            torch.rand(3)
            raise self.error


def facts(strategy):
    """Everything about a strategy that an evaluation could leave changed."""
    evaluator = strategy.evaluator
    names = ("experience", "adapted_dataset", "dataloader", "mbatch", "mb_output")
    return {
        "weights": weights(strategy.model),
        "modes": [m.training for m in strategy.model.modules()],
        "is_training": strategy.is_training,
        "in_training": strategy.in_training,
        "fields": [getattr(strategy, name) for name in names],
        "stream": strategy.current_eval_stream,
        "last": dict(evaluator.last_metric_results),
        "curves": {
            k: [list(c) for c in v] for k, v in evaluator.all_metric_results.items()
        },
        "random": (
            random.getstate(),
            np.random.get_state()[1].tolist(),
            torch.get_rng_state().tolist(),
        ),
    }


def assert_same_facts(left, right):
    assert_same_weights(left.pop("weights"), right.pop("weights"))
    last = [side.pop("last") for side in (left, right)]
    assert last[0].keys() == last[1].keys()
    curves = [side.pop("curves") for side in (left, right)]
    assert {k: len(v[0]) for k, v in curves[0].items()} == {
        k: len(v[0]) for k, v in curves[1].items()
    }
    assert left == right


@pytest.mark.parametrize("make", [pairs, classes])
@pytest.mark.parametrize(
    ("at", "error"),
    [(1, KeyboardInterrupt()), (2, RuntimeError("broken")), (5, KeyboardInterrupt())],
)
def test_eval__that_fails_leaves_no_trace(make, at, error, tmp_path):
    strategy, data = make()
    csv = MetricsCSVLogger(tmp_path / "metrics.csv")
    strategy.evaluator.loggers = [csv, TextLogger(open(tmp_path / "log.txt", "w"))]
    twin, _ = make()
    for each in (strategy, twin):
        train_stream(each, data, 1)
        each.eval(data.test_stream)
    rows = (tmp_path / "metrics.csv").read_text()
    failing = Failing(at, error)
    strategy.plugins.insert(0, failing)
    before = facts(strategy)
    with pytest.raises(type(error)):
        strategy.eval([data.test_stream, data.train_stream])
    assert_same_facts(before, facts(strategy))
    assert (tmp_path / "metrics.csv").read_text() == rows
    # What follows is what would have been without the failure.
    for each in (strategy, twin):
        each.train(data.train_stream[1], eval_streams=[])
    left, right = (each.eval(data.test_stream) for each in (strategy, twin))
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert np.array_equal(np.asarray(value), np.asarray(right[name])), name


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("broken")])
def test_eval__that_fails_inside_training_leaves_that_as_it_was(error):
    strategy, data = pairs(eval_every=1, train_epochs=3, budget_iterations=6)

    def evaluate(strategy):
        """Facts before and after an evaluation that a plugin makes."""
        before = facts(strategy)
        strategy.plugins[0].at = strategy.plugins[0].count + 1
        with pytest.raises(type(error)):
            strategy.eval(data.valid_stream)
        return before, facts(strategy)

    look = At("after_training_epoch", evaluate)
    strategy.plugins[:0] = [Failing(0, error), look]
    strategy.train(data.train_stream[0], eval_streams=[])
    assert len(look.seen) == 3
    for before, after in look.seen:
        assert before["is_training"] and before["in_training"]
        assert_same_facts(before, after)


def test_train__interrupted_in_its_evaluation_is_no_longer_in_training():
    strategy, data = pairs(eval_every=1)
    strategy.plugins.insert(0, Failing(2, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        strategy.train(data.train_stream[0], eval_streams=[data.valid_stream])
    assert not strategy.in_training and strategy.training_experience is None
    assert strategy.evaluator.get_all_metrics() == {}
    strategy.train(data.train_stream[0], eval_streams=[data.valid_stream])
    assert strategy.eval(data.test_stream)


def test_eval__that_fails_goes_on_with_the_student_of_an_average():
    averaging = WeightAveragingPlugin(interval=1)
    strategy, data = pairs(plugins=[averaging])

    def evaluate(strategy):
        before = weights(strategy.model)
        strategy.plugins[-4].at = strategy.plugins[-4].count + 1
        with pytest.raises(KeyboardInterrupt):
            strategy.eval(data.test_stream)
        assert_same_weights(strategy.model, before)

    look = At("after_training_iteration", evaluate)
    strategy.plugins[1:1] = [look, Failing(0, KeyboardInterrupt())]
    strategy.train(data.train_stream[0], eval_streams=[])
    assert strategy.plugins[-4].count == 5


# -------------------------------------------------------- plugins that come later
def test_plugins__appended_later_are_checked_repaired_and_put_before_the_clock():
    from avalanche.training.plugins import (
        EarlyStoppingPlugin,
        MASPlugin,
        SynapticIntelligencePlugin,
    )
    from avalanche.training.plugins.clock import Clock

    strategy, data = pairs()
    strategy.plugins.append(MASPlugin())
    for call in (strategy.eval, lambda e: strategy.train(e, eval_streams=[])):
        with pytest.raises(ValueError, match="ContrastiveEWCPlugin"):
            call(data.train_stream[0])
    strategy.plugins.pop()
    count = At("after_training_iteration", lambda s: s.clock.train_exp_iterations)
    synapses = SynapticIntelligencePlugin(si_lambda=1.0)
    strategy.plugins += [synapses, count]
    strategy.train(data.train_stream[0], eval_streams=[])
    assert count.seen == [0, 1, 2, 3, 4]
    # The list is as it was given, the clock the last to run.
    assert strategy.plugins[-2] is synapses
    assert isinstance(strategy.plugins[-3], Clock)
    strategy.train(data.train_stream[1], eval_streams=[])
    assert float(synapses.ewc_data[1]["token.weight"].data.abs().max()) > 0
    strategy.plugins.append(EarlyStoppingPlugin(1, "valid_stream"))
    with pytest.raises(ValueError, match="eval_every=-1"):
        strategy.train(data.train_stream[1], eval_streams=[data.valid_stream])


class Scoring(Recorder):
    """Scores of a shape that is made from the features, or none."""

    def __init__(self, shape=None):
        self.shape = shape

    def class_logits(self, strategy, image_features):
        return self.shape and image_features.new_zeros(self.shape(image_features))


def test_plugins__two_that_score_classes_are_refused_later_too():
    strategy, data = classes()

    strategy.plugins.append(Scoring())
    strategy.eval(data.test_stream)
    strategy.plugins.append(Scoring())
    with pytest.raises(ValueError, match="all define class_logits"):
        strategy.eval(data.test_stream)


@pytest.mark.parametrize("columns", [None, 1])
def test_class_logits__of_another_shape_are_refused(columns):
    strategy, data = classes()

    strategy.plugins.append(Scoring(lambda features: (len(features), columns or 99)))
    with pytest.raises(ValueError, match=r"What Scoring\.class_logits\(\) returned of"):
        strategy.eval(data.test_stream)
