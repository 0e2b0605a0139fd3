"""Cost of a training step through ContrastiveTemplate against a bare loop.

    python benchmarks/training_step.py
    python benchmarks/training_step.py --rounds 20 --batch 128 --threads 2

Both loops use the same tiny-emoji model, data set, transforms, batch size,
optimiser and loss, and run in turns; the figure is the ratio of the medians of
the time between two consecutive iterations, data loading included.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin
from torch.utils.data import DataLoader

from avalanche_clip.benchmarks import prepare_benchmark, tic_emoji
from avalanche_clip.losses import contrastive_loss
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training import Sequential
from avalanche_clip.training.templates.optim import clip_param_groups, default_optimizer

TARGET = 0.03


def read_options(doc: str, *, rounds: int, steps: int) -> argparse.Namespace:
    """Read the command line, and set up PyTorch as it says."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    return options


class Ticks(SupervisedPlugin):
    """Note when each iteration ends."""

    stateless = True

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def iteration_completed(self, strategy: Any) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def intervals(times: list[float]) -> list[float]:
    """Differences of consecutive times."""
    return [b - a for a, b in zip(times[:-1], times[1:], strict=True)]


def bare_loop(model: Any, optimizer: Any, dataset: Any, batch: int, steps: int) -> Any:
    """Train with nothing but PyTorch; return the time of each iteration's end."""
    loader = DataLoader(
        dataset,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        collate_fn=dataset.collate_fn,
    )
    times: list[float] = []
    model.train()
    while True:
        for x, *_ in loader:
            optimizer.zero_grad()
            output = model(x)
            loss = contrastive_loss(
                output.image_features, output.text_features, output.logit_scale
            )
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, 4.6052)
            times.append(time.perf_counter())
            if len(times) == steps:
                return times


def main() -> int:
    """Measure in turns and print the ratio; return 1 if it is too large."""
    options = read_options(__doc__, rounds=12, steps=9)
    model = create_dual_encoder("tiny-emoji")
    benchmark = prepare_benchmark(tic_emoji(), model)
    experience = benchmark.train_stream[0]
    ticks = Ticks()
    strategy = Sequential(
        model=model,
        train_mb_size=options.batch,
        budget_iterations=options.steps,
        schedule="constant",
        plugins=[ticks],
        evaluator=EvaluationPlugin(),
    )
    other = create_dual_encoder("tiny-emoji")
    named = dict(other.named_parameters())
    groups = clip_param_groups(named.items())
    for group in groups:
        group["params"] = [named[name] for name in group.pop("names")]
    optimizer = default_optimizer(groups)
    ours: list[float] = []
    bare: list[float] = []
    for number in range(options.rounds + 1):
        ticks.times.clear()
        strategy.train(experience, eval_streams=[])
        times = bare_loop(
            other, optimizer, experience.dataset, options.batch, options.steps
        )
        if number:  # the first round warms up
            ours += intervals(ticks.times)
            bare += intervals(times)
    a, b = statistics.median(ours), statistics.median(bare)
    verdict = "reached" if a / b - 1 <= TARGET else "NOT reached"
    print(f"ContrastiveTemplate  {1000 * a:8.2f} ms per step (median of {len(ours)})")
    print(f"bare PyTorch loop    {1000 * b:8.2f} ms per step (median of {len(bare)})")
    print(f"overhead {100 * (a / b - 1):+.2f} %   target <= 3 %: {verdict}")
    return 0 if verdict == "reached" else 1


if __name__ == "__main__":
    sys.exit(main())
