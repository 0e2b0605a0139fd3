"""A strategy with an optimizer can be saved and loaded."""

import os
import tempfile
import unittest

import torch
from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint
from avalanche.training.supervised import Naive


class CheckpointTests(unittest.TestCase):
    def make_strategy(self):
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return Naive(model=model, optimizer=optimizer, evaluator=None)

    def test_save_and_load(self):
        saved = self.make_strategy()
        saved.model(torch.ones(1, 2)).sum().backward()
        saved.optimizer.step()
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "checkpoint.pkl")
            save_checkpoint(saved, path)
            loaded, _ = maybe_load_checkpoint(self.make_strategy(), path)
        self.assertTrue(torch.equal(saved.model.weight, loaded.model.weight))
        held = loaded.optimizer.param_groups[0]["params"]
        self.assertIs(loaded.model.weight, held[0])
        self.assertEqual(1, loaded.optimizer.state[held[0]]["step"])
