"""An experience ends when a metric on its validation data stops getting better."""

import warnings

import pytest
import torch
from avalanche.evaluation import PluginMetric
from avalanche.evaluation.metric_results import MetricValue
from avalanche.evaluation.metric_utils import get_metric_name
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EarlyStoppingPlugin

import avalanche_clip
from avalanche_clip.benchmarks import merge_experiences, split_validation
from avalanche_clip.benchmarks.items.scenario import make_scenario
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.training import EarlyStopping, Joint, Sequential, run_stream
from avalanche_clip.training.plugins import BestEpochPlugin, WeightAveragingPlugin
from avalanche_clip.training.runs.resume import load_state, save_state
from tests.helpers import (
    At,
    assert_same_weights,
    build,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    weights,
)
from tests.refused import refused
from tests.training import classes
from tests.training.small_runs import Interrupted, StopPlugin

pytestmark = pytest.mark.filterwarnings("ignore")


class Told(PluginMetric):
    """A metric whose values are given, one per epoch; the last one is repeated."""

    def __init__(self, *told, name="Told"):
        super().__init__()
        self.told, self.name, self.seen = told, name, []

    def reset(self):
        pass

    def result(self):
        return None

    def after_eval_exp(self, strategy):
        step = int(strategy.training_experience.logging().current_experience)
        index = int(strategy.experience.current_experience)
        self.seen.append((strategy.experience.origin_stream.name, step, index))
        values = self.told[step % len(self.told)]
        epoch = min(strategy.clock.train_exp_epochs, len(values) - 1)
        name = get_metric_name(self, strategy, add_experience=True)
        return [MetricValue(self, name, float(values[epoch]), 0)]

    def __str__(self):
        return self.name


def told(stop, *values, epochs=6, name="Told", cls=Sequential, **options):
    """A strategy whose values are given, its stream, and weights after each epoch."""
    model = stub_model()
    after = At("after_training_epoch", lambda s: weights(s.model))
    settings = {"budget_iterations": 2 * epochs, "train_epochs": epochs, **options}
    strategy = build(
        cls,
        model,
        plugins=[after, stop],
        evaluator=quiet_evaluator([Told(*values, name=name)]),
        **settings,
    )
    return strategy, stub_benchmark(model=model), after


def steps_of(strategy):
    return strategy.compute.report()["steps"]


NAN = float("nan")
CURVES = [
    # values, options -> epochs trained, best
    ([1, 2, 3, 2, 2, 9], {"patience": 2}, 5, 2),
    ([1, 1, 1, 9], {"patience": 2}, 3, 0),  # equal values are no gain
    ([3, 2, 9], {"patience": 1}, 2, 0),
    ([1, 2, 1, 3, 1, 4], {"patience": 2}, 6, 5),  # patience starts anew
    ([1, 2, 3, 4, 5, 6], {"patience": 1}, 6, 5),
    ([1, 2, 3, 2, 2, 2], {"patience": 9}, 6, 2),  # never stops, the best counts
    ([1, 1.4, 1.8, 9], {"patience": 2, "min_delta": 1.0}, 3, 0),
    ([1, 1.4, 2.1, 2.2, 2.3], {"patience": 2, "min_delta": 1.0}, 5, 2),
    ([NAN, 1, NAN, NAN], {"patience": 2}, 4, 1),
    ([NAN, 1, 2, 0, 0, 9], {"patience": 2}, 5, 2),
    ([NAN, NAN, NAN, 1], {"patience": 2}, 3, 0),
]


@pytest.mark.parametrize("every", [-1, 1, 2])
@pytest.mark.parametrize(("values", "options", "epochs", "best"), CURVES)
def test_best_epoch__ends_the_experience(values, options, epochs, best, every):
    stop = EarlyStopping("Told", **options)
    strategy, data, after = told(stop, values, eval_every=every)
    given = [data.valid_stream] if every > 0 else []
    strategy.train(data.train_stream[0], eval_streams=given)
    assert steps_of(strategy) == [2 * epochs] and stop.chosen == [best]
    assert_same_weights(strategy.model, after.seen[best])


@pytest.mark.parametrize(
    "name", ["Loss_Exp", "MyError", "text_to_image_median_rank", "StreamForgetting"]
)
def test_lower_is_better__of_losses_errors_ranks_and_forgetting(name):
    stop = EarlyStopping(name, 2, 0.5)
    strategy, data, after = told(stop, [3, 2.8, 1, 2, 4, 0], name=name)
    strategy.train(data.train_stream[0])
    assert stop.chosen == [2] and steps_of(strategy) == [10]
    assert_same_weights(strategy.model, after.seen[2])


def test_restore_best__false_keeps_the_newest_weights():
    stop = EarlyStopping("Told", 2, restore_best=False)
    strategy, data, after = told(stop, [3, 2, 1])
    strategy.train(data.train_stream[0])
    assert steps_of(strategy) == [6] and stop.chosen == [0] and not stop._best
    assert_same_weights(strategy.model, after.seen[-1])


