"""Speed and memory of the exact retrieval metrics.

    python benchmarks/retrieval_speed.py                 # one to three minutes
    python benchmarks/retrieval_speed.py --full          # also 50,000 x 50,000

Compared in the same run, on the same random features:

* a top-k formulation with one-hot hits over the full score matrix, the usual
  textbook way (this file has its own implementation);
* the bare matrix products of the same tiles, which no exact method can avoid.

Times are the best of several interleaved repetitions, so that other load on the
machine hits all candidates alike (one-hot top-k, the slowest by far, runs once).
Memory is the growth of the resident set of a fresh process, above its inputs, after
a warm-up on small inputs. Ends with status 1 if a target was missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avalanche_clip.evaluation.functional import retrieval_metrics

KS = (1, 5, 10)
CHUNK = 1024
ONE_HOT_BLOCK = 64
MAX_SECONDS = 6.0
MAX_MEGABYTES = 100.0
MAX_DIFFERENCE = 0.01
MIN_SPEEDUP = 15.0
MIN_SHARE = 0.6


@dataclass
class Verdict:
    """One line of the final table."""

    name: str
    target: str
    reached: str
    good: bool


def make_features(
    num_images: int, num_texts: int, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit features in which texts lie near their own image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(num_images, dim, generator=generator)
    owner = torch.arange(num_texts) % num_images
    texts = torch.randn(num_texts, dim, generator=generator)
    texts.mul_(1.5)
    for start in range(0, num_texts, 4096):
        texts[start : start + 4096] += images[owner[start : start + 4096]]
    return F.normalize(images, out=images), F.normalize(texts, out=texts), owner


def ours(images: Tensor, texts: Tensor, owner: Tensor) -> dict[str, float]:
    """Compute all metrics of both directions with this package."""
    return retrieval_metrics(images, texts, owner, ks=KS, chunk_size=CHUNK)


def one_hot_top_k(images: Tensor, texts: Tensor, owner: Tensor) -> dict[str, float]:
    """Compute the recalls from the full matrix, top-k and one-hot hits."""
    scores = texts @ images.T
    belongs = torch.zeros(scores.shape, dtype=torch.bool)
    belongs[torch.arange(len(texts)), owner] = True
    result = {}
    for name, table, positive in (
        ("text_to_image", scores, belongs),
        ("image_to_text", scores.T, belongs.T),
    ):
        for k in KS:
            found = [
                _one_hot_hits(rows, own, k)
                for rows, own in zip(
                    table.split(ONE_HOT_BLOCK),
                    positive.split(ONE_HOT_BLOCK),
                    strict=True,
                )
            ]
            result[f"{name}_R@{k}"] = torch.cat(found).double().mean().item()
    return result


def _one_hot_hits(scores: Tensor, positive: Tensor, k: int) -> Tensor:
    top = scores.topk(min(k, scores.shape[1]), dim=1).indices
    retrieved = F.one_hot(top, num_classes=scores.shape[1])
    return (retrieved * positive[:, None, :]).sum(dim=(1, 2)) > 0


def bare_products(images: Tensor, texts: Tensor, owner: Tensor) -> None:
    """Compute the scores of all tiles and nothing else."""
    memory = torch.empty(min(CHUNK, len(texts)) * min(CHUNK, len(images)))
    for rows in texts.split(CHUNK):
        for columns in images.split(CHUNK):
            tile = memory[: len(rows) * len(columns)].view(len(rows), len(columns))
            torch.mm(rows, columns.T, out=tile)


def best_times(
    candidates: dict[str, Callable[[], object]], repetitions: int
) -> dict[str, float]:
    """Return the best seconds of each candidate, run in turns."""
    times = dict.fromkeys(candidates, float("inf"))
    for _ in range(repetitions):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


def resident_bytes() -> int:
    """Return the resident set of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_growth(call: Callable[[], object]) -> int:
    """Return by how many bytes the resident set grows while ``call`` runs."""
    start = highest = resident_bytes()
    done = threading.Event()

    def sample() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, resident_bytes())

    sampler = threading.Thread(target=sample)
    sampler.start()
    call()
    done.set()
    sampler.join()
    return max(highest, resident_bytes()) - start


def measure_memory(name: str, shape: tuple[int, int, int]) -> float | None:
    """Measure a candidate in a fresh process; return MB, None without /proc."""
    if not Path("/proc/self/statm").exists():
        return None
    arguments = [sys.executable, __file__, "--memory-of", name]
    arguments += ["--images", str(shape[0]), "--texts", str(shape[1])]
    arguments += ["--dim", str(shape[2]), "--threads", str(torch.get_num_threads())]
    output = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return json.loads(output.stdout.splitlines()[-1]) / 1e6


