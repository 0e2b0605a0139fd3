"""What a checkpoint costs: time and size.

    python benchmarks/checkpoint_cost.py

Saves runs of several sizes with ``save_state`` over an earlier checkpoint and, in
turn in the same process and folder, writes the same bytes plainly with ``fsync``:
over an earlier file ("over") and to a new one ("new"; no old blocks to free). A
save should take at most 30 ms more than the new plain file (median of the
differences of neighbouring writes), and the file must not grow with the data.
``--out`` chooses the disk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip.benchmarks import (
    make_image_text_dataset,
    prepare_benchmark,
    time_stamped_benchmark,
)
from avalanche_clip.common.state_files import read_state
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training.runs.resume import save_state
from avalanche_clip.training.supervised import CumulativeExp

REPEATS = 15
REST = 0.1
LIMIT = 0.030


class Images:
    """Random images with the same caption, made when they are read."""

    def __init__(self, count: int, size: int):
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[torch.Tensor, str]:
        generator = torch.Generator().manual_seed(index)
        image = torch.rand(3, self.size, self.size, generator=generator)
        return image, f"face {index}"


def trained(name: Any, samples: int) -> Any:
    """A run with replay that stopped between two of its experiences."""
    model = create_dual_encoder(name)
    dataset = make_image_text_dataset(
        Images(samples, model.image_size), timestamps=np.arange(samples, dtype=float)
    )
    benchmark = prepare_benchmark(
        time_stamped_benchmark(dataset, num_experiences=3),
        model,
        train_transform=torch.nn.Identity(),
        eval_transform=torch.nn.Identity(),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = EvaluationPlugin(retrieval_plugin_metrics(), loggers=[])
        strategy = CumulativeExp(
            model=model, train_mb_size=4, budget_iterations=2, evaluator=evaluator
        )
    for experience in list(benchmark.train_stream)[:2]:
        strategy.train(experience, eval_streams=[])
    return strategy


def seconds(function: Callable[[], Any]) -> float:
    """Time one call, begun when the disk is at rest."""
    time.sleep(REST)
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def write_plainly(path: Path, content: bytes) -> None:
    """Write bytes and wait for the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def measure(name: Any, label: str, samples: int, folder: Path) -> tuple[float, int]:
    """Print one row; return the seconds beyond a new plain file, and the size."""
    strategy = trained(name, samples)
    path, plain, fresh = (folder / n for n in ("state.pt", "plain.bin", "fresh.bin"))
    save_state(strategy, path)
    content = path.read_bytes()
    write_plainly(plain, content)
    rows = []
    for _ in range(REPEATS):
        ours = seconds(lambda: save_state(strategy, path))
        over = seconds(lambda: write_plainly(plain, content))
        new = seconds(lambda: write_plainly(fresh, content))
        fresh.unlink()
        reading = seconds(lambda: read_state(path))
        rows.append((ours, over, new, ours - over, ours - new, reading))
    medians = np.median(rows, axis=0)
    print(
        f"{label:12} {samples:9,} {len(content) / 1e6:9.2f}"
        + "".join(f"{value * 1e3:11.1f}" for value in medians),
        flush=True,
    )
    return float(medians[4]), len(content)


def main() -> int:
    """Measure, and tell whether the limits hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=None, help="folder to write in")
    parser.add_argument(
        "--large", default="RN50", help="an open_clip model, '' to leave it out"
    )
    arguments = parser.parse_args()
    print(
        f"{'model':12} {'samples':>9} {'file MB':>9}"
        + "".join(
            f"{title:>11}"
            for title in ("save ms", "over ms", "new ms", "- over", "- new", "read ms")
        )
    )
    with tempfile.TemporaryDirectory(dir=arguments.out) as name:
        folder = Path(name)
        extra, small = measure("tiny-emoji", "tiny-emoji", 30, folder)
        _, large = measure("tiny-emoji", "tiny-emoji", 300_000, folder)
        if arguments.large:
            measure(arguments.large, arguments.large, 30, folder)
    same = abs(small - large) <= 1024
    print(
        f"tiny-emoji: {extra * 1e3:.1f} ms beyond a new file (limit {LIMIT * 1e3:.0f})"
    )
    print(f"size independent of the data: {same} ({small:,} and {large:,} bytes)")
    return 0 if same and extra <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
