import numpy as np
import pytest
import torch

from avalanche_clip.evaluation.functional import pair_metrics


def test_pair_metrics__published_examples():
    wrong = {"text_acc": 1.0, "image_acc": 0.0, "acc": 0.0}
    assert pair_metrics([[0.30, 0.28], [0.31, 0.33]]) == wrong
    right = {"text_acc": 0.0, "image_acc": 1.0, "acc": 0.0}
    assert pair_metrics([[0.30, 0.31], [0.28, 0.33]]) == right


def test_pair_metrics__ties_are_wrong():
    assert set(pair_metrics(torch.full((2, 2), 0.25)).values()) == {0.0}
    assert pair_metrics([[0.5, 0.5]])["text_acc"] == 0


def test_pair_metrics__one_image_with_two_captions():
    metrics = pair_metrics([[0.5, 0.4]])
    assert metrics == {"text_acc": 1.0, "image_acc": 1.0, "acc": 1.0}


def test_pair_metrics__scale_and_offset_per_text_leave_the_image_choice():
    scores = np.random.default_rng(0).random((50, 2, 2))
    moved = 3 * scores + np.array([5.0, -2.0])
    assert pair_metrics(moved)["image_acc"] == pair_metrics(scores)["image_acc"]


def test_pair_metrics__chance_levels():
    metrics = pair_metrics(np.random.default_rng(0).random((100_000, 2, 2)))
    assert metrics["text_acc"] == pytest.approx(1 / 4, abs=0.01)
    assert metrics["image_acc"] == pytest.approx(1 / 4, abs=0.01)
    assert metrics["acc"] == pytest.approx(1 / 6, abs=0.01)


@pytest.mark.parametrize("shape", [(2,), (0, 2), (1, 1, 2, 2)])
def test_pair_metrics__names_the_shape(shape):
    with pytest.raises(ValueError, match="S of shape"):
        pair_metrics(np.zeros(shape))


def test_pair_metrics__refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        pair_metrics([[float("nan"), 0.0], [0.0, 1.0]])
