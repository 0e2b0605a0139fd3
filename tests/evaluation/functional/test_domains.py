"""Summaries of sequences of data sets and of growing sets of classes."""

import numpy as np
import pytest

from avalanche_clip.evaluation.functional import (
    classification_metrics,
    incremental_accuracy,
    seen_unseen_harmonic,
    seen_unseen_per_step,
    transfer_average_last,
    transfer_per_task,
)

# ZSCL, order I, one decimal; a row after each data set.
FIXTURE = np.array(
    [
        [55.1, 86.0, 66.3, 44.9, 49.2, 70.6, 88.3, 53.6, 87.4, 61.3, 65.7],
        [48.9, 94.2, 68.6, 44.7, 50.4, 67.0, 87.6, 55.2, 85.0, 61.0, 65.9],
        [47.1, 93.1, 86.2, 46.5, 50.1, 68.8, 87.7, 63.4, 87.6, 60.6, 67.4],
        [47.0, 93.8, 85.0, 76.2, 51.7, 69.9, 87.8, 65.9, 88.4, 61.2, 67.2],
        [46.1, 92.8, 84.0, 75.0, 97.8, 69.1, 87.1, 67.6, 88.0, 60.3, 67.1],
        [43.8, 92.5, 83.2, 73.5, 97.2, 96.3, 87.1, 63.3, 86.5, 58.8, 66.9],
        [44.3, 92.2, 82.9, 71.2, 96.8, 93.8, 92.2, 63.5, 87.3, 60.3, 67.9],
        [41.9, 91.9, 80.5, 67.8, 95.3, 89.5, 91.9, 99.0, 84.4, 58.4, 66.5],
        [41.6, 91.8, 81.3, 68.2, 95.7, 90.7, 92.0, 98.8, 95.3, 58.9, 66.4],
        [39.8, 91.9, 81.8, 68.9, 95.7, 91.6, 91.8, 98.8, 94.5, 85.8, 67.3],
        [40.6, 92.2, 81.3, 70.5, 94.8, 90.5, 91.9, 98.7, 93.9, 85.3, 80.2],
    ]
)
ZERO_SHOT = [24.3, 88.4, 68.2, 44.6, 54.9, 71.0, 88.5, 59.4, 89.0, 64.7, 65.2]
ORDER_2 = [9, 6, 7, 8, 5, 10, 0, 1, 3, 4, 2]


def slow(A):
    size = len(A)
    transfer = [sum(A[i][j] for i in range(j)) / j for j in range(1, size)]
    average = [sum(A[i][j] for i in range(size)) / size for j in range(size)]
    return {
        "transfer": sum(transfer) / len(transfer) if transfer else float("nan"),
        "average": sum(average) / size,
        "last": sum(A[size - 1]) / size,
    }


def test_transfer_average_last__published_matrix():
    found = transfer_average_last(FIXTURE)
    assert found["transfer"] == pytest.approx(68.137627, abs=1e-6)
    assert found["average"] == pytest.approx(75.384298, abs=1e-6)
    assert found["last"] == pytest.approx(83.627273, abs=1e-6)
    columns = transfer_per_task(FIXTURE)
    expected = [86.0, 67.4, 45.4, 50.4, 69.1, 87.6, 61.8, 86.8, 60.1, 66.8]
    # The published values come from unrounded entries.
    np.testing.assert_allclose(columns["transfer"][1:], expected, atol=0.06)
    assert np.isnan(columns["transfer"][0])
    np.testing.assert_allclose(columns["last"], FIXTURE[-1])
    assert columns["average"][0] == pytest.approx(45.1, abs=0.06)


def test_transfer_average_last__zero_shot_rows():
    A = np.tile(ZERO_SHOT, (11, 1))
    found = transfer_average_last(A)
    assert found["transfer"] == pytest.approx(69.39, abs=0.005)
    assert found["average"] == pytest.approx(65.29, abs=0.005) == found["last"]
    other = transfer_average_last(A[:, ORDER_2])
    assert other["transfer"] == pytest.approx(65.35, abs=0.005)
    assert other["average"] == pytest.approx(found["average"])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_transfer_average_last__equals_loops_and_is_linear(size):
    rng = np.random.default_rng(size)
    A, B = rng.random((2, size, size))
    found, other, both = (transfer_average_last(M) for M in (A, B, 2 * A + B))
    for key, value in slow(A.tolist()).items():
        assert found[key] == pytest.approx(value, nan_ok=True)
        combined = 2 * found[key] + other[key]
        assert both[key] == pytest.approx(combined, nan_ok=True)


