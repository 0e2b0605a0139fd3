"""Evaluation streams may be any sequence, and stay as they are."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


class EvalStreamsTests(unittest.TestCase):
    def train(self, make_eval_streams):
        raw = TensorDataset(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
        data = AvalancheDataset([raw])
        exp = benchmark_from_datasets(train=[data]).train_stream[0]
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        strategy = Naive(model=model, optimizer=optimizer, evaluator=None)
        eval_streams = make_eval_streams(exp)
        strategy.train(exp, eval_streams=eval_streams)
        return exp, eval_streams

    def test_tuple(self):
        self.train(lambda exp: (exp,))

    def test_list_of_the_caller_is_not_changed(self):
        exp, given = self.train(lambda exp: [exp])
        self.assertEqual(1, len(given))
        self.assertIs(exp, given[0])
