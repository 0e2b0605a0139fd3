"""Accuracies of an online stream of classes."""

import math

import numpy as np
import pytest

from avalanche_clip.evaluation.functional import exposed_accuracy, online_accuracy
from tests.refused import refused

NAN = float("nan")


def slow(E, counts, curve, ends):
    """The definitions, image by image."""

    def accuracy(row):
        right = total = 0.0
        for value, count in zip(E[row], counts):
            if not math.isnan(value):
                right, total = right + value * count, total + count
        return right / total

    drops = []
    for j in range(len(counts)):
        earlier = [E[row][j] for row in ends[:-1] if not math.isnan(E[row][j])]
        if earlier and max(earlier) > 0:
            drops.append(max(earlier) - E[-1][j])
    return {
        "A_AUC": sum(map(accuracy, curve)) / len(curve),
        "A_Avg": sum(map(accuracy, ends)) / len(ends),
        "A_Last": accuracy(len(E) - 1),
        "F_Last": sum(drops) / len(drops) if drops else NAN,
    }


@pytest.mark.parametrize("seed", range(5))
def test_online_accuracy__equals_the_definitions(seed):
    rng = np.random.default_rng(seed)
    P, C = 7, 5
    first = rng.integers(0, P, C)
    first[0] = 0
    E = rng.integers(0, 5, (P, C)) / 4
    E[np.arange(P)[:, None] < first] = NAN
    counts = rng.integers(1, 9, C).tolist()
    curve, ends = [1, 2, 4], [0, 3, 6]
    found = online_accuracy(E, counts, curve=curve, task_ends=ends)
    assert found == pytest.approx(slow(E.tolist(), counts, curve, ends), nan_ok=True)
    line = [online_accuracy(E[: k + 1], counts)["A_Last"] for k in range(P)]
    np.testing.assert_allclose(exposed_accuracy(E, counts), line)
    with_final = online_accuracy(E, counts, curve=curve, include_final=True)
    assert with_final["A_AUC"] == pytest.approx(
        np.mean([line[k] for k in (1, 2, 4, 6)])
    )
    again = online_accuracy(E, counts, curve=[1, 6], include_final=True)
    assert again["A_AUC"] == pytest.approx((line[1] + line[6]) / 2)


@pytest.mark.parametrize("unseen", [0.0, NAN])
def test_online_accuracy__published_examples(unseen):
    E = [[0.8, unseen, unseen], [0.6, 0.9, unseen], [0.5, 0.7, 1]]
    assert online_accuracy(E)["F_Last"] == pytest.approx(0.25)
    assert online_accuracy([[0.5], [0.25], [0.75]])["A_AUC"] == 0.5


def test_online_accuracy__images_count_and_not_classes():
    found = online_accuracy([[1.0, 0.0]], [3, 1])
    assert found["A_Last"] == 0.75
    assert online_accuracy([[1.0, 0.0]])["A_Last"] == 0.5


def test_online_accuracy__classes_that_were_never_right_do_not_forget():
    E = [[0.0, 0.5], [0.0, 0.0], [0.9, 0.5]]
    assert online_accuracy(E)["F_Last"] == 0.0
    assert math.isnan(online_accuracy([[0.0], [0.0]])["F_Last"])
    assert math.isnan(online_accuracy([[0.5]])["F_Last"])


def test_online_accuracy__what_is_missing_is_nan():
    E = [[0.5, NAN], [NAN, 0.5], [0.5, 0.5]]
    found = online_accuracy(E, curve=[0, 2])
    assert found["A_AUC"] == found["A_Last"] == 0.5
    assert math.isnan(found["A_Avg"]) and math.isnan(found["F_Last"])
    nothing = exposed_accuracy([[NAN, NAN], [0.5, NAN]])
    assert math.isnan(nothing[0]) and nothing[1] == 0.5
    unknown = online_accuracy(E, task_ends=[])
    assert math.isnan(unknown["A_Avg"]) and math.isnan(unknown["F_Last"])
    assert unknown["A_Last"] == 0.5


def test_online_accuracy__without_a_point_the_final_accuracy_counts():
    with pytest.warns(UserWarning, match="no evaluation point before the end"):
        found = online_accuracy([[0.25], [0.75]], curve=[])
    assert found["A_AUC"] == 0.75
    assert online_accuracy([[0.25], [0.75]], curve=[], include_final=True)["A_AUC"] == (
        0.75
    )


@pytest.mark.parametrize(
    "E, options, words",
    [
        ([0.5], {}, "one row per evaluation, one column per class"),
        ([[]], {}, "E of shape"),
        ([[0.5]], {"counts": [1, 2]}, "counts of shape"),
        ([[0.5]], {"counts": [0]}, "must all be at least 1"),
        ([[0.5]], {"counts": [1.0]}, "give integers"),
        ([[0.5]], {"curve": [1]}, "curve holds 1 to 1"),
        ([[0.5], [0.5]], {"curve": [1, 0]}, "must be ascending rows"),
        ([[0.5], [0.5]], {"task_ends": [0, 0, 1]}, "each named once"),
        ([[0.5], [0.5]], {"task_ends": [0]}, "must end with the last row, 1"),
        ([[0.5]], {"task_ends": 0}, "must be a list of integers"),
    ],
    ids=str,
)
def test_online_accuracy__nonsense_is_refused(E, options, words):
    refused(words, online_accuracy, E, **options)
