"""Kill runs at random places and compare what the resumed ones end with.

    python experiments/kill_and_resume.py
    python experiments/kill_and_resume.py --kills 2 --methods patching,lwf

Every method trains ``tiny-emoji`` on steps 2 to 4 of the emoji stream (2014 to
2017), a few iterations each. Each kill is a SIGKILL of a process of its own at a
random training iteration, every third one at a random evaluation batch instead;
the run is then resumed in another process. The table shows whether weights, E and
``metrics.csv`` (without its times) equal those of the uninterrupted run: on the
CPU they must, bit for bit. Ends with status 1 if one does not.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip.benchmarks import prepare_benchmark
from avalanche_clip.benchmarks.classic.tic_emoji import emoji_dataset
from avalanche_clip.benchmarks.datasets.emoji import EMOJI_STEPS, load_emoji_table
from avalanche_clip.benchmarks.generators import time_stamped_benchmark, to_timestamp
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training import run_stream
from avalanche_clip.training.plugins import ConstantCosinePlugin
from avalanche_clip.training.supervised import TIC_STRATEGIES

METHODS = ("cumulative-exp", "patching", "lwf", "ewc", "oracle", "const-cosine")
ITERATIONS = 4
STEPS = (1, 4)
PER_STEP = 48
EVAL_BATCH = 24
NEVER = (None, None)


class KillPlugin(SupervisedPlugin):
    """SIGKILL this process at an iteration of training or evaluation."""

    stateless = True

    def __init__(self, train: int | None, evaluation: int | None):
        super().__init__()
        self.train, self.evaluation, self.evaluated = train, evaluation, 0

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_iterations == self.train:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.evaluated += 1
        if self.evaluated == self.evaluation:
            os.kill(os.getpid(), signal.SIGKILL)


def build_benchmark(model: Any) -> Any:
    """Three time steps with at most ``PER_STEP`` emoji each, and validation."""
    starts = [to_timestamp(step.start) for step in EMOJI_STEPS]
    low, high = STEPS
    times = emoji_dataset(["twemoji"]).timestamp
    years = np.asarray([float(t) for t in times])
    chosen = []
    for step in range(low, high):
        end = starts[step + 1]
        found = np.flatnonzero((years >= starts[step]) & (years < end))
        chosen += found[:PER_STEP].tolist()
    assert max(chosen) < len(load_emoji_table().ids)
    held = chosen[::4]
    benchmark = time_stamped_benchmark(
        emoji_dataset(["noto"], chosen, captions="all"),
        boundaries=starts[low + 1 : high],
        test=emoji_dataset(["twemoji"], chosen),
        valid=emoji_dataset(["openmoji"], held),
    )
    return prepare_benchmark(benchmark, model)


def run(method: str, out: str, resume: bool, kill: tuple[Any, Any]) -> None:
    """One run in its own process; writes the final weights beside the rest."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model = create_dual_encoder("tiny-emoji")
    model.reinitialize(0)
    plugins: list[Any] = [KillPlugin(*kill)]
    options: dict[str, Any] = {}
    if method == "const-cosine":
        plugins.insert(0, ConstantCosinePlugin())
        options = {"schedule": "const-cosine", "reset_optimizer_state": False}
    if method == "ewc":
        options = {"fisher_batch_size": 16, "fisher_batches": 2}
    cls = TIC_STRATEGIES.get(method, TIC_STRATEGIES["sequential"])
    metrics = retrieval_plugin_metrics(summary=("mean_R@1",))
    strategy = cls(
        model=model,
        plugins=plugins,
        budget_iterations=ITERATIONS,
        train_mb_size=16,
        eval_mb_size=EVAL_BATCH,
        evaluator=EvaluationPlugin(metrics, loggers=[]),
        **options,
    )
    run_stream(
        strategy, build_benchmark(model), out, resume=resume, checkpoint_iterations=2
    )
    torch.save(model.state_dict(), Path(out) / "weights.pt")


def start(
    method: str, out: Path, resume: bool = False, kill: Any = (None, None)
) -> int:
    """Run in another process; return its exit status."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=run, args=(method, str(out), resume, kill))
    process.start()
    process.join()
    return int(process.exitcode or 0)


def same(left: Path, right: Path) -> dict[str, bool]:
    """Which parts of two finished runs are equal."""
    weights = [torch.load(p / "weights.pt", weights_only=True) for p in (left, right)]
    matrices = [
        json.loads((p / "results.json").read_text())["matrices"] for p in (left, right)
    ]
    rows = []
    for folder in (left, right):
        with open(folder / "metrics.csv", newline="") as file:
            rows.append([row[1:] for row in csv.reader(file)])
    return {
        "weights": all(torch.equal(v, weights[1][k]) for k, v in weights[0].items()),
        "E": str(matrices[0]) == str(matrices[1]),
        "csv": rows[0] == rows[1],
    }


def place(generator: random.Random, number: int, total: int) -> tuple[Any, Any]:
    """Where to kill a run: an iteration of training or of evaluation."""
    if number % 3 == 2:
        return None, generator.randint(1, 12)
    return generator.randint(1, total), None


def main() -> int:
    """Kill, resume and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--kills", type=int, default=5, help="per method")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    bad = 0
    print(f"{'method':16} {'killed at':24} {'weights':>8} {'E':>8} {'csv':>8}")
    with tempfile.TemporaryDirectory() as name:
        for method in arguments.methods.split(","):
            full = Path(name) / method / "full"
            if start(method, full):
                raise SystemExit(f"{method}: the uninterrupted run failed.")
            steps = STEPS[1] - STEPS[0]
            total = ITERATIONS * (
                sum(range(steps + 1)) if method == "oracle" else steps
            )
            for number in range(arguments.kills):
                out = Path(name) / method / str(number)
                kill = place(generator, number, total)
                status = start(method, out, kill=kill)
                if status != -signal.SIGKILL:
                    raise SystemExit(f"{method}: not killed at {kill}, ended {status}.")
                if start(method, out, resume=True):
                    raise SystemExit(f"{method}: the resumed run failed after {kill}.")
                found = same(full, out)
                bad += not all(found.values())
                kind = "training" if kill[0] else "evaluation"
                where = f"{kind} iteration {kill[0] or kill[1]}"
                cells = "".join(
                    f" {'same' if v else 'OTHER':>8}" for v in found.values()
                )
                print(f"{method:16} {where:24}{cells}", flush=True)
    print("all the same" if not bad else f"{bad} run(s) differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
