"""Plain data: what is taken, and how it is rebuilt."""

import numpy as np
import pytest
import torch

from avalanche_clip.common.plain import is_plain, mapped, plain


def test_mapped__rebuilds_containers_and_tells_paths():
    seen = []

    def leaf(value, path):
        seen.append(path)
        return 0

    data = {"a": [1, (2, {3: 4})], "stop": {"here": 1}}
    found = mapped(data, leaf, mark="here")
    assert found == {"a": [0, (0, {3: 0})], "stop": 0}
    assert seen == [("a", 0), ("a", 1, 0), ("a", 1, 1, 3), ("stop",)]


def test_is_plain__keys_and_leaves():
    assert is_plain({1: [True, (None, {"a": 0.5})]})
    assert not is_plain([{"a": {1}}]) and not is_plain({(1,): 2})


def test_plain__numpy_numbers_and_subclasses_become_pythons():
    found = plain(
        {"a": np.float64(1.5), np.int64(2): (torch.Size([3]), np.bool_(True))}
    )
    assert found == {"a": 1.5, 2: ((3,), True)}
    assert plain({(np.int64(1), "b"): 0}) == {(1, "b"): 0}
    assert [type(v) for v in (found["a"], *found[2])] == [float, tuple, bool]


def test_plain__copies_a_small_view_of_a_large_tensor():
    large = torch.zeros(1000)
    assert plain(large[:3]).untyped_storage().nbytes() == 12
    assert plain(large).data_ptr() == large.data_ptr()


@pytest.mark.parametrize("value", [np.zeros(2), {1}, object(), torch.nn.Linear(1, 1)])
def test_plain__names_the_place_of_other_values(value):
    with pytest.raises(TypeError, match=r"the state\['x'\]\[1\] is a "):
        plain({"x": [0, value]})
