import math

import numpy as np
import pytest
import torch

from avalanche_clip.evaluation.functional import (
    class_ranks,
    class_vectors,
    classification_metrics,
)


def one_hot(predictions, classes):
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).double()


def test_classification__published_example():
    scores = one_hot([0, 0, 0, 1, 1, 0, 3], 4)
    metrics = classification_metrics(scores, [0, 0, 0, 0, 1, 1, 2])
    assert metrics["acc1"] == pytest.approx(4 / 7)
    assert metrics["mean_per_class_recall"] == pytest.approx(0.416667, abs=1e-6)
    assert math.isnan(metrics["acc5"])


def test_classification__top_five_equals_the_sorted_order():
    rng = np.random.default_rng(0)
    scores, targets = rng.standard_normal((200, 9)), rng.integers(0, 9, 200)
    order = np.argsort(-scores, axis=1)
    metrics = classification_metrics(scores, targets)
    top5 = np.mean([t in row[:5] for t, row in zip(targets, order, strict=True)])
    assert metrics["acc1"] == pytest.approx(np.mean(order[:, 0] == targets))
    assert metrics["acc5"] == pytest.approx(top5)
    recalls = [np.mean(order[targets == c, 0] == c) for c in np.unique(targets)]
    assert metrics["mean_per_class_recall"] == pytest.approx(np.mean(recalls))


def test_classification__equal_scores_are_never_right():
    metrics = classification_metrics(torch.ones(6, 6), torch.arange(6))
    assert metrics["acc1"] == metrics["acc5"] == metrics["mean_per_class_recall"] == 0


def test_classification__average_precision_by_hand():
    scores = torch.tensor([[0.9], [0.8], [0.7], [0.6]])
    targets = torch.tensor([[1], [0], [1], [0]])
    result = classification_metrics(scores, targets)
    assert result == {"mean_average_precision": pytest.approx(0.833333, abs=1e-6)}


def test_classification__a_class_without_positives_counts_as_zero():
    scores = torch.tensor([[0.9, 0.3], [0.8, 0.1]])
    result = classification_metrics(scores, torch.tensor([[True, False]] * 2))
    assert result["mean_average_precision"] == 0.5


def test_classification__ties_do_not_help_the_average_precision():
    result = classification_metrics(torch.ones(4, 1), [[1], [0], [0], [0]])
    assert result["mean_average_precision"] == 0.25


@pytest.mark.parametrize(
    "targets, message",
    [
        ([0, 1], r"targets of shape \(2,\).*\(3,\)"),
        ([0, 1, 2], r"0\.\.1"),
        ([0.0, 1.0, 1.0], "float64"),
        ([[0, 2], [0, 1], [0, 0]], "other values"),
    ],
)
def test_classification__refuses_what_does_not_fit(targets, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(torch.zeros(3, 2), targets)


def test_classification__refuses_nan():
    with pytest.raises(ValueError, match="NaN"):
        classification_metrics(torch.full((3, 2), math.nan), [0, 1, 1])


def test_class_vectors__normalise_average_normalise():
    prompts = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0]])
    vectors = class_vectors(prompts, torch.tensor([0, 1, 0]))
    expected = torch.tensor([[0.894427, 0.447214], [0.0, 1.0]])
    torch.testing.assert_close(vectors, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("index", [[0], [0, 2], [-1, 0], [0.0, 1.0]])
def test_class_vectors__refuse_an_index_that_does_not_fit(index):
    with pytest.raises(ValueError, match="class_index"):
        class_vectors(torch.eye(2), torch.tensor(index))


@pytest.mark.parametrize("size", [1, 5000])
def test_class_ranks__are_those_of_the_whole_matrix(size):
    generator = torch.Generator().manual_seed(size)
    images = torch.randn(size, 4, generator=generator)
    vectors = torch.randn(7, 4, generator=generator)
    vectors[3] = vectors[2]  # ties are errors
    targets = torch.randint(7, (size,), generator=generator)
    ranks, predictions = class_ranks(images, vectors, targets)
    scores = images @ vectors.T
    own = scores.gather(1, targets[:, None])
    assert torch.equal(ranks, (scores >= own).sum(dim=1) - 1)
    scores.scatter_(1, targets[:, None], -torch.inf)
    wrong = ranks > 0
    assert torch.equal(predictions[~wrong], targets[~wrong])
    assert torch.equal(predictions[wrong], scores.argmax(dim=1)[wrong])
    metrics = classification_metrics(images @ vectors.T, targets)
    assert metrics["acc1"] == pytest.approx((ranks < 1).double().mean().item())


@pytest.mark.parametrize(
    "vectors, targets, words",
    [
        (torch.ones(2, 3), [0, 1], "columns|must agree"),
        (torch.ones(2, 4), [0, 2], "0..1"),
        (torch.ones(2, 4), [0], "class indices"),
        (torch.full((2, 4), torch.nan), [0, 1], "NaN"),
        (torch.ones(2, 4).double(), [0, 1], "dtype"),
    ],
)
def test_class_ranks__what_does_not_fit_is_refused(vectors, targets, words):
    with pytest.raises(ValueError, match=words):
        class_ranks(torch.ones(2, 4), vectors, targets)


def test_classification__ties_are_not_for_several_labels():
    with pytest.raises(ValueError, match="ties='lowest' is not for multi-label"):
        classification_metrics(torch.rand(3, 2), torch.ones(3, 2), ties="lowest")


@pytest.mark.parametrize("dim, count, classes", [(7, 3, 13), (512, 257, 397)])
def test_ranks__of_a_collapsed_model_are_the_last_whatever_the_last_bits(
    dim, count, classes
):
    one = torch.nn.functional.normalize(
        torch.randn(1, dim, generator=torch.manual_seed(0)), dim=1
    )
    labels = torch.arange(count) % classes
    ranks, _ = class_ranks(one.repeat(count, 1), one.repeat(classes, 1), labels)
    assert (ranks == classes - 1).all()
