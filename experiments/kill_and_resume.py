"""Kill runs at random places and compare what the resumed ones end with.

    python experiments/kill_and_resume.py
    python experiments/kill_and_resume.py --kills 2 --methods Patching,MoEAdapters

Every named strategy (and a constant-cosine run) trains a tiny model on three steps,
a few iterations each, with three parameter groups of different rate and decay:
on pairs of the emoji stream (2014 to 2017), on three groups of emoji with their
names as classes, or on three languages. Each kill is a SIGKILL of a process of its
own: the first one before the first checkpoint inside the first step, every third
one at a random evaluation batch, the others at a random training iteration; the run
is then resumed in another process. The table shows whether weights, E and
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from avalanche.evaluation.metrics import accuracy_metrics
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip.benchmarks import prepare_benchmark
from avalanche_clip.benchmarks.classic.multi_domain_emoji import EmojiClasses
from avalanche_clip.benchmarks.classic.multilingual_emoji import multilingual_emoji
from avalanche_clip.benchmarks.classic.tic_emoji import emoji_dataset
from avalanche_clip.benchmarks.datasets.emoji import EMOJI_STEPS, load_emoji_table
from avalanche_clip.benchmarks.items.times import to_timestamp
from avalanche_clip.benchmarks.streams.classes import multi_domain_benchmark
from avalanche_clip.benchmarks.streams.timed import time_stamped_benchmark
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.models.selector.selector import AutoSelector
from avalanche_clip.models.selector.training import SelectorTraining
from avalanche_clip.training import MethodPlugin, run_stream, supervised
from avalanche_clip.training.plugins import ConstantCosinePlugin

CONSTANT_COSINE = "ConstantCosine"
ITERATIONS = 4
EVERY = 2
"""Iterations between checkpoints inside a step."""
STEPS = (1, 4)
PER_STEP = 48
EVAL_BATCH = 24
REFERENCE = {
    "reference_images": torch.rand(
        16, 3, 32, 32, generator=torch.Generator().manual_seed(0)
    ),
    "reference_texts": ["a red heart", "a cat", "the flag of a country"],
    "averaging_interval": 2,
    "plugin_options": {"batch_size": 8, "teach_first_experience": True},
}
WARMUP = {"warmup_iterations": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "CLLCLIP": {"vocab_size": 300},
    "ClassNameFineTuning": WARMUP,
    "ClassNameZSCL": {**REFERENCE, **WARMUP},
    CONSTANT_COSINE: {"schedule": "const-cosine", "reset_optimizer_state": False},
    "ContrastiveEWC": {"fisher_batch_size": 16, "fisher_batches": 2},
    "CumulativeAllStar": {"budget_factors": (1, 1, 1.5)},
    "FineTuning": WARMUP,
    "MoEAdapters": {"num_experts": 4, "top_k": 2, "bottleneck": 8, **WARMUP},
    "VRLwF": {
        "num_texts": 20,
        "replay": {"text_length": 3, "teach_first_experience": True},
    },
    "ZSCL": {**REFERENCE, **WARMUP},
}
"""What a strategy needs to be small; the others take their defaults."""


class KillPlugin(MethodPlugin):
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


def methods() -> list[str]:
    """All named strategies, and the constant-cosine run."""
    names = [n for n in supervised.__all__ if isinstance(getattr(supervised, n), type)]
    return [*names, CONSTANT_COSINE]


# ------------------------------------------------------------------ benchmarks
def pairs() -> Any:
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
    return time_stamped_benchmark(
        emoji_dataset(["noto"], chosen, captions="all"),
        boundaries=starts[low + 1 : high],
        test=emoji_dataset(["twemoji"], chosen),
        valid=emoji_dataset(["openmoji"], held),
    )


def domains() -> Any:
    """Three groups of emoji, 16 classes each."""
    table, parts = load_emoji_table(), []
    for group in range(3):
        rows = np.flatnonzero(table.group == group)[:16]
        train, test = (EmojiClasses(s, rows) for s in (["noto"], ["twemoji"]))
        names = [table.names[row] for row in rows]
        parts.append((train, test, names, "{}", table.groups[group]))
    return multi_domain_benchmark(parts)


def languages() -> Any:
    """24 emoji in three languages."""
    return multilingual_emoji(3, emoji=np.arange(24), styles=("noto",))


# ------------------------------------------------------------------ strategies
def three_groups(named_parameters: Any) -> list[dict[str, Any]]:
    """Deal the parameters out to three groups of different rate and decay."""
    names = [name for name, _ in named_parameters]
    options = ((1e-3, 0.2), (1e-4, 0.0), (3e-3, 0.05))
    return [
        {"names": names[k::3], "lr": lr, "weight_decay": decay}
        for k, (lr, decay) in enumerate(options)
    ]


def build(method: str, plugins: list[Any]) -> tuple[Any, Any]:
    """A strategy and the benchmark it is for."""
    options = dict(OPTIONS.get(method, {}))
    on_classes = method.startswith("ClassName") or method == "MoEAdapters"
    model = create_dual_encoder(
        "tiny-emoji-vit" if method == "MoEAdapters" else "tiny-emoji"
    )
    model.reinitialize(0)
    metrics: Any = retrieval_plugin_metrics(summary=("mean_R@1",))
    benchmark = pairs
    if on_classes:
        metrics, benchmark = accuracy_metrics(experience=True, stream=True), domains
    if method == "CLLCLIP":
        benchmark = languages
        options["teacher_captions"] = load_emoji_table().names
    if method == "MoEAdapters":
        training = SelectorTraining(
            reference_iterations=20, task_iterations=20, batch_size=8
        )
        options["selector"] = AutoSelector(hidden=16, training=training)
        options["reference_images"] = REFERENCE["reference_images"]
    if method == CONSTANT_COSINE:
        plugins = [ConstantCosinePlugin(), *plugins]
    cls = getattr(supervised, method, supervised.Sequential)
    strategy = cls(
        model=model,
        plugins=plugins,
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        param_groups=three_groups,
        budget_iterations=ITERATIONS,
        train_mb_size=16,
        eval_mb_size=EVAL_BATCH,
        evaluator=EvaluationPlugin(metrics, loggers=[]),
        **options,
    )
    return strategy, prepare_benchmark(benchmark(), model)


def run(method: str, out: str, resume: bool, kill: tuple[Any, Any]) -> None:
    """One run in its own process; writes weights and counts beside the rest."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    killer = KillPlugin(*kill)
    strategy, benchmark = build(method, [killer])
    run_stream(strategy, benchmark, out, resume=resume, checkpoint_iterations=EVERY)
    torch.save(strategy.model.state_dict(), Path(out) / "weights.pt")
    counts = {"train": strategy.clock.train_iterations, "eval": killer.evaluated}
    (Path(out) / "counts.json").write_text(json.dumps(counts))


