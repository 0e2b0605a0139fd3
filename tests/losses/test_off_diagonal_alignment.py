import math

import pytest
import torch

from avalanche_clip.losses import off_diagonal_alignment_loss
from avalanche_clip.losses.off_diagonal_alignment import correctly_ranked_rows
from tests.refused import refused

S = torch.tensor(
    [[0.7, 0.3, 0.1], [0.2, 0.6, 0.1], [0.1, 0.2, 0.5]], dtype=torch.float64
)
O = torch.tensor(  # noqa: E741
    [[0.9, 0.1, 0.2], [0.3, 0.2, 0.5], [0.0, 0.1, 0.8]], dtype=torch.float64
)


def softmax(row):
    top = max(row)
    powers = [math.exp(x - top) for x in row]
    return [p / sum(powers) for p in powers]


def loop(scores, teacher, *, temperature, reduction, row_filter, include_diagonal):
    """The definition, entry by entry."""
    total = 0.0
    for s, t in ((scores, teacher), (scores.T, teacher.T)):
        s, t = (s / temperature).tolist(), (t / temperature).tolist()
        for i, (student_row, teacher_row) in enumerate(zip(s, t, strict=True)):
            weight = 1.0
            if row_filter == "correct":
                weight = float(teacher_row[i] >= max(teacher_row))
            elif row_filter == "soft":
                weight = softmax(teacher_row)[i]
            if not include_diagonal:
                del student_row[i], teacher_row[i]
            if not student_row:
                continue
            for p, q in zip(softmax(teacher_row), softmax(student_row), strict=True):
                total += weight * p * (math.log(p) - math.log(q))
    return total / 2 / (len(scores) if reduction == "batchmean" else 1)


def random(size, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return matrix + torch.eye(size, dtype=torch.float64)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, 0.0274251257),
        ({"reduction": "batchmean"}, 0.0091417086),
        ({"temperature": 0.1}, 0.3411261694),
        ({"include_diagonal": False}, 0.0142700276),
    ],
)
def test_loss__three_by_three_case(options, expected):
    loss = off_diagonal_alignment_loss(S, O, **options)
    assert loss.item() == pytest.approx(expected, abs=1e-9)


def test_loss__two_by_two_closed_form_with_gradient():
    scores = (0.5 * torch.eye(2, dtype=torch.float64)).requires_grad_()
    loss = off_diagonal_alignment_loss(scores, torch.eye(2, dtype=torch.float64))
    loss.backward()
    assert loss.item() == pytest.approx(0.0526891720, abs=1e-9)
    step = 0.1085992474
    expected = torch.tensor([[-step, step], [step, -step]], dtype=torch.float64)
    torch.testing.assert_close(scores.grad, expected, rtol=0, atol=1e-9)


def test_loss__filter_is_taken_anew_for_columns_and_ignores_shifts():
    scores = 0.5 * torch.eye(2, dtype=torch.float64)
    teacher = torch.tensor([[0.2, 0.6], [0.1, 0.9]], dtype=torch.float64)
    for shift in (0.0, 0.3):
        loss = off_diagonal_alignment_loss(scores, teacher + shift)
        assert loss.item() == pytest.approx(0.0172452740, abs=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 0.05])
@pytest.mark.parametrize("reduction", ["sum", "batchmean"])
@pytest.mark.parametrize("row_filter", ["correct", "none", "soft"])
@pytest.mark.parametrize("include_diagonal", [True, False])
@pytest.mark.parametrize("size", [1, 2, 7])
def test_loss__equals_the_loop(
    temperature, reduction, row_filter, include_diagonal, size
):
    options = {
        "temperature": temperature,
        "reduction": reduction,
        "row_filter": row_filter,
        "include_diagonal": include_diagonal,
    }
    scores, teacher = random(size, 0), random(size, 1)
    ours = off_diagonal_alignment_loss(scores, teacher, **options)
    assert ours.item() == pytest.approx(loop(scores, teacher, **options), abs=1e-9)


def test_gradient__of_a_kept_row_is_q_minus_p():
    scores = random(4, 0).requires_grad_()
    teacher = 5 * torch.eye(4, dtype=torch.float64)
    off_diagonal_alignment_loss(scores, teacher, temperature=0.5).backward()
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for s, t, turn in ((scores, teacher, False), (scores.T, teacher.T, True)):
        part = ((s / 0.5).softmax(1) - (t / 0.5).softmax(1)).detach() / 0.5 / 2
        expected += part.T if turn else part
    torch.testing.assert_close(scores.grad, expected)


def test_loss__teacher_equal_to_student_gives_zero_and_no_gradient():
    scores = random(5, 0).requires_grad_()
    loss = off_diagonal_alignment_loss(scores, scores.detach().clone())
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert scores.grad.abs().max() < 1e-12


def test_loss__teacher_wrong_everywhere_gives_exactly_zero():
    scores = random(4, 0).requires_grad_()
    teacher = torch.eye(4, dtype=torch.float64).roll(1, dims=1)
    assert not correctly_ranked_rows(teacher).any()
    loss = off_diagonal_alignment_loss(scores, teacher)
    loss.backward()
    assert loss.item() == 0 and not scores.grad.any()


def test_filter__ties_count_as_correct():
    matrix = torch.tensor([[0.5, 0.5], [0.7, 0.6]])
    assert correctly_ranked_rows(matrix).tolist() == [True, False]


def test_loss__one_permutation_of_all_pairs_changes_nothing():
    scores, teacher = random(6, 0), random(6, 1)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    ours = off_diagonal_alignment_loss(
        scores[order][:, order], teacher[order][:, order]
    )
    expected = off_diagonal_alignment_loss(scores, teacher)
    assert ours.item() == pytest.approx(expected.item(), abs=1e-12)


def test_loss__single_pair_without_diagonal_is_zero_with_a_gradient():
    scores = torch.tensor([[0.3]], requires_grad=True)
    loss = off_diagonal_alignment_loss(
        scores, torch.tensor([[0.9]]), include_diagonal=False
    )
    loss.backward()
    assert loss.item() == 0 and scores.grad.item() == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"temperature": 0}, "temperature=0"),
        ({"reduction": "mean"}, "batchmean"),
        ({"row_filter": "hard"}, "soft"),
    ],
)
def test_loss__unknown_options_are_refused(options, message):
    refused(message, off_diagonal_alignment_loss, S, O, **options)


def test_wide_matrices__are_refused():
    for call in (correctly_ranked_rows, lambda x: off_diagonal_alignment_loss(x, x)):
        refused(r"\(2, 3\)", call, torch.ones(2, 3))
