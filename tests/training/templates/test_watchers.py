"""Stock plugins that watch evaluations: they act on their own step, or are refused."""

import warnings

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EarlyStoppingPlugin, LRSchedulerPlugin

from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.training import Sequential, run_stream
from tests.helpers import (
    At,
    adamw,
    assert_same_weights,
    build,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    weights,
)
from tests.training.classes import class_strategy, domain_benchmark


class Told(PluginMetric):
    """A metric whose values are given: ``told[step][experience]``, one per evaluation.

    The last value of a list is repeated.
    """

    def __init__(self, told):
        super().__init__()
        self.told = told
        self.calls = []

    def reset(self):
        pass

    def result(self):
        return None

    def after_eval_exp(self, strategy):
        step = int(strategy.training_experience.logging().current_experience)
        index = int(strategy.experience.current_experience)
        number = self.calls.count((step, index))
        self.calls.append((step, index))
        values = self.told[step][index]
        value = float(values[min(number, len(values) - 1)])
        name = get_metric_name(self, strategy, add_experience=True)
        return [MetricValue(self, name, value, strategy.clock.train_iterations)]

    def __str__(self):
        return "Told"


class Weights(SupervisedPlugin):
    """Keeps the weights before each epoch."""

    stateless = True

    def __init__(self):
        super().__init__()
        self.found = {}

    def before_training_epoch(self, strategy, **kwargs):
        key = strategy.experience_index, strategy.clock.train_exp_epochs
        self.found[key] = weights(strategy.model)


def stopper(patience=2, stream="valid_stream", metric="Told", **options):
    return EarlyStoppingPlugin(patience, stream, metric, **options)


def told_strategy(told, *plugins, epochs=6, **options):
    model = stub_model()
    metric = Told(told)
    defaults = {"budget_iterations": 2 * epochs, "eval_every": 1}
    strategy = build(
        Sequential,
        model,
        plugins=list(plugins),
        evaluator=quiet_evaluator([metric]),
        train_epochs=epochs,
        **{**defaults, **options},
    )
    return strategy, stub_benchmark(model=model), metric


def train(strategy, experience, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy.train(experience, **options)
    return strategy.clock.train_exp_epochs


# What the other experiences show is worse all the time, better all the time, or both
# in turn; the own value alone decides.
OTHERS = [[0.0], [9.0], [0.0, 9.0, 0.0, 9.0]]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(
    ("own", "patience", "epochs", "best"),
    [
        ([0.5, 0.6, 0.7, 0.1, 0.2], 2, 4, 2),  # best after two epochs, then worse
        ([0.5, 0.5, 0.5, 0.5], 2, 2, 0),  # repeated values are no gain
        ([0.9, 0.1], 1, 1, 0),  # the value before the first epoch counts
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7], 1, 6, None),  # never stops
        ([0.5, 0.1, 0.6, 0.1, 0.7, 0.1, 0.1], 2, 6, None),  # patience is not used up
    ],
)
def test_early_stopping__reads_values_of_its_own_step_alone(
    own, patience, epochs, best, other
):
    told = [[own if i == k else other for i in range(3)] for k in range(3)]
    look = Weights()
    strategy, data, _ = told_strategy(told, stopper(patience), look)
    for step in range(3):
        done = train(
            strategy, data.train_stream[step], eval_streams=[data.valid_stream]
        )
        assert done == epochs
        if best is not None:
            assert_same_weights(strategy.model, look.found[step, best])


def test_early_stopping__each_evaluation_visits_a_stream_once():
    told = [[[0.5, 0.6, 0.7, 0.1]] * 3] * 3
    strategy, data, metric = told_strategy(told, stopper(1))
    valid = data.valid_stream
    done = train(
        strategy, data.train_stream[1], eval_streams=[valid[1], [valid[1]], valid]
    )
    assert done == 3
    assert metric.calls.count((1, 1)) == 4


def test_early_stopping__several_experiences_in_one_call():
    told = [[[0.5, 0.1]] * 3, [[0.9, 0.95, 0.1]] * 3, [[0.5, 0.1]] * 3]
    strategy, data, metric = told_strategy(told, stopper(1))
    done = At("after_training_exp", lambda s: s.clock.train_exp_epochs)
    strategy.plugins.append(done)
    train(strategy, data.train_stream, eval_streams=[data.valid_stream])
    # Only the first has an evaluation before its first epoch: the others begin with
    # their value after one.
    assert done.seen == [1, 3, 2]
    first = [k for k, _ in metric.calls].index(1)
    assert all(step == 0 for step, _ in metric.calls[:first])


