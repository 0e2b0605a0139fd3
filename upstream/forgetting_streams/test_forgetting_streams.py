"""Forgetting on one stream does not depend on evaluations of another."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation.metrics import forgetting_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


def make_data(target):
    raw = TensorDataset(torch.ones(4, 2), torch.full((4,), target))
    return [AvalancheDataset([raw]), AvalancheDataset([raw])]


class ForgettingStreamsTests(unittest.TestCase):
    def forgetting(self, *evaluated):
        """Of a model that never learns, and always answers 0."""
        bm = benchmark_from_datasets(
            train=make_data(0), easy=make_data(0), hard=make_data(1)
        )
        model = torch.nn.Linear(2, 2)
        torch.nn.init.zeros_(model.weight)
        model.bias.data = torch.tensor([1.0, 0.0])
        metrics = forgetting_metrics(experience=True, stream=True)
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            evaluator=EvaluationPlugin(metrics),
        )
        for exp in bm.train_stream:
            strategy.train(exp)
            for name in evaluated:
                found = strategy.eval(bm.streams[name])
        return {k: v for k, v in found.items() if "Forgetting" in k}

    def test_two_streams(self):
        found = self.forgetting("easy", "hard")
        self.assertEqual(4, len(found))
        self.assertEqual({0}, set(found.values()))

    def test_still_one_stream(self):
        found = self.forgetting("easy")
        self.assertEqual(2, len(found))
        self.assertEqual({0}, set(found.values()))