def start(method: str, out: Path, resume: bool = False, kill: Any = None) -> int:
    """Run in another process; return its exit status."""
    process = _context().Process(
        target=run, args=(method, str(out), resume, kill or (None, None))
    )
    process.start()
    process.join()
    return int(process.exitcode or 0)


def _context() -> Any:
    """Processes forked from one that has imported everything, where there are any."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["avalanche_clip.training.supervised", "open_clip"])
    return context


# ------------------------------------------------------------------ comparison
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


def place(generator: random.Random, number: int, counts: dict[str, int]) -> Any:
    """Where to kill a run: an iteration of training or of evaluation."""
    if number == 0:
        return generator.randrange(EVERY), None
    if number % 3 == 2:
        return None, generator.randint(1, counts["eval"])
    return generator.randrange(counts["train"]), None


def check(method: str, folder: Path, kills: int, seed: int, show: Callable) -> int:
    """Kill and resume one method; return how many runs ended differently."""
    generator, bad = random.Random(f"{method} {seed}"), 0
    full = folder / method / "full"
    if start(method, full):
        raise RuntimeError(f"{method}: the uninterrupted run failed.")
    counts = json.loads((full / "counts.json").read_text())
    for number in range(kills):
        out = folder / method / str(number)
        kill = place(generator, number, counts)
        status = start(method, out, kill=kill)
        if status != -signal.SIGKILL:
            raise RuntimeError(f"{method}: not killed at {kill}, ended {status}.")
        if start(method, out, resume=True):
            raise RuntimeError(f"{method}: the resumed run failed after {kill}.")
        found = same(full, out)
        bad += not all(found.values())
        at = f"evaluation {kill[1]}" if kill[0] is None else f"iteration {kill[0]}"
        cells = "".join(f" {'same' if v else 'OTHER':>8}" for v in found.values())
        show(f"{method:20} {at:20}{cells}")
    return bad


def main() -> int:
    """Kill, resume and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--methods", default=",".join(methods()), help="comma-separated class names"
    )
    parser.add_argument("--kills", type=int, default=3, help="per method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="methods at a time")
    arguments = parser.parse_args()
    chosen = arguments.methods.split(",")
    if unknown := [name for name in chosen if name not in methods()]:
        parser.error(f"unknown methods {unknown}; choose from {', '.join(methods())}")
    show = partial(print, flush=True)
    show(f"{'method':20} {'killed at':20} {'weights':>8} {'E':>8} {'csv':>8}")
    with tempfile.TemporaryDirectory() as name:
        one = partial(
            check,
            folder=Path(name),
            kills=arguments.kills,
            seed=arguments.seed,
            show=show,
        )
        with ThreadPoolExecutor(arguments.jobs) as pool:
            bad = sum(pool.map(one, chosen))
    show("all the same" if not bad else f"{bad} run(s) differ")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
