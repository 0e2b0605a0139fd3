"""Checks of what users give."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from avalanche_clip.common.checks import (
    as_finite,
    as_integer,
    as_integers,
    as_permutation,
    as_size,
    as_texts,
    closest,
    did_you_mean,
    existing_file,
    existing_folder,
    require_alike,
    require_array,
    require_choice,
    require_distinct,
    require_indices,
    require_known,
    require_length,
    require_one_of,
    require_same,
    require_some,
    require_type,
)
from tests.refused import refused

SCHEDULES = ("constant", "cosine", "const-cosine")


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
    refused("x is .*give an integer", as_integer, value, "x")
    refused("x=.* must be an integer >= 0", as_size, value, "x", least=0)


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
    refused("x=.* must be a finite number", as_finite, value, "x")


@pytest.mark.parametrize(
    "value", [True, np.False_, torch.tensor(True), "1", None, [1, 2]]
)
def test_finite__flags_and_texts_are_no_numbers(value):
    refused("x=", as_finite, value, "x")


@pytest.mark.parametrize("value", [-0.1, 0, 1.1, -5])
def test_finite__bounds(value):
    with pytest.raises(ValueError, match=r"share=.* must lie in \(0, 1\]"):
        as_finite(value, "share", above=0, high=1)
    if value != 1.1:
        refused("w=.* must be positive and finite", as_finite, value, "w", above=0)
    assert as_finite(0, "w", low=0) == 0.0
    refused(r"must lie in \[0, 1\)", as_finite, 1, "w", low=0, below=1)
    refused("must not be negative, and finite", as_finite, float("nan"), "w", low=0)


@pytest.mark.parametrize(
    "given, meant",
    [
        ("cosin", "cosine"),
        ("COSINE", "cosine"),
        ("const_cosine", "const-cosine"),
        ("linear", None),
        (3, None),
        (None, None),
        ("", None),
    ],
)
def test_closest__finds_the_neighbour_in_spelling(given, meant):
    assert closest(given, SCHEDULES) == meant


def test_did_you_mean__takes_the_first_of_several_that_has_a_neighbour():
    assert did_you_mean(["zzz", "train_epoch"], ["train_epochs", "seed"]) == (
        " Did you mean 'train_epochs'?"
    )
    assert did_you_mean("zzz", SCHEDULES) == ""


@pytest.mark.parametrize("value", ["cosin", ["cosine"], 1, None])
def test_require_choice__refuses_and_says_what_is_allowed(value):
    with pytest.raises(ValueError, match="schedule=.* is unknown; use one of 'const"):
        require_choice("schedule", value, SCHEDULES)


def test_require_choice__lets_what_is_allowed_pass():
    for value in SCHEDULES:
        require_choice("schedule", value, SCHEDULES)
    require_choice("selector", None, (None, "resnet18"))


def test_refusals__say_what_was_given_and_what_to_do():
    known = "options .'sed'. are unknown; use some of 'seed', 'lr'. Did you mean"
    refused(known, require_known, {"sed": 1}, ["seed", "lr"], "options")
    words = "k is True, a bool; give a number"
    refused(words, require_type, True, int, "k", "a number", error=TypeError)
    with pytest.raises(ValueError, match="k is 'a', a str"):
        require_type("a", (int, float), "k", "a number", error=ValueError)
    texts = partial(refused, call=as_texts, error=TypeError)
    texts("names='ab' is a str; give a", values="ab", what="names")
    texts("is a set", values={"a"}, what="names")
    texts("Entry 1 of names is 2, a", values=["a", 2], what="names")
    refused("There are no names; give at", as_texts, [], "names")
    refused("are 1 runs; give", require_some, [1], "runs", least=2)
    words = "1 domains given, 2 are needed; give one per class"
    refused(words, require_length, [1], 2, "domains", "class")
    refused("3 occurs more than", require_distinct, [3, 1, 3], "ids")
    words = r"hold each of 0..1 exactly once \(missing \[1\], unknown \[2\]\)"
    refused(words, as_permutation, [0, 2], 2, "order")
    refused("Give exactly one of", require_one_of, a=None, b=None)
    refused("Give at most one of", require_one_of, 0, a=1, b=2)
    words = "rank was 4 when it was stored, is 2 now; attach the stored one"
    refused(words, require_same, "rank", 4, 2, "attach the stored one")
    absent = partial(refused, error=FileNotFoundError)
    absent("none.txt is no file; make it", existing_file, "none.txt", "make it")
    absent("is no folder; make it", existing_folder, __file__, "make it")
    words = r"owner holds 0 to 3; indices must lie in 0\.\.2"
    refused(words, require_indices, torch.tensor([0, 3]), 3, "owner")


@pytest.mark.parametrize(
    ("b", "part", "words"),
    [
        (np.zeros((3, 2)), "shape", "shape must agree: do it"),
        (np.zeros((2, 3)), "columns", "columns must agree: do it"),
        (
            np.zeros((2, 2), "f4"),
            "dtype",
            "dtype float64 and float32 must agree: do it",
        ),
    ],
)
def test_alike__names_the_part_that_differs(b, part, words):
    a = np.zeros((2, 2))
    require_alike("do it", a=a, c=a)
    with pytest.raises(
        ValueError, match=rf"a and b of shapes \(2, 2\) and .*; {words}"
    ):
        require_alike("do it", (part,), a=a, b=b)


def test_checks__let_what_is_allowed_pass(tmp_path):
    require_known([], ["seed"], "options")
    require_type(True, bool, "flag", "a flag")
    require_type(2, (int, str), "k", "a number")
    assert (
        as_texts(("a", ""), "names") == ["a", ""] and as_texts([], "n", least=0) == []
    )
    assert as_permutation(np.array([1, 0]), 2, "order") == [1, 0]
    assert require_one_of(0, a=None) == "" and require_one_of(a=0, b=None) == "a"
    assert existing_folder(tmp_path, "make it") == tmp_path
    assert existing_file(__file__, "make it").name == "test_checks.py"
    require_indices(np.zeros((0,), int), 0, "owner")


@pytest.mark.parametrize("library", [np.zeros, torch.zeros])
@pytest.mark.parametrize(
    ("size", "shape", "fits"),
    [
        ((2, 3), "N M", True),
        ((2, 3), "T T", False),
        ((3, 3), "T T", True),
        ((2, 0), "N M", False),
        ((2, 0), "N *", True),
        ((2, 2), "* 2", True),
        ((2, 3), "* 2", False),
        ((5,), "N", True),
        ((5,), "N M", False),
        ((1, 2, 3), "... 3", True),
        ((3,), "... M 3", False),
        ((4, 3, 8, 8), "B 3 H W", True),
    ],
)
def test_array__shape(library, size, shape, fits):
    if fits:
        require_array(library(size), "x", shape, "float")
        return
    axes = ", ".join(shape.split()).replace("*", r"\*")
    with pytest.raises(ValueError, match=rf"x of shape .* given; give .*\({axes}"):
        require_array(library(size), "x", shape)


@pytest.mark.parametrize(
    ("array", "kinds"),
    [
        (np.zeros(2, np.float16), {"float", "number"}),
        (torch.zeros(2, dtype=torch.bfloat16), {"float", "number"}),
        (np.zeros(2, np.uint8), {"integer", "number"}),
        (torch.zeros(2, dtype=torch.int32), {"integer", "number"}),
        (torch.zeros(2, dtype=torch.complex64), {"number"}),
        (np.zeros(2, bool), set()),
        (torch.zeros(2, dtype=torch.bool), set()),
        (np.array(["a", "b"]), set()),
        ([1, 2], set()),
    ],
)
def test_array__kind_of_values(array, kinds):
    for kind in ("float", "integer", "number"):
        if kind in kinds:
            require_array(array, "x", "N", kind)
        else:
            with pytest.raises(TypeError, match="x .*; give .*, made here"):
                require_array(array, "x", "N", kind, give="made here", error=TypeError)
