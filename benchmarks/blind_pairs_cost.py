"""Cost of mining blind pairs against the one matrix product that it cannot avoid.

    python benchmarks/blind_pairs_cost.py                      # some minutes
    python benchmarks/blind_pairs_cost.py --images 10000

50,000 images, features of 512 numbers to CLIP and 1,024 to the reference. Every image
has four others that CLIP nearly confuses with it, so that 100,000 pairs lie above the
threshold; the reference separates most of them. Compared in the same run, by turns:

- ``clip_blind_pairs``;
- the bare products of the same tiles of the upper triangle of the 512-wide product.

Time is that of the processor, the best of the repetitions, at most 1.6 times as much;
memory is how much the resident set grows above the two banks, below 1 GB. Ends with
status 1 if a target was missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_clip.evaluation.functional import clip_blind_pairs

CHUNK = 1024
MAX_RATIO = 1.6
MAX_MEGABYTES = 1000.0
WIDTHS = (512, 1024)
GROUP = 5


def make_banks(count: int) -> tuple[Tensor, Tensor]:
    """Return features of both encoders: groups of five lie close together to CLIP."""
    generator = torch.Generator().manual_seed(0)
    clip, reference = (torch.randn(count, d, generator=generator) for d in WIDTHS)
    group = torch.arange(count) % (count // GROUP)
    centres = torch.randn(count // GROUP, WIDTHS[0], generator=generator)
    for start in range(0, count, 4096):
        rows = slice(start, start + 4096)
        clip[rows] = centres[group[rows]] + 0.2 * clip[rows]
    return F.normalize(clip, out=clip), F.normalize(reference, out=reference)


def bare_products(features: Tensor) -> None:
    """Compute the tiles of the upper triangle and nothing else."""
    memory = torch.empty(CHUNK, CHUNK)
    for top in range(0, len(features), CHUNK):
        rows = features[top : top + CHUNK]
        for left in range(top, len(features), CHUNK):
            columns = features[left : left + CHUNK]
            torch.mm(rows, columns.T, out=memory[: len(rows), : len(columns)])


def best_times(calls: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Return the best seconds of the processor of each call, run in turns."""
    times = dict.fromkeys(calls, float("inf"))
    for _ in range(turns):
        for name, call in calls.items():
            start = time.process_time()
            call()
            times[name] = min(times[name], time.process_time() - start)
    return times


def resident_megabytes() -> float:
    """Return the resident set of this process, 0 where the system does not tell."""
    memory = Path("/proc/self/statm")
    pages = int(memory.read_text().split()[1]) if memory.exists() else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def peak_growth(call: Callable[[], object]) -> float:
    """Return by how many MB the resident set grows while ``call`` runs."""
    start = highest = resident_megabytes()
    done = threading.Event()

    def sample() -> None:
        nonlocal highest
        while not done.wait(0.05):
            highest = max(highest, resident_megabytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        call()
    finally:
        done.set()
        sampler.join()
    return max(highest, resident_megabytes()) - start


def main() -> int:
    """Run the benchmark; return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clip, reference = make_banks(options.images)
    found: list[int] = []
    growth: list[float] = []

    def mine() -> None:
        found.append(len(clip_blind_pairs(clip, reference, chunk_size=CHUNK)))

    def measured() -> None:
        growth.append(peak_growth(mine))

    calls = {"mining": measured, "products": lambda: bare_products(clip)}
    times = best_times(calls, options.repetitions)
    ratio = times["mining"] / times["products"]
    print(
        f"{options.images:,} images, {' and '.join(map(str, WIDTHS))} wide: "
        f"{found[0]:,} blind pairs in {times['mining']:.1f} s, products of the upper "
        f"triangle {times['products']:.1f} s"
    )
    good = ratio <= MAX_RATIO and max(growth) < MAX_MEGABYTES
    print(f"ratio {ratio:.2f} (at most {MAX_RATIO})")
    print(f"memory {max(growth):.0f} MB beyond the banks (below {MAX_MEGABYTES:.0f})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
