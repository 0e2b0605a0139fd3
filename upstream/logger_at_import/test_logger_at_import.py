"""Strategies can be imported in any process of a group."""

import importlib.util
import unittest

import torch.distributed as dist
from avalanche.training.supervised import strategy_wrappers
from torch.testing._internal.distributed.fake_pg import FakeStore


def import_again():
    spec = importlib.util.spec_from_file_location("again", strategy_wrappers.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ImportTests(unittest.TestCase):
    def test_second_process(self):
        dist.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
        try:
            evaluator = import_again().AETraining.ae_evaluator
        finally:
            dist.destroy_process_group()
        self.assertEqual(0, len(evaluator.loggers))

    def test_still_one_logger_in_the_main_process(self):
        self.assertEqual(1, len(import_again().AETraining.ae_evaluator.loggers))