def test_steps__have_their_own_validation_data_and_patience():
    stop = EarlyStopping("Told", 1)
    strategy, data, _ = told(stop, [2, 1], [1, 2, 1], [1, 2, 3, 2])
    for experience in data.train_stream:
        strategy.train(experience)
    assert steps_of(strategy) == [4, 6, 8] and stop.chosen == [0, 1, 2]
    (metric,) = strategy.evaluator.metrics
    seen = [step for name, step, index in metric.seen if step == index]
    assert len(seen) == len(metric.seen) == 2 + 3 + 4
    assert {name for name, _, _ in metric.seen} == {"valid"}


def test_evaluations__that_are_made_anyway_are_not_made_twice():
    for every, expected in ((-1, 6), (1, 7), (3, 8)):
        strategy, data, _ = told(EarlyStopping("Told", 9), range(6), eval_every=every)
        (metric,) = strategy.evaluator.metrics
        strategy.train(data.train_stream[0], eval_streams=[data.valid_stream[0]])
        # Avalanche's own: before the first epoch, and after the last.
        assert len(metric.seen) == expected, every
    strategy, data, _ = told(EarlyStopping("Told", 9), range(6), eval_every=1)
    (metric,) = strategy.evaluator.metrics
    strategy.train(data.train_stream[0], eval_streams=[data.test_stream[0]])
    names = [name for name, _, _ in metric.seen]
    assert names.count("valid") == 6 and names.count("test") == 7


def pairs(stop, **options):
    model = stub_model(dropout=0.2)
    metrics = [retrieval_plugin_metrics(), loss_metrics(experience=True)]
    strategy = build(
        Sequential,
        model,
        plugins=[stop],
        evaluator=quiet_evaluator(metrics),
        **{"train_epochs": 5, "budget_iterations": 10, **options},
    )
    return strategy, stub_benchmark(model=model)


@pytest.mark.parametrize("metric", ["mean_R@1", "rsum", "Loss_Exp"])
def test_run_on_pairs__follows_what_is_measured(metric, tmp_path):
    stop = EarlyStopping(metric, 1)
    strategy, data = pairs(stop)
    after = At("after_training_epoch", lambda s: weights(s.model))
    ends = At("after_training_exp", lambda s: (weights(s.model), list(stop.scores)))
    strategy.plugins[:0] = [after, ends]
    result = run_stream(strategy, data, tmp_path / "run")
    start = 0
    for step, (model, scores) in enumerate(ends.seen):
        assert result.compute["steps"][step] == 2 * len(scores)
        best = min if "Loss" in metric else max
        assert stop.chosen[step] == scores.index(best(scores))
        name = f"{metric}/eval_phase/valid_stream/Task000/Exp00{step}"
        curve = strategy.evaluator.get_all_metrics()[name][1]
        assert curve == pytest.approx(scores)
        assert_same_weights(model, after.seen[start + stop.chosen[step]])
        start += len(scores)
    assert "Loss" in metric or min(result.compute["steps"]) < 10
    spent = strategy.compute.experiences[0]["search"]
    number = 6 * len(ends.seen[0][1])
    assert (spent["images"], spent["texts"]) == (number, number)


@pytest.mark.parametrize("metric", ["Top1_Acc_Exp", "Top1_Acc_Stream", "Loss_Exp"])
def test_class_names__and_a_validation_stream_of_them(metric, tmp_path):
    model = stub_model()
    data = split_validation(
        classes.domain_benchmark(model), 0.34, stratify="targets", seed=1
    )
    stop = EarlyStopping(metric, 1)
    strategy = classes.class_strategy(
        model,
        plugins=[stop],
        train_epochs=6,
        budget_iterations=12,
        evaluator=quiet_evaluator(
            [
                accuracy_metrics(experience=True, stream=True),
                loss_metrics(experience=True),
            ]
        ),
        optimizer=lambda groups: torch.optim.SGD(groups, lr=5.0),
    )
    result = run_stream(strategy, data, tmp_path / "run")
    assert len(stop.chosen) == 3 and min(result.compute["steps"]) < 12
    spent = strategy.compute.experiences[0]["search"]
    done = result.compute["steps"][0] // 2
    held = len(data.valid_stream[0].dataset)
    prompts = 2 * 3  # two templates of three classes
    assert (spent["images"], spent["texts"]) == (held * done, prompts * done)


def test_epochs__without_an_iteration_do_not_count():
    stop = EarlyStopping("Told", 1)
    strategy, data, _ = told(stop, [9, 9, 1, 9, 2, 9, 0], budget_iterations=3)
    strategy.train(data.train_stream[0])  # in epochs 1, 3 and 5
    assert stop.chosen == [0] and steps_of(strategy) == [2]


def test_joint__is_scored_on_the_union_of_the_steps():
    stop = EarlyStopping("Told", 1)
    strategy, data, _ = told(stop, [1, 2, 1], cls=Joint)
    strategy.train(data.train_stream)
    (metric,) = strategy.evaluator.metrics
    assert stop.chosen == [1] and steps_of(strategy) == [6]
    assert [index for _, _, index in metric.seen] == [0, 1, 2] * 3
    merged = merge_experiences(data.train_stream)
    assert merged.merged == (0, 1, 2)


