"""Growing a layer keeps the optimizer's state of the units it had."""

import unittest

import torch
from avalanche.models.dynamic_optimizers import update_optimizer
from torch import nn


class GrownParametersTests(unittest.TestCase):
    def grow(self, old_units, new_units):
        torch.manual_seed(0)
        old, new = nn.Linear(2, old_units), nn.Linear(2, new_units)
        optimizer = torch.optim.Adam(old.parameters())
        known = update_optimizer(optimizer, dict(old.named_parameters()))
        old(torch.randn(4, 2)).pow(2).sum().backward()
        optimizer.step()
        before = {n: optimizer.state[p] for n, p in old.named_parameters()}
        update_optimizer(optimizer, dict(new.named_parameters()), known)
        after = {n: optimizer.state[p] for n, p in new.named_parameters()}
        return new, optimizer, before, after

    def check(self, old_units, new_units):
        new, optimizer, before, after = self.grow(old_units, new_units)
        both = min(old_units, new_units)
        for name, parameter in new.named_parameters():
            self.assertEqual(1, after[name]["step"])
            for key in ("exp_avg", "exp_avg_sq"):
                kept, value = before[name][key], after[name][key]
                self.assertEqual(parameter.shape, value.shape)
                self.assertTrue(torch.equal(kept[:both], value[:both]))
                self.assertTrue(torch.equal(value[both:], 0 * value[both:]))
        new(torch.randn(4, 2)).sum().backward()
        optimizer.step()

    def test_more_units(self):
        self.check(3, 5)

    def test_fewer_units(self):
        self.check(5, 3)

    def test_still_reset_on_demand(self):
        old, new = nn.Linear(2, 3), nn.Linear(2, 5)
        optimizer = torch.optim.Adam(old.parameters())
        known = update_optimizer(optimizer, dict(old.named_parameters()))
        old(torch.randn(4, 2)).sum().backward()
        optimizer.step()
        named = dict(new.named_parameters())
        update_optimizer(optimizer, named, known, reset_state=True)
        self.assertEqual(0, len(optimizer.state))
