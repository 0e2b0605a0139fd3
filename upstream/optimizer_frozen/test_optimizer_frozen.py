"""Frozen parameters that an optimizer leaves out stay out."""

import unittest

import torch
from avalanche.models.dynamic_optimizers import update_optimizer
from torch import nn


class FrozenParametersTests(unittest.TestCase):
    def setUp(self):
        self.model = nn.ModuleDict({"free": nn.Linear(2, 2), "cold": nn.Linear(2, 2)})
        self.model["cold"].requires_grad_(False)
        self.named = dict(self.model.named_parameters())

    def test_two_groups(self):
        free = self.model["free"]
        optimizer = torch.optim.AdamW(
            [
                {"params": [free.weight], "weight_decay": 0.1},
                {"params": [free.bias], "weight_decay": 0.0},
            ]
        )
        update_optimizer(optimizer, self.named)
        self.assertEqual([1, 1], [len(g["params"]) for g in optimizer.param_groups])

    def test_one_group(self):
        optimizer = torch.optim.AdamW(self.model["free"].parameters())
        known = update_optimizer(optimizer, self.named)
        self.assertEqual(2, len(optimizer.param_groups[0]["params"]))
        self.model["cold"].requires_grad_(True)
        update_optimizer(optimizer, self.named, known)
        self.assertEqual(4, len(optimizer.param_groups[0]["params"]))

    def test_still_frozen_later(self):
        optimizer = torch.optim.AdamW(self.model.parameters())
        update_optimizer(optimizer, self.named)
        self.assertEqual(4, len(optimizer.param_groups[0]["params"]))
