"""Synaptic Intelligence finds weights important that are trained on the CPU."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import SynapticIntelligencePlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


class ImportanceTests(unittest.TestCase):
    def test_importance_is_not_zero(self):
        raw = TensorDataset(torch.ones(8, 2), torch.zeros(8, dtype=torch.long))
        bm = benchmark_from_datasets(train=[AvalancheDataset([raw])])
        model, plugin = torch.nn.Linear(2, 2), SynapticIntelligencePlugin(1.0)
        Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            train_mb_size=2,
            evaluator=None,
            plugins=[plugin],
        ).train(bm.train_stream)
        anchor, importance = plugin.ewc_data
        self.assertGreater(importance["weight"].data.abs().max().item(), 0)
        held = anchor["weight"].data.clone()
        with torch.no_grad():
            model.weight += 1
        self.assertTrue(torch.equal(held, anchor["weight"].data))
