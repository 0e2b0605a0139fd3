"""TiC-DataComp from a folder of shards: train over the years, test on all of them.

    python experiments/tic_simulation.py data/simulated --samples 100000
    torchrun --nproc-per-node 2 experiments/tic_webscale.py data/simulated \\
        --methods sequential,cumulative-all,oracle
    NODES=4 GPUS=8 HEAD=node0 bash experiments/tic_webscale.sh data/tic \\
        --preset datacomp-large --keep basic.npy --workers 4 --grad-checkpointing \\
        --evaluation-uids tic-datacomp_retrieval_evals_year2uids.pkl

The folder holds ``train/{year}``, ``eval/retrieval/{year}`` and perhaps
``eval/datacompnet/{year}``, as they are released (``docs/tic_clip.rst``); evaluation
pairs are taken out of the training data here. Of the seven time steps those are trained
that all years are there of; a gap is refused. Model, batch, budget and schedule are
those of a preset of the paper, or of ``simulation``, a tiny model for a rehearsal; the
batch is over all processes. A killed command, given again on any number of processes,
goes on where it stopped.

Retrieval (R@1, mean of both directions) is tested on all years after each step, and
zero-shot classification where there is such a set. The years of a step are averaged.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import positive, refusals, run_stream, seed_list, set_up

METHODS = ("sequential", "cumulative-all", "oracle")
SIMULATION = "simulation"
VALIDATION = 0.01  # of a step, for patching's search
CHECKPOINTS = 20  # inside a plain step
LEVELS = ("in_domain", "backward", "forward")


@dataclass(frozen=True)
class Setup:
    """What is run, on which data; variants use ``dataclasses.replace``.

    :ivar preset: a :class:`TicPreset`.
    :ivar steps: time steps -> years in them.
    :ivar data: further options of :func:`tic_datacomp`.
    """

    folder: Path
    preset: Any
    steps: dict[str, tuple[str, ...]]
    data: dict[str, Any]
    accumulation: int = 1
    grad_checkpointing: bool = False
    workers: int = 0
    device: str = "cpu"
    seed: int = 0


def simulation_preset() -> Any:
    """Budget and schedule of a rehearsal: four steps, a tiny model."""
    from avalanche_clip.training.methods.tic_presets import TicPreset

    factors = (1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5)
    # At 2e-3 without later warm-up, Cumulative-All collapsed in its third step.
    rates = {"learning_rate": 1e-3, "warmup": 50, "later_warmup": 25}
    return TicPreset(250, 128, factors, "tiny-emoji", **rates)


def steps_in(folder: Path) -> dict[str, tuple[str, ...]]:
    """Time steps of which all years are in a folder.

    :raises ValueError: if there is none, a step is there in part, or one is left out.
    """
    from avalanche_clip.benchmarks.classic import TIC_DATACOMP_STEPS

    there = {path.name for path in (folder / "train").glob("*") if path.is_dir()}
    found, ended = {}, ""
    for label, years in TIC_DATACOMP_STEPS.items():
        own = there.intersection(years)
        if own and (ended or len(own) < len(years)):
            missing = sorted({*years} - own) or [ended]
            raise ValueError(
                f"{folder / 'train'} has {min(own)} but not {missing[0]}; get it, or "
                "move the later years away."
            )
        if own:
            found[label] = years
        ended = ended or ("" if own else years[0])
    if not found:
        raise ValueError(
            f"{folder / 'train'} has none of the years of TiC-DataComp; give the "
            "folder of train/2014, train/2015, ..."
        )
    return found


def build_model(setup: Setup) -> Any:
    """The model of a preset, with random weights of the seed."""
    from avalanche_clip.models import create_dual_encoder

    torch.manual_seed(setup.seed)
    model = create_dual_encoder(setup.preset.model, device=setup.device)
    if setup.grad_checkpointing:
        model.set_grad_checkpointing()
    return model


def build_benchmark(setup: Setup, method: str) -> Any:
    """The stream, not yet prepared; with validation data where a method needs it."""
    from avalanche_clip.benchmarks import split_validation
    from avalanche_clip.benchmarks.classic import tic_datacomp

    stream = tic_datacomp(
        setup.folder / "train", setup.folder / "eval", steps=setup.steps, **setup.data
    )
    return split_validation(stream, VALIDATION) if method == "patching" else stream


def build_suites(setup: Setup) -> list[Any]:
    """One zero-shot task per year, where there are evaluation sets with classes."""
    from avalanche_clip.evaluation.suites import ZeroShotSuite, ZeroShotTask

    place = setup.folder / "eval" / "datacompnet"
    years = [year for own in setup.steps.values() for year in own]
    tasks = [
        ZeroShotTask.web(place / year, split="")
        for year in years
        if (place / year).is_dir()
    ]
    return [ZeroShotSuite(tasks)] if tasks else []


def build_strategy(setup: Setup, method: str, model: Any) -> Any:
    """The strategy of a method with a preset's settings."""
    from avalanche.training.plugins import EvaluationPlugin

    from avalanche_clip.distributed import world_size
    from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
    from avalanche_clip.training.supervised import TIC_STRATEGIES

    options = setup.preset.options(method, processes=world_size())
    if "budget_factors" in options:
        options["budget_factors"] = options["budget_factors"][: len(setup.steps)]
    if torch.device(setup.device).type != "cuda":
        options["precision"] = "fp32"  # there is no gradient scaler elsewhere
    return TIC_STRATEGIES[method](
        model=model,
        eval_mb_size=256,
        accumulation_steps=setup.accumulation,
        device=setup.device,
        seed=setup.seed,
        evaluator=EvaluationPlugin(retrieval_plugin_metrics()),
        **options,
    )


