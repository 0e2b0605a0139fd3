"""The accuracy matrix allows evaluations before the first training."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation.metrics import accuracy_matrix_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


class AccuracyMatrixTests(unittest.TestCase):
    def test_first_evaluation_has_no_row(self):
        sets = []
        for target in (0, 1):
            raw = TensorDataset(torch.ones(4, 2), torch.full((4,), target))
            sets.append(AvalancheDataset([raw]))
        bm = benchmark_from_datasets(train=sets, test=sets)
        model = torch.nn.Linear(2, 2)
        torch.nn.init.zeros_(model.weight)
        model.bias.data = torch.tensor([1.0, 0.0])
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.0),
            evaluator=EvaluationPlugin(accuracy_matrix_metrics()),
        )
        strategy.eval(bm.test_stream)
        for exp in bm.train_stream:
            strategy.train(exp)
            found = strategy.eval(bm.test_stream)
        matrix = found["EvalStream/Acc_Matrix"]
        self.assertEqual([[1.0, 0.0], [1.0, 0.0]], matrix.tolist())
