"""Numbers given by users."""

import math

import numpy as np
import pytest
import torch

from avalanche_clip._numbers import as_finite, as_integer, as_integers, as_size


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3), torch.tensor(3)])
def test_integers__of_all_libraries_become_pythons(value):
    for found in (
        as_integer(value, "x"),
        as_size(value, "x"),
        as_integers([value], "x")[0],
    ):
        assert found == 3 and type(found) is int


@pytest.mark.parametrize(
    "value",
    [True, np.True_, torch.tensor(True), 3.0, np.float64(3), "3", None, [3], math.nan],
)
def test_integers__nothing_is_cut_off_or_taken_for_one(value):
    with pytest.raises(ValueError, match="x is .*give an integer"):
        as_integer(value, "x")
    with pytest.raises(ValueError, match="x=.* must be an integer >= 0"):
        as_size(value, "x", least=0)


def test_size__bounds_and_hint():
    assert as_size(0, "workers", least=0) == 0
    for value in (0, -1, np.int64(0), torch.tensor(0)):
        with pytest.raises(ValueError, match=r"k=.*integer >= 1 \(None takes all\)"):
            as_size(value, "k", hint="None takes all")


@pytest.mark.parametrize(
    "value", [1, 1.0, np.float32(1), np.int8(1), torch.tensor(1.0)]
)
def test_finite__numbers_become_floats(value):
    found = as_finite(value, "x", low=1, high=1, above=0)
    assert found == 1.0 and type(found) is float


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.nan)]
)
def test_finite__what_is_not_is_refused(value):
    with pytest.raises(ValueError, match="x=.* must be a finite number"):
        as_finite(value, "x")


@pytest.mark.parametrize(
    "value", [True, np.False_, torch.tensor(True), "1", None, [1, 2]]
)
def test_finite__flags_and_texts_are_no_numbers(value):
    with pytest.raises(ValueError, match="x="):
        as_finite(value, "x")


@pytest.mark.parametrize("value", [-0.1, 0, 1.1, -5])
def test_finite__bounds(value):
    with pytest.raises(ValueError, match=r"share=.* must lie in \(0, 1\]"):
        as_finite(value, "share", above=0, high=1)
    if value != 1.1:
        with pytest.raises(ValueError, match="w=.* must be positive and finite"):
            as_finite(value, "w", above=0)
    assert as_finite(0, "w", low=0) == 0.0
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        as_finite(1, "w", low=0, below=1)
    with pytest.raises(ValueError, match="must not be negative, and finite"):
        as_finite(float("nan"), "w", low=0)
