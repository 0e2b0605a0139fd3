"""Seeds by name, and random generators and modes put back after use."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

NAMES = {
    "reference images": 0x1A6E,
    "reference texts": 0x7E87,
    "selector": 0x5E1E,
    "pseudo texts": 0x5652_0001,
    "pseudo images": 0x5652_0002,
    "pseudo students": 0x5652_0003,
}
"""Streams of random numbers that are kept apart -> their numbers."""


# -------------------------------------------------------------------- seeds
def mix64(value: np.ndarray | np.uint64) -> np.ndarray:
    """Scramble 64-bit integers (the finaliser of SplitMix64)."""
    with np.errstate(over="ignore"):
        z = np.asarray(value, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def scramble(seed: int, *parts: Any) -> np.ndarray:
    """Scramble a seed with further numbers, one after the other.

    :param seed: any integer.
    :param parts: names of :data:`NAMES`, integers, or arrays of integers, modulo
        ``2**64``; their order matters.
    :return: uint64, of the shape of the arrays.

    >>> scramble(1, 2) == scramble(1, [1, 2])[1], scramble(1, 2) == scramble(2, 1)
    (np.True_, np.False_)
    """
    state = mix64(np.uint64(int(seed) & (2**64 - 1)))
    for part in parts:
        number = NAMES[part] if isinstance(part, str) else part
        state = mix64(state ^ np.asarray(number).astype(np.uint64))
    return state


def named_seed(seed: int, *parts: int | str) -> int:
    """Scramble a seed and further integers into one number in ``[0, 2**63)``.

    :param seed: of the run, any integer.
    :param parts: see :func:`scramble`.
    """
    return int(scramble(seed, *parts) >> np.uint64(1))


# --------------------------------------------------------------- generators
def rng_state(device: str | torch.device = "cpu") -> dict[str, Any]:
    """States of Python's, NumPy's and torch's CPU generators, as plain data.

    :param device: if of CUDA, the state of its generator too. Those of other devices
        belong to other processes.
    """
    state = _generators(device)
    version, internal, gauss = state["python"]
    name, keys, *rest = state["numpy"]
    state["python"] = (version, torch.tensor(internal, dtype=torch.int64), gauss)
    state["numpy"] = (name, torch.from_numpy(keys.astype(np.int64)), *rest)
    return state


def set_rng_state(state: dict[str, Any], device: str | torch.device = "cpu") -> None:
    """Put generators back to what :func:`rng_state` returned."""
    version, internal, gauss = state["python"]
    name, keys, *rest = state["numpy"]
    python = (version, tuple(internal.tolist()), gauss)
    numpy = (name, keys.numpy().astype(np.uint32), *rest)
    _set_generators({**state, "python": python, "numpy": numpy}, device)


def _generators(device: str | torch.device) -> dict[str, Any]:
    """States of the generators as they give them."""
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }
    if torch.device(device).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _set_generators(state: dict[str, Any], device: str | torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if torch.device(device).type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def seed_cpu(seed: int) -> None:
    """Seed Python's, NumPy's and torch's CPU generators; not those of GPUs.

    :param seed: at least 0; NumPy gets its lower 32 bits and torch 63.
    """
    # torch.manual_seed would also seed the accelerators
    torch.default_generator.manual_seed(seed & (2**63 - 1))
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)


@contextmanager
def kept_rng(device: str | torch.device = "cpu") -> Iterator[None]:
    """Put the CPU's generators back at the end, and that of a GPU.

    :param device: if of CUDA, its generator is put back too.
    """
    saved = _generators(device)
    try:
        yield
    finally:
        _set_generators(saved, device)


@contextmanager
def seeded(seed: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Seed all generators for a while; then they go on from where they were.

    :param seed: see :func:`seed_cpu`; a GPU's generator gets it as it is.
    :param device: where the random numbers may be drawn.
    """
    with kept_rng(device):
        seed_cpu(seed)
        if torch.device(device).type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


# -------------------------------------------------------------------- modes
@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, then each module back into its own."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
