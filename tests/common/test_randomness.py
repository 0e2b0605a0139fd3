import random

import numpy as np
import pytest
import torch

from avalanche_clip.common.randomness import kept_rng, seed_cpu


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
