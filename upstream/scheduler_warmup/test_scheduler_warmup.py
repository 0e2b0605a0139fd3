"""A schedule with warm-up is the same in each experience."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import LRSchedulerPlugin
from avalanche.training.supervised import Naive
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR
from torch.utils.data import TensorDataset


class Rates(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.seen = []

    def before_training_exp(self, strategy, **kwargs):
        self.seen.append([])

    def before_update(self, strategy, **kwargs):
        self.seen[-1].append(round(strategy.optimizer.param_groups[0]["lr"], 6))


class WarmupTests(unittest.TestCase):
    def rates(self, make_scheduler):
        raw = TensorDataset(torch.ones(8, 2), torch.zeros(8, dtype=torch.long))
        bm = benchmark_from_datasets(train=[AvalancheDataset([raw]) for _ in "abc"])
        model, rates = torch.nn.Linear(2, 2), Rates()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        scheduler = LRSchedulerPlugin(
            make_scheduler(optimizer), step_granularity="iteration"
        )
        Naive(
            model=model,
            optimizer=optimizer,
            train_mb_size=2,
            evaluator=None,
            plugins=[scheduler, rates],
        ).train(bm.train_stream)
        return rates.seen

    def test_warmup(self):
        seen = self.rates(lambda opt: LambdaLR(opt, lambda n: min(1.0, (n + 1) / 4)))
        self.assertEqual([[0.0025, 0.005, 0.0075, 0.01]] * 3, seen)

    def test_still_cosine(self):
        first, *others = self.rates(lambda opt: CosineAnnealingLR(opt, 4))
        self.assertEqual(0.01, first[0])
        self.assertEqual([first] * 2, others)