def run(setup: Setup, method: str, out: Path) -> Any:
    """Run one method with one seed; return its ``RunResult``."""
    from avalanche_clip.benchmarks import prepare_benchmark

    model = build_model(setup)
    stream = build_benchmark(setup, method)
    strategy = build_strategy(setup, method, model)
    return run_stream(
        strategy,
        prepare_benchmark(stream, model),
        out,
        resume=True,
        checkpoint_iterations=max(50, setup.preset.iterations // CHECKPOINTS),
        suites=build_suites(setup),
        num_workers=setup.workers,
    )


# ----------------------------------------------------------------------- what it found
def levels(result: Any, columns: Sequence[int]) -> dict[str, float]:
    """Figures of a run, in percent: levels over the folded matrix, cost, and time.

    :param columns: step of each test set.
    """
    from avalanche_clip.evaluation.functional import fold_columns, time_transfer

    found = time_transfer(fold_columns(result.E, columns))
    row = {name: 100 * found[name] for name in LEVELS}
    suite = result.results.get("suites", {}).get("zero-shot")
    if suite:
        last = suite[str(len(result.E) - 1)].values()
        row["classes"] = 100 * float(np.mean([task["acc1"] for task in last]))
    units = result.compute["total_macs"] / result.compute["macs"][0]["train"]
    seconds = sum(result.results["seconds"]["train"])
    return {**row, "cost": units, "minutes": seconds / 60}


def matrix_text(results: Sequence[Any], columns: Sequence[int], labels: Any) -> str:
    """``E`` in percent, mean over seeds: a row per trained step, one before all."""
    from avalanche_clip.evaluation.functional import fold_columns

    rows = [np.vstack([r.before, r.E]) for r in results]
    folded = 100 * fold_columns(np.mean(rows, axis=0), columns)
    lines = ["after \\ test" + "".join(f"{label:>8}" for label in labels)]
    for name, row in zip(["none", *labels], folded, strict=True):
        lines.append(f"{name:<12}" + "".join(f"{value:8.1f}" for value in row))
    return "\n".join(lines)


def tables(runs: dict[str, list[Any]], columns: Sequence[int], labels: Any) -> str:
    """All that is printed at the end."""
    from avalanche_clip.evaluation.report.comparison import text_table

    rows = {m: [levels(r, columns) for r in rs] for m, rs in runs.items()}
    text = [text_table(rows), "mean R@1 in percent; cost in plain budgets of one step"]
    for method, results in runs.items():
        text += ["", method, matrix_text(results, columns, labels)]
    return "\n".join(text)


# ------------------------------------------------------------------------ command line
def parse(argv: Sequence[str] | None) -> tuple[argparse.ArgumentParser, Any]:
    """Read the command line."""
    from avalanche_clip.training.supervised import TIC_PRESETS, TIC_STRATEGIES

    names = [SIMULATION, *(n for n in TIC_PRESETS if n.startswith(("datacomp", "deb")))]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of train and eval")
    parser.add_argument("--preset", choices=names, default=SIMULATION)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=seed_list, default="0")
    parser.add_argument("--out", type=Path, help="folder of the runs")
    parser.add_argument(
        "--iterations", type=positive, help="of a step, not the preset's"
    )
    parser.add_argument("--batch", type=positive, help="over all processes")
    parser.add_argument("--keep", help="list of ids that may be trained on (a filter)")
    parser.add_argument(
        "--evaluation-uids", nargs="+", default=[], help="released lists of test pairs"
    )
    parser.add_argument("--gallery-size", type=positive, help="pairs per test set")
    parser.add_argument(
        "--index", help="folder for indexes, where shards are read-only"
    )
    parser.add_argument("--on-error", choices=("raise", "skip"), default="raise")
    parser.add_argument("--workers", type=int, default=0, help="per process")
    parser.add_argument("--accumulation", type=positive, default=1, help="parts")
    parser.add_argument("--grad-checkpointing", action="store_true")
    given = parser.parse_args(argv)
    given.methods = list(dict.fromkeys(given.methods.split(",")))
    unknown = sorted({*given.methods} - {*TIC_STRATEGIES})
    if unknown:
        parser.error(f"no method {unknown[0]!r}; use {', '.join(TIC_STRATEGIES)}")
    return parser, given


