import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from avalanche_clip.losses import contrastive_loss


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_contrastive_loss__one_pair_gives_zero_and_keeps_the_type(dtype):
    loss = contrastive_loss(unit(1, 4, dtype=dtype), unit(1, 4, seed=1, dtype=dtype), 9)
    assert loss.shape == () and loss.dtype == dtype and loss.item() == 0


def test_contrastive_loss__large_scales_stay_finite():
    images = unit(8, 4, dtype=torch.float32).requires_grad_()
    loss = contrastive_loss(images, -images.detach(), 1e4)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(images.grad).all()


def test_contrastive_loss__autocast_does_not_change_the_value():
    images, texts = unit(8, 16, dtype=torch.float32), unit(8, 16, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = contrastive_loss(images, texts, 100.0)
    assert torch.equal(inside, contrastive_loss(images, texts, 100.0))


def test_contrastive_loss__half_precision_features_are_computed_in_float32():
    images = unit(8, 16).to(torch.bfloat16)
    loss = contrastive_loss(images, images, 100.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrastive_loss(images.float(), images.float(), 100.0))


@pytest.mark.parametrize(
    "images, texts, kwargs, message",
    [
        (torch.ones(3, 2), torch.ones(4, 2), {}, r"\(3, 2\).*\(4, 2\)"),
        (torch.ones(3), torch.ones(3), {}, r"\(3,\)"),
        (torch.ones(0, 2), torch.ones(0, 2), {}, r"\(0, 2\).*at least one"),
        (torch.ones(3, 2).int(), torch.ones(3, 2), {}, "int32"),
        (torch.ones(3, 2), torch.ones(3, 2).double(), {}, "float32 and torch.float64"),
        (torch.ones(3, 2), torch.ones(3, 2), {"targets": torch.zeros(2).long()}, "2,"),
        (torch.ones(3, 2), torch.ones(3, 2), {"targets": torch.zeros(3)}, "float32"),
        (torch.ones(3, 2), torch.ones(3, 2), {"targets": torch.ones(3) > 0}, "bool"),
        (torch.ones(3, 2), torch.ones(3, 2), {"targets": [0, 1, 2]}, "a list"),
        (np.ones((3, 2)), torch.ones(3, 2), {}, "image_features is a ndarray"),
    ],
)
def test_contrastive_loss__refuses_what_does_not_fit(images, texts, kwargs, message):
    with pytest.raises(ValueError, match=message):
        contrastive_loss(images, texts, 1.0, **kwargs)


def test_contrastive_loss__refuses_a_vector_of_scales():
    with pytest.raises(ValueError, match=r"logit_scale of shape \(2,\)"):
        contrastive_loss(torch.eye(2), torch.eye(2), torch.ones(2))
