"""Cross-lingual and cross-modal losses against slow versions (P10)."""

import math

import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.losses import contrastive_loss, cross_lingual_loss, cross_modal_loss


def random(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def slow_cross_modal(texts, images, tau, ids):
    total = 0.0
    size = len(texts)
    a = [t / t.norm() for t in texts]
    b = [v / v.norm() for v in images]
    scores = [[float(x @ y) / tau for y in b] for x in a]
    for i in range(size):
        own = [j for j in range(size) if ids[j] == ids[i]]
        row = math.log(sum(math.exp(scores[i][j]) for j in range(size)))
        column = math.log(sum(math.exp(scores[j][i]) for j in range(size)))
        for j in own:
            total -= (scores[i][j] - row) / len(own) / (2 * size)
            total -= (scores[j][i] - column) / len(own) / (2 * size)
    return total


def test_cross_lingual__mean_over_all_entries_unnormalised():
    student = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    teacher = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    assert cross_lingual_loss(student, teacher).item() == (1 + 0 + 0 + 16) / 4
    assert cross_lingual_loss(10 * student, 10 * teacher).item() == 425


@pytest.mark.parametrize(
    "ids", [[0, 1, 2, 3], [0, 0, 2, 3], [5, 5, 5, 5], [1, 2, 1, 2]]
)
@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_cross_modal__equals_the_slow_version(ids, tau):
    texts, images = random(4, 3), random(4, 3, seed=1) * 7
    found = cross_modal_loss(texts, images, tau, image_ids=torch.tensor(ids))
    assert found.item() == pytest.approx(slow_cross_modal(texts, images, tau, ids))


def test_cross_modal__soft_targets_of_equal_images_equal_the_diagonal():
    images = random(3, 5)[[0, 1, 0, 2, 0]]
    grads = []
    for ids in (torch.tensor([4, 8, 4, 1, 4]), None):
        texts = random(5, 5, seed=2).requires_grad_()
        tau = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
        loss = cross_modal_loss(texts, images, tau, image_ids=ids)
        loss.backward()
        grads.append((loss.detach(), texts.grad, tau.grad))
    for soft, hard in zip(*grads, strict=True):
        torch.testing.assert_close(soft, hard, rtol=1e-12, atol=1e-14)


def test_cross_modal__does_not_depend_on_lengths_and_matches_contrastive():
    texts, images = random(4, 3), random(4, 3, seed=1)
    loss = cross_modal_loss(texts, images, 0.5)
    torch.testing.assert_close(cross_modal_loss(3 * texts, 9 * images, 0.5), loss)
    expected = contrastive_loss(F.normalize(images), F.normalize(texts), 2.0)
    torch.testing.assert_close(loss, expected)


def test_wrong_ids__raise():
    with pytest.raises(ValueError, match="shape"):
        cross_modal_loss(
            torch.ones(2, 2), torch.ones(2, 2), 1.0, image_ids=torch.tensor([1])
        )
