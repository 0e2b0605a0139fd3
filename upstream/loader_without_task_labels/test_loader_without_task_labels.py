"""Train loaders without task labels collate and shard as those with them."""

import unittest

import torch
import torch.distributed as dist
from avalanche.benchmarks import benchmark_from_datasets
from avalanche.benchmarks.utils import AvalancheDataset
from avalanche.training.supervised import Naive
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import TensorDataset, default_collate


def double(samples):
    return [2 * default_collate(samples)[0], default_collate(samples)[1]]


class TrainLoaderTests(unittest.TestCase):
    def make_loader(self):
        raw = TensorDataset(torch.ones(8, 2), torch.zeros(8, dtype=torch.long))
        data = AvalancheDataset([raw], collate_fn=double)
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        strategy = Naive(
            model=model, optimizer=optimizer, train_mb_size=4, evaluator=None
        )
        strategy.experience = benchmark_from_datasets(train=[data]).train_stream[0]
        strategy.train_dataset_adaptation()
        strategy.make_train_dataloader()
        return strategy.dataloader

    def test_collate_of_the_dataset_is_used(self):
        x, _ = next(iter(self.make_loader()))
        self.assertTrue(torch.equal(x, torch.full((4, 2), 2.0)))

    def test_each_of_two_processes_has_half_of_the_data(self):
        dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
        try:
            self.assertEqual(4, sum(len(x) for x, _ in self.make_loader()))
        finally:
            dist.destroy_process_group()
