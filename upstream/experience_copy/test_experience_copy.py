"""Decorating a part of a stream leaves the stream as it is."""

import unittest
from copy import copy

import torch
from avalanche.benchmarks import benchmark_from_datasets, with_task_labels
from avalanche.benchmarks.utils import AvalancheDataset, TaskLabels
from torch.utils.data import TensorDataset


class ExperienceCopyTests(unittest.TestCase):
    def setUp(self):
        data = [
            AvalancheDataset(
                [TensorDataset(torch.zeros(2))],
                data_attributes=[TaskLabels([task] * 2)],
            )
            for task in range(3)
        ]
        self.stream = benchmark_from_datasets(train=data).train_stream

    def test_numbers_of_the_originals_stay(self):
        part = with_task_labels(self.stream[1:])
        self.assertEqual([0, 1], [exp.current_experience for exp in part])
        self.assertEqual([0, 1, 2], [exp.current_experience for exp in self.stream])

    def test_copy_has_its_own_number(self):
        clone = copy(self.stream[2])
        clone.current_experience = 7
        self.assertEqual(2, self.stream[2].current_experience)

    def test_still_the_same_kind(self):
        exp = self.stream[2]
        clone = exp.train()
        self.assertIs(type(exp), type(clone))
        self.assertIs(exp.dataset, clone.dataset)
        with self.assertRaises(ValueError):
            clone.current_experience  # noqa: B018
