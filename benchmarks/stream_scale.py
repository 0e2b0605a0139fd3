"""Building a stream over 10^6 samples, and the first batch of an epoch.

    python benchmarks/stream_scale.py [--samples 1000000]

1. Ten time steps over a million samples with unsorted timestamps: seconds and
   memory above the imported libraries, in a process of its own. Without and
   with targets, since targets choose another class of Avalanche's data sets.
2. The first batch of an epoch over a million samples by our ``TrainLoader``
   against Avalanche's ``TaskBalancedDataLoader``, on the same data set.
"""

from __future__ import annotations

import argparse
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

BUILD_SECONDS = 3.0
BUILD_MEGABYTES = 300.0
FIRST_BATCH_SECONDS = 0.5
STEPS = 10
BATCH_SIZE = 256


class Pairs:
    """A map-style data set of any length that stores nothing."""

    def __init__(self, size: int):
        import torch

        self.size = size
        self.image = torch.zeros(3, 8, 8)
        self.tokens = torch.zeros(8, dtype=torch.int64)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.image, self.tokens


class Model:
    """What data need of a model."""

    def tokenizer(self, texts: list[str], languages: Any = None) -> Any:
        """Never called: captions are token ids already."""
        raise AssertionError("captions are token ids")

    def transform(self, train: bool) -> Any:
        """Return a transform that changes nothing."""
        return lambda image: image


def peak_megabytes() -> float:
    """Return the largest resident size so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def resident_megabytes() -> float:
    """Return the resident size now (Linux; elsewhere the largest so far)."""
    statm = pathlib.Path("/proc/self/statm")
    if not statm.exists():
        return peak_megabytes()
    return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6


def dataset(samples: int, with_targets: bool) -> Any:
    """Return a data set with random, unsorted timestamps."""
    from avalanche_clip.benchmarks import make_image_text_dataset

    rng = np.random.default_rng(0)
    return make_image_text_dataset(
        Pairs(samples),
        timestamps=rng.random(samples) * 1e9,
        targets=rng.integers(0, 1000, samples) if with_targets else None,
    )


def measure_build(samples: int, with_targets: bool) -> None:
    """Print seconds and megabytes of building a prepared stream."""
    from avalanche_clip.benchmarks import prepare_benchmark, time_stamped_benchmark

    dataset(1000, with_targets)  # imports and first calls
    before = resident_megabytes()
    begin = time.perf_counter()
    scenario = time_stamped_benchmark(
        dataset(samples, with_targets), num_experiences=STEPS
    )
    prepared = prepare_benchmark(scenario, Model())
    seconds = time.perf_counter() - begin
    assert sum(len(e.dataset) for e in prepared.streams["train"]) == samples
    print(f"{seconds} {peak_megabytes() - before}")


def first_batch_seconds(make_loader: Any, epochs: int) -> list[float]:
    """Return the time from asking for an epoch to its first batch."""
    seconds = []
    for epoch in range(epochs):
        begin = time.perf_counter()
        next(iter(make_loader(epoch)))
        seconds.append(time.perf_counter() - begin)
    return seconds


def loaders(data: Any) -> tuple[Any, Any]:
    """Return functions that build our and Avalanche's loader for an epoch."""
    from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader

    from avalanche_clip.training.templates.order import TrainingOrder, TrainLoader

    order = TrainingOrder(len(data), BATCH_SIZE, seed=0, experience=0)

    def ours(epoch: int) -> Any:
        loader = TrainLoader(data, order, collate_fn=data.collate_fn)
        loader.plan(epoch, 0, order.batches_per_epoch())
        return loader

    def theirs(epoch: int) -> Any:
        return TaskBalancedDataLoader(data, batch_size=BATCH_SIZE, shuffle=True)

    return ours, theirs


def verdict(value: float, target: float) -> str:
    """Say whether a value is below its target."""
    return f"target < {target:g}: {'reached' if value < target else 'NOT reached'}"


def main() -> int:
    """Measure and print; return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10**6)
    parser.add_argument("--build", choices=("plain", "targets"), help="internal")
    options = parser.parse_args()
    if options.build:
        measure_build(options.samples, options.build == "targets")
        return 0
    good = True
    print(f"{STEPS} time steps over {options.samples} samples, built and prepared")
    for kind in ("plain", "targets"):
        command = [sys.executable, __file__, "--build", kind]
        command += ["--samples", str(options.samples)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds, megabytes = map(float, done.stdout.split()[-2:])
        print(f"  {kind:8s}{seconds:8.2f} s   {verdict(seconds, BUILD_SECONDS)}")
        print(f"  {'':8s}{megabytes:8.0f} MB  {verdict(megabytes, BUILD_MEGABYTES)}")
        good &= seconds < BUILD_SECONDS and megabytes < BUILD_MEGABYTES
    print(f"first batch of an epoch, {options.samples} samples, batch {BATCH_SIZE}")
    # Avalanche's loader balances tasks, which it reads from `task_set`: only
    # data sets with targets have it.
    ours, theirs = loaders(dataset(options.samples, with_targets=True))
    mine = first_batch_seconds(ours, 5)
    other = statistics.median(first_batch_seconds(theirs, 3))
    print(f"  TrainLoader             worst of 5 epochs {max(mine):7.3f} s   ", end="")
    print(verdict(max(mine), FIRST_BATCH_SECONDS))
    print(f"  TaskBalancedDataLoader  median of 3       {other:7.3f} s   ", end="")
    print(f"ratio {other / statistics.median(mine):.0f}")
    return 0 if good and max(mine) < FIRST_BATCH_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
