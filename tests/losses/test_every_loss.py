"""What every loss of two matrices does, besides its formula."""

from functools import partial

import pytest
import torch

from avalanche_clip import losses
from tests.refused import refused


def temperature(student, teacher):
    return losses.temperature_distillation_loss(teacher, student)


PAIRS = {
    "contrastive": lambda a, b: losses.contrastive_loss(a, b, 1.0),
    "soft contrastive": lambda a, b: losses.contrastive_loss(
        a, b, 1.0, targets=torch.arange(len(a)) // 2
    ),
    "siglip": lambda a, b: losses.siglip_loss(a, b, 1.0, -1.0),
    "cross-modal": lambda a, b: losses.cross_modal_loss(a, b, 0.07),
}
DISTILLED = {
    "cross-lingual": losses.cross_lingual_loss,
    "off-diagonal": losses.off_diagonal_alignment_loss,
    "off-diagonal alone": partial(
        losses.off_diagonal_alignment_loss, include_diagonal=False
    ),
    "similarity": losses.similarity_distillation_loss,
    "temperature": temperature,
}
EVERY = PAIRS | DISTILLED


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return matrix + torch.eye(*shape, dtype=torch.float64)


@pytest.fixture(params=EVERY)
def loss(request):
    return EVERY[request.param]


def test_gradients__are_those_of_finite_differences(loss):
    other = 2 * random(4, 4, seed=1)
    student = random(4, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, other), student)


SHARED = {
    "contrastive": losses.contrastive_loss,
    "siglip": partial(losses.siglip_loss, logit_bias=torch.tensor(-1.0)),
}


@pytest.mark.parametrize("targets", [None, torch.tensor([4, 4, 1, 4, 0])])
@pytest.mark.parametrize("cuts", [(0, 5), (0, 2, 5), (0, 0, 1, 4, 5)])
@pytest.mark.parametrize("name", SHARED)
def test_shares__of_rows_add_up_to_loss_and_gradients(name, cuts, targets):
    inputs = [random(5, 3), random(5, 3, seed=1), torch.tensor(2.0).double()]
    inputs = [value.requires_grad_() for value in inputs]
    loss = partial(SHARED[name], targets=targets)
    shares = [
        loss(*inputs, rows=slice(start, stop))
        for start, stop in zip(cuts[:-1], cuts[1:], strict=True)
    ]
    torch.testing.assert_close(sum(shares), loss(*inputs))
    found = torch.autograd.grad(sum(shares), inputs)
    torch.testing.assert_close(found, torch.autograd.grad(loss(*inputs), inputs))


@pytest.mark.parametrize(
    "rows", [slice(0, 4), slice(2, 1), slice(-1, 3), slice(0, 3, 2), 1, range(2)]
)
@pytest.mark.parametrize("name", SHARED)
def test_shares__rows_outside_the_batch_are_refused(name, rows):
    ones = torch.ones(3, 2)
    refused("inside it", SHARED[name], ones, ones, 1.0, rows=rows)


@pytest.mark.parametrize("name", DISTILLED)
def test_teacher__gets_no_gradient(name):
    student, teacher = random(3, 3).requires_grad_(), random(3, 3, seed=1)
    DISTILLED[name](student, 2 * teacher.requires_grad_()).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_and_autocast__are_computed_in_float32(dtype, loss):
    left, right = random(8, 8).to(dtype), random(8, 8, seed=1).to(dtype)
    expected = loss(left.float(), right.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(left, right)
    assert found.shape == () and found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert loss(left.double(), right.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_large_values__stay_finite(dtype, loss):
    student = (1e4 * torch.eye(4, dtype=dtype)).requires_grad_()
    found = loss(student, -student.detach())
    found.backward()
    assert torch.isfinite(found) and torch.isfinite(student.grad).all()


@pytest.mark.parametrize(
    ("left", "right", "message"),
    [
        (torch.ones(2, 2), torch.ones(3, 2), r"\(2, 2\)|square|\(3, 2\)"),
        (torch.ones(3), torch.ones(3), r"\(3,\)"),
        (torch.ones(0, 0), torch.ones(0, 0), r"\(0, 0\)"),
        (torch.ones(2, 2).int(), torch.ones(2, 2), "int32"),
        ([[1.0]], torch.ones(1, 1), "is a list"),
    ],
)
def test_wrong_matrices__are_refused(left, right, message, loss):
    refused(message, loss, left, right)
