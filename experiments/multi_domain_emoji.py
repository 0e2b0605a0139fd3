"""Nine domains of emoji, one after the other: which methods keep the others.

Commands (from the repository root):

    python experiments/multi_domain_emoji.py --seeds 0,1,2
    python experiments/multi_domain_emoji.py --methods moe-adapters,fine-tuning
    python experiments/multi_domain_emoji.py --validation --methods fine-tuning:3e-4

A tiny CLIP that knows the emoji of 2010 (``emoji-2010`` weights) learns the later
ones group by group, with their names as classes. Tests are drawings in a style
never trained on (Twemoji), among the classes of their own group. Adapters are tested
three times after each domain: with the router that DDAS chooses for each image, with
the one it chooses for a batch of one domain (as the authors do), and with the newest
router (no DDAS); at the end also with that of the image's own domain.
``method:0.001`` gives a method another learning rate. ``--validation`` is for
choosing rates and lengths: it trains on Noto alone and tests on OpenMoji, so that the
style of the test stays unseen. A killed command, given again, goes on where it
stopped; commands with other methods or seeds may share a folder and run side by side.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import device_name, seed_list
from domain_study import (
    ACCURACY,
    constant_matrix,
    once,
    parameter_counts,
    spread_table,
    summary_line,
    write_routing,
    write_study,
)
from router_views import RouterView, RouterViewsPlugin, copy_test_stream

METHODS = ("moe-adapters", "moe-no-freeze", "fine-tuning", "zscl", "zero-shot")

VIEWS = {
    "test": RouterView(),
    "test_batch": RouterView(granularity="batch", label=" per batch"),
    "test_newest": RouterView(rule="last", label=" no-ddas"),
    "test_own": RouterView(rule="own"),
}
"""Copies of the test stream -> how adapters choose routers there, and what the rows
of the table are called."""
STREAMS = {
    "moe-adapters": ("test", "test_batch", "test_newest"),
    "moe-no-freeze": ("test", "test_batch"),
}
"""Streams tested after each domain; of all other methods only ``"test"``.
``test_own`` and ``reference_test`` are tested once, at the end."""


@dataclass(frozen=True)
class Config:
    """Settings of a run; variants use ``dataclasses.replace``.

    ``iterations`` are updates per domain, the last of which has learning rate
    zero. ``rates`` are the learning rates of the methods; the published ones are
    for a model a hundred times as large. ``expert_scale`` is 1 instead of the
    published 0.1: experts of so narrow a model learn too slowly otherwise.

    All chosen with ``--validation`` and seed 0 (sweeps in LOG.md). A warm-up of 100
    updates, as published, decides whether adapters learn many classes at all: of
    257 flags in 201 updates of 128 images 89 % of the training drawings are
    recognised (with 20 updates of warm-up at rate 3e-3: 29 %). The selector reads
    all tokens, as published: 48 % of unseen drawings go to the router of their own
    domain, of nine, with mean and deviation of the tokens 32 %.
    """

    model: str = "tiny-emoji-vit"
    iterations: int = 201
    warmup: int = 100
    train_mb_size: int = 128
    rates: dict[str, float] = field(
        default_factory=lambda: {
            "moe-adapters": 7e-3,
            "moe-no-freeze": 7e-3,
            "fine-tuning": 1e-3,
            "zscl": 1e-3,
            "zero-shot": 1e-5,
        }
    )
    label_smoothing: float = 0.2
    num_experts: int = 18
    top_k: int = 2
    bottleneck: int = 64
    expert_scale: float = 1.0
    selector_pooling: str = "none"
    selector_hidden: int = 16
    selector_iterations: int = 1000
    selector_rate: float = 0.003
    averaging_interval: int = 10
    validation: bool = False
    device: str = "cpu"
    seed: int = 0


def build_model(config: Config) -> Any:
    """Return the model that knows the emoji of 2010."""
    from avalanche_clip.models import create_dual_encoder

    return create_dual_encoder(config.model, "emoji-2010", device=config.device)


def build_benchmark(config: Config, model: Any) -> Any:
    """Return the stream of emoji groups, prepared for the model."""
    from avalanche_clip.benchmarks import multi_domain_emoji, prepare_benchmark

    styles: dict[str, Any] = {}
    if config.validation:
        styles = {"styles": ("noto",), "test_style": "openmoji"}
    benchmark = multi_domain_emoji(seed=config.seed, **styles)
    return prepare_benchmark(copy_test_stream(benchmark, VIEWS), model)


def build_selector(config: Config) -> Any:
    """Return DDAS for so narrow a tower."""
    from avalanche_clip.models import AutoSelector, SelectorTraining

    return AutoSelector(
        build_features(config),
        hidden=config.selector_hidden,
        training=SelectorTraining(
            reference_iterations=config.selector_iterations,
            task_iterations=config.selector_iterations,
            lr=config.selector_rate,
            decay_epochs=None,
        ),
        seed=config.seed,
    )


def build_features(config: Config) -> Any:
    """Return the frozen first block of the model."""
    from avalanche_clip.models import ModelFeatures

    return ModelFeatures(build_model(config), config.selector_pooling)


def build_strategy(config: Config, method: str, model: Any, benchmark: Any) -> Any:
    """Return the strategy of a method; ``name:rate`` sets the learning rate."""
    from avalanche_clip.training.supervised import (
        ClassNameFineTuning,
        ClassNameZSCL,
        MoEAdapters,
    )

    name, _, rate = method.partition(":")
    options: dict[str, Any] = {
        "model": model,
        "lr": float(rate) if rate else config.rates[name],
        "budget_iterations": config.iterations,
        "warmup_iterations": config.warmup,
        "train_mb_size": config.train_mb_size,
        "eval_mb_size": 256,
        "label_smoothing": config.label_smoothing,
        "device": config.device,
        "seed": config.seed,
        **_quiet(f"{method} seed {config.seed}"),
    }
    if name.startswith("moe"):
        options["plugins"].append(RouterViewsPlugin(VIEWS))
        return MoEAdapters(
            selector=build_selector(config),
            reference_images=benchmark.streams["reference"],
            num_experts=config.num_experts,
            top_k=config.top_k,
            bottleneck=config.bottleneck,
            adapter_options={"scale": config.expert_scale},
            # plain drawings: the features are computed once
            plugin_options={
                "freeze": name != "moe-no-freeze",
                "selector_transform": "eval",
            },
            **options,
        )
    if name == "zscl":
        known = benchmark.streams["reference"]
        return ClassNameZSCL(
            reference_images=known,
            reference_texts=list(known[0].class_names),
            averaging_interval=config.averaging_interval,
            **options,
        )
    return ClassNameFineTuning(**options)


def _quiet(description: str) -> dict[str, Any]:
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin

    from avalanche_clip.training.plugins import ProgressPlugin

    metrics = accuracy_metrics(experience=True)
    return {
        "plugins": [ProgressPlugin(description=description)],
        "evaluator": EvaluationPlugin(metrics),
    }


def run(config: Config, method: str, out_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Run one method with one seed.

    :return: rows of the table by name, one or (adapters) one per view. Each has
        ``matrix`` ``A[i, j]`` in [0, 1] on the tested stream, ``base`` the
        accuracy on the emoji of 2010 at the end and ``own`` the mean accuracy with
        the right routers then (None where there is none), ``trainable`` the
        numbers trained in the first domain, ``labels``, and ``routing`` of
        methods with a selector.
    """
    from avalanche_clip.training import run_stream

    torch.manual_seed(config.seed)
    model = build_model(config)
    benchmark = build_benchmark(config, model)
    strategy = build_strategy(config, method, model, benchmark)
    moe = getattr(strategy, "moe", None)
    # the base model was trained on OpenMoji drawings of 2010
    final = [] if config.validation else ["reference_test"]
    settings = {"method": method, **asdict(config), "device": None}
    found: dict[str, Any] = {
        "trainable": parameter_counts(strategy)["trainable"],
        "labels": [e.label for e in benchmark.streams["test"]],
        "routing": None,
        "base": None,
        "own": None,
    }
    if method == "zero-shot":
        values = once(strategy, benchmark, ["test", *final], out_dir, settings)
        base = values.get("reference_test", [None])[0]
        matrix = constant_matrix(values["test"])
        return {method: {**found, "trainable": 0, "matrix": matrix, "base": base}}
    streams = STREAMS.get(method.partition(":")[0], ("test",))
    result = run_stream(
        strategy, benchmark, out_dir, streams=streams, resume=True, method=method
    )
    last = ["test_own", *final] if moe else final
    values = once(strategy, benchmark, last, out_dir, settings)
    rows = {}
    for stream in streams:
        row = {**found, "matrix": result.matrix(ACCURACY, stream)}
        if stream == "test":
            row["base"] = values.get("reference_test", [None])[0]
        if moe:
            row["routing"] = moe.routing[stream]
            row["own"] = float(np.mean(values["test_own"]))
        rows[method + VIEWS[stream].label] = row
    if moe:
        write_routing(moe.routing, out_dir)
    return rows


