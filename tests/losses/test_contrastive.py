import math

import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.losses import contrastive_loss
from tests.refused import refused


def unit(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1)


def loop_loss(images, texts, scale, targets):
    """Both directions with plain Python numbers."""
    size = len(images)
    scores = [
        [scale * sum(a * b for a, b in zip(i, t, strict=True)) for t in texts.tolist()]
        for i in images.tolist()
    ]
    columns = [list(column) for column in zip(*scores, strict=True)]
    total = 0.0
    for rows in (scores, columns):
        for r, row in enumerate(rows):
            log_sum = math.log(sum(math.exp(score) for score in row))
            own = [c for c in range(size) if targets[c] == targets[r]]
            total -= sum(row[c] - log_sum for c in own) / len(own) / size
    return total / 2


@pytest.mark.parametrize(
    "size, scale, expected",
    [
        (2, 1.0, 0.313262),
        (2, math.log(3), 0.287682),
        (5, 2.0, math.log1p(4 / math.e**2)),
    ],
)
def test_contrastive_loss__identity_matrix_has_the_closed_form(size, scale, expected):
    features = torch.eye(size, dtype=torch.float64)
    assert contrastive_loss(features, features, scale).item() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize("targets", [[0, 1, 2, 3, 4], [7, 7, 2, 7, 2], [3, 3, 3, 3, 3]])
def test_contrastive_loss__equals_the_loop(targets):
    images, texts = unit(5, 3), unit(5, 3, seed=1)
    loss = contrastive_loss(images, texts, 4.0, targets=torch.tensor(targets))
    assert loss.item() == pytest.approx(loop_loss(images, texts, 4.0, targets))


def test_contrastive_loss__distinct_targets_equal_the_diagonal():
    images, texts = unit(6, 4), unit(6, 4, seed=1)
    with_targets = contrastive_loss(images, texts, 10.0, targets=torch.arange(6) * 3)
    torch.testing.assert_close(with_targets, contrastive_loss(images, texts, 10.0))


def test_contrastive_loss__is_symmetric_in_the_modalities():
    images, texts = unit(6, 4), unit(6, 4, seed=1)
    torch.testing.assert_close(
        contrastive_loss(images, texts, 10.0), contrastive_loss(texts, images, 10.0)
    )


@pytest.mark.parametrize("targets", [None, torch.tensor([0, 1, 0, 2])])
def test_contrastive_loss__gradients_are_right(targets):
    images = unit(4, 3).requires_grad_()
    texts = unit(4, 3, seed=1).requires_grad_()
    scale = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *args: contrastive_loss(*args, targets=targets), (images, texts, scale)
    )


ONES = torch.ones(3, 2)


@pytest.mark.parametrize(
    "texts, targets, message",
    [
        (ONES.double(), None, "float32 and torch.float64"),
        (ONES, torch.zeros(2).long(), "2,"),
        (ONES, torch.zeros(3), "float32"),
        (ONES, torch.ones(3) > 0, "bool"),
        (ONES, [0, 1, 2], "a list"),
    ],
)
def test_contrastive_loss__refuses_what_does_not_fit(texts, targets, message):
    refused(message, contrastive_loss, ONES, texts, 1.0, targets=targets)


def test_contrastive_loss__refuses_a_vector_of_scales():
    words = r"logit_scale of shape \(2,\)"
    refused(words, contrastive_loss, ONES, ONES, torch.ones(2))
