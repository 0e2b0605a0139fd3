"""Memory and open files over a long run on shards.

    python experiments/tic_simulation.py data/simulated --samples 4000
    python benchmarks/long_run.py data/simulated                  # 100,000 steps
    python benchmarks/long_run.py data/simulated --steps 4000 --workers 2

``run_stream`` with all that a real run does: pairs read from the shards in random
order, decoded, transformed and tokenised; training, with checkpoints and logs;
evaluation of all test sets after each time step. Model and batch are as small as can
be, so that there are many steps. Resident memory and open files, workers included, are
noted every 1/200 of the steps. The first tenth warms up; then memory must stay within
5 % of its mean, files at their number.

Ends with status 1 if a target was missed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip.benchmarks import prepare_benchmark
from avalanche_clip.benchmarks.classic import TIC_DATACOMP_STEPS, tic_datacomp
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.models.encoders.presets import preset_config
from avalanche_clip.training import run_stream
from avalanche_clip.training.supervised import TIC_STRATEGIES

SPREAD = 0.05
BATCH = 2
NOTES, CHECKPOINT = 200, 1000


def tiny_model() -> Any:
    """One block of width 32 in each tower."""
    config = preset_config("tiny-emoji-vit")
    settings = config["model_cfg"]
    settings["embed_dim"] = 32
    settings["vision_cfg"] |= {"layers": 1, "width": 32, "patch_size": 16}
    settings["text_cfg"] |= {"layers": 1, "width": 32, "heads": 2}
    return create_dual_encoder(config)


def usage() -> tuple[float, int]:
    """Resident megabytes and open files of this process and those it has started."""
    megabytes, files = 0.0, 0
    waiting = [os.getpid()]
    while waiting:
        place = Path(f"/proc/{waiting.pop()}")
        try:
            pages = int((place / "statm").read_text().split()[1])
            files += len(os.listdir(place / "fd"))
            for task in (place / "task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
        except OSError:
            continue  # ended meanwhile
        megabytes += pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return megabytes, files


class Watch(SupervisedPlugin):
    """Note memory and open files every so many steps."""

    stateless = True

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every, self.steps = every, 0
        self.notes: list[tuple[float, ...]] = []

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        """Count a step."""
        self.steps += 1
        if self.steps % self.every == 0:
            note = (self.steps, *usage(), time.process_time())
            self.notes.append(note)
            took = 1000 * (note[3] - self.notes[0][3]) / max(1, note[0] - self.every)
            words = f"{note[1]:.1f} MB, {note[2]} files, {took:.2f} ms of work a step"
            print(f"step {note[0]}: {words}", flush=True)


def main() -> int:
    """Run, print; return 1 if a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with train and eval")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument(
        "--method", choices=sorted(TIC_STRATEGIES), default="cumulative-exp"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    years = {path.name for path in (options.data / "train").iterdir()}
    steps = {k: own for k, own in TIC_DATACOMP_STEPS.items() if years.issuperset(own)}
    torch.manual_seed(0)
    model = tiny_model()
    stream = tic_datacomp(options.data / "train", options.data / "eval", steps=steps)
    watch = Watch(max(1, options.steps // NOTES))
    strategy = TIC_STRATEGIES[options.method](
        model=model,
        train_mb_size=BATCH,
        eval_mb_size=64,
        budget_iterations=options.steps // len(steps),
        plugins=[watch],
        evaluator=EvaluationPlugin(retrieval_plugin_metrics()),
    )
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        run_stream(
            strategy,
            prepare_benchmark(stream, model),
            Path(out) / "run",
            checkpoint_iterations=CHECKPOINT,
            verbose=0,
            num_workers=options.workers,
        )
    seconds = time.perf_counter() - begin
    print(f"{watch.steps} steps of {BATCH} pairs in {seconds:.0f} s")
    return report(np.array(watch.notes))


def report(notes: np.ndarray) -> int:
    """Print the figures of the steps after the first tenth."""
    steady = notes[len(notes) // 10 :]
    memory, files = steady[:, 1], steady[:, 2]
    mean = memory.mean()
    low, high = memory.min() / mean - 1, memory.max() / mean - 1
    slope = np.polyfit(steady[:, 0], memory, 1)[0] * 1e5
    flat = max(-low, high) <= SPREAD
    same = files.max() == files.min()
    print(
        f"steps {steady[0, 0]:.0f} to {steady[-1, 0]:.0f}: first {memory[0]:.1f} MB, "
        f"last {memory[-1]:.1f} MB, {100 * low:+.1f} % to {100 * high:+.1f} % about "
        f"the mean, {slope:+.1f} MB per 100,000 steps; target 5 %: "
        f"{'reached' if flat else 'NOT reached'}"
    )
    print(f"open files: {files.min():.0f} to {files.max():.0f}")
    return int(not (flat and same))


if __name__ == "__main__":
    sys.exit(main())