def test_early_stopping__decides_when_a_value_has_come():
    # Avalanche evaluates before the first epoch, and after the first and the third.
    told = [[[0.5, 0.6, 0.4]] * 3] * 3
    strategy, data, _ = told_strategy(told, stopper(1), eval_every=2)
    done = train(strategy, data.train_stream[0], eval_streams=[data.valid_stream])
    assert done == 3  # not after two, when nothing new is known


@pytest.mark.parametrize("given", ["valid", "valid_stream", "valid_stream/Task000"])
def test_early_stopping__names_of_the_stream(given):
    told = [[[0.5, 0.4, 0.3, 0.2]] * 3] * 3
    strategy, data, _ = told_strategy(told, stopper(1, given))
    assert train(strategy, data.train_stream[0], eval_streams=[data.valid_stream]) == 1


def test_early_stopping__lowest_loss_on_class_names():
    model = stub_model()
    data = domain_benchmark(model)
    look = Weights()
    metrics = [accuracy_metrics(experience=True), loss_metrics(experience=True)]
    evaluator = quiet_evaluator(metrics)
    strategy = class_strategy(
        model,
        plugins=[stopper(1, "test", "Loss_Exp", mode="min"), look],
        evaluator=evaluator,
        eval_every=1,
        train_epochs=8,
        budget_iterations=16,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=5.0),
    )
    for step in range(3):
        done = train(strategy, data.train_stream[step], eval_streams=[data.test_stream])
        name = f"Loss_Exp/eval_phase/test_stream/Task00{step}/Exp00{step}"
        values = evaluator.get_all_metrics()[name][1][-done - 1 :]
        best = min(range(len(values)), key=values.__getitem__)
        assert done == best + 1 or done == 8
        if done < 8:
            assert_same_weights(strategy.model, look.found[step, best])


def stopped_after(values, patience, epochs):
    """How many epochs early stopping lets pass, and the best one."""
    best, at = values[0], 0
    for epoch in range(1, epochs):
        if values[epoch] > best:
            best, at = values[epoch], epoch
        elif epoch - at >= patience:
            return epoch, at
    return epochs, None


@pytest.mark.parametrize("metric", ["mean_R@1", "Top1_Acc_Exp", "Top1_Acc_Stream"])
def test_early_stopping__in_a_run_on_pairs_follows_the_measured_values(
    metric, tmp_path
):
    model, look = stub_model(), Weights()
    evaluator = quiet_evaluator(
        [
            retrieval_plugin_metrics(ks=(1,)),
            accuracy_metrics(experience=True, stream=True),
        ]
    )
    strategy = build(
        Sequential,
        model,
        plugins=[stopper(1, "valid_stream", metric), look],
        evaluator=evaluator,
        train_epochs=6,
        budget_iterations=12,
        eval_every=1,
    )
    ends = At("after_training_exp", lambda s: weights(s.model))
    strategy.plugins.append(ends)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run_stream(strategy, stub_benchmark(model=model), tmp_path / "run")
    curves, start = evaluator.get_all_metrics(), 0
    for step, iterations in enumerate(result.compute["steps"]):
        # One experience is evaluated at a time, so that its mean is its own value.
        place = "" if metric.endswith("Stream") else f"/Exp00{step}"
        name = f"{metric}/eval_phase/valid_stream/Task000{place}"
        values = curves[name][1]
        values = values[start:] if metric.endswith("Stream") else values
        done, best = stopped_after(values, 1, 6)
        assert iterations == 2 * done
        start += done + 1
        if best is not None:
            assert_same_weights(ends.seen[step], look.found[step, best])


