"""Tests of the off-diagonal alignment (Mod-X) plugin."""

import math
import unittest

import torch
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.plugins import (
    OffDiagonalAlignment,
    OffDiagonalAlignmentPlugin,
)
from avalanche.training.supervised import Naive
from torch.utils.data import TensorDataset


def slow_loss(scores, prev_scores, temperature):
    """The same with numbers, row by row."""
    total, size = 0.0, len(scores)
    for now, before in (
        (scores, prev_scores),
        (list(zip(*scores)), list(zip(*prev_scores))),
    ):
        for i in range(size):
            if before[i][i] < max(before[i]):
                continue
            p = [math.exp(s / temperature) for s in before[i]]
            q = [math.exp(s / temperature) for s in now[i]]
            for a, b in zip(p, q):
                total += a / sum(p) * math.log((a / sum(p)) / (b / sum(q)))
    return total / 2


class TwoTowers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)

    def forward(self, x):
        return self.first(x[:, :3]), self.second(x[:, 3:])


def contrastive(output, target):
    scores = output[0] @ output[1].T
    return torch.nn.functional.cross_entropy(scores, torch.arange(len(scores)))


class OffDiagonalAlignmentTests(unittest.TestCase):
    def test_by_hand(self):
        loss = OffDiagonalAlignment().loss(torch.eye(2) / 2, torch.eye(2))
        self.assertAlmostEqual(0.052689, loss.item(), places=6)

    def test_against_numbers(self):
        torch.manual_seed(0)
        for temperature in (1.0, 0.5):
            scores, prev = torch.rand(5, 5), torch.rand(5, 5) + torch.eye(5) / 2
            loss = OffDiagonalAlignment(temperature=temperature).loss(scores, prev)
            slow = slow_loss(scores.tolist(), prev.tolist(), temperature)
            self.assertGreater(slow, 0)
            self.assertAlmostEqual(slow, loss.item(), places=5)

    def test_wrong_rows_teach_nothing(self):
        wrong = 1 - torch.eye(3)
        loss = OffDiagonalAlignment().loss(torch.rand(3, 3), wrong)
        self.assertEqual(0.0, loss.item())

    def test_wrong_arguments(self):
        for wrong in ({"alpha": -1.0}, {"temperature": 0.0}):
            with self.assertRaises(ValueError):
                OffDiagonalAlignment(**wrong)


class OffDiagonalAlignmentPluginTests(unittest.TestCase):
    def train(self, num_experiences, plugins):
        torch.manual_seed(0)
        sets = []
        for _ in range(num_experiences):
            raw = TensorDataset(torch.randn(8, 6), torch.zeros(8, dtype=torch.long))
            sets.append(AvalancheDataset([raw]))
        bm, model = benchmark_from_datasets(train=sets), TwoTowers()
        Naive(
            model=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            criterion=contrastive,
            train_mb_size=4,
            train_epochs=2,
            evaluator=None,
            plugins=plugins,
        ).train(bm.train_stream)
        return model

    def moved(self, num_experiences, alpha):
        plain = self.train(num_experiences, [])
        model = self.train(num_experiences, [OffDiagonalAlignmentPlugin(alpha)])
        return any(
            not torch.equal(a, b)
            for a, b in zip(plain.parameters(), model.parameters())
        )

    def test_acts_from_the_second_experience_on(self):
        self.assertFalse(self.moved(1, 20.0))
        self.assertTrue(self.moved(2, 20.0))
        self.assertFalse(self.moved(2, 0.0))

    def test_teacher_is_a_frozen_copy(self):
        plugin = OffDiagonalAlignmentPlugin()
        model = self.train(2, [plugin])
        teacher = plugin.alignment.prev_model
        for a, b in zip(model.parameters(), teacher.parameters()):
            self.assertTrue(torch.equal(a, b))
            self.assertIsNot(a, b)
            self.assertFalse(b.requires_grad)
        self.assertFalse(teacher.training)


if __name__ == "__main__":
    unittest.main()
