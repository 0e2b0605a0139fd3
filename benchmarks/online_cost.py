"""Cost of online learning on class names, as classes and batches become more.

    python benchmarks/online_cost.py
    python benchmarks/online_cost.py --quick

Three parts, each with its limit:

- a step of SIT with 5 classes in its batch, when 1,000 have come, against a problem of
  5 classes (at most 10 % more), with the asymmetric form beside it, which encodes all;
- texts that are encoded when a class comes to 1,000 others (one);
- a stream of 100,000 batches in which new classes come to the end: processor time per
  training step in twenty blocks (the last at most 10 % above the second, in which
  everything has been loaded), and the memory that a batch leaves behind (at most 1 kB).

Images are random; times are those of the processor. The model of the first two parts is
``tiny-emoji-vit``; that of the last is as small as a transformer can be, so that what
is around the model counts most.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip import SIT, ContinualCLIP, create_dual_encoder, split_online
from avalanche_clip.benchmarks import class_incremental_benchmark, prepare_benchmark

LIMIT = 1.10
BYTES = 1024
FEW, MANY = 5, 1000
BLOCKS = 20


class Images:
    """Labelled random images; a few serve for all.

    :param targets: class of each.
    :param size: height and width.
    """

    def __init__(self, targets: np.ndarray, size: int):
        self.targets = targets
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(64, 3, size, size, generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.images[index % 64], int(self.targets[index])


class Same:
    """Images as they are."""

    deterministic = True

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image


def stream(model: Any, targets: np.ndarray, batch: int) -> Any:
    """A stream of batches of images with these classes, in this order."""
    count = int(targets.max()) + 1
    benchmark = class_incremental_benchmark(
        Images(targets, model.image_size),
        Images(np.arange(count), model.image_size),
        [f"thing {number}" for number in range(count)],
        increment=count,
    )
    kept = {"train_transform": Same(), "eval_transform": Same()}
    return split_online(prepare_benchmark(benchmark, model, **kept), batch)


def learner(model: Any, **options: Any) -> SIT:
    """A strategy that prints nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = EvaluationPlugin(accuracy_metrics(epoch=True), loggers=[])
    return SIT(model=model, evaluator=evaluator, **options)


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Count the texts that a model encodes."""
    counts: list[int] = []
    encode = model.encode_text

    def noted(tokens: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        counts.append(len(tokens))
        return encode(tokens, *args, **kwargs)

    with mock.patch.object(model, "encode_text", noted):
        yield counts


# ---------------------------------------------------------------------- a: a step
def measure_step(rounds: int, batch: int = 64) -> dict[str, float]:
    """Median seconds of a step on 5 classes, by what has come before."""
    rng = np.random.default_rng(0)
    few = rng.integers(0, FEW, (rounds + 1) * batch)
    every = np.concatenate([np.arange(MANY), np.arange(-MANY % batch), few])
    made = {
        f"{FEW} classes": (few, {}),
        f"{FEW} of {MANY:,}": (every, {}),
        f"{FEW} of {MANY:,}, asymmetric": (every, {"visible": "all"}),
    }
    runs = {}
    for name, (targets, options) in made.items():
        model = create_dual_encoder("tiny-emoji-vit")
        benchmark = stream(model, targets, batch)
        strategy = learner(model, repeats=1, **options)
        before = (len(targets) - len(few)) // batch
        if options:  # what has come is noted without its steps
            strategy.spaces.seen.add(range(MANY))
        else:
            for place in range(before):
                strategy.train(benchmark.train_stream[place], eval_streams=[])
        runs[name] = (strategy, benchmark.train_stream, before)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, (strategy, experiences, before) in runs.items():
            if "asymmetric" in name and number > max(2, rounds // 10):
                continue
            experience = experiences[before + number]
            begin = time.process_time()
            strategy.train(experience, eval_streams=[])
            if number:
                times[name].append(time.process_time() - begin)
    return {name: float(np.median(values)) for name, values in times.items()}


# -------------------------------------------------------------------- b: a class
def measure_class() -> tuple[int, int]:
    """Texts encoded for 1,000 classes, and for one more."""
    model = create_dual_encoder("tiny-emoji-vit")
    benchmark = stream(model, np.arange(MANY + 1), 1)
    accuracy = EvaluationPlugin(accuracy_metrics(experience=True), loggers=[])
    strategy = ContinualCLIP(model=model, evaluator=accuracy)
    found = []
    for experiences in (range(MANY), [MANY]):
        for place in experiences:
            strategy.train(benchmark.train_stream[place], eval_streams=[])
        with counted(model) as counts:
            strategy.class_matrix(strategy.seen_classes)
        found.append(sum(counts))
    return found[0], found[1]


# ------------------------------------------------------------------- c: a stream
def small_model() -> Any:
    """One narrow block per tower, with the tokenizer of the emoji models."""
    tokenizer = create_dual_encoder("tiny-emoji-vit").tokenizer
    vision = {"layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"layers": 1, "width": 16, "heads": 2, "context_length": 16}
    config = {
        "embed_dim": 8,
        "vision_cfg": {**vision, "image_size": 8},
        "text_cfg": {**text, "vocab_size": tokenizer.vocab_size},
    }
    model = create_dual_encoder({"model_cfg": config})
    model.tokenizer = tokenizer
    return model


def resident() -> int:
    """Bytes of memory of this process."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def measure_stream(batches: int, batch: int = 4) -> list[tuple[float, int, int]]:
    """Median seconds per step, bytes and classes at the end of each block."""
    torch.manual_seed(0)
    model = small_model()
    rng = np.random.default_rng(0)
    newest = np.arange(batches) * MANY // batches
    old = (rng.random((batches, batch)) * (newest[:, None] + 1)).astype(np.int64)
    old[:, 0] = newest
    benchmark = stream(model, old.reshape(-1), batch)
    strategy = learner(model, repeats=1, train_mb_size=batch)
    ends = np.linspace(0, batches, BLOCKS + 1).astype(int)
    rows, times = [], []
    for place, experience in enumerate(benchmark.train_stream, 1):
        begin = time.process_time()
        strategy.train(experience, eval_streams=[])
        times.append(time.process_time() - begin)
        if place in ends:
            rows.append(
                (float(np.median(times)), resident(), len(strategy.seen_classes))
            )
            times = []
            print(
                f"  {place:>7,} batches: {1e3 * rows[-1][0]:6.2f} ms per step, "
                f"{rows[-1][1] / 2**20:7.1f} MB, {rows[-1][2]:>5,} classes",
                flush=True,
            )
    return rows


def main() -> int:
    """Measure, print, and say whether all limits are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, no limits")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    kept = []
    print("A step on a batch of 64 images:")
    steps = measure_step(3 if quick else 20)
    first = next(iter(steps.values()))
    for name, seconds in steps.items():
        print(f"  {name:<26} {1e3 * seconds:8.1f} ms, {seconds / first:5.2f}x")
    kept.append(steps[f"{FEW} of {MANY:,}"] <= LIMIT * first)
    texts = measure_class()
    print(f"Texts encoded for {MANY:,} classes: {texts[0]:,}; for one more: {texts[1]}")
    kept.append(texts == (MANY, 1))
    batches = 2_000 if quick else 100_000
    print(f"A stream of {batches:,} batches:")
    rows = measure_stream(batches)
    (early, before, _), (late, after, _) = rows[1], rows[-1]
    left = (after - before) / (batches * (BLOCKS - 2) / BLOCKS)
    print(
        f"  a step takes {late / early:.2f}x at the end; a batch leaves {left:.0f} "
        "bytes"
    )
    kept += [late <= LIMIT * early, left <= BYTES]
    if quick:
        return 0
    print("within all limits" if all(kept) else "LIMITS BROKEN")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
