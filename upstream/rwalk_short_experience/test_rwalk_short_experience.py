"""RWalk survives experiences of fewer than ``delta_t`` iterations."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import RWalkPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


class ShortExperienceTests(unittest.TestCase):
    def weights(self, delta_t):
        torch.manual_seed(0)
        raw = TensorDataset(torch.ones(8, 2), torch.zeros(8, dtype=torch.long))
        bm = benchmark_from_datasets(train=[AvalancheDataset([raw]) for _ in "ab"])
        model = torch.nn.Linear(2, 2)
        Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            train_mb_size=4,
            evaluator=None,
            plugins=[RWalkPlugin(delta_t=delta_t)],
        ).train(bm.train_stream)
        return model.weight

    def test_longer_interval_than_the_experience(self):
        self.assertTrue(torch.isfinite(self.weights(10)).all())

    def test_still_finite(self):
        self.assertTrue(torch.isfinite(self.weights(1)).all())