CANDIDATES = {"ours": ours, "one-hot": one_hot_top_k, "bare": bare_products}


def print_memory(name: str, shape: tuple[int, int, int]) -> None:
    """Print the peak growth in bytes, for :func:`measure_memory`."""
    candidate = CANDIDATES[name]
    candidate(*make_features(CHUNK + 8, 2 * CHUNK + 8, shape[2]))
    features = make_features(*shape)
    print(json.dumps(peak_growth(lambda: candidate(*features))))


def compare(shape: tuple[int, int, int], repetitions: int) -> list[Verdict]:
    """Compare with the one-hot formulation on one data set."""
    features = make_features(*shape)
    size = f"{shape[0]:,} x {shape[1]:,} x {shape[2]}"
    # the same numbers, or the comparison means nothing
    found = ours(*features)
    start = time.perf_counter()
    expected = one_hot_top_k(*features)
    slow = time.perf_counter() - start
    worst = max(abs(found[name] - value) for name, value in expected.items())
    times = best_times(
        {
            "ours": lambda: ours(*features),
            "bare": lambda: bare_products(*features),
        },
        repetitions,
    )
    fast = times["ours"]
    print(f"{size}: ours {fast:.2f} s, one-hot top-k {slow:.1f} s, ", end="")
    print(f"bare products {times['bare']:.2f} s; recalls differ by {worst:.1e}")
    if worst > MAX_DIFFERENCE:
        raise SystemExit("The two compute different things.")
    verdicts = [
        Verdict(
            f"time, {size}",
            f"<= {MAX_SECONDS} s",
            f"{fast:.2f} s",
            fast <= MAX_SECONDS,
        ),
        Verdict(
            "speed against one-hot top-k",
            f">= {MIN_SPEEDUP:.0f} x",
            f"{slow / fast:.0f} x",
            slow / fast >= MIN_SPEEDUP,
        ),
    ]
    return verdicts + judge_memory(shape)


def judge_memory(shape: tuple[int, int, int]) -> list[Verdict]:
    """Measure the memory beyond the inputs, where the system tells."""
    memory = measure_memory("ours", shape)
    if memory is None:
        return []
    size = f"{shape[0]:,} x {shape[1]:,} x {shape[2]}"
    target = f"< {MAX_MEGABYTES:.0f} MB"
    good = memory < MAX_MEGABYTES
    return [Verdict(f"memory, {size}", target, f"{memory:.0f} MB", good)]


def compare_with_products(
    shape: tuple[int, int, int], repetitions: int
) -> list[Verdict]:
    """Compare with the bare products of the same tiles."""
    features = make_features(*shape)
    times = best_times(
        {"ours": lambda: ours(*features), "bare": lambda: bare_products(*features)},
        repetitions,
    )
    share = times["bare"] / times["ours"]
    size = f"{shape[0]:,} x {shape[1]:,} x {shape[2]}"
    flops = 2 * shape[0] * shape[1] * shape[2] / times["bare"] / 1e9
    print(
        f"{size}: ours {times['ours']:.2f} s, bare products {times['bare']:.2f} s",
        end="",
    )
    print(f" ({flops:.0f} GFLOP/s)")
    verdict = Verdict(
        f"share of bare products, {size}",
        f">= {MIN_SHARE:.0%}",
        f"{share:.0%}",
        share >= MIN_SHARE,
    )
    return [verdict, *judge_memory(shape)]


def print_table(verdicts: list[Verdict]) -> None:
    """Print target and reached value of each measurement."""
    width = max(len(verdict.name) for verdict in verdicts)
    print(f"\n{'measurement':<{width}}  {'target':>10}  {'reached':>9}")
    for verdict in verdicts:
        end = "reached" if verdict.good else "MISSED"
        values = f"{verdict.target:>10}  {verdict.reached:>9}"
        print(f"{verdict.name:<{width}}  {values}  {end}")


def main() -> int:
    """Run the benchmark; return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5_000)
    parser.add_argument("--texts", type=int, default=25_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--large", type=int, default=12_000, help="side of the square")
    parser.add_argument("--full", action="store_true", help="square of 50,000")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--memory-of", choices=CANDIDATES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = (options.images, options.texts, options.dim)
    if options.memory_of:
        print_memory(options.memory_of, shape)
        return 0
    print(f"torch {torch.__version__}, {options.threads} threads, float32\n")
    verdicts = compare(shape, options.repetitions)
    side = 50_000 if options.full else options.large
    repetitions = 2 if options.full else options.repetitions
    verdicts += compare_with_products((side, side, options.dim), repetitions)
    print_table(verdicts)
    return 0 if all(verdict.good for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
