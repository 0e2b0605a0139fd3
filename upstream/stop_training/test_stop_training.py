"""A stop in the last epoch of an experience does not skip the next one."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.core import SupervisedPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


class StopOnce(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.trained = []

    def after_training_iteration(self, strategy, **kwargs):
        exp_id = strategy.experience.current_experience
        self.trained.append(exp_id)
        if exp_id == 0:
            strategy.stop_training()


class StopTrainingTests(unittest.TestCase):
    def test_next_experience_is_trained(self):
        raw = TensorDataset(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
        bm = benchmark_from_datasets(train=[AvalancheDataset([raw]) for _ in "ab"])
        model, plugin = torch.nn.Linear(2, 2), StopOnce()
        Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            train_mb_size=2,
            evaluator=None,
            plugins=[plugin],
        ).train(bm.train_stream)
        self.assertEqual([0, 1, 1], plugin.trained)
