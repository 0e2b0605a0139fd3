import pytest
import torch

from avalanche_clip.common.grown import aligned, corner, fit_moment, overlay


def test_overlay__puts_the_common_part_into_a_copy():
    new, old = torch.zeros(3, 2), torch.arange(1.0, 9).view(2, 4)
    grown = overlay(new, old)
    assert grown.tolist() == [[1, 2], [5, 6], [0, 0]] and not new.any()
    with pytest.raises(ValueError):
        corner(torch.zeros(2), torch.zeros(2, 2))


def test_fit_moment__pads_with_zeros_what_has_grown_and_leaves_the_rest():
    parameter = torch.ones(3, 2)
    assert fit_moment(torch.ones(2, 2), parameter).sum() == 4
    for kept in (7, torch.tensor(7.0), torch.ones(3, 2), torch.ones(3)):
        assert fit_moment(kept, parameter) is kept


def test_aligned__pairs_views_of_what_both_have():
    left = {"a": torch.zeros(3, 2), "b": torch.zeros(2), "c": torch.zeros(1)}
    right = {"a": torch.ones(2, 4).double(), "b": torch.ones(2, 2), "d": torch.ones(1)}
    (ours,), (theirs,) = aligned(left, right)
    ours.copy_(theirs)
    assert theirs.dtype == torch.float32
    assert left["a"].tolist() == [[1, 1], [1, 1], [0, 0]] and not left["b"].any()
