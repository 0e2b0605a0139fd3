"""Mean scores are those of one evaluation, of classes that occur in it."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation.metrics import MeanNewOldScores, mean_scores_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


class MeanScoresTests(unittest.TestCase):
    def test_evaluations_are_apart(self):
        raw = TensorDataset(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
        bm = benchmark_from_datasets(test=[AvalancheDataset([raw])])
        model = torch.nn.Linear(2, 2)
        metrics = mean_scores_metrics(on_train=False, image_creator=None)
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            evaluator=EvaluationPlugin(metrics),
        )
        for bias in (0.0, 2.0):
            model.bias.data.fill_(bias)
            found = strategy.eval(bm.test_stream)
            names = [k for k in found if k.endswith("/old_classes")]
            self.assertEqual([bias], [found[k] for k in names])

    def test_no_value_of_classes_that_do_not_occur(self):
        metric = MeanNewOldScores()
        metric.update_new_classes({1})
        metric.update(torch.tensor([[3.0, 0.0]]), torch.tensor([0]))
        self.assertEqual({"old": 3.0}, metric.result())

    def test_still_new_and_old(self):
        metric = MeanNewOldScores()
        metric.update_new_classes({1})
        metric.update(torch.tensor([[3.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 1]))
        self.assertEqual({"old": 3.0, "new": 5.0}, metric.result())
