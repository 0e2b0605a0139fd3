"""Arrays of indices are kept as plain numbers."""

import unittest

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch.utils.data import TensorDataset


class SubsetTests(unittest.TestCase):
    def check(self, indices):
        data = AvalancheDataset([TensorDataset(torch.arange(8))]).subset(indices)
        self.assertEqual([5, 2], [int(sample[0]) for sample in data])
        kept = data._flat_data._indices
        self.assertEqual({int}, set(map(type, kept)))

    def test_tensor(self):
        self.check(torch.tensor([5, 2]))

    def test_array(self):
        self.check(np.array([5, 2]))

    def test_still_list(self):
        self.check([5, 2])
