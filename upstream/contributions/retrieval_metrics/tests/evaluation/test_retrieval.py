"""Tests of the retrieval metrics."""

import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.evaluation.metrics import RetrievalRecall, retrieval_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


def slow_recall(queries, items, k):
    """The same by sorting, without ties."""
    found = 0
    for number, query in enumerate(queries):
        scores = [float(query @ item) for item in items]
        order = sorted(range(len(items)), key=lambda i: -scores[i])
        found += number in order[:k]
    return found / len(queries)


class RetrievalRecallTests(unittest.TestCase):
    def test_by_hand(self):
        metric = RetrievalRecall((1, 2))
        seconds = [[0.9, 0.1, 0.2], [0.8, 0.7, 0.3], [0.1, 0.2, 0.6]]
        metric.update(torch.eye(3), torch.tensor(seconds))
        found = metric.result()
        self.assertEqual(1.0, found["first_to_second_R@1"])
        self.assertAlmostEqual(2 / 3, found["second_to_first_R@1"])
        self.assertAlmostEqual(5 / 6, found["mean_R@1"])
        self.assertEqual(1.0, found["mean_R@2"])

    def test_against_sorting_in_chunks_and_batches(self):
        torch.manual_seed(0)
        firsts, seconds = torch.randn(23, 4), torch.randn(23, 4)
        metric = RetrievalRecall((1, 3), chunk_size=5)
        metric.update(firsts[:9], seconds[:9])
        metric.update(firsts[9:], seconds[9:])
        found = metric.result()
        for k in (1, 3):
            there = slow_recall(firsts, seconds, k)
            back = slow_recall(seconds, firsts, k)
            self.assertAlmostEqual(there, found[f"first_to_second_R@{k}"])
            self.assertAlmostEqual(back, found[f"second_to_first_R@{k}"])

    def test_collapsed_or_broken_model_finds_nothing(self):
        for value in (1.0, float("nan")):
            metric = RetrievalRecall((1,))
            metric.update(torch.full((4, 2), value), torch.full((4, 2), value))
            self.assertEqual(0.0, metric.result()["mean_R@1"])

    def test_reset_and_wrong_arguments(self):
        metric = RetrievalRecall()
        self.assertEqual({}, metric.result())
        metric.update(torch.eye(2), torch.eye(2))
        metric.reset()
        self.assertEqual({}, metric.result())
        with self.assertRaises(ValueError):
            metric.update(torch.eye(2), torch.eye(3))
        with self.assertRaises(ValueError):
            RetrievalRecall((0,))


class TwoTowers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x[:, :2], x[:, 2:]


class RetrievalPluginMetricTests(unittest.TestCase):
    def test_experiences_and_stream(self):
        pairs = torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]])
        raw = TensorDataset(pairs, torch.zeros(2, dtype=torch.long))
        bm = benchmark_from_datasets(test=[AvalancheDataset([raw]) for _ in "ab"])
        model = TwoTowers()
        metrics = retrieval_metrics(top_k=(1, 2), experience=True, stream=True)
        strategy = Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            criterion=lambda output, target: output[0].sum(),
            evaluator=EvaluationPlugin(metrics),
        )
        for _ in range(2):  # nothing is left of the first evaluation
            found = strategy.eval(bm.test_stream)
            self.assertEqual(18, len(found))
            for exp in ("Exp000", "Exp001"):
                name = f"mean_R@1_Exp/eval_phase/test_stream/{exp}"
                self.assertEqual(1.0, found[name])
            # each item occurs twice in the stream
            self.assertEqual(0.0, found["mean_R@1_Stream/eval_phase/test_stream"])
            self.assertEqual(1.0, found["mean_R@2_Stream/eval_phase/test_stream"])


if __name__ == "__main__":
    unittest.main()