def test_transfer__ignores_rows_after_learning():
    A = np.random.default_rng(0).random((4, 4))
    changed = A + np.tril(np.ones((4, 4)))
    assert transfer_average_last(A)["transfer"] == pytest.approx(
        transfer_average_last(changed)["transfer"]
    )
    found = transfer_average_last([[1, 2], [3, 4]])
    assert found == {"transfer": 2.0, "average": 2.5, "last": 3.5}
    assert transfer_average_last([[0.0, 0.0], [0.0, 0.0]])["transfer"] == 0.0


@pytest.mark.parametrize(
    "A", [[[1, 2, 3], [4, 5, 6]], [1, 2], [[1, float("nan")], [2, 3]], np.empty((0, 0))]
)
def test_transfer_average_last__refuses_incomplete_matrices(A):
    with pytest.raises(ValueError, match="A of shape"):
        transfer_average_last(A)


def test_seen_unseen__by_hand():
    steps = seen_unseen_per_step([[0.8, 0.2, 0.4], [0.6, 0.6, 0.6], [0.3, 0.6, 0.9]])
    np.testing.assert_allclose(steps["seen"], [0.8, 0.6, 0.6])
    np.testing.assert_allclose(steps["unseen"], [0.3, 0.6, np.nan])
    np.testing.assert_allclose(steps["harmonic"], [0.48 / 1.1, 0.6, np.nan])
    found = seen_unseen_harmonic([[0.8, 0.2, 0.4], [0.6, 0.6, 0.6], [0.3, 0.6, 0.9]])
    assert found["seen"] == pytest.approx(2.0 / 3)
    assert found["unseen"] == pytest.approx(0.45)
    assert found["harmonic"] == pytest.approx((0.48 / 1.1 + 0.6) / 2)


def test_seen_unseen__edges():
    single = seen_unseen_harmonic([[0.5]])
    assert single["seen"] == 0.5 and np.isnan(single["unseen"])
    zero = seen_unseen_per_step([[0.0, 0.0], [0.0, 0.0]])
    assert zero["harmonic"][0] == 0.0
    wide = seen_unseen_harmonic([[0.5, 0.1, 0.3]])
    assert wide == {"seen": 0.5, "unseen": 0.2, "harmonic": pytest.approx(0.2 / 0.7)}
    for bad in ([[1.0], [2.0]], [1.0], np.empty((0, 0)), [[-0.1]]):
        with pytest.raises(ValueError, match="E of shape"):
            seen_unseen_harmonic(bad)


def test_incremental_accuracy__counts_samples():
    E = [[0.5, 0.9, 0.9], [0.4, 1.0, 0.9], [0.3, 0.8, 0.0]]
    found = incremental_accuracy(E, [100, 5, 5])
    assert found["per_step"][0] == 0.5
    assert found["per_step"][1] == pytest.approx((40 + 5) / 105)
    assert found["last"] == pytest.approx((30 + 4) / 110) == found["per_step"][2]
    assert found["average"] == pytest.approx(np.mean(found["per_step"]))


@pytest.mark.parametrize("counts", [[1], [1, 2, 3], [1, 0], [1.5, 2.0], [-1, 2]])
def test_incremental_accuracy__checks_counts(counts):
    with pytest.raises(ValueError, match="counts"):
        incremental_accuracy([[1, 1], [1, 1]], counts)
    with pytest.raises(ValueError, match="E of shape"):
        incremental_accuracy([[1], [1]], [1])


def test_classification_metrics__equal_scores_go_to_the_lowest_column():
    scores = [[0.5, 0.5, 0.1]] * 2
    assert classification_metrics(scores, [0, 1])["acc1"] == 0.0
    found = classification_metrics(scores, [0, 1], ties="lowest")
    assert found["acc1"] == 0.5 and found["mean_per_class_recall"] == 0.5
    rng = np.random.default_rng(0)
    many = rng.integers(0, 4, (200, 7)).astype(float)
    targets = rng.integers(0, 7, 200)
    found = classification_metrics(many, targets, ties="lowest")
    assert found["acc1"] == pytest.approx((many.argmax(1) == targets).mean())
    order = np.argsort(-many, axis=1, kind="stable")
    top5 = (order[:, :5] == targets[:, None]).any(1).mean()
    assert found["acc5"] == pytest.approx(top5)
    with pytest.raises(ValueError, match="ties"):
        classification_metrics(scores, [0, 1], ties="highest")
