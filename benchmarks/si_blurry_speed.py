"""The sampler of Si-Blurry against the form of the released code.

    python benchmarks/si_blurry_speed.py [--samples 1281167] [--reference 40000]

1. ``si_blurry_indices`` over ImageNet-1K's number of samples, 1,000 classes, 10 tasks:
   seconds; and the same for ``si_blurry_benchmark``.
2. The released form, which looks each sample's class up in the lists of classes of all
   tasks, re-implemented here, on fewer samples: both must give the same stream. The
   ratio is per sample; that of the released form does not depend on their number.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from typing import Any

import numpy as np
import torch

from avalanche_clip.benchmarks import si_blurry_benchmark, si_blurry_indices

SECONDS = 20.0
CLASSES = 1000
OPTIONS = {"num_tasks": 10, "disjoint_percent": 50, "blurry_percent": 10, "seed": 1}


class Labels:
    """Data without pictures: labels of classes in turn."""

    def __init__(self, size: int):
        self.targets = np.arange(size) % CLASSES

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        raise AssertionError("no picture is read")


def released(targets: list[int]) -> list[list[int]]:
    """The stochastic stream, by membership tests in lists."""
    tasks, seed = OPTIONS["num_tasks"], OPTIONS["seed"]
    generator = torch.Generator().manual_seed(seed)
    first = CLASSES * OPTIONS["disjoint_percent"] // 100 // tasks * tasks
    second = (CLASSES - first) // tasks * tasks
    order = torch.randperm(CLASSES, generator=generator).tolist()

    def cuts(size: int) -> list[int]:
        drawn = torch.randint(0, size, (tasks - 1,), generator=generator)
        return [0, *sorted(drawn.tolist()), size]

    borders = cuts(first)
    disjoint = [order[:first][a:b] for a, b in zip(borders, borders[1:])]
    borders = cuts(second)
    rest = order[first : first + second]
    blurry = [rest[a:b] for a, b in zip(borders, borders[1:])]
    own: list[list[int]] = [[] for _ in range(tasks)]
    lending: list[list[int]] = [[] for _ in range(tasks)]
    for index, target in enumerate(targets):
        for task in range(tasks):
            if target in disjoint[task]:
                own[task].append(index)
                break
            if target in blurry[task]:
                lending[task].append(index)
                break
    borders = cuts(sum(map(len, lending)) * OPTIONS["blurry_percent"] // 100)
    quotas = [b - a for a, b in zip(borders, borders[1:])]
    pool = [i for part, quota in zip(lending, quotas) for i in part[:quota]]
    shuffled = torch.randperm(len(pool), generator=generator).tolist()
    pool = [pool[k] for k in shuffled]
    streams = []
    for task, quota in enumerate(quotas):
        lending[task] = lending[task][quota:] + pool[:quota]
        pool = pool[quota:]
    for task in range(tasks):
        stream = own[task] + lending[task]
        shuffled = torch.randperm(len(stream), generator=generator).tolist()
        streams.append([stream[k] for k in shuffled])
    return streams


def seconds_of(call: Any, *arguments: Any, **options: Any) -> tuple[float, Any]:
    """Return how long a call took, and its result."""
    begin = time.perf_counter()
    result = call(*arguments, **options)
    return time.perf_counter() - begin, result


def main() -> int:
    """Measure and print; return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--reference", type=int, default=40_000)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Si-Blurry")
    train, test = Labels(options.samples), Labels(50 * CLASSES)
    names = [f"class {number}" for number in range(CLASSES)]
    print(f"{options.samples} samples, {CLASSES} classes, {OPTIONS['num_tasks']} tasks")
    drawn = [seconds_of(si_blurry_indices, train.targets, **OPTIONS) for _ in range(3)]
    slowest = max(seconds for seconds, _ in drawn)
    reached = "reached" if slowest < SECONDS else "NOT reached"
    print(f"  si_blurry_indices    {slowest:8.2f} s   target < {SECONDS:g}: {reached}")
    built, _ = seconds_of(si_blurry_benchmark, train, test, names, **OPTIONS)
    print(f"  si_blurry_benchmark  {built:8.2f} s")
    few = np.arange(options.reference) % CLASSES
    slow, theirs = seconds_of(released, few.tolist())
    mine = [seconds_of(si_blurry_indices, few, **OPTIONS) for _ in range(5)]
    assert all(ours == theirs for _, ours in mine), "the streams differ"
    fast = statistics.median(seconds for seconds, _ in drawn) / options.samples
    print(f"{options.reference} samples, the same stream by the released form")
    ratio = slow / options.reference / fast
    print(f"  {slow:.2f} s; per sample {ratio:.0f} times as slow")
    return 0 if slowest < SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
