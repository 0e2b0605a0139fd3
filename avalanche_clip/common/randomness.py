"""Modes of modules and random generators, changed for a while and put back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn


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


def rng_state(device: str | torch.device = "cpu") -> dict[str, Any]:
    """States of Python's, NumPy's and torch's CPU generators, as plain data.

    :param device: if of CUDA, the state of its generator too. Those of other devices
        belong to other processes.
    """
    name, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.device(device).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Any], device: str | torch.device = "cpu") -> None:
    """Put generators back to what :func:`rng_state` returned."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
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
    saved = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(saved, device)
