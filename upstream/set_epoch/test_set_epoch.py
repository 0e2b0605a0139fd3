"""Each pass over distributed data has its own order."""

import unittest

import torch
import torch.distributed as dist
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.benchmarks.utils.data_loader import SingleDatasetDataLoader
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import TensorDataset


class DistributedOrderTests(unittest.TestCase):
    def setUp(self):
        dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())

    def tearDown(self):
        dist.destroy_process_group()

    def make_loader(self, **options):
        data = AvalancheDataset([TensorDataset(torch.arange(64))])
        return SingleDatasetDataLoader(data, batch_size=8, **options)

    def order(self, loader):
        return torch.cat([batch[0] for batch in loader]).tolist()

    def test_passes_differ(self):
        loader = self.make_loader(shuffle=True)
        first, second = self.order(loader), self.order(loader)
        self.assertEqual(32, len(set(second)))
        self.assertNotEqual(first, second)

    def test_still_the_same_for_the_same_pass(self):
        one, other = self.make_loader(shuffle=True), self.make_loader(shuffle=True)
        self.assertEqual(self.order(one), self.order(other))
        self.assertEqual(self.order(one), self.order(other))

    def test_still_unshuffled(self):
        loader = self.make_loader(shuffle=False)
        self.assertEqual(self.order(loader), self.order(loader))
