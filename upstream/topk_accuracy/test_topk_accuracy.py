"""Top-k accuracy takes task labels per pattern, and few classes."""

import unittest

import torch
from avalanche.evaluation.metrics import TopkAccuracy


class TopkAccuracyTests(unittest.TestCase):
    def setUp(self):
        self.scores = torch.tensor([[5.0, 3.0, 1.0], [1.0, 3.0, 5.0]])
        self.classes = torch.tensor([1, 0])

    def test_task_label_of_each_pattern(self):
        metric = TopkAccuracy(top_k=2)
        metric.update(self.scores, self.classes, torch.tensor([0, 1]))
        self.assertEqual({0: 1.0, 1: 0.0}, metric.result())

    def test_fewer_classes_than_k(self):
        metric = TopkAccuracy(top_k=5)
        metric.update(self.scores, self.classes, 0)
        self.assertEqual({0: 1.0}, metric.result())

    def test_still_one_task_label(self):
        metric = TopkAccuracy(top_k=2)
        metric.update(self.scores, self.classes, 0)
        self.assertEqual({0: 0.5}, metric.result())
