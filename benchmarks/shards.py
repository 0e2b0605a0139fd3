"""Speed of the two ways to read tar archives, and the cost of an index.

    python benchmarks/shards.py                       # a few minutes
    python benchmarks/shards.py --rounds 7 --batches 40

1. Pairs per second with two workers, of webdataset's own bare pipeline, of our stream
   and of our index with the whole set shuffled. All decode the same JPEG files (longer
   side 512), apply the same transform (open_clip's of training, 224 pixels) and use the
   same tokenizer. The three are measured one after the other in each round, so that
   what else the machine does hits all; the ratio is the median over rounds. Beside it
   stands the processor time of the workers per pair.
2. Seconds to open an index of a million members, with all checksums compared.
3. Growth of memory and of open files over a hundred thousand reads in random order.

Ends with status 1 if a target was missed.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import os
import resource
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from open_clip import image_transform
from PIL import Image
from stream_scale import resident_megabytes
from torch.utils.data import DataLoader

from avalanche_clip.benchmarks import (
    make_experience,
    make_image_text_dataset,
    make_scenario,
    prepare_benchmark,
)
from avalanche_clip.benchmarks.datasets import ShardStream, TarPairs, open_tar_index
from avalanche_clip.benchmarks.datasets.web import tar_index
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training.templates.order import TrainingOrder, TrainLoader
from avalanche_clip.training.templates.streams import StreamLoader

STREAM, INDEX = 0.95, 0.9  # of webdataset's speed
OPEN_SECONDS = 1.0
GROWTH = 1.05
MEMBERS, READS = 10**6, 10**5
SHARDS, WORKERS, BATCH, WARM, BUFFER = 4, 2, 32, 6, 200
_WORDS = "a photo of the red old small house dog tree street near with and sky".split()


def write_set(folder: Path, samples: int) -> list[Path]:
    """Write archives of smooth, noisy pictures with captions, as img2dataset does."""
    rng = np.random.default_rng(0)
    paths = [folder / f"{number:08d}.tar" for number in range(SHARDS)]
    for number, path in enumerate(paths):
        with tarfile.open(path, "w") as tar:
            for row in range(number, samples, SHARDS):
                small = rng.integers(0, 256, (12, 16, 3), np.uint8)
                picture = Image.fromarray(small).resize((512, 384), Image.BICUBIC)
                noise = rng.integers(0, 24, (384, 512, 3), np.uint8)
                picture = Image.fromarray(np.asarray(picture) // 2 + noise)
                content = io.BytesIO()
                picture.save(content, "JPEG", quality=90)
                text = " ".join(rng.choice(_WORDS, 12))
                members = {"jpg": content.getvalue(), "txt": text.encode()}
                members["json"] = (
                    f'{{"uid": "{row:032x}", "caption": "{text}"}}'.encode()
                )
                for ending, raw in members.items():
                    member = tarfile.TarInfo(f"{row:032x}-0.{ending}")
                    member.size = len(raw)
                    tar.addfile(member, io.BytesIO(raw))
    return paths


def bound(data: Any, model: Any, transform: Any) -> Any:
    """Return data prepared for a model."""
    steps = make_scenario({"train": [make_experience(data)]})
    found = prepare_benchmark(steps, model, train_transform=transform)
    return found.train_stream[0].dataset


def theirs(paths: list[Path], model: Any, transform: Any, seed: int) -> Iterable[Any]:
    """Batches of webdataset's own pipeline."""

    def collate(samples: list[Any]) -> tuple[Any, Any]:
        images, texts = zip(*samples, strict=True)
        return torch.stack(images), model.tokenizer(list(texts))

    data = (
        webdataset.WebDataset([str(p) for p in paths], shardshuffle=SHARDS, seed=seed)
        .repeat()
        .shuffle(BUFFER, initial=BUFFER)
        .decode("pilrgb")
        .to_tuple("jpg", "txt")
        .map_tuple(transform, str)
        .batched(BATCH, collation_fn=collate, partial=False)
    )
    return DataLoader(data, batch_size=None, num_workers=WORKERS)


