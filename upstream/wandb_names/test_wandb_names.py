"""The W&B logger needs no names that W&B has dropped."""

import sys
import types
import unittest
from unittest import mock

from avalanche.logging import WandBLogger


class Chart:
    pass


def make_wandb(logged, started, **names):
    wandb = types.ModuleType("wandb")
    wandb.__version__ = "0"
    wandb.plot = types.SimpleNamespace(CustomChart=Chart)
    wandb.util = types.SimpleNamespace()
    wandb.init = lambda **options: started.update(options)
    wandb.run = types.SimpleNamespace(_label=lambda repo: None)
    wandb.log = lambda values, step: logged.append(values)
    vars(wandb).update(names)
    return wandb


class WandBLoggerTests(unittest.TestCase):
    def log(self, **names):
        logged, started = [], {}
        wandb = make_wandb(logged, started, **names)
        with mock.patch.dict(sys.modules, {"wandb": wandb}):
            logger = WandBLogger()
            logger.log_single_metric("loss", 0.5, 3)
            logger.log_single_metric("chart", Chart(), 3)
        self.assertEqual(["loss", "chart"], [name for d in logged for name in d])
        return started["id"]

    def test_recent_wandb(self):
        self.assertNotEqual(self.log(), self.log())

    def test_still_earlier_wandb(self):
        self.log(
            plot=types.SimpleNamespace(),
            viz=types.SimpleNamespace(CustomChart=Chart),
            util=types.SimpleNamespace(generate_id=lambda: "abcdefgh"),
        )
