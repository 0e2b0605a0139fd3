"""Forward transfer is measured for each stream by itself, where it can be."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation.metrics import forward_transfer_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


def make_data(target):
    raw = TensorDataset(torch.ones(4, 2), torch.full((4,), target))
    return [AvalancheDataset([raw]), AvalancheDataset([raw])]


class ForwardTransferStreamsTests(unittest.TestCase):
    def setUp(self):
        """A model that never learns, and always answers 0."""
        self.bm = benchmark_from_datasets(
            train=make_data(0), easy=make_data(0), hard=make_data(1)
        )
        model = torch.nn.Linear(2, 2)
        torch.nn.init.zeros_(model.weight)
        model.bias.data = torch.tensor([1.0, 0.0])
        metrics = forward_transfer_metrics(experience=True, stream=True)
        self.strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            evaluator=EvaluationPlugin(metrics),
            eval_every=0,
        )

    def transfer(self, found):
        return {k: v for k, v in found.items() if "ForwardTransfer" in k}

    def test_two_streams(self):
        streams = [self.bm.streams["easy"], self.bm.streams["hard"]]
        found = {}
        for exp in self.bm.train_stream:
            found = self.transfer(self.strategy.train(exp, eval_streams=streams))
        self.assertEqual(4, len(found))
        self.assertEqual({0}, set(found.values()))

    def test_stream_without_a_first_value(self):
        self.strategy.train(self.bm.train_stream[0])
        found = self.transfer(self.strategy.eval(self.bm.streams["easy"]))
        self.assertEqual([], [k for k in found if "easy" in k and "Exp0" in k])
