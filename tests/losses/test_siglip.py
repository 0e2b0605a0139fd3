import math

import pytest
import torch

from avalanche_clip.losses import siglip_loss
from tests.losses.test_contrastive import unit
from tests.refused import refused


@pytest.mark.parametrize("targets", [None, [0, 1, 0, 3]])
def test_siglip_loss__equals_the_loop(targets):
    images, texts = unit(4, 3), unit(4, 3, seed=1)
    ids = targets or list(range(4))
    scores = (5.0 * images @ texts.T - 2.0).tolist()
    expected = 0.0
    for i in range(4):
        for j in range(4):
            sign = 1 if ids[i] == ids[j] else -1
            expected += math.log1p(math.exp(-sign * scores[i][j])) / 4
    ids = None if targets is None else torch.tensor(targets)
    loss = siglip_loss(images, texts, 5.0, -2.0, targets=ids)
    assert loss.item() == pytest.approx(expected)


def test_siglip_loss__gradients_are_right():
    arguments = [
        unit(3, 2).requires_grad_(),
        unit(3, 2, seed=1).requires_grad_(),
        torch.tensor(2.0, dtype=torch.float64, requires_grad=True),
        torch.tensor(-1.0, dtype=torch.float64, requires_grad=True),
    ]
    assert torch.autograd.gradcheck(siglip_loss, arguments)


def test_siglip_loss__names_the_shape_of_the_bias():
    ones = torch.ones(3, 2)
    words = r"logit_bias of shape \(2,\)"
    refused(words, siglip_loss, ones, ones, 1.0, torch.zeros(2))