@pytest.mark.parametrize("mode", ["epoch", "iteration"])
@pytest.mark.parametrize("stop", [3, 4, 9])
def test_early_stopping__resumed_inside_decides_as_uninterrupted(mode, stop, tmp_path):
    from avalanche_clip.training.runs.resume import load_state, save_state

    class Stop(SupervisedPlugin):
        stateless = True

        def iteration_completed(self, strategy):
            if strategy.clock.train_iterations == stop:
                save_state(strategy, tmp_path / "state.pt")
                raise KeyboardInterrupt

    def fresh():
        model = stub_model(dropout=0.2)
        strategy = build(
            Sequential,
            model,
            plugins=[
                stopper(2 if mode == "epoch" else 3, peval_mode=mode, metric="rsum")
            ],
            evaluator=quiet_evaluator([retrieval_plugin_metrics()]),
            train_epochs=5,
            budget_iterations=10,
            eval_every=1,
            peval_mode=mode,
        )
        return strategy, stub_benchmark(model=model)

    def go(strategy, data, start=0):
        for step in range(start, 3):
            train(
                strategy,
                data.train_stream[step],
                eval_streams=[data.valid_stream[step]],
            )
        return strategy

    full = go(*fresh())
    broken, data = fresh()
    broken.plugins.insert(0, Stop())
    with pytest.raises(KeyboardInterrupt):
        go(broken, data)
    again, data = fresh()
    go(again, data, load_state(again, tmp_path / "state.pt", data))
    assert full.compute.report()["steps"] == again.compute.report()["steps"]
    assert min(full.compute.report()["steps"]) < 10
    assert_same_weights(full.model, again.model)


# ------------------------------------------------------------------ never acting
NEVER = {
    "eval_every": (
        {"metric": "Top1_Acc_Stream"},
        {"eval_every": -1},
        "'Top1_Acc_Stream'.*eval_every=-1",
    ),
    "only at the end": ({}, {"eval_every": 0}, "eval_every=0"),
    "no such stream": ({"stream": "vald"}, {}, "stream 'vald'.*Did you mean 'valid'"),
    "a reported stream": ({"stream": "test_stream"}, {}, "stream 'test'.*not evaluat"),
    "nothing evaluated": ({}, {}, "nothing is evaluated"),
    "no such metric": (
        {"metric": "Top1_Acc_Strem"},
        {},
        "'Top1_Acc_Strem'.*Did you mean 'Top1_Acc_Stream'",
    ),
    "training metric": ({"metric": "Loss_Epoch"}, {}, "'Loss_Epoch'.*no such metric"),
}
"""What is the matter -> options of the plugin and the strategy, words."""


