"""Splitting off validation data keeps task labels."""

import unittest

import torch
from avalanche.benchmarks import (
    benchmark_from_datasets,
    benchmark_with_validation_stream,
    with_task_labels,
)
from avalanche.benchmarks.utils import AvalancheDataset, TaskLabels
from torch.utils.data import TensorDataset


class ValidationStreamTests(unittest.TestCase):
    def make_benchmark(self):
        data = [
            AvalancheDataset(
                [TensorDataset(torch.zeros(4), torch.zeros(4))],
                data_attributes=[TaskLabels([task] * 4)],
            )
            for task in range(2)
        ]
        return benchmark_from_datasets(train=data)

    def test_both_parts_have_task_labels(self):
        bm = with_task_labels(self.make_benchmark())
        bm = benchmark_with_validation_stream(bm, 0.5)
        for stream in (bm.train_stream, bm.valid_stream):
            self.assertEqual([[0], [1]], [exp.task_labels for exp in stream])
            self.assertEqual([2, 2], [len(exp.dataset) for exp in stream])

    def test_still_none_where_there_were_none(self):
        bm = benchmark_with_validation_stream(self.make_benchmark(), 0.5)
        self.assertFalse(hasattr(bm.train_stream[0], "task_labels"))
