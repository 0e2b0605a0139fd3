"""Values of a metric that are named by strings have names of their own."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation import GenericPluginMetric
from avalanche.evaluation.metrics import Mean
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


class Fixed(GenericPluginMetric):
    def __init__(self, values):
        super().__init__(Mean(), reset_at="stream", emit_at="stream", mode="eval")
        self.values = values

    def result(self):
        return self.values

    def __str__(self):
        return "Fixed"


class MetricKeysTests(unittest.TestCase):
    def results(self, values):
        raw = TensorDataset(torch.ones(4, 2), torch.zeros(4, dtype=torch.long))
        bm = benchmark_from_datasets(test=[AvalancheDataset([raw])])
        model = torch.nn.Linear(2, 2)
        return Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            evaluator=EvaluationPlugin(Fixed(values)),
        ).eval(bm.test_stream)

    def test_string_keys(self):
        self.assertEqual(
            {
                "Fixed/en/eval_phase/test_stream": 0.5,
                "Fixed/it/eval_phase/test_stream": 0.25,
            },
            self.results({"en": 0.5, "it": 0.25}),
        )

    def test_still_task_labels(self):
        self.assertEqual(
            {
                "Fixed/eval_phase/test_stream/Task000": 0.5,
                "Fixed/eval_phase/test_stream/Task001": 0.25,
            },
            self.results({0: 0.5, 1: 0.25}),
        )