@pytest.mark.parametrize("name", NEVER)
def test_early_stopping__that_can_never_act_is_refused(name, tmp_path):
    plugin, options, words = NEVER[name]
    metrics = [
        accuracy_metrics(stream=True, experience=True),
        loss_metrics(epoch=True, experience=True),
    ]
    model = stub_model()
    data = stub_benchmark(model=model)
    strategy = build(
        Sequential,
        model,
        plugins=[stopper(**{"metric": "Top1_Acc_Stream", **plugin})],
        evaluator=quiet_evaluator(metrics),
        **{"eval_every": 1, "train_epochs": 3, "budget_iterations": 6, **options},
    )
    before = weights(model)
    given = [] if name == "nothing evaluated" else [data.valid_stream[0]]
    with pytest.raises(ValueError, match=words):
        strategy.train(data.train_stream[0], eval_streams=given)
    assert strategy.clock.train_iterations == 0
    assert_same_weights(model, before)
    if not given:
        return
    with pytest.raises(ValueError, match=words):
        run_stream(strategy, data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_early_stopping__a_metric_known_only_by_evaluating_is_refused_before_a_step():
    strategy, data, _ = told_strategy([[[0.5]] * 3] * 3, stopper(metric="Tol"))
    with pytest.raises(ValueError, match=r"'Tol'.*\['Told'\].*Did you mean 'Told'"):
        train(strategy, data.train_stream[0], eval_streams=[data.valid_stream])
    assert strategy.clock.train_iterations == 0


def test_early_stopping__an_experience_without_counterpart_is_refused():
    strategy, data, _ = told_strategy([[[0.5, 0.1]] * 3] * 3, stopper(1))
    valid = data.valid_stream[0]
    train(strategy, data.train_stream[0], eval_streams=[valid])
    before = strategy.clock.train_iterations
    with pytest.raises(ValueError, match="experience 1 of it is not evaluated"):
        train(strategy, data.train_stream[1], eval_streams=[valid])
    assert strategy.clock.train_iterations == before


def test_run__valid_shorter_than_train_is_refused(tmp_path):
    from avalanche_clip.benchmarks.items.scenario import make_scenario

    model = stub_model()
    data = stub_benchmark(model=model)
    short = make_scenario({**data.streams, "valid": []})
    strategy = build(Sequential, model, eval_every=1)
    with pytest.raises(ValueError, match="0 experiences for 3 steps"):
        run_stream(strategy, short, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --------------------------------------------------------------------- schedulers
def plateau(strategy_options=None, *, own=True, evaluated="valid", **options):
    model = stub_model()
    optimizer = adamw(model.parameters())
    scheduled = optimizer if own else adamw(model.parameters())
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        scheduled, factor=0.5, patience=0, threshold=0.0
    )
    seen = []
    step = scheduler.step
    scheduler.step = lambda metrics, epoch=None: (seen.append(metrics), step(metrics))
    plugin = LRSchedulerPlugin(scheduler, metric="val_loss", **options)
    given = {"eval_every": 1, "train_epochs": 4, "budget_iterations": 8}
    evaluator = quiet_evaluator([loss_metrics(experience=True)])
    strategy = build(
        Sequential,
        model,
        optimizer=optimizer,
        schedule="constant",
        plugins=[plugin],
        evaluator=evaluator,
        **{**given, **(strategy_options or {})},
    )
    return strategy, stub_benchmark(model=model), seen, evaluator


def test_scheduler__sees_the_loss_of_its_own_step():
    strategy, data, seen, evaluator = plateau()
    for step in range(3):
        seen.clear()
        train(
            strategy,
            data.train_stream[step],
            eval_streams=[data.valid_stream, data.test_stream],
        )
        name = f"Loss_Exp/eval_phase/valid_stream/Task000/Exp00{step}"
        own = evaluator.get_all_metrics()[name][1][-4:]
        assert seen == pytest.approx(own)
    seen.clear()
    strategy.eval(data.test_stream)
    assert seen == []


def test_scheduler__reset_at_the_end_of_a_step_keeps_nothing_of_it():
    strategy, data, seen, evaluator = plateau({"eval_every": 2})
    (plugin,) = (p for p in strategy.plugins if isinstance(p, LRSchedulerPlugin))
    for step in range(2):
        seen.clear()
        strategy.train(data.train_stream[step], eval_streams=[data.valid_stream])
        name = f"Loss_Exp/eval_phase/valid_stream/Task000/Exp00{step}"
        # After the first and the third epoch; the evaluation at the end is too late.
        assert seen == pytest.approx(evaluator.get_all_metrics()[name][1][-3:-1])
        assert plugin.scheduler.best == float("inf")
        assert [g["lr"] for g in strategy.optimizer.param_groups] == [
            g["initial_lr"] for g in strategy.optimizer.param_groups
        ]
    strategy, data, seen, evaluator = plateau({"eval_every": 2}, reset_scheduler=False)
    strategy.train(data.train_stream[0], eval_streams=[data.valid_stream])
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        ({"strategy_options": {"eval_every": -1}}, "valid", "eval_every=-1"),
        ({"strategy_options": {"eval_every": 0}}, "valid", "eval_every=0"),
        ({}, None, "nothing is evaluated"),
        ({}, "other", "experience 0 of it is not evaluated"),
        ({"own": False}, "valid", "another optimiser"),
    ],
)
def test_scheduler__that_can_never_act_is_refused(options, given, words):
    strategy, data, _, _ = plateau(**options)
    streams = {"valid": [data.valid_stream], "other": [data.test_stream[1]]}
    with pytest.raises(ValueError, match=words):
        strategy.train(data.train_stream[0], eval_streams=streams.get(given, []))
    assert strategy.clock.train_iterations == 0


def test_scheduler__in_a_run_without_validation_is_refused(tmp_path):
    strategy, data, _, _ = plateau()
    from avalanche_clip.benchmarks.items.scenario import make_scenario

    bare = make_scenario({"train": data.train_stream, "test": data.test_stream})
    with pytest.raises(ValueError, match="nothing is evaluated.*'valid'"):
        run_stream(strategy, bare, tmp_path / "run")
    assert not (tmp_path / "run").exists()
