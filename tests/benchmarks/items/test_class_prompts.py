import copy
import pickle

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import ClassPrompts
from tests.refused import refused


def test_prompts__first_template_and_all_of_them():
    prompts = ClassPrompts(["cat", "dog"], ["a photo of a {}.", "the {}!"])
    assert prompts.prompts() == ["a photo of a cat.", "a photo of a dog."]
    assert prompts.prompts([1], which="first") == ["a photo of a dog."]
    assert prompts.prompts([1, 0], which="all") == [
        ["a photo of a dog.", "the dog!"],
        ["a photo of a cat.", "the cat!"],
    ]


@pytest.mark.parametrize(
    "name",
    [
        "apartment building/outdoor",
        "head of a  crocodile",
        '0 - "zero"',
        "rock'n'roll",
        "{curly}",
        "{}",
        "{0} %s",
        " led",
        "späti 雪",
    ],
)
def test_prompts__names_stay_as_they_are(name):
    prompts = ClassPrompts([name], 'a "{}".')
    assert prompts.names == (name,)
    assert prompts.prompts() == [f'a "{name}".']


@pytest.mark.parametrize(
    "template", ["a photo.", "{} and {}", "{0}", "a {name}", "{ }", "}{", "{} {", ""]
)
def test_templates__hold_one_pair_of_braces(template):
    refused("exactly once", ClassPrompts, ["a"], template)
    refused("at least one", ClassPrompts, ["a"], [])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("cat",), TypeError),
        (([1, 2],), TypeError),
        (([""],), ValueError),
        ((["  "],), ValueError),
        ((["a"], [1]), TypeError),
        ((["a"], 3), TypeError),
    ],
)
def test_names_and_templates__are_checked(arguments, error):
    with pytest.raises(error):
        ClassPrompts(*arguments)


@pytest.mark.parametrize("ids", [[0], [0, 0], [0, -1], [0, 1.5], [0, True], [0, 1, 2]])
def test_ids__are_distinct_and_one_per_name(ids):
    refused(r"id", ClassPrompts, ["a", "b"], ids=ids)


def test_ids__of_numpy_and_torch_are_integers():
    prompts = ClassPrompts(["a", "b"], ids=np.array([3, 5]))
    assert prompts.ids == (3, 5) and type(prompts.ids[0]) is int
    assert prompts.for_ids(torch.tensor([5])).names == ("b",)
    assert prompts.name(np.int64(3)) == "a"
    assert 3 in prompts and 4 not in prompts and len(prompts) == 2
    refused("Class id 4 is unknown", prompts.name, 4)


def test_for_ids__keeps_global_ids_and_their_templates():
    prompts = ClassPrompts(
        ["a", "b", "c"], {"x": "{}1", "y": "{}2"}, domains=["x", "y", "x"]
    )
    part = prompts.for_ids([2, 1])
    assert part.ids == (2, 1) and part.names == ("c", "b")
    assert part.prompts() == ["c1", "b2"]
    assert part.domain(1) == "y" and part.ids_of("x") == (2,)
    refused("more than once", prompts.for_ids, [1, 1])


def test_merge__moves_ids_behind_the_parts_before():
    left = ClassPrompts(["a", "lotus"], "{} l", domains="left")
    right = ClassPrompts(["lotus"], ["{} r", "{} s"], domains="right")
    both = ClassPrompts.merge([left, right])
    assert both.ids == (0, 1, 2)
    assert both.prompts() == ["a l", "lotus l", "lotus r"]
    assert both.templates(2) == ("{} r", "{} s")
    assert both.domain_names == ("left", "right")
    assert both.domain_templates("left") == ("{} l",)
    refused("'left' occurs more than once", ClassPrompts.merge, [left, left])
    refused("no prompts to merge", ClassPrompts.merge, [])


def test_domains__need_templates_and_one_name_per_class():
    refused("no templates", ClassPrompts, ["a", "b"], {"x": "{}"}, domains=["x", "y"])
    refused("give one per class", ClassPrompts, ["a", "b"], domains=["x"])
    refused("unknown", ClassPrompts(["a"], domains="x").ids_of, "y")


def test_equality__and_fingerprint_see_every_part():
    base = ClassPrompts(["a", "b"], ["{}."], domains="x")
    same = ClassPrompts(("a", "b"), "{}.", domains=["x", "x"], ids=[0, 1])
    others = [
        ClassPrompts(["a", "c"], ["{}."], domains="x"),
        ClassPrompts(["a", "b"], ["{}!"], domains="x"),
        ClassPrompts(["a", "b"], ["{}.", "{}!"], domains="x"),
        ClassPrompts(["a", "b"], ["{}."], domains="y"),
        ClassPrompts(["a", "b"], ["{}."], domains="x", ids=[1, 0]),
        ClassPrompts(["b", "a"], ["{}."], domains="x", ids=[1, 0]),
    ]
    assert base == same and hash(base) == hash(same)
    assert base.fingerprint() == same.fingerprint() and len(base.fingerprint()) == 32
    assert all(base != other for other in others)
    assert len({p.fingerprint() for p in [base, *others]}) == 7
    assert base != "prompts"
    for copied in (pickle.loads(pickle.dumps(base)), copy.deepcopy(base)):
        assert copied == base


@pytest.mark.parametrize("number", [1.0, 1.9, "1", True, None, float("nan"), [1]])
def test_lookups__take_integers_only(number):
    prompts = ClassPrompts(["a", "b"])
    for look_up in (prompts.name, prompts.domain, prompts.templates, prompts.row):
        refused("The class id is .* give an integer", look_up, number)
    assert number not in prompts
    refused("integer", prompts.prompts, [number])
    refused("integer", prompts.for_ids, [number])
