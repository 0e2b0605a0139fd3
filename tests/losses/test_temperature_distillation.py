import math

import pytest
import torch

from avalanche_clip.losses import temperature_distillation_loss
from tests.refused import refused

TEACHER = torch.tensor([[2.0, 0.0], [0.0, 4.0]])
STUDENT = torch.tensor([[1.0, 0.0], [2.0, 2.0]])
P = torch.tensor([[2.0, 0.0, -1.0], [0.5, 1.5, 3.0]])
Q = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0]])


def loop(teacher, student, temperature):
    total = 0.0
    for t_row, s_row in zip(teacher.tolist(), student.tolist(), strict=True):
        powers = [math.exp(t / temperature) for t in t_row]
        log_sum = math.log(sum(math.exp(s / temperature) for s in s_row))
        for power, s in zip(powers, s_row, strict=True):
            total -= power / sum(powers) * (s / temperature - log_sum)
    return temperature**2 * total / len(teacher)


@pytest.mark.parametrize(
    "teacher, student, temperature, expected",
    [
        (TEACHER, STUDENT, 2.0, 2.603390),
        (TEACHER.T, STUDENT.T, 2.0, 2.544142),
        (TEACHER, TEACHER, 2.0, 1.895074),
        (P, Q, 2.0, 4.311152),
        (P, Q, 1.0, 1.101774),
        (P.T, Q.T, 2.0, 2.403538),
        (P, P, 2.0, 3.751335),
    ],
)
def test_loss__worked_examples(teacher, student, temperature, expected):
    loss = temperature_distillation_loss(teacher, student, temperature=temperature)
    assert loss.item() == pytest.approx(expected, abs=2e-6)


def test_gradient__worked_example():
    student = STUDENT.clone().requires_grad_()
    loss = temperature_distillation_loss(TEACHER, student)
    loss = loss + temperature_distillation_loss(TEACHER.T, student.T)
    loss.backward()
    expected = torch.tensor([[-0.462117, 0.258338], [0.734315, -0.530536]])
    torch.testing.assert_close(student.grad, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 3)])
def test_loss__equals_the_loop(temperature, shape):
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    loss = temperature_distillation_loss(teacher, student, temperature=temperature)
    expected = loop(teacher, student, temperature)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_loss__at_the_teacher_is_its_entropy_without_gradient():
    student = P.clone().requires_grad_()
    loss = temperature_distillation_loss(P, student)
    loss.backward()
    probabilities = (P / 2).softmax(1)
    entropy = -(probabilities * probabilities.log()).sum(1).mean()
    assert loss.item() == pytest.approx(4 * entropy.item(), abs=1e-6)
    assert student.grad.abs().max() < 1e-6


@pytest.mark.parametrize("temperature", [-1.0, math.nan])
def test_loss__temperatures_are_positive(temperature):
    loss = temperature_distillation_loss
    refused(f"temperature={temperature}", loss, P, Q, temperature=temperature)
