import random

import numpy as np
import pytest
import torch

from avalanche_clip.common.randomness import (
    kept_rng,
    mix64,
    named_seed,
    scramble,
    seed_cpu,
    seeded,
)


def drawn():
    return random.random(), np.random.rand(), torch.rand(()).item()


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_kept_rng__goes_on_as_if_nothing_was_drawn(device):
    seed_cpu(3)
    expected = drawn(), drawn()
    seed_cpu(3)
    first = drawn()
    with pytest.raises(RuntimeError), kept_rng(device):
        seed_cpu(8)
        drawn()
        raise RuntimeError
    assert (first, drawn()) == expected


@pytest.mark.gpu
def test_kept_rng__of_a_gpu():
    device = torch.device("cuda")
    torch.cuda.manual_seed(3)
    expected = torch.rand(2, device=device)
    torch.cuda.manual_seed(3)
    with kept_rng(device):
        torch.rand(5, device=device)
    assert torch.equal(torch.rand(2, device=device), expected)


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 2**32 + 5, 2**64 - 1])
def test_seed_cpu__takes_64_bits_and_repeats(seed):
    seed_cpu(seed)
    first = drawn()
    seed_cpu(seed)
    assert drawn() == first
    random.seed(seed)
    generator = torch.Generator().manual_seed(seed & (2**63 - 1))
    assert torch.rand((), generator=generator).item() == first[2]
    assert np.random.RandomState(seed & 0xFFFFFFFF).rand() == first[1]
    assert random.random() == first[0]


def test_seeds__depend_on_all_parts_and_their_order():
    parts = [
        (),
        (1,),
        (2,),
        (1, 2),
        (2, 1),
        (1, 2, 0),
        ("selector",),
        ("pseudo texts",),
    ]
    seeds = {named_seed(s, *p) for s in (0, 1, -1) for p in parts}
    assert len(seeds) == 3 * len(parts)
    assert all(0 <= s < 2**63 for s in seeds)


def test_scramble__keeps_its_values_and_takes_arrays():
    # Published outputs of SplitMix64 from seed 0.
    states = np.array([0, 0x9E3779B97F4A7C15], dtype=np.uint64)
    assert mix64(states).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    rows = scramble(-5, "reference texts", np.array([3, 2**62, -1]))
    single = [scramble(-5, 0x7E87, n) for n in (3, 2**62, 2**64 - 1)]
    assert rows.tolist() == [int(n) for n in single]


def test_seeded__repeats_and_leaves_the_global_generators_alone():
    seed_cpu(3)
    expected, inside = drawn(), []
    seed_cpu(3)
    for _ in range(2):
        with seeded(7, torch.device("cpu")):
            inside.append(drawn())
    assert inside[0] == inside[1] != expected
    assert drawn() == expected
