"""Streams of a benchmark know it, as strict checks of evaluations need."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


class StreamBenchmarkTests(unittest.TestCase):
    def setUp(self):
        raw = TensorDataset(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
        self.bm = benchmark_from_datasets(test=[AvalancheDataset([raw])])

    def test_stream_knows_its_benchmark(self):
        self.assertIs(self.bm, self.bm.test_stream.benchmark)

    def test_strict_checks(self):
        model = torch.nn.Linear(2, 2)
        Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            evaluator=EvaluationPlugin(strict_checks=True),
        ).eval(self.bm.test_stream)
