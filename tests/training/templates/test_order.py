import numpy as np
import pytest
import torch

from avalanche_clip.training import Sequential
from avalanche_clip.training.templates.order import (
    PlannedBatchSampler,
    TrainingOrder,
    worker_options,
)
from tests.helpers import At, assert_same_weights, build, stub_benchmark, stub_model

SIZES = [(40, 10), (41, 10), (43, 7), (33, 8), (8, 8), (9, 8), (5, 8), (17, 8)]


def endless(size, batch, **options):
    options = {"seed": 1, "experience": 2, "continuous": True, **options}
    return TrainingOrder(size, batch, **options)


@pytest.mark.parametrize("size, batch", SIZES)
def test_endless_order__draws_every_sample_equally_often(size, batch):
    drawn = list(endless(size, batch).batches(0, 0, 37))
    counts = np.bincount(np.concatenate(drawn), minlength=size)
    assert counts.max() - counts.min() <= 1
    assert all(len(set(b.tolist())) == len(b) == min(size, batch) for b in drawn)


@pytest.mark.parametrize("size, batch", SIZES)
def test_endless_order__start_gives_the_tail_of_the_sequence(size, batch):
    order = endless(size, batch)
    drawn = list(order.batches(0, 0, 30))
    for start in range(30):
        tail = list(order.batches(5, start, 30 - start))
        assert all((a == b).all() for a, b in zip(tail, drawn[start:], strict=True))


def test_endless_order__late_start_does_not_walk_through_all_passes():
    order = endless(1000, 10)
    made = []
    original = order.permutation
    order.permutation = lambda number: made.append(number) or original(number)
    next(order.batches(0, 99_950, 1))
    assert len(made) <= 4


def test_order__depends_on_seed_and_experience_only():
    def first(**options):
        return next(endless(40, 10, **options).batches(0, 0, 1)).tolist()

    assert first() == first()
    assert first() != first(seed=2)
    assert first() != first(experience=3)


def test_order__epochs_without_budget_are_fresh_permutations_of_full_batches():
    order = endless(10, 4, continuous=False)
    assert order.batches_per_epoch() == 2
    epochs = [np.concatenate(list(order.batches(e, 0, 2))) for e in range(2)]
    assert all(len(set(e.tolist())) == 8 for e in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


def test_order__without_shuffle_keeps_the_order():
    order = endless(6, 3, shuffle=False)
    batches = [b.tolist() for b in order.batches(0, 0, 3)]
    assert batches == [[0, 1, 2], [3, 4, 5], [0, 1, 2]]


@pytest.mark.parametrize("size", [7, 11, 50])
def test_order__batches_do_not_depend_on_the_number_of_processes(size):
    def batches(processes):
        order = endless(size, 8, continuous=False, processes=processes)
        return [b.tolist() for b in order.batches(1, 0, order.batches_per_epoch())]

    assert batches(1) == batches(2) == batches(3)


def test_order__tail_too_small_for_the_processes_raises():
    options = {"continuous": False, "drop_last": False, "processes": 2}
    order = endless(11, 4, **options)
    sizes = [len(b) for b in order.batches(0, 0, order.batches_per_epoch())]
    assert sizes == [4, 4, 3]
    with pytest.raises(ValueError, match="last batch of an epoch has 1 of 9"):
        endless(9, 4, **options)
    assert endless(9, 4, **{**options, "drop_last": True}).batches_per_epoch() == 2


def test_order__too_few_samples_for_the_processes_raise():
    with pytest.raises(ValueError, match="cannot fill a batch on 4"):
        endless(3, 8, processes=4)


@pytest.mark.parametrize("world", [2, 4])
def test_sampler__ranks_together_give_the_single_process_batches(world):
    def batches(rank, size):
        sampler = PlannedBatchSampler(endless(50, 8, processes=size), rank, size)
        sampler.plan(0, 3, 6)
        return list(sampler)

    whole = batches(0, 1)
    parts = [batches(rank, world) for rank in range(world)]
    assert whole == [sum(rows, []) for rows in zip(*parts, strict=True)]


def test_sample_seeds__differ_by_epoch_batch_and_row():
    order = endless(50, 8, continuous=False)
    seeds = [order.sample_seeds(e, b, 8) for e in range(3) for b in range(3)]
    assert len(np.unique(np.concatenate(seeds))) == 72


def drawn_batches(**options):
    model = stub_model(noise=0.3)
    strategy = build(Sequential, model, budget_iterations=4)

    def read(strategy):
        batch = strategy.mb_x
        return batch["sample_id"].tolist(), batch["image"].clone()

    look = At("before_training_iteration", read)
    strategy.plugins.append(look)
    benchmark = stub_benchmark((9,), model=model)
    torch.manual_seed(0)
    strategy.train(benchmark.train_stream[0], eval_streams=[], **options)
    return strategy, look.seen


@pytest.mark.parametrize(
    "context",
    # Spawned workers import everything anew, which takes most of a minute.
    ["fork", pytest.param("spawn", marks=pytest.mark.slow)],
)
def test_workers__give_the_same_run_bit_for_bit(context):
    plain, ours = drawn_batches()
    spawned, theirs = drawn_batches(num_workers=2, multiprocessing_context=context)
    assert [a[0] for a in ours] == [b[0] for b in theirs]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(ours, theirs, strict=True))
    assert_same_weights(plain.model, spawned.model)


def test_reading__leaves_the_generators_of_the_process_alone():
    model = stub_model(noise=0.3)
    dataset = stub_benchmark((6,), model=model).train_stream[0].dataset
    from avalanche_clip.common.randomness import rng_state
    from avalanche_clip.training.templates.order import TrainLoader

    loader = TrainLoader(dataset, endless(6, 3), collate_fn=dataset.collate_fn)
    loader.plan(0, 0, 2)
    before = rng_state()
    assert len(loader) == len(list(loader)) == 2
    after = rng_state()
    assert torch.equal(before["python"][1], after["python"][1])
    assert torch.equal(before["torch"], after["torch"])
    assert (before["numpy"][1] == after["numpy"][1]).all()


def test_worker_options__are_kept_only_with_workers():
    options = {"num_workers": 0, "prefetch_factor": 2, "shuffle": True}
    assert worker_options(options) == {"num_workers": 0}
    options["num_workers"] = 1
    assert worker_options(options) == {"num_workers": 1, "prefetch_factor": 2}
