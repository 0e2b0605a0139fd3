import numpy as np
import pytest
import torch

from avalanche_clip.common.feature_table import FeatureTable

IDS = np.array([3, 5, 9])


def rows(*values):
    return torch.tensor([[float(v), -float(v)] for v in values])


@pytest.mark.parametrize("ids", [IDS, 10])
def test_table__gives_what_was_put_in_and_nothing_else(ids):
    table = FeatureTable(ids)
    assert table.get([3]) is None
    table.put([9, 3, 100], rows(9, 3, 100))
    assert table.known([3, 5, 9, 100]).tolist() == [True, False, True, False]
    assert torch.equal(table.get(torch.tensor([3, 9])), rows(3, 9))
    assert table.get([3, 5]) is None and table.get([3, 100]) is None
    table.put([3, 5], rows(33, 5))
    assert torch.equal(table.get([5, 3, 9]), rows(5, 33, 9))


def test_table__is_full_at_its_bytes_but_renews_what_it_has():
    table = FeatureTable(1000, max_bytes=8 * 3)
    table.put([7, 7, 8], rows(1, 7, 8))
    table.put([1, 2, 7], rows(1, 2, 77))
    assert table.held == [7, 8, 1] and len(table.rows) == 3
    assert torch.equal(table.get([7, 8, 1]), rows(77, 8, 1))
    closed = FeatureTable(4, max_bytes=0)
    closed.put([1], rows(1))
    assert closed.get([1]) is None and not closed.known([0, 1]).any()


@pytest.mark.parametrize("ids", [IDS, 10])
def test_table__resumes_with_the_same_rows(ids):
    table = FeatureTable(ids, max_bytes=1 << 10)
    empty = FeatureTable(ids)
    empty.load_state_dict(table.state_dict())
    assert empty.get([3]) is None
    table.put([9, 3], rows(9, 3))
    again = FeatureTable(ids, max_bytes=1 << 10)
    again.load_state_dict(table.state_dict())
    table.put([9, 5], rows(0, 5))  # goes on, the copy does not
    assert torch.equal(again.get([3, 9]), rows(3, 9)) and again.get([5]) is None


def test_table__reads_rows_of_a_file(tmp_path):
    np.save(tmp_path / "rows.npy", np.arange(6, dtype=np.float16).reshape(3, 2))
    mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
    table = FeatureTable(IDS, mapped)
    found = table.get([9, 3])
    assert found.dtype == torch.float32 and found.tolist() == [[4, 5], [0, 1]]
    assert table.positions([5, 4]).tolist() == [1, -1] and table.get([4]) is None
