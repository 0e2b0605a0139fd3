"""A linear layer is counted for each position that it is applied to."""

import unittest

import torch
from avalanche.evaluation.metrics import MAC


class LinearTests(unittest.TestCase):
    def count(self, *shape):
        metric = MAC()
        metric.update(torch.nn.Linear(5, 8), torch.zeros(shape))
        return metric.result()

    def test_sequence(self):
        self.assertEqual(16 * 5 * 8, self.count(1, 16, 5))

    def test_grid(self):
        self.assertEqual(3 * 4 * 5 * 8, self.count(1, 3, 4, 5))

    def test_still_vector(self):
        self.assertEqual(5 * 8, self.count(1, 5))
