"""Cost of distillation: training steps with a teacher, and the Mod-X loss.

    python benchmarks/distillation_cost.py
    python benchmarks/distillation_cost.py --rounds 8 --batch 128 --threads 2

Steps of plain training and of each method run in turns on the same tiny-emoji
model, data and batch; the figures are the medians of the differences and
ratios of neighbouring rounds. The floor is the teacher's forward pass alone.
The alignment loss is timed, forward and backward, against a loop over rows
that does what the authors' code does. Weights and gradients that a method
keeps beyond plain training are counted from the live tensors.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from avalanche.training.plugins import EvaluationPlugin
from torch import Tensor
from training_step import Ticks, intervals, read_options

from avalanche_clip.benchmarks import prepare_benchmark, tic_emoji
from avalanche_clip.losses import off_diagonal_alignment_loss
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import (
    ContrastiveLwFPlugin,
    OffDiagonalAlignmentPlugin,
    VocabularyReplayPlugin,
)

LIMIT = 0.45
FASTER = 4.0


def methods() -> dict[str, list[Any]]:
    """Plugins of each method; the first is plain training."""
    return {
        "plain": [],
        "Mod-X": [OffDiagonalAlignmentPlugin()],
        "LwF": [ContrastiveLwFPlugin()],
        "VR-LwF": [VocabularyReplayPlugin()],
        "VR-LwF separate": [VocabularyReplayPlugin(distill_batch="separate")],
        "all three": [
            OffDiagonalAlignmentPlugin(),
            ContrastiveLwFPlugin(),
            VocabularyReplayPlugin(),
        ],
    }


class Trainer:
    """One method with its own model, trained some steps at a time."""

    def __init__(self, plugins: list[Any], benchmark: Any, batch: int, steps: int):
        self.ticks = Ticks()
        self.benchmark = benchmark
        self.strategy = Sequential(
            model=create_dual_encoder("tiny-emoji", "emoji-2010"),
            train_mb_size=batch,
            budget_iterations=steps,
            schedule="constant",
            plugins=[*plugins, self.ticks],
            evaluator=EvaluationPlugin(),
        )

    def run(self) -> float:
        """Train one experience; return the median seconds of a step."""
        self.ticks.times.clear()
        # The first step has 1,438 drawings, enough for large batches.
        self.strategy.train(self.benchmark.train_stream[0], eval_streams=[])
        return statistics.median(intervals(self.ticks.times))


def teacher_seconds(benchmark: Any, batch: int) -> float:
    """Median seconds of a forward pass without gradients."""
    model = create_dual_encoder("tiny-emoji", "emoji-2010").eval()
    dataset = benchmark.train_stream[0].dataset
    pairs = dataset.collate_fn([dataset[k] for k in range(batch)])[0]
    times = []
    with torch.no_grad():
        for _ in range(9):
            begin = time.perf_counter()
            model(pairs)
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def steps_table(options: argparse.Namespace) -> bool:
    """Measure all methods in turns; return whether the limits hold."""
    model = create_dual_encoder("tiny-emoji", "emoji-2010")
    benchmark = prepare_benchmark(tic_emoji(), model)
    trainers = {
        name: Trainer(plugins, benchmark, options.batch, options.steps)
        for name, plugins in methods().items()
    }
    rounds: dict[str, list[float]] = {name: [] for name in trainers}
    floors = []
    for number in range(options.rounds + 1):
        for name, trainer in trainers.items():
            seconds = trainer.run()
            if number:  # the first round warms up
                rounds[name].append(seconds)
        floors.append(teacher_seconds(benchmark, options.batch))
    floor = statistics.median(floors[1:])
    plain = rounds["plain"]
    print(f"{'method':18} {'ms per step':>12} {'added':>9} {'teacher passes':>15}")
    reached = True
    for name, seconds in rounds.items():
        added = statistics.median(a / b - 1 for a, b in zip(seconds, plain))
        teachers = trainers[name].strategy.teachers.teachers.values()
        passes = sum(t.forward_passes for t in teachers)
        taught = trainers[name].strategy.clock.train_iterations
        print(
            f"{name:18} {1000 * statistics.median(seconds):12.1f} {100 * added:+8.1f}% "
            f"{passes / taught:15.2f}"
        )
        if name in ("Mod-X", "LwF", "VR-LwF"):
            reached &= added <= LIMIT
    base = statistics.median(plain)
    print(f"floor: teacher forward {1000 * floor:.1f} ms, {100 * floor / base:+.1f}%")
    memory(trainers)
    return reached


def memory(trainers: dict[str, Trainer]) -> None:
    """Print what a method keeps after a step, in copies of the weights."""
    gc.collect()
    model = trainers["plain"].strategy.model
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    for name, trainer in trainers.items():
        copies = sum(
            p.numel() * p.element_size()
            for t in trainer.strategy.teachers.teachers.values()
            for p in t.model.parameters()
        )
        kept = any(
            p.requires_grad or p.grad is not None
            for t in trainer.strategy.teachers.teachers.values()
            for p in t.model.parameters()
        )
        print(
            f"memory, {name}: {copies / size:.2f} extra copies of the weights, "
            f"gradients or graphs of the teacher: {'yes' if kept else 'none'}"
        )


def loop_loss(scores: Tensor, teacher: Tensor) -> Tensor:
    """Mod-X row by row: find, replace and compare one row at a time."""
    total = scores.new_zeros(())
    for student, target in ((scores, teacher), (scores.T, teacher.T.clone())):
        rows = target.clone()
        for i in range(len(rows)):
            if int(rows[i].argmax()) != i:
                rows[i] = student[i].detach()
        p, q = rows.softmax(dim=1), student.softmax(dim=1)
        for i in range(len(rows)):
            total = total + (p[i] * (p[i].log() - q[i].log())).sum()
    return total / 2


def loss_seconds(function: Callable[..., Tensor], size: int) -> tuple[float, float]:
    """Median seconds of forward and backward, and the value."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4, size, 64, generator=generator)
    features = torch.nn.functional.normalize(features, dim=-1)
    teacher = features[2] @ features[3].T + 0.3 * torch.eye(size)
    times, value = [], 0.0
    for _ in range(7):
        scores = (features[0] @ features[1].T).requires_grad_()
        begin = time.perf_counter()
        loss = function(scores, teacher)
        loss.backward()
        times.append(time.perf_counter() - begin)
        value = loss.item()
    return statistics.median(times), value


def main() -> int:
    """Measure, and tell whether the limits hold."""
    options = read_options(__doc__, rounds=8, steps=7)
    reached = steps_table(options)
    for size in (280, 1024):
        ours, value = loss_seconds(off_diagonal_alignment_loss, size)
        loop, expected = loss_seconds(loop_loss, size)
        print(
            f"alignment loss, B = {size}: {1000 * ours:.1f} ms, loop over rows "
            f"{1000 * loop:.1f} ms: {loop / ours:.1f} times faster (values {value:.6f} "
            f"and {expected:.6f})"
        )
    reached &= loop / ours >= FASTER
    print(
        f"limits (+{100 * LIMIT:.0f} %, {FASTER:.0f} times): "
        f"{'reached' if reached else 'NOT reached'}"
    )
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
