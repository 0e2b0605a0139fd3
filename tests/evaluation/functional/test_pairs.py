import numpy as np
import pytest
import torch

from avalanche_clip.evaluation.functional import pair_metrics, pattern_metrics


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


WRONG = [[0.30, 0.28], [0.31, 0.33]]  # each image prefers its own text
RIGHT = [[0.30, 0.31], [0.28, 0.33]]  # each text prefers its own image


def released(scores, scale=100.0):
    """The released decision: probabilities over the images of a pair, above 1/2."""
    exps = np.exp(scale * (np.asarray(scores) - np.max(scores)))
    first = exps[0] / exps.sum(0)
    return bool(first[0] > 0.5 and not first[1] > 0.5)


@pytest.mark.parametrize(
    ("scores", "values"),
    [
        (WRONG, (0, 1, 0)),
        (RIGHT, (1, 0, 0)),
        (np.full((2, 2), 0.3), (0, 0, 0)),
        ([[0.4, 0.3], [0.2, 0.3]], (1, 1, 0)),
        ([[0.3, 0.2], [0.3, 0.4]], (0, 1, 0)),
    ],
)
def test_pattern_metrics__cases_of_the_note(scores, values):
    metrics = pattern_metrics([scores], ["Text"])
    names = ("text_to_image_acc", "image_to_text_acc", "group_acc")
    assert tuple(metrics["all"][name] for name in names) == values
    names = [name for name in metrics["all"] if not name.endswith(("_low", "_high"))]
    assert all(metrics["Text"][name] == metrics["all"][name] for name in names)


def test_pattern_metrics__nine_patterns_of_fifteen():
    right = np.eye(2)
    scores = [right] * 60 + [1 - right] * 75
    names = [f"pattern {k}" for k in range(9) for _ in range(15)]
    metrics = pattern_metrics(np.array(scores), names)
    by_pattern = [metrics[f"pattern {k}"]["text_to_image_acc"] for k in range(9)]
    assert by_pattern == [1.0] * 4 + [0.0] * 5
    assert metrics["all"]["text_to_image_acc"] == pytest.approx(0.44444444)
    assert metrics["all"]["count"] == 270


def test_pattern_metrics__equals_the_released_decision_in_any_order():
    generator = np.random.default_rng(1)
    scores = generator.uniform(-1, 1, (200, 2, 2)).round(1)  # with ties
    names = [f"{k}" for k in generator.integers(0, 5, 200)]
    metrics = pattern_metrics(scores, names)
    for name in set(names):
        part = [s for s, other in zip(scores, names, strict=True) if other == name]
        wanted = [released(s) for s in part]
        assert metrics[name]["text_to_image_acc"] == pytest.approx(np.mean(wanted))
        margins = [min(s[0, 0] - s[1, 0], s[1, 1] - s[0, 1]) for s in part]
        assert metrics[name]["margin"] == pytest.approx(np.mean(margins))
        gaps = [s[0, 0] + s[1, 1] - s[0, 1] - s[1, 0] for s in part]
        assert metrics[name]["group_margin"] == pytest.approx(np.mean(gaps))
    means = [m["text_to_image_acc"] for name, m in metrics.items() if name != "all"]
    assert metrics["all"]["text_to_image_acc"] == pytest.approx(np.mean(means))
    order = generator.permutation(200)
    moved = pattern_metrics(scores[order], [names[k] for k in order])
    assert moved.keys() == metrics.keys()
    for name, values in moved.items():
        assert values == pytest.approx(metrics[name])


def test_pattern_metrics__what_may_change_a_result():
    scores = np.random.default_rng(2).uniform(-1, 1, (300, 2, 2))
    names = ["x"] * 300

    def score(S):
        return pattern_metrics(S, names)["all"]["text_to_image_acc"]

    assert score(7 * scores + np.array([0.3, -2])) == score(scores)
    assert score(scores[:, ::-1, ::-1].copy()) == score(scores)
    assert score(scores + np.array([[0.5], [0.0]])) != score(scores)


def test_pattern_metrics__ties_within_a_tolerance_are_wrong():
    scores = np.array([[[0.5 + 5e-7, 0.5], [0.5, 0.5 + 5e-7]]])

    def found(tie_eps, scores=scores):
        values = pattern_metrics(scores, ["x"], tie_eps=tie_eps)["x"]
        return values["text_to_image_acc"], values["group_acc"]

    assert found(0) == found(1e-7) == (1, 1) and found(1e-6) == (0, 0)
    # The second text's tie goes to the second image, its own.
    second = np.array([[[0.6, 0.5 + 5e-7], [0.5, 0.5]]])
    assert found(0, second) == found(1e-7, second) == (0, 0)
    assert found(1e-6, second) == (1, 0)


@pytest.mark.parametrize(
    ("scores", "names", "message"),
    [
        (np.ones((2, 2, 2)), ["a"], "1 patterns given, 2 are needed"),
        (np.ones((1, 2, 3)), ["a"], "S of shape"),
        (np.ones((1, 2, 2)), ["all"], "called 'all'"),
        (np.full((1, 2, 2), np.inf), ["a"], "infinite"),
    ],
)
def test_pattern_metrics__refuses(scores, names, message):
    with pytest.raises(ValueError, match=message):
        pattern_metrics(scores, names)


@pytest.mark.parametrize("blindness", [[0.5], [[0.5]] * 2, [0.5, float("nan")]])
def test_patterns__blindness_is_one_number_per_pair(blindness):
    with pytest.raises(ValueError, match="blindness"):
        pattern_metrics(torch.rand(2, 2, 2), ["x", "y"], blindness=blindness)