def line(found: dict[str, Any]) -> dict[str, float]:
    """Figures of one run for the table."""
    named = {"2010": found["base"], "own router": found["own"]}
    others = {k: float("nan") if v is None else 100 * v for k, v in named.items()}
    summary = summary_line(found["matrix"])
    return {**summary, **others, "trainable": found["trainable"]}


def write_tables(runs: dict[str, list[dict[str, Any]]], out: Path) -> str:
    """Write tables and plots over methods; return the text."""
    lines = {method: [line(found) for found in rows] for method, rows in runs.items()}
    note = (
        "accuracy in percent, mean ± standard deviation over seeds; trainable: numbers "
        "trained\nin the first domain. Rows of one adapter method are one training, "
        "tested with other\nchoices of routers: by DDAS per image and per batch, or "
        "always the newest (no-ddas);\nown router: last, if each image came with that "
        "of its domain."
    )
    return write_study([spread_table(lines), note], runs, lines, out)


def main(argv: Sequence[str] | None = None) -> None:
    """Run methods x seeds, then write tables and plots over methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument(
        "--seeds", type=seed_list, default="0", help="comma-separated numbers"
    )
    parser.add_argument("--out", help="folder of the runs")
    parser.add_argument("--device", type=device_name, default="cpu")
    parser.add_argument("--iterations", type=int, default=Config.iterations)
    parser.add_argument("--validation", action="store_true")
    options = parser.parse_args(argv)
    methods = list(dict.fromkeys(options.methods.split(",")))
    unknown = sorted({m.split(":")[0] for m in methods} - set(METHODS))
    if unknown:
        parser.error(f"unknown method {', '.join(unknown)}; use {', '.join(METHODS)}")
    torch.set_flush_denormal(True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", message="No loggers specified")
    kind = "_validation" if options.validation else ""
    out = Path(options.out or f"runs/multi_domain_emoji{kind}")
    runs: dict[str, list[dict[str, Any]]] = {}
    for method in methods:
        for seed in options.seeds:
            config = replace(
                Config(),
                iterations=options.iterations,
                warmup=min(Config.warmup, options.iterations // 2),
                validation=options.validation,
                device=options.device,
                seed=seed,
            )
            folder = out / method.replace(":", "_") / f"seed_{seed}"
            for name, row in run(config, method, folder).items():
                runs.setdefault(name, []).append(row)
            print(f"{method}, seed {seed}: {folder}")
    print("\n" + write_tables(runs, out))
    trained = [m for m in methods if m != "zero-shot"]
    if trained:
        from avalanche_clip.evaluation.report.comparison import write_comparison

        folders = [
            out / m.replace(":", "_") / f"seed_{s}"
            for m in trained
            for s in options.seeds
        ]
        print(f"\nPlots and tables over methods: {write_comparison(out, folders)}")


if __name__ == "__main__":
    main()
