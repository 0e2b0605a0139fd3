import math

import pytest
import torch

from avalanche_clip.losses import similarity_distillation_loss


def softmax(row):
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def loop_loss(student, teacher):
    total = 0.0
    for s, t in ((student, teacher), (student.T, teacher.T)):
        for s_row, t_row in zip(s.tolist(), t.tolist(), strict=True):
            for p, q in zip(softmax(t_row), softmax(s_row), strict=True):
                total += p * (math.log(p) - math.log(q)) / len(s) / 2
    return total


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def test_similarity_distillation__published_example():
    loss = similarity_distillation_loss(torch.eye(2), 2 * torch.eye(2))
    assert loss.item() == pytest.approx(0.0671308, abs=1e-6)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (1, 4), (1, 1)])
def test_similarity_distillation__equals_the_loop(shape):
    student, teacher = random(*shape), random(*shape, seed=1)
    loss = similarity_distillation_loss(student, teacher)
    assert loss.item() == pytest.approx(loop_loss(student, teacher), abs=1e-12)


def test_similarity_distillation__equal_matrices_give_zero_without_gradient():
    student = random(5, 5).requires_grad_()
    loss = similarity_distillation_loss(student, student.detach().clone())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-12


def test_similarity_distillation__gradient_equals_that_of_the_cross_entropy():
    teacher = random(4, 4, seed=1)
    student = random(4, 4).requires_grad_()
    (grad,) = torch.autograd.grad(
        similarity_distillation_loss(student, teacher), student
    )
    cross_entropy = 0.0
    for s, t in ((student, teacher), (student.T, teacher.T)):
        cross_entropy -= (t.softmax(1) * s.log_softmax(1)).sum(1).mean() / 2
    (expected,) = torch.autograd.grad(cross_entropy, student)
    torch.testing.assert_close(grad, expected)
