import math

import numpy as np
import pytest
import torch

from avalanche_clip.evaluation.functional import (
    continual_summary,
    fold_columns,
    time_transfer,
)

LEVELS = [[50, 40, 30], [45, 55, 35], [42, 52, 60]]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_time_transfer__published_example(kind):
    expected = {"in_domain": 55, "backward": 46.3333333, "forward": 35}
    assert time_transfer(kind(LEVELS)) == pytest.approx(expected)


def test_time_transfer__constant_matrix_and_one_step():
    assert set(time_transfer(np.full((4, 4), 0.25)).values()) == {0.25}
    one = time_transfer([[0.5]])
    assert one["in_domain"] == 0.5
    assert math.isnan(one["backward"]) and math.isnan(one["forward"])


def test_time_transfer__missing_cells_are_never_skipped():
    result = time_transfer([[0.5, 0.1], [math.nan, 0.4]])
    assert math.isnan(result["backward"])
    assert result["in_domain"] == pytest.approx(0.45) and result["forward"] == 0.1


@pytest.mark.parametrize("matrix", [[[1, 2]], [1, 2], np.empty((0, 0)), [[1, 2], [3]]])
def test_time_transfer__refuses_other_shapes(matrix):
    with pytest.raises(ValueError, match="E"):
        time_transfer(matrix)


def test_fold_columns__published_example():
    folded = fold_columns([[10, 20, 60, 40], [20, 30, 70, 80]], [0, 0, 0, 1])
    assert folded.tolist() == [[30, 40], [40, 80]]
    expected = {"in_domain": 55, "backward": 40, "forward": 40}
    assert time_transfer(folded) == expected


def test_fold_columns__order_is_free_and_missing_cells_stay_missing():
    folded = fold_columns([[1.0, 2.0, 3.0], [1.0, math.nan, 5.0]], [1, 0, 1])
    assert folded[0].tolist() == [2, 2]
    assert math.isnan(folded[1, 0]) and folded[1, 1] == 3


@pytest.mark.parametrize("steps", [[0, 0], [0, 0, 2], [-1, 0, 1], [0.0, 1.0, 1.0]])
def test_fold_columns__refuses_steps_that_do_not_fit(steps):
    with pytest.raises(ValueError, match="steps"):
        fold_columns([[1, 2, 3]], steps)


def loop_summary(E, before):
    """The definitions, one entry at a time."""
    last, size = len(E) - 1, len(E[0])
    history = [before, *E]
    drops = [
        max(history[k][j] for k in range(last + 1)) - E[last][j] for j in range(last)
    ]
    backward = [E[last][j] - E[j][j] for j in range(last)]
    forward = [E[k][j] - before[j] for k in range(last + 1) for j in range(k + 1, size)]
    return {
        "average_accuracy": np.mean([E[last][j] for j in range(last + 1)]),
        "forgetting": np.mean(drops),
        "backward_transfer": np.mean(backward),
        "forward_transfer": np.mean(forward),
        "retention": np.mean([E[last][j] - before[j] for j in range(size)]),
    }


@pytest.mark.parametrize("rows, columns", [(2, 2), (4, 4), (3, 5)])
def test_continual_summary__equals_the_loop(rows, columns):
    rng = np.random.default_rng(rows)
    E, before = rng.random((rows, columns)), rng.random(columns)
    expected = loop_summary(E.tolist(), before.tolist())
    assert continual_summary(E, before) == pytest.approx(expected)


def test_continual_summary__without_before_the_transfers_against_it_are_nan():
    summary = continual_summary([[0.5, 0.9], [0.4, 0.6]])
    assert math.isnan(summary["forward_transfer"]) and math.isnan(summary["retention"])
    assert summary["forgetting"] == pytest.approx(0.1)
    # the level before the stream was higher than anything after it
    high = continual_summary([[0.5, 0.9], [0.4, 0.6]], before=[0.8, 0.1])
    assert high["forgetting"] == pytest.approx(0.4)


