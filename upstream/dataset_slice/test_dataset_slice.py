"""A slice of a dataset is a dataset."""

import unittest

import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from torch.utils.data import TensorDataset


class SliceTests(unittest.TestCase):
    def check(self, use_in_getitem):
        numbers = DataAttribute(list(range(8)), "number", use_in_getitem)
        raw = TensorDataset(torch.arange(8))
        data = AvalancheDataset([raw], data_attributes=[numbers])
        part = data[2:6:2]
        self.assertIsInstance(part, AvalancheDataset)
        self.assertEqual([2, 4], list(part.number))
        self.assertEqual([2, 4], [int(sample[0]) for sample in part])
        self.assertEqual(list(data[4]), list(part[1]))

    def test_attribute_in_items(self):
        self.check(True)

    def test_other_attribute(self):
        self.check(False)
