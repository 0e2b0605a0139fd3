"""Early stopping watches the experience that is trained."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import EarlyStoppingPlugin, EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


class WatchedExperienceTests(unittest.TestCase):
    def watched(self, exp_id, values):
        raw = TensorDataset(torch.ones(2, 2), torch.zeros(2, dtype=torch.long))
        bm = benchmark_from_datasets(train=[AvalancheDataset([raw]) for _ in "ab"])
        model = torch.nn.Linear(2, 2)
        plugin = EarlyStoppingPlugin(1, "valid_stream", "Acc")
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            evaluator=EvaluationPlugin(),
            plugins=[plugin],
        )
        strategy.experience = bm.train_stream[exp_id]
        strategy.evaluator.last_metric_results = {
            f"Acc/eval_phase/valid_stream{name}": v for name, v in values.items()
        }
        plugin._update_best(strategy)
        return plugin.best_val

    def test_own_experience_of_several(self):
        values = {"/Exp000": 0.75, "/Exp001": 0.25}
        self.assertEqual(0.75, self.watched(0, values))

    def test_still_the_last_one_evaluated(self):
        self.assertEqual(0.25, self.watched(1, {"/Exp000": 0.75, "/Exp001": 0.25}))

    def test_still_the_whole_stream(self):
        self.assertEqual(0.5, self.watched(0, {"": 0.5}))
