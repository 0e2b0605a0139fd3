"""Looking for FFCV does not walk over all samples."""

import sys
import unittest

import torch
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.ffcv_support.ffcv_components import has_ffcv_support
from torch.utils.data import Subset, TensorDataset


def make_data(size):
    raw = TensorDataset(torch.zeros(2 * size, 1))
    data = AvalancheDataset([Subset(raw, range(2 * size))])
    return raw, data.subset(list(range(size))).concat(data)


def count_calls(size):
    data, calls = [make_data(size)[1]], 0

    def note(frame, event, argument):
        nonlocal calls
        calls += event == "call"

    sys.setprofile(note)
    try:
        has_ffcv_support(data)
    finally:
        sys.setprofile(None)
    return calls


class HasFfcvSupportTests(unittest.TestCase):
    def test_cost_does_not_grow_with_the_data(self):
        self.assertEqual(count_calls(10), count_calls(1000))

    def test_still_finds_ffcv(self):
        raw, data = make_data(10)
        self.assertFalse(has_ffcv_support([data]))
        raw.ffcv_info = "enabled"
        self.assertTrue(has_ffcv_support([data]))