def test_continual_summary__one_experience_has_no_past():
    summary = continual_summary([[0.5]], before=[0.2])
    assert summary["average_accuracy"] == 0.5
    assert summary["retention"] == pytest.approx(0.3)
    for name in ("forgetting", "backward_transfer", "forward_transfer"):
        assert math.isnan(summary[name])


def test_continual_summary__missing_cells_are_never_skipped():
    summary = continual_summary([[0.5, 0.1], [math.nan, 0.4]], before=[0.0, 0.0])
    assert math.isnan(summary["average_accuracy"])
    assert math.isnan(summary["forgetting"])


def test_continual_summary__results_from_before_a_step_may_be_missing():
    nan = math.nan
    E = [[0.5, nan, nan], [0.4, 0.6, nan], [0.45, 0.3, 0.7]]
    summary = continual_summary(E, before=[0.1, nan, nan])
    assert summary["forgetting"] == pytest.approx((0.05 + 0.3) / 2)
    assert summary["average_accuracy"] == pytest.approx(1.45 / 3)
    assert math.isnan(summary["forward_transfer"]) and math.isnan(summary["retention"])
    known = [[0.5, 0.65, nan], *E[1:]]
    summary = continual_summary(known, before=[0.1, nan, nan])
    assert summary["forgetting"] == pytest.approx((0.05 + 0.35) / 2)
    E[1][1] = nan  # after it was trained
    assert math.isnan(continual_summary(E)["forgetting"])


def test_continual_summary__refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(2, 1\)"):
        continual_summary([[0.5], [0.5]])
    with pytest.raises(ValueError, match=r"before of shape \(2,\)"):
        continual_summary([[0.5]], before=[0.1, 0.2])


STEPS = [[0, 2], [2, 0], [0, 1, 0, 2], [1, 1]]


@pytest.mark.parametrize("steps", STEPS, ids=str)
def test_continual_summary__with_steps_equals_loops(steps):
    rng = np.random.default_rng(len(steps))
    E, before = rng.random((len(steps), 3)), rng.random(3)
    K, last = len(steps) - 1, steps[-1]
    seen = [set(steps[: k + 1]) for k in range(len(steps))]
    old = sorted(seen[K] - {last})
    expected = {
        "average_accuracy": np.mean([E[K, j] for j in sorted(seen[K])]),
        "retention": np.mean(E[K] - before),
        "forward_transfer": np.mean(
            [E[k, j] - before[j] for k in range(K + 1) for j in {0, 1, 2} - seen[k]]
        )
        if seen[0] != {0, 1, 2}
        else np.nan,
        "forgetting": np.mean([max(before[j], *E[:K, j]) - E[K, j] for j in old])
        if old
        else np.nan,
        "backward_transfer": np.mean(
            [E[K, j] - E[max(k for k in range(K + 1) if steps[k] == j), j] for j in old]
        )
        if old
        else np.nan,
    }
    found = continual_summary(E, before, steps)
    assert found == pytest.approx(expected, nan_ok=True)


def test_summaries__with_steps_in_order_are_the_same_bit_for_bit():
    E, before = np.random.default_rng(0).random((4, 4)), np.ones(4)
    steps = [0, 1, 2, 3]
    assert time_transfer(E, steps) == time_transfer(E)
    assert continual_summary(E, before, steps) == continual_summary(E, before)
    part = continual_summary(E[:2], before, steps[:2])
    assert part == continual_summary(E[:2], before)


def test_time_transfer__with_steps_in_another_order_is_that_of_the_columns():
    E = np.random.default_rng(1).random((3, 3))
    order = [2, 0, 1]
    assert time_transfer(E, order) == pytest.approx(time_transfer(E[:, order]))


@pytest.mark.parametrize("steps", [[0], [0, 3], [-1, 0], [0.5, 1.0]], ids=str)
@pytest.mark.parametrize("function", [time_transfer, continual_summary])
def test_summaries__steps_that_do_not_fit_raise(function, steps):
    options = {} if function is time_transfer else {"before": None}
    with pytest.raises(ValueError, match="steps"):
        function(np.ones((2, 2)), steps=steps, **options)
    with pytest.raises(ValueError, match="leave out"):
        time_transfer(np.ones((2, 3)), [0, 1])
