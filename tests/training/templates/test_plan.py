import pytest

from avalanche_clip.checkpointing import load_state, save_state
from avalanche_clip.training import Restart, Sequential
from avalanche_clip.training.templates.plan import (
    cosine_lr,
    learning_rate,
    trunk_steps,
)
from tests.helpers import (
    At,
    assert_same_weights,
    build,
    stub_benchmark,
    train_stream,
)


@pytest.mark.parametrize(
    "step, expected",
    [(0, 1e-6), (249, 2.5e-4), (499, 5e-4), (500, 5e-4), (2500, 2.5e-4)],
)
def test_cosine__with_warmup_has_the_published_values(step, expected):
    assert cosine_lr(step, 4500, 500, 5e-4) == pytest.approx(expected, rel=1e-12)


def test_cosine__last_step_is_nearly_zero():
    assert cosine_lr(4499, 4500, 500, 5e-4) == pytest.approx(7.7106e-11, rel=1e-4)


@pytest.mark.parametrize("step, expected", [(0, 5e-4), (1125, 4.267767e-4)])
def test_cosine__without_warmup_starts_at_the_maximum(step, expected):
    assert cosine_lr(step, 4500, 0, 5e-4) == pytest.approx(expected, rel=1e-6)


def test_constant__warms_up_and_stays():
    rates = [learning_rate("constant", s, 6, base=1.0, warmup=2) for s in range(6)]
    assert rates == [0.5, 1, 1, 1, 1, 1]


def test_const_cosine__decays_in_its_last_part_only():
    rates = [learning_rate("const-cosine", s, 10, base=1.0) for s in range(10)]
    assert rates == pytest.approx([1] * 8 + [1, 0.5])


@pytest.mark.parametrize("total, expected", [(1, 0), (3, 2), (10, 8), (100, 80)])
def test_trunk__leaves_at_least_one_step_to_the_branch(total, expected):
    assert trunk_steps(total, 0.2) == expected


def test_learning_rate__unknown_kind_raises():
    with pytest.raises(ValueError, match="'linear' is unknown"):
        learning_rate("linear", 0, 10, base=1.0)


def rates_of_groups():
    return At("before_update", lambda s: [g["lr"] for g in s.optimizer.param_groups])


def rates_of(**options):
    recorder = rates_of_groups()
    strategy = build(Sequential, plugins=[recorder], **options)
    train_stream(strategy, stub_benchmark(), 2)
    return recorder.seen


def test_run__warms_up_in_the_first_step_only_and_restarts_each_step():
    seen = rates_of(warmup_iterations=2)
    first = [cosine_lr(s, 5, 2, 1e-2) for s in range(5)]
    later = [cosine_lr(s, 5, 0, 1e-2) for s in range(5)]
    assert [row[0] for row in seen] == pytest.approx(first + later)


def test_run__later_warmup_is_used_from_the_second_step_on():
    seen = rates_of(later_warmup_iterations=3, schedule="constant")
    expected = [1e-2] * 5 + [1e-2 / 3, 2e-2 / 3] + [1e-2] * 3
    assert [row[0] for row in seen] == pytest.approx(expected)


def test_run__fresh_weights_warm_up_again():
    recorder = rates_of_groups()
    options = {"warmup_iterations": 2, "schedule": "constant"}
    strategy = build(Restart, plugins=[recorder], budget_iterations=4, **options)
    train_stream(strategy, stub_benchmark(), 2)
    rates = [row[0] for row in recorder.seen]
    assert rates == pytest.approx([5e-3, 1e-2, 1e-2, 1e-2] * 2)


def test_run__groups_keep_the_ratio_of_their_rates():
    def rule(named):
        names = [n for n, _ in named]
        return [{"names": names[:1], "lr": 1e-3}, {"names": names[1:]}]

    seen = rates_of(param_groups=rule)
    assert all(a == pytest.approx(b / 10) for a, b in seen)


@pytest.mark.parametrize(
    "options",
    [
        {"budget_iterations": 5, "warmup_iterations": 6},
        {"budget_iterations": None, "train_epochs": 1, "warmup_iterations": 6},
        {"schedule": "const-cosine", "warmup_iterations": 5},
    ],
)
def test_run__warmup_longer_than_the_plan_raises(options):
    with pytest.raises(ValueError, match="does not fit"):
        rates_of(**options)


def test_epochs__of_each_experience_by_its_place_and_resumed(tmp_path):
    options = {"budget_iterations": None, "train_epochs": [2, 1]}
    benchmark = stub_benchmark()
    epochs = At("before_training_epoch", lambda s: s.experience_index)
    at = At(
        "iteration_completed", lambda s: save_state(s, tmp_path / f"{len(at.seen)}")
    )
    strategy = build(Sequential, plugins=[epochs, at], **options)
    for place in (1, 0):  # by the place in the stream, in any order
        strategy.train(benchmark.train_stream[place], eval_streams=[])
    assert epochs.seen == [1, 0, 0]
    resumed = build(Sequential, plugins=[At("before_eval", print)] * 2, **options)
    assert load_state(resumed, at.seen[-2], benchmark) == 0
    resumed.train(benchmark.train_stream[0], eval_streams=[])
    assert_same_weights(strategy.model, resumed.model)
    with pytest.raises(ValueError, match="2 numbers of epochs"):
        strategy.train(benchmark.train_stream[2], eval_streams=[])