@pytest.mark.parametrize("every", [-1, 1])
@pytest.mark.parametrize("stop_at", [1, 3, 8])
def test_resumed__decides_as_uninterrupted(every, stop_at, tmp_path):
    def fresh(*extra):
        stop = EarlyStopping("rsum", 1)
        strategy, data = pairs(stop, eval_every=every)
        strategy.plugins[:0] = extra
        return strategy, data, stop

    def go(strategy, data, start=0):
        for step in range(start, 3):
            valid = [data.valid_stream[step]] if every > 0 else []
            strategy.train(data.train_stream[step], eval_streams=valid)

    class Saves(StopPlugin):
        def iteration_completed(self, strategy):
            if strategy.clock.train_iterations == stop_at:
                save_state(strategy, tmp_path / "state.pt")
                raise Interrupted

    full, data, expected = fresh()
    go(full, data)
    broken, data, _ = fresh(Saves())
    with pytest.raises(Interrupted):
        go(broken, data)
    again, data, found = fresh()
    go(again, data, load_state(again, tmp_path / "state.pt", data))
    assert steps_of(full) == steps_of(again) and min(steps_of(full)) < 10
    assert found.chosen == expected.chosen
    assert_same_weights(full.model, again.model)


def test_settings__are_compared(tmp_path):
    strategy, data = pairs(EarlyStopping("rsum", 1))
    strategy.train(data.train_stream[0])
    save_state(strategy, tmp_path / "state.pt")
    for other, words in (
        (EarlyStopping("rsum", 2), "EarlyStopping.patience is 1 there and 2 here"),
        (EarlyStopping("rsum", 1, 0.5), r"EarlyStopping.min_delta is 0\.0 there"),
        (EarlyStopping("rsum", 1, restore_best=False), "EarlyStopping.restore_best"),
    ):
        refused(words, load_state, pairs(other)[0], tmp_path / "state.pt", data)


# ------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", 0), "patience=0 must be an integer >= 1"),
        (("a", 1.5), "patience=1.5"),
        (("a", True), "patience=True"),
        (("a", 1, -0.1), "min_delta=-0.1 must not be negative"),
        (("a", 1, NAN), "min_delta=nan"),
        (("a", 1, 0, "yes"), "restore_best is 'yes'.*give True or False"),
        ((None, 1), "metric is None.*give the name of a metric"),
    ],
)
def test_arguments__outside_their_ranges_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        EarlyStopping(*arguments)


@pytest.mark.parametrize(
    ("stop", "options", "message"),
    [
        (EarlyStopping("rsum", 1), {"train_epochs": 1}, "train_epochs=1"),
        (EarlyStopping("rsum", 1), {"train_epochs": [1, 1]}, "train_epochs=1"),
        (EarlyStopping("rsum", 4, restore_best=False), {}, "can never act.*below 4"),
    ],
)
def test_what_can_never_act__is_refused_when_it_is_built(stop, options, message):
    refused(message, pairs, stop, **options)


def test_metric__that_nobody_measures_is_refused(tmp_path):
    words = "'mean_R@11'.*no such metric.*Did you mean 'mean_R@1'"
    strategy, data = pairs(EarlyStopping("mean_R@11", 1))
    refused(words, strategy.train, data.train_stream[0])
    refused(words, run_stream, strategy, data, tmp_path / "run")
    assert not (tmp_path / "run").exists() and not strategy.clock.train_iterations


def test_validation__that_is_missing_is_refused_before_training(tmp_path):
    strategy, data = pairs(EarlyStopping("rsum", 1))
    names = {n: s for n, s in data.streams.items() if n != "valid"}
    bare, short = make_scenario(names), make_scenario({**names, "valid": []})
    for streams, words in ((bare, "split_validation"), (short, "no data for exp")):
        refused(words, strategy.train, streams.train_stream[0])
        refused(words, run_stream, strategy, streams, tmp_path / "run")
    assert not (tmp_path / "run").exists() and not strategy.clock.train_iterations


@pytest.mark.parametrize(
    "other",
    [
        lambda: EarlyStopping("rsum", 1),
        BestEpochPlugin,
        lambda: EarlyStoppingPlugin(1, "valid_stream", "rsum"),
        lambda: WeightAveragingPlugin("we", interval=2),
    ],
)
def test_others__that_choose_the_weights_are_refused(other):
    strategy, data = pairs(EarlyStopping("rsum", 1), eval_every=1)
    strategy.plugins.insert(0, other())
    refused("use one|leave one out", strategy.train, data.train_stream[0])


def test_export__root_training_and_plugins_give_the_same_class():
    found = {avalanche_clip.EarlyStopping, avalanche_clip.training.EarlyStopping}
    assert found == {avalanche_clip.training.plugins.EarlyStopping}
    assert issubclass(EarlyStopping, avalanche_clip.MethodPlugin)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        EarlyStopping("mean_R@1", patience=3, min_delta=0, restore_best=True)
