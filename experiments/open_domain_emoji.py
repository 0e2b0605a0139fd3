"""Nine domains of emoji, and no hint of the domain in the test: CoLeCLIP and others.

Commands (from the repository root; ``multi_domain_emoji.py --search`` chooses the
settings of ZSCL, MoE-Adapters and fine-tuning, this one those of CoLeCLIP):

    python experiments/open_domain_emoji.py --search
    python experiments/open_domain_emoji.py --seeds 0,1,2
    python experiments/open_domain_emoji.py --methods coleclip:3e-3,zscl:3e-4:1

Stream, base, updates and settings of other methods are those of
``multi_domain_emoji.py``. One training is tested twice after each domain: with the
identity of the data set, each drawing among the classes of its own group, and without
(``open``): a group that was learned among the classes of all groups learned so far, one
that was not among its own. Unseen data sets beside the stream are the emoji of 2010 and
icons whose names were never trained on.

CoLeCLIP has the paper's settings, save batches and updates, which are those of all
methods here, and its learning rate. Its ablations leave out the vocabulary
(``coleclip-no-vocabulary``), the negatives, or the prompts. No two groups share a name,
so that nothing here depends on shared names. MoE-Adapters choose a router for each
image. ``method:0.001`` gives another learning rate; a killed command, given again, goes
on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import multi_domain_emoji as study
import torch
from command_line import (
    check_start,
    positive,
    refusals,
    run_stream,
    set_up,
    study_parser,
)
from domain_figures import BASE
from domain_study import (
    ACCURACY,
    all_runs,
    kept,
    once,
    run_facts,
    search_runs,
    summary_line,
    with_tests,
    write_study,
)
from figures import write_figures
from multi_domain_emoji import Config
from search import base_facts, chosen, search_table, study_of

STUDY = "open_domain_emoji"
ABLATIONS: dict[str, dict[str, Any]] = {
    "coleclip": {},
    "coleclip-no-vocabulary": {"alpha": None},
    "coleclip-no-negatives": {"stage_boundary": None},
    "coleclip-no-prompts": {"num_prompts": 0},
}
"""CoLeCLIP, and what its ablations change."""
METHODS = (BASE, "fine-tuning", "moe-adapters", "zscl", *ABLATIONS)
GRID = {"coleclip": [{"lr": rate} for rate in (1e-3, 3e-3, 1e-2, 3e-2)]}
"""Candidates of ``--search``; ablations have the rate of CoLeCLIP."""
STREAMS = ("test", "test_open")

NOTE = """\
accuracy in percent, mean ± standard deviation over seeds; transfer, average, last: with
the identity of the data set, open: without, among the classes of all groups learned so
far (transfer is the same by definition); learned: each group right after its training;
icons, 2010: data sets outside the stream, at its end; thousands: of numbers trained in
the first domain."""


def settings_of(method: str, pretrained: str = Config.pretrained) -> dict[str, float]:
    """Settings of a method: those that it names, or those chosen.

    :raises ValueError: see ``multi_domain_emoji.settings_of``.
    """
    if method in ABLATIONS:
        return chosen(study_of(STUDY, pretrained), "coleclip")
    return study.settings_of(method, pretrained)


def build_benchmark(config: Config, model: Any) -> Any:
    """Return the stream, and its tests without the identity of the data set."""
    return with_tests(study.build_benchmark(config, model), "open")


def build_strategy(config: Config, method: str, model: Any, benchmark: Any) -> Any:
    """Return the strategy of a method."""
    from avalanche_clip.training import supervised
    from avalanche_clip.training.templates.optim import one_group

    name = method.partition(":")[0]
    options = {
        "model": model,
        "eval_mb_size": 256,
        "eval_label_space": "own",
        "device": config.device,
        "seed": config.seed,
        **study.quiet(),
    }
    if name == BASE:
        return supervised.ContinualCLIP(**options)
    if name not in ABLATIONS:
        return study.build_strategy(config, method, model, benchmark)
    rate = settings_of(method, config.pretrained)["lr"]
    return supervised.CoLeCLIP(
        optimizer=partial(torch.optim.Adam, lr=rate),
        param_groups=one_group,  # no weight decay
        budget_iterations=config.iterations,
        train_mb_size=config.train_mb_size,
        **ABLATIONS[name],
        **options,
    )


def run(config: Config, method: str, out_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Run one method with one seed.

    :return: its row by its name, as in ``multi_domain_emoji.run``, with ``matrix`` of
        tests with the identity of the data set, and ``open`` of those without.
    """

    torch.manual_seed(config.seed)
    model = study.build_model(config)
    benchmark = build_benchmark(config, model)
    strategy = build_strategy(config, method, model, benchmark)
    found = run_facts(strategy, benchmark.streams["test"])
    result = run_stream(
        strategy, benchmark, out_dir, streams=STREAMS, resume=True, method=method
    )
    settings = {"method": method, **asdict(config), "device": None}
    settings |= settings_of(method, config.pretrained)
    settings |= base_facts(config.model, config.pretrained)
    # the base model was trained on OpenMoji drawings of 2010
    final = ["icons"] if config.validation else ["reference_test", "icons"]
    found.update(kept(once(strategy, benchmark, final, out_dir, settings)))
    matrix, without = (result.matrix(ACCURACY, stream) for stream in STREAMS)
    return {method: {**found, "matrix": matrix, "open": without}}