def main(argv: Sequence[str] | None = None) -> None:
    """Run methods x seeds, then print tables and write the comparison."""
    parser, given = parse(argv)
    with refusals(parser):
        _main(given)


def _main(given: argparse.Namespace) -> None:
    from avalanche_clip import distributed
    from avalanche_clip.training.supervised import TIC_PRESETS

    place = distributed.init_distributed()
    set_up()
    own = given.preset == SIMULATION
    preset = simulation_preset() if own else TIC_PRESETS[given.preset]
    changed = {"iterations": given.iterations, "batch_size": given.batch}
    if given.iterations is not None:  # warm-up keeps its share
        for name in ("warmup", "later_warmup"):
            own_share = getattr(preset, name) / preset.iterations
            changed[name] = int(own_share * given.iterations)
    names = ("keep", "gallery_size", "index", "on_error", "evaluation_uids")
    setup = Setup(
        given.folder,
        replace(preset, **{k: v for k, v in changed.items() if v is not None}),
        steps_in(given.folder),
        {name: getattr(given, name) for name in names},
        accumulation=given.accumulation,
        grad_checkpointing=given.grad_checkpointing,
        workers=given.workers,
        device=str(place),
    )
    out = given.out or Path("runs") / f"tic_webscale_{given.preset}"
    runs: dict[str, list[Any]] = {}
    for method in given.methods:
        for seed in given.seeds:
            result = run(
                replace(setup, seed=seed), method, out / method / f"seed_{seed}"
            )
            runs.setdefault(method, []).append(result)
    if not distributed.is_main_process():
        return
    labels = list(setup.steps)
    columns = [step for step, years in enumerate(setup.steps.values()) for _ in years]
    print(f"{len(labels)} of 7 time steps, {distributed.world_size()} processes")
    print(tables(runs, columns, labels))
    facts = {"methods": {m: [levels(r, columns) for r in rs] for m, rs in runs.items()}}
    (out / "levels.json").write_text(json.dumps(facts, indent=1))
    from avalanche_clip.evaluation.report.comparison import write_comparison

    folders = [result.out_dir for results in runs.values() for result in results]
    print(f"\nPlots and tables over methods: {write_comparison(out, folders)}")


if __name__ == "__main__":
    main()
