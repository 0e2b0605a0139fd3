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


def rng_state() -> dict[str, Any]:
    """Return the states of Python's, NumPy's and torch's CPU generators."""
    return {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "torch": torch.get_rng_state(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put generators back to what :func:`rng_state` returned."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])


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
    cuda = torch.device(device).type == "cuda"
    saved = rng_state()
    saved_cuda = torch.cuda.get_rng_state(device) if cuda else None
    try:
        yield
    finally:
        set_rng_state(saved)
        if saved_cuda is not None:
            torch.cuda.set_rng_state(saved_cuda, device)
