"""Average recall and forgetting of a stream of languages."""

import math

import numpy as np
import pytest
import torch

from avalanche_clip.evaluation.functional import (
    forgetting_per_task,
    multilingual_summary,
    recall_forgetting,
    recall_forgetting_curves,
)

RAGGED = [[50], [48, 40], [49, 35, 42], [44, 38, 30, 41]]


def slow(R):
    """The definitions, term by term, with tasks counted from 1."""
    T = len(R)

    def r(i, j):
        return float(R[i - 1][j - 1])

    average, forgetting, first = [], [], []
    for i in range(1, T + 1):
        average.append(sum(r(i, j) for j in range(1, i + 1)) / i)
        if i == 1:
            forgetting.append(math.nan)
            first.append(math.nan)
            continue
        drops = [max(r(s, j) for s in range(j, i)) - r(i, j) for j in range(1, i)]
        forgetting.append(sum(drops) / (i - 1))
        first.append(max(r(s, 1) for s in range(1, i)) - r(i, 1))
    return {
        "average_recall": average,
        "forgetting": forgetting,
        "first_task_forgetting": first,
    }


def test_curves__match_the_worked_case():
    curves = recall_forgetting_curves(RAGGED)
    assert curves["average_recall"].tolist() == [50, 44, 42, 38.25]
    np.testing.assert_allclose(curves["forgetting"], [math.nan, 2, 3, 20 / 3])
    np.testing.assert_array_equal(curves["first_task_forgetting"], [math.nan, 2, 1, 6])


def test_values__are_those_after_the_last_task():
    values = recall_forgetting(RAGGED)
    assert values == {
        "average_recall": 38.25,
        "forgetting": pytest.approx(20 / 3),
        "first_task_forgetting": 6.0,
    }
    assert all(type(value) is float for value in values.values())
    for size in (1, 2, 3, 4):
        curves = recall_forgetting_curves(RAGGED)
        np.testing.assert_equal(
            recall_forgetting(RAGGED[:size]),
            {name: float(curve[size - 1]) for name, curve in curves.items()},
        )


def test_reference_tables__start_from_zero():
    curves = recall_forgetting_curves(RAGGED, unseen_start=True)
    assert curves["first_task_forgetting"][1:].tolist() == [-48, -1, 5]
    assert curves["average_recall"].tolist() == [0, 44, 42, 38.25]
    assert recall_forgetting(RAGGED, unseen_start=True)["first_task_forgetting"] == 5


@pytest.mark.parametrize("size", [1, 2, 5, 36])
@pytest.mark.parametrize("extra", [0, 3])
def test_any_matrix__equals_the_slow_form(size, extra):
    generator = np.random.default_rng(size)
    R = generator.random((size, size + extra)) - 0.3
    expected = slow(R)
    found = recall_forgetting_curves(R)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("kind", ["array", "tensor", "list", "float32", "integers"])
def test_input__above_the_diagonal_is_not_read(kind):
    square = np.full((4, 4), np.nan)
    for i, row in enumerate(RAGGED):
        square[i, : i + 1] = row
    filled = np.where(np.isnan(square), 1000, square)
    given = {
        "array": square,
        "tensor": torch.from_numpy(square),
        "list": square.tolist(),
        "float32": torch.from_numpy(filled).float(),
        "integers": filled.astype(np.int64),
    }[kind]
    before = np.array(np.asarray(given), copy=True)
    assert recall_forgetting(given, unseen_start=True)["average_recall"] == 38.25
    np.testing.assert_array_equal(np.asarray(given), before)


def test_missing_entry__makes_what_it_enters_nan():
    R = [list(map(float, row)) for row in RAGGED]
    R[1][1] = math.nan
    curves = recall_forgetting_curves(R)
    assert np.isnan(curves["average_recall"]).tolist() == [False, True, False, False]
    assert np.isnan(curves["forgetting"]).tolist() == [True, False, True, True]
    assert not np.isnan(curves["first_task_forgetting"][1:]).any()


def test_results_before_learning__do_not_count():
    R = np.array([[0.5, 0.9], [0.5, 0.4], [0.5, 0.4]])
    R = np.hstack([R, [[0.0], [0.0], [0.1]]])
    assert recall_forgetting(R)["forgetting"] == 0.0


def test_per_task__has_the_drop_of_each_task():
    drops = forgetting_per_task(RAGGED)
    np.testing.assert_allclose(drops[3, :3], [6, 2, 12])
    assert np.isnan(np.triu(drops) + np.tril(np.full((4, 4), 0.0), -1)).sum() == 10


def test_improvement__is_negative_forgetting():
    assert recall_forgetting([[1.0], [3.0, 1.0]])["forgetting"] == -2.0


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        [[]],
        [[1.0], [2.0]],
        [1.0, 2.0],
        np.zeros(3),
        np.array(3.0),
        np.zeros((3, 2)),
        [["a"]],
        None,
        3,
    ],
)
def test_wrong_shapes__raise(wrong):
    with pytest.raises(ValueError):
        recall_forgetting(wrong)


def test_summary__of_a_run_has_its_own_names():
    E = np.array([[50, 0, 7], [48, 40, 8]], dtype=float)
    assert multilingual_summary(E) == {
        "average_recall": 44.0,
        "recall_forgetting": 2.0,
        "first_task_forgetting": 2.0,
    }
    assert multilingual_summary(E[:, :1]) == {}
