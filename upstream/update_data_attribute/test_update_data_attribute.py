"""A replaced attribute is also what the field of its name shows."""

import unittest

import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from torch.utils.data import TensorDataset


class UpdateDataAttributeTests(unittest.TestCase):
    def setUp(self):
        numbers = DataAttribute([0, 1, 2], "number", use_in_getitem=True)
        raw = TensorDataset(torch.zeros(3))
        self.old = AvalancheDataset([raw], data_attributes=[numbers])

    def test_field_is_renewed(self):
        new = self.old.update_data_attribute("number", [7, 8, 9])
        self.assertEqual(8, new[1][-1])
        self.assertEqual([7, 8, 9], list(new.number))
        self.assertEqual([0, 1, 2], list(self.old.number))

    def test_concat_has_the_new_values(self):
        new = self.old.update_data_attribute("number", [7, 8, 9])
        self.assertEqual([0, 1, 2, 7, 8, 9], list(self.old.concat(new).number))
