import warnings

import pytest
import torch
from torch import nn

from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import (
    WeightAveragingPlugin,
)
from tests.helpers import (
    assert_same_weights,
    build,
    fit,
    stub_benchmark,
    stub_model,
    weights,
)
from tests.training.growing import GrowingEncoder


class Track:
    """Keep the student of every update, the start of each step, and losses."""

    stateless = True

    def __init__(self):
        self.start, self.path, self.losses = [], [], []

    def before_training_exp(self, strategy, **kwargs):
        self.start.append(weights(strategy.model))
        self.path.append([])

    def after_update(self, strategy, **kwargs):
        self.path[-1].append(weights(strategy.model))
        self.losses.append(float(strategy.loss.detach()))


def tracked(plugin, steps=1, **options):
    track = Track()
    plugins = [track] if plugin is None else [plugin, track]
    return fit(Sequential, steps=steps, plugins=plugins, **options), track


def assert_near(left, right, tolerance=1e-6):
    for name, value in right.items():
        torch.testing.assert_close(left[name], value, rtol=0, atol=tolerance, msg=name)


def mean(models):
    return {k: torch.stack([m[k] for m in models]).mean(0) for k in models[0]}


def lerp(left, right, share):
    return {k: (1 - share) * left[k] + share * right[k] for k in left}


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))


class Steps:
    """A strategy of which only the parts that the plugin reads exist."""

    def __init__(self):
        self.model, self.clock = One(), self
        self.train_exp_iterations = 0

    def run(self, plugin, values):
        for i, value in enumerate(values):
            self.train_exp_iterations = i
            plugin.before_training_iteration(self)
            self.model.w.data.fill_(value)
            plugin.after_update(self)
            yield float(plugin.average["w"]) if plugin.average else None
        plugin.after_training_exp(self)
        yield float(self.model.w.detach())


def test_we__published_numbers():
    plugin = WeightAveragingPlugin(interval=1)
    assert list(Steps().run(plugin, [1.0, 2.0, 3.0])) == [0.5, 1.0, 1.5, 1.5]


@pytest.mark.parametrize("count, interval, merges", [(1001, 100, 11), (6, 10, 1)])
def test_we__number_of_snapshots(count, interval, merges):
    plugin = WeightAveragingPlugin(interval=interval)
    values = [float(i) for i in range(count)]
    *_, final = Steps().run(plugin, values)
    assert plugin.merged == merges
    kept = [0.0, *values[::interval]]
    assert final == pytest.approx(sum(kept) / len(kept), rel=1e-6)


def test_we_wise__hand_computed():
    plugin = WeightAveragingPlugin("we+wise", interval=1, alpha=0.5)
    steps = Steps()
    steps.model.w.data.fill_(4.0)
    # (4 + 8) / 2 = 6, then 5; (2 * 5 + 11) / 3 = 7, then 5.5
    assert list(steps.run(plugin, [8.0, 11.0])) == [5.0, 5.5, 5.5]
    plugin = WeightAveragingPlugin("wise", alpha=0.75)
    assert list(Steps().run(plugin, [4.0, 8.0])) == [None, None, 6.0]


@pytest.mark.parametrize("steps", [1, 2])
def test_we__deploys_the_mean_of_start_and_snapshots(steps):
    strategy, track = tracked(WeightAveragingPlugin(interval=2), steps)
    kept = [track.start[-1], *track.path[-1][::2]]
    assert len(kept) == 4
    assert_near(strategy.model.state_dict(), mean(kept))


@pytest.mark.parametrize("mode", ["we", "we+wise"])
def test_average__leaves_the_trajectory_alone(mode):
    _, plain = tracked(None)
    _, averaged = tracked(WeightAveragingPlugin(mode))
    assert plain.losses == averaged.losses
    assert_same_weights(plain.path[0][-1], averaged.path[0][-1])


def test_we_wise__equals_the_slow_form_in_each_step():
    plugin = WeightAveragingPlugin("we+wise", interval=2, alpha=0.9)
    strategy, track = tracked(plugin, 2)
    average = start = track.start[1]
    for n, theta in enumerate(track.path[1][::2], 1):
        average = lerp(start, lerp(average, theta, 1 / (n + 1)), 0.9)
    assert_near(strategy.model.state_dict(), average)


@pytest.mark.parametrize("anchor", ["start", "initial"])
@pytest.mark.parametrize("alpha", [0.0, 0.8, 1.0])
def test_wise__mixes_with_the_anchor(alpha, anchor):
    plugin = WeightAveragingPlugin("wise", alpha=alpha, anchor=anchor)
    strategy, track = tracked(plugin, 2)
    base = track.start[1 if anchor == "start" else 0]
    theta = track.path[1][-1]
    if alpha == 0:
        assert_same_weights(strategy.model, base)
    elif alpha == 1:
        assert_same_weights(strategy.model, theta)
        assert not strategy.teachers.teachers
    else:
        assert_near(strategy.model.state_dict(), lerp(base, theta, alpha))
    assert ("initial" in strategy.teachers.teachers) == (
        anchor == "initial" and alpha < 1
    )


def test_we_wise__with_the_initial_anchor():
    plugin = WeightAveragingPlugin("we+wise", interval=5, alpha=0.6, anchor="initial")
    strategy, track = tracked(plugin, 2)
    average = lerp(track.start[1], track.path[1][0], 0.5)
    expected = lerp(track.start[0], average, 0.6)
    assert_near(strategy.model.state_dict(), expected)


def test_growth__new_rows_keep_their_values_under_the_initial_anchor():
    model = GrowingEncoder()
    plugin = WeightAveragingPlugin("wise", alpha=0.5, anchor="initial")
    strategy, track = tracked(plugin, 3, model=model)
    rows = track.path[2][-1]["table.rows"]
    first = strategy.teachers.get("initial").model.table.rows
    ours = model.state_dict()["table.rows"]
    count = len(first)
    assert len(rows) > count
    assert torch.equal(ours[count:], rows[count:])
    torch.testing.assert_close(ours[:count], (first + rows[:count]) / 2)
    name = "token.weight"
    expected = (track.start[0][name] + track.path[2][-1][name]) / 2
    assert_near(model.state_dict(), {name: expected})


@pytest.mark.parametrize("score", ["average", "student"])
def test_score__evaluation_inside_an_experience(score):
    seen = []

    class Look:
        stateless = True

        def after_training_epoch(self, strategy, **kwargs):
            before = weights(strategy.model)
            strategy.eval(stub_benchmark().test_stream[:1])
            assert_same_weights(strategy.model, before)

        def before_eval_exp(self, strategy, **kwargs):
            shown = weights(strategy.model)
            average = plugin.average
            seen.append(all(torch.equal(shown[k], v) for k, v in average.items()))

    plugin = WeightAveragingPlugin(interval=1, score=score)
    strategy, track = tracked(plugin, train_epochs=2, budget_iterations=4)
    reference = weights(strategy.model)
    strategy = fit(
        Sequential,
        steps=1,
        plugins=[plugin, Look()],
        train_epochs=2,
        budget_iterations=4,
    )
    assert seen == [score == "average"] * 2
    assert_same_weights(strategy.model, reference)
    strategy.eval(stub_benchmark().test_stream[:1])
    assert_same_weights(strategy.model, reference)


def test_batch_norm__warns_and_buffers_are_those_of_the_student():
    model = stub_model()
    model.norm = nn.BatchNorm1d(3)
    with pytest.warns(UserWarning, match="batch normalisation"):
        build(Sequential, model, plugins=[WeightAveragingPlugin()])
    model.norm.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(Sequential, model, plugins=[WeightAveragingPlugin()])
