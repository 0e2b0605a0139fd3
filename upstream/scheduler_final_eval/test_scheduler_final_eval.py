"""The evaluation at the end of an experience does not enter the next one's plateau."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import EvaluationPlugin, LRSchedulerPlugin
from avalanche.training.supervised import Naive
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import TensorDataset


class FinalEvaluationTests(unittest.TestCase):
    def best(self, reset_scheduler):
        raw = TensorDataset(torch.ones(8, 2), torch.zeros(8, dtype=torch.long))
        exp = benchmark_from_datasets(train=[AvalancheDataset([raw])]).train_stream[0]
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scheduler = ReduceLROnPlateau(optimizer)
        plugin = LRSchedulerPlugin(
            scheduler, metric="val_loss", reset_scheduler=reset_scheduler
        )
        Naive(
            model=model,
            optimizer=optimizer,
            train_mb_size=4,
            eval_every=0,
            evaluator=EvaluationPlugin(),
            plugins=[plugin],
        ).train(exp, eval_streams=[exp])
        return scheduler.best

    def test_reset_scheduler_is_as_new(self):
        self.assertEqual(float("inf"), self.best(True))

    def test_still_counts_without_a_reset(self):
        self.assertLess(self.best(False), float("inf"))
