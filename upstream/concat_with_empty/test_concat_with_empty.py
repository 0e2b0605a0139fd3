"""An empty dataset in front takes nothing away from the others."""

import unittest

import torch
from avalanche.benchmarks.utils import (
    AvalancheDataset,
    DataAttribute,
    concat_datasets,
)
from torch.utils.data import TensorDataset


def collate(samples):
    return samples


class ConcatTests(unittest.TestCase):
    def setUp(self):
        self.data = AvalancheDataset(
            [TensorDataset(torch.arange(4))],
            data_attributes=[DataAttribute(list(range(4)), "number", True)],
            collate_fn=collate,
        )

    def check(self, whole):
        self.assertEqual(list(range(4)), list(whole.number))
        self.assertEqual(3, whole[3][1])
        self.assertIs(collate, whole.collate_fn)

    def test_concat(self):
        self.check(AvalancheDataset([]).concat(self.data))

    def test_concat_datasets(self):
        self.check(concat_datasets([AvalancheDataset([]), self.data]))

    def test_still_behind(self):
        self.check(self.data.concat(AvalancheDataset([])))

    def test_still_empty(self):
        self.assertEqual(0, len(AvalancheDataset([]).concat(AvalancheDataset([]))))