def line(found: Mapping[str, Any]) -> dict[str, float]:
    """Figures of one run, in percent."""
    known, without = (summary_line(found[name]) for name in ("matrix", "open"))
    others = {"icons": found["icons"], "2010": found["base"]}
    return {
        **{name: known[name] for name in ("transfer", "average", "last")},
        **{f"open {name}": without[name] for name in ("average", "last")},
        "learned": 100 * float(found["matrix"].diagonal().mean()),
        **{k: float("nan") if v is None else 100 * v for k, v in others.items()},
        "thousands": found["trainable"] / 1000,
    }


def write_tables(
    runs: Mapping[str, Sequence[Mapping[str, Any]]], out: Path, facts: Mapping[str, Any]
) -> str:
    """Write figures, tables and plots over methods; return the text."""
    lines = {method: [line(found) for found in rows] for method, rows in runs.items()}
    text = write_figures(lines, out, facts, NOTE)
    both = {
        f"{method}{label}": [{**found, "matrix": found[name]} for found in rows]
        for method, rows in runs.items()
        for name, label in (("matrix", ""), ("open", " open"))
    }
    return write_study([text], both, lines, out)


def choose(config: Config, out: Path) -> str:
    """Choose CoLeCLIP's rate on validation drawings; return what was tried."""

    def value(method: str, row: Mapping[str, Any]) -> float:
        figures = line(row)
        return (figures["average"] + figures["open average"]) / 2

    facts = {
        **study.search_facts(config),
        "score": "average on validation drawings, mean of with and without identity",
    }
    name = study_of(STUDY, config.pretrained)
    runs = search_runs(name, GRID, partial(run, config), value, facts, out)
    if runs:
        print("\n" + write_tables(runs, out, facts))
    return search_table(name)


def main(argv: Sequence[str] | None = None) -> None:
    """Run methods x seeds, then write tables and plots over methods."""
    parser = study_parser(__doc__, METHODS, Config.pretrained)
    parser.add_argument("--iterations", type=positive, default=Config.iterations)
    options = parser.parse_args(argv)
    with refusals(parser):
        _main(options, _methods(options))


def _methods(options: argparse.Namespace) -> list[str]:
    """Read the methods.

    :raises ValueError: for unknown ones, and options that do not go together.
    """
    if options.search and (options.methods or options.seeds != [0]):
        raise ValueError("--search is of CoLeCLIP, with seed 0; leave both out")
    methods = list(dict.fromkeys((options.methods or ",".join(METHODS)).split(",")))
    if unknown := [m for m in methods if m.partition(":")[0] not in METHODS]:
        raise ValueError(f"unknown method {unknown[0]}; use {', '.join(METHODS)}")
    check_start(Config.model, options.pretrained)
    for method in () if options.search else methods:
        settings_of(method, options.pretrained)
    return methods


def _main(options: argparse.Namespace, methods: list[str]) -> None:
    set_up()
    config = Config(
        pretrained=options.pretrained,
        iterations=options.iterations,
        warmup=min(Config.warmup, options.iterations // 2),
        validation=options.validation or options.search,
        device=options.device,
    )
    kind = "_validation" if config.validation else ""
    out = Path(options.out or f"runs/{STUDY}{kind}")
    if options.search:
        print("\n" + choose(config, out))
        return

    def one(method: str, seed: int, folder: Path) -> dict[str, dict[str, Any]]:
        return run(replace(config, seed=seed), method, folder)

    runs, _ = all_runs(methods, options.seeds, one, out)
    facts = {**asdict(config), "seed": None, "device": None, "seeds": options.seeds}
    print("\n" + write_tables(runs, out, {"study": STUDY, **facts}))


if __name__ == "__main__":
    main()
