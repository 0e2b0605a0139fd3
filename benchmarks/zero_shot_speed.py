"""Speed, memory and encodes of the zero-shot suite.

    python benchmarks/zero_shot_speed.py                 # two minutes
    python benchmarks/zero_shot_speed.py --repetitions 5

Scoring, features given, with all metrics and intervals of the suite, against recalls by
top-k and one-hot hits over the full matrix of scores (this benchmark's own
implementation), on the same random features in the same run: retrieval of 5,000 images
and 25,000 captions, and classification of 50,000 images into 1,000 classes. The latter
is bound by the bare matrix products, which both ways need: its target is a share of
their speed. Memory is the growth of the resident set of a fresh process above its
features.

Then a small model is scored on 11 data sets before a stream and after each of its 11
steps: how often each picture and each text was encoded, and the time of a second call.
Ends with status 1 if a target was missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from retrieval_speed import (
    CHUNK,
    ONE_HOT_BLOCK,
    Verdict,
    bare_products,
    best_times,
    make_features,
    one_hot_top_k,
    peak_growth,
    print_table,
)
from torch import Tensor

from avalanche_clip.evaluation.suites.scoring import score
from avalanche_clip.evaluation.suites.tasks import ZeroShotTask

MIN_SPEEDUP = 10.0
MIN_SHARE = 0.6
MAX_MEGABYTES = 100.0
MAX_AGAIN = 0.05
MAX_DIFFERENCE = 0.001
KINDS = {"retrieval": (5_000, 25_000), "classification": (50_000, 1_000)}
"""Kind of task -> numbers of images and of texts."""
STEPS = SETS = 11
PICTURES = 60


def make_task(
    kind: str, num_images: int, num_texts: int, dim: int
) -> tuple[ZeroShotTask, Tensor, Tensor, Tensor]:
    """Return a task, features of its images and texts, and who owns whom."""
    names = [f"{number}" for number in range(num_texts)]
    rows = np.arange(num_images)
    if kind == "retrieval":
        images, texts, owner = make_features(num_images, num_texts, dim)
        captions: list[list[str]] = [[] for _ in range(num_images)]
        for name, image in zip(names, owner.tolist(), strict=True):
            captions[image].append(name)
        own = tuple(map(tuple, captions))
        task = ZeroShotTask(kind, kind, images, rows, "mean_R@1", texts=own)
        # captions are encoded in the order in which they first occur
        order = torch.tensor([int(name) for text in own for name in text])
        return task, images, texts[order], owner[order]
    texts, images, owner = make_features(num_texts, num_images, dim)
    prompts = tuple((name,) for name in names)
    task = ZeroShotTask(kind, kind, images, rows, "acc1", owner.numpy(), prompts)
    return task, images, texts, owner


def one_hot_classes(images: Tensor, classes: Tensor, owner: Tensor) -> dict[str, float]:
    """Compute accuracies from the full matrix, top-k and one-hot hits."""
    scores = images @ classes.T
    right = torch.zeros(scores.shape, dtype=torch.bool)
    right[torch.arange(len(images)), owner] = True
    found: dict[str, float] = {}
    for k in (1, 5):
        hits = []
        for rows, own in zip(
            scores.split(ONE_HOT_BLOCK), right.split(ONE_HOT_BLOCK), strict=True
        ):
            top = F.one_hot(rows.topk(k, dim=1).indices, num_classes=len(classes))
            hits.append((top * own[:, None, :]).sum(dim=(1, 2)) > 0)
        found[f"acc{k}"] = torch.cat(hits).double().mean().item()
    return found


def candidates(
    kind: str, num_images: int, num_texts: int, dim: int
) -> dict[str, Callable[[], Any]]:
    """Return both ways of scoring the same features, and the bare products."""
    task, images, texts, owner = make_task(kind, num_images, num_texts, dim)
    slow = one_hot_top_k if kind == "retrieval" else one_hot_classes
    return {
        "ours": lambda: score(task, images, lambda names: texts),
        "one-hot": lambda: slow(images, texts, owner),
        "bare": lambda: bare_products(images, texts, owner),
    }


def compare(kind: str, dim: int, repetitions: int) -> list[Verdict]:
    """Compare both ways of scoring."""
    shape = KINDS[kind]
    ways = candidates(kind, *shape, dim)
    found, expected = ways["ours"](), ways["one-hot"]()
    worst = max(abs(found[name] - value) for name, value in expected.items())
    if worst > MAX_DIFFERENCE:
        raise SystemExit(f"{kind}: the two differ by {worst}.")
    fast = {"ours": ways["ours"], "bare": ways["bare"]}
    times = best_times(fast, repetitions)
    times |= best_times({"one-hot": ways["one-hot"]}, max(1, repetitions // 3))
    ratio, share = times["one-hot"] / times["ours"], times["bare"] / times["ours"]
    size = f"{kind}, {shape[0]:,} x {shape[1]:,}"
    print(f"{size}: ours {times['ours']:.2f} s, ", end="")
    print(f"one-hot {times['one-hot']:.2f} s ({ratio:.1f} times), ", end="")
    print(f"bare products {times['bare']:.2f} s ({share:.0%})")
    memory = measure_memory(kind, dim)
    target, reached, good = (
        f">= {MIN_SPEEDUP:.0f} x",
        f"{ratio:.1f} x",
        ratio >= MIN_SPEEDUP,
    )
    if kind == "classification":
        target, reached, good = (
            f">= {MIN_SHARE:.0%}",
            f"{share:.0%}",
            share >= MIN_SHARE,
        )
    against = "bare products" if kind == "classification" else "one-hot top-k"
    return [
        Verdict(f"against {against}, {size}", target, reached, good),
        Verdict(
            f"memory, {size}",
            f"< {MAX_MEGABYTES:.0f} MB",
            f"{memory:.0f} MB",
            memory < MAX_MEGABYTES,
        ),
    ]


def measure_memory(kind: str, dim: int) -> float:
    """Measure the growth of a fresh process, MB."""
    arguments = [sys.executable, __file__, "--memory-of", kind, "--dim", str(dim)]
    arguments += ["--threads", str(torch.get_num_threads())]
    output = subprocess.run(arguments, check=True, capture_output=True, text=True)
    return json.loads(output.stdout.splitlines()[-1]) / 1e6


def print_memory(kind: str, dim: int) -> None:
    """Print the peak growth in bytes, for :func:`measure_memory`."""
    candidates(kind, CHUNK + 8, 2 * CHUNK + 8, dim)["ours"]()
    print(json.dumps(peak_growth(candidates(kind, *KINDS[kind], dim)["ours"])))


class Drawings:
    """Pictures of one data set with classes, made when they are read."""

    def __init__(self, seed: int):
        self.seed, self.targets = seed, [number % 6 for number in range(PICTURES)]

    def __len__(self) -> int:
        return PICTURES

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        generator = np.random.default_rng([self.seed, index])
        pixels = generator.integers(0, 256, (48, 48, 3), np.uint8)
        return Image.fromarray(pixels), self.targets[index]


def follow_stream() -> list[Verdict]:
    """Score a model on 11 data sets at 12 states, each of them twice."""
    from avalanche_clip.evaluation.suites import ZeroShotSuite
    from avalanche_clip.models import create_dual_encoder

    templates = ("a photo of a {}.", "{}", "a drawing of a {}")
    tasks = [
        ZeroShotTask.classification(
            f"set {seed}",
            Drawings(seed),
            [f"class {(seed + number) % 30}" for number in range(6)],
            templates,
        )
        for seed in range(SETS)
    ]
    prompts = {text for task in tasks for own in task.prompts for text in own}
    model = create_dual_encoder("tiny-emoji", "emoji-2010")
    suite, first, again = ZeroShotSuite(tasks), 0.0, 0.0
    for step in range(STEPS + 1):
        if step:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(1e-3 * torch.randn_like(parameter))
        start = time.perf_counter()
        found = suite.evaluate(model)
        middle = time.perf_counter()
        assert suite.evaluate(model) == found
        first, again = first + middle - start, again + time.perf_counter() - middle
    counts = suite.features.encoded
    wanted = {"images": SETS * PICTURES, "texts": len(prompts)}
    states = STEPS + 1
    print(f"{states} states: {first:.2f} s, again {again:.2f} s, encoded {counts}")
    share = again / first
    return [
        Verdict(
            f"encodes of each of {wanted[kind]} {kind} per state",
            "1",
            f"{counts[kind] / wanted[kind] / states:g}",
            counts[kind] == wanted[kind] * states,
        )
        for kind in wanted
    ] + [
        Verdict("second call", f"< {MAX_AGAIN:.0%}", f"{share:.1%}", share < MAX_AGAIN)
    ]


def main() -> int:
    """Run the benchmark; return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print_memory(options.memory_of, options.dim)
        return 0
    print(f"torch {torch.__version__}, {options.threads} threads, float32\n")
    verdicts = follow_stream()
    for kind in KINDS:
        verdicts += compare(kind, options.dim, options.repetitions)
    print_table(verdicts)
    return 0 if all(verdict.good for verdict in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