def ours(kind: type[TrainLoader], data: Any, seed: int) -> Iterable[Any]:
    """Batches of one of our loaders, without end."""
    order = TrainingOrder(len(data), BATCH, seed=seed, experience=0, continuous=True)
    loader = kind(data, order, collate_fn=data.collate_fn, num_workers=WORKERS)
    loader.plan(0, 0, 10**6)
    return loader


def speed(batches: Iterable[Any], count: int) -> tuple[float, float]:
    """Pairs per second once the workers are running, and their work per pair.

    The latter is in milliseconds of processor time, which is much the same whatever
    else the machine does; batches that were made in advance and not drawn count.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    drawn = iter(batches)
    for _ in itertools.islice(drawn, WARM):
        pass
    begin = time.perf_counter()
    for _ in itertools.islice(drawn, count):
        pass
    seconds = time.perf_counter() - begin
    del drawn  # which ends the workers
    gc.collect()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    work = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return count * BATCH / seconds, 1000 * work / ((WARM + count) * BATCH)


def measure_speeds(folder: Path, rounds: int, count: int) -> bool:
    """Print pairs per second and ratios; return whether both targets are reached."""
    samples = SHARDS * 200
    paths = write_set(folder, samples)
    model = create_dual_encoder("tiny-emoji-vit", pretrained=None)
    transform = image_transform(224, is_train=True)
    pairs = make_image_text_dataset(TarPairs(open_tar_index(paths)))
    by_index = bound(pairs, model, transform)
    stream = bound(ShardStream(paths, samples, buffer=BUFFER), model, transform)
    ways: dict[str, Callable[[int], Iterable[Any]]] = {
        "webdataset": partial(theirs, paths, model, transform),
        "stream": partial(ours, StreamLoader, stream),
        "index": partial(ours, TrainLoader, by_index),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    work: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds):
        names = list(ways)[number % 3 :] + list(ways)[: number % 3]
        for name in names:
            one, other = speed(ways[name](number), count)
            found[name].append(one)
            work[name].append(other)
    reached = True
    for name, target in (("webdataset", 0.0), ("stream", STREAM), ("index", INDEX)):
        pairs_of = zip(found[name], found["webdataset"], strict=True)
        ratios = sorted(own / bare for own, bare in pairs_of)
        ratio, speeds = statistics.median(ratios), statistics.median(found[name])
        reached &= ratio >= target
        print(
            f"{name:10s} {speeds:7.1f} pairs/s, ratio {ratio:.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}), target {target:g}; "
            f"{statistics.median(work[name]):.2f} ms of work per pair"
        )
    return reached


def measure_index(folder: Path, paths: list[Path]) -> bool:
    """Print seconds of opening and growth over reads; return whether they are low."""
    facts, members, rows, names = tar_index._scanned(paths, checksums=True)
    copies = -(-MEMBERS // len(members))
    many = np.tile(rows, (copies, 1))
    step = np.array([0, len(members), len(names)])
    many += np.repeat(np.arange(copies), len(rows))[:, None] * step
    arrays = np.tile(members, (copies, 1)), many, np.tile(names, copies)
    tar_index._write(folder, paths, facts, *arrays)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        index = open_tar_index(paths, folder)
        seconds.append(time.perf_counter() - begin)
    opened = statistics.median(seconds)
    count = len(index.members)
    print(f"opening {count} members: {opened:.3f} s, target < {OPEN_SECONDS:g} s")
    places = np.random.default_rng(0).integers(0, len(index), READS + 5000).tolist()
    for place in places[:5000]:
        index.read(place, "txt")
    before, files = resident_megabytes(), len(os.listdir("/proc/self/fd"))
    for place in places[5000:]:
        index.read(place, "txt")
    growth = resident_megabytes() / before
    more = len(os.listdir("/proc/self/fd")) - files
    print(f"{READS} reads: memory x {growth:.3f}, target < {GROWTH}; files {more:+d}")
    return opened < OPEN_SECONDS and growth < GROWTH and more == 0


def main() -> int:
    """Measure and print; return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fast = measure_speeds(folder, options.rounds, options.batches)
        small = measure_index(folder / "many", sorted(folder.glob("*.tar")))
    return int(not (fast and small))


if __name__ == "__main__":
    sys.exit(main())
