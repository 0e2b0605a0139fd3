"""Nine domains of emoji, one after the other: which methods keep the others.

Commands (from the repository root):

    python experiments/multi_domain_emoji.py --search
    python experiments/multi_domain_emoji.py --seeds 0,1,2
    python experiments/multi_domain_emoji.py --seeds 0,1,2 --order II
    python experiments/multi_domain_emoji.py --methods moe-adapters,fine-tuning:3e-4
    python experiments/multi_domain_emoji.py --curve --seeds 0,1,2

A tiny CLIP that knows icons and the emoji of 2010 (``icons`` weights) learns the later
emoji group by group, with their names as classes. Tests are drawings in a style
never trained on (Twemoji), among the classes of their own group; what is kept beside
them is measured on the emoji of 2010 and on icons whose names were never trained on.
Adapters are tested three times after each domain: with the router that DDAS chooses
for each image, with the one it chooses for a batch of one domain (as the authors do),
and with the newest router (no DDAS); at the end also with that of the image's own
domain.

``--search`` chooses rates and weights of methods, by the average of the paper: it
trains on Noto alone and tests on OpenMoji, so that the style of the test stays unseen.
``method:0.001`` gives a method another learning rate, ``zscl:0.001:3`` also another
weight. ``--order II`` is that of MTIL (ZSCL), without the two places that nine domains
do not fill; order I is that of the Unicode charts. With ``fine-tuning`` at two or more
rates beside ``zero-shot``, tables say what methods keep more than fine-tuning does
where it learns as much. ``--curve`` compares patching with early stopping of the same
training, see ``domain_curve.py``. A killed command, given again, goes on where it
stopped; commands with other methods or seeds may share a folder and run side by side.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import (
    check_start,
    positive,
    refusals,
    run_stream,
    set_up,
    study_parser,
)
from domain_figures import PLAIN, line, write_tables
from domain_study import (
    ACCURACY,
    all_runs,
    constant_matrix,
    kept,
    once,
    run_facts,
    search_runs,
    write_routing,
)
from icon_classes import with_icons
from router_views import RouterView, RouterViewsPlugin, copy_test_stream
from search import base_facts, chosen, search_table, study_of

STUDY = "multi_domain_emoji"
METHODS = (
    "zero-shot",
    "fine-tuning",
    "patching",
    "vr-lwf",
    "zscl",
    "lora",
    "lora-merged",
    "moe-adapters",
    "moe-no-freeze",
    "joint",
)
WEIGHTS = {
    "zscl": "weight",
    "vr-lwf": "weight",
    "patching": "alpha",
    "moe-adapters": "hidden",
    "moe-no-freeze": "hidden",
}
"""The setting of a method beside its learning rate: the weight of both terms of
distillation, the share of the trained weights in what is deployed, or the width of the
selector's autoencoders."""
LIKE = {"moe-no-freeze": "moe-adapters"}
"""Ablations have the settings of their method."""


def _rates(*rates: float, **others: Sequence[float]) -> list[dict[str, float]]:
    found = [{"lr": rate} for rate in rates]
    for name, values in others.items():
        found = [{**candidate, name: v} for candidate in found for v in values]
    return found


GRID = {
    "fine-tuning": _rates(3e-5, 1e-4, 3e-4, 1e-3),
    "patching": _rates(5e-4, 1e-3, alpha=(0.4, 0.7)),
    "vr-lwf": _rates(1e-4, 3e-4, weight=(1, 3)),
    "zscl": _rates(1e-4, 3e-4, weight=(1, 3)),
    "lora": _rates(3e-4, 1e-3, 3e-3),
    "lora-merged": _rates(3e-4, 1e-3, 3e-3),
    "moe-adapters": _rates(7e-3, 1.5e-2, hidden=(16, 64)),
    "joint": _rates(3e-4, 1e-3, 2e-3),
}
"""Candidates of ``--search``."""
JOINT_BATCH = 3
"""Joint training takes batches so many times as large."""
ORDERS = {"I": None, "II": (6, 7, 8, 5, 0, 1, 3, 4, 2)}

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
``test_own``, ``reference_test`` and ``icons`` are tested once, at the end."""


@dataclass(frozen=True)
class Config:
    """Settings of a run; variants use ``dataclasses.replace``.

    ``iterations`` are updates per domain, the last of which has learning rate
    zero; joint training sees as many images as all domains together. Learning rates
    and weights come from ``settings/multi_domain_emoji.json``. ``expert_scale`` is 1
    instead of the published 0.1: experts of so narrow a model learn too slowly
    otherwise. The autoencoders of the selector are trained as long as published, that
    of the reference longer. ZSCL's published ``consolidation`` is 1, for a learning
    rate of 1e-5.
    """

    model: str = "tiny-emoji-vit"
    pretrained: str = "icons"
    order: str = "I"
    iterations: int = 60
    warmup: int = 20
    train_mb_size: int = 64
    label_smoothing: float = 0.2
    num_experts: int = 18
    top_k: int = 2
    bottleneck: int = 64
    expert_scale: float = 1.0
    selector_pooling: str = "none"
    selector_hidden: int = 16
    selector_reference: int = 1000
    selector_iterations: int = 300
    selector_rate: float = 0.003
    averaging_interval: int = 10
    consolidation: float = 0.01
    validation: bool = False
    device: str = "cpu"
    seed: int = 0


def build_model(config: Config) -> Any:
    """Return the model before the stream."""
    from avalanche_clip.models import create_dual_encoder

    return create_dual_encoder(config.model, config.pretrained, device=config.device)


def build_benchmark(config: Config, model: Any) -> Any:
    """Return the stream of emoji groups, and icons, prepared for the model."""
    from avalanche_clip.benchmarks import multi_domain_emoji, prepare_benchmark

    styles: dict[str, Any] = {}
    if config.validation:
        styles = {"styles": ("noto",), "test_style": "openmoji"}
    benchmark = multi_domain_emoji(
        order=ORDERS[config.order], seed=config.seed, **styles
    )
    benchmark = copy_test_stream(with_icons(benchmark), VIEWS)
    return prepare_benchmark(benchmark, model)


def build_selector(config: Config) -> Any:
    """Return DDAS for so narrow a tower."""
    from avalanche_clip.models import AutoSelector, SelectorTraining

    return AutoSelector(
        build_features(config),
        hidden=config.selector_hidden,
        training=SelectorTraining(
            reference_iterations=config.selector_reference,
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


def settings_of(method: str, pretrained: str = Config.pretrained) -> dict[str, float]:
    """Learning rate and weight of a method: those that it names, or those chosen.

    :param pretrained: the weights that they were chosen for.
    :raises ValueError: for what is no number, one too many, or settings that have
        not been chosen yet.
    """
    name, *values = method.split(":")
    names = ["lr", *([WEIGHTS[name]] if name in WEIGHTS else [])]
    if name == "zero-shot":
        names = []
    try:
        given = dict(zip(names, map(float, values), strict=False))
    except ValueError:
        given = {}
    if len(given) < len(values) or not all(0 < v < np.inf for v in given.values()):
        raise ValueError(
            f"{method!r} must be {':'.join([name, *(n.upper() for n in names)])} with "
            f"numbers above 0, or {name} for those that were chosen."
        )
    if given.get("alpha", 0) > 1 or given.get("hidden", 1) % 1:
        raise ValueError(f"{method!r}: ALPHA is at most 1, HIDDEN a whole number.")
    if len(given) == len(names):
        return given
    return {**chosen(study_of(STUDY, pretrained), LIKE.get(name, name)), **given}


def build_strategy(config: Config, method: str, model: Any, benchmark: Any) -> Any:
    """Return the strategy of a method, see :func:`settings_of`."""
    from avalanche_clip.training import supervised

    name, settings = method.partition(":")[0], settings_of(method, config.pretrained)
    options: dict[str, Any] = {
        "model": model,
        "lr": settings.get("lr"),
        "budget_iterations": config.iterations,
        "warmup_iterations": config.warmup,
        "train_mb_size": config.train_mb_size,
        "eval_mb_size": 256,
        "label_smoothing": config.label_smoothing,
        "device": config.device,
        "seed": config.seed,
        **quiet(),
    }
    if name.startswith("moe"):
        options["plugins"].append(RouterViewsPlugin(VIEWS))
        config = replace(config, selector_hidden=int(settings["hidden"]))
        return supervised.MoEAdapters(
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
        return supervised.ClassNameZSCL(
            reference_images=known,
            reference_texts=list(known[0].class_names),
            distillation_weight=settings["weight"],
            consolidation_weight=config.consolidation,
            averaging_interval=config.averaging_interval,
            **options,
        )
    if name == "joint":
        # each step reads the names of all classes: fewer and larger ones
        options["train_mb_size"] *= JOINT_BATCH
        total = config.iterations * len(benchmark.train_stream)
        options["budget_iterations"] = total // JOINT_BATCH
        return supervised.ClassNameJoint(**options)
    if name.startswith("lora"):
        rate = options.pop("lr")
        return supervised.ClassNameLoRA(
            merge=name == "lora-merged",
            optimizer=partial(torch.optim.AdamW, lr=rate, weight_decay=0.01),
            later_warmup_iterations=config.warmup,
            **options,
        )
    options["plugins"] += _plugins(name, settings)
    return supervised.ClassNameFineTuning(**options)


def _plugins(name: str, settings: Mapping[str, float]) -> list[Any]:
    """What makes a method of fine-tuning."""
    from avalanche_clip.training.plugins import (
        VocabularyReplayPlugin,
        WeightAveragingPlugin,
    )

    if name == "vr-lwf":
        weights = dict.fromkeys(("image_weight", "text_weight"), settings["weight"])
        return [VocabularyReplayPlugin(**weights)]
    if name == "patching":
        # PatchingPlugin with one coefficient, but from the first domain on.
        return [WeightAveragingPlugin("wise", alpha=settings["alpha"])]
    return []


def quiet() -> dict[str, Any]:
    """Plugins and evaluator that write nothing."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin

    metrics = accuracy_metrics(experience=True)
    return {"plugins": [], "evaluator": EvaluationPlugin(metrics)}


def run(config: Config, method: str, out_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Run one method with one seed.

    :return: rows of the table by name, one or (adapters) one per view. Each has
        ``matrix`` ``A[i, j]`` in [0, 1] on the tested stream (of joint training its
        one row again and again); ``before``, that of the model before the stream;
        ``base`` and ``icons``, the accuracy on the emoji of 2010 and on held-out
        icons at the end, and ``own``, the mean accuracy with the right routers then
        (None where there is none); ``trainable``, the numbers trained in the first
        domain; ``joint``, whether there was one training; ``labels``, ``chance``, and
        ``routing`` of methods with a selector.
    """

    base = base_facts(config.model, config.pretrained)
    torch.manual_seed(config.seed)
    model = build_model(config)
    benchmark = build_benchmark(config, model)
    strategy = build_strategy(config, method, model, benchmark)
    moe = getattr(strategy, "moe", None)
    # the base model was trained on OpenMoji drawings of 2010
    final = ["icons"] if config.validation else ["reference_test", "icons"]
    own = settings_of(method, config.pretrained)
    settings = {"method": method, **asdict(config), **own, **base, "device": None}
    tested = benchmark.streams["test"]
    found = run_facts(strategy, tested)
    if method == "zero-shot":
        values = once(strategy, benchmark, ["test", *final], out_dir, settings)
        matrix = constant_matrix(values["test"])
        row = {**found, "trainable": 0, "matrix": matrix, "before": matrix[0]}
        return {method: {**row, **kept(values)}}
    streams = STREAMS.get(method.partition(":")[0], ("test",))
    result = run_stream(
        strategy, benchmark, out_dir, streams=streams, resume=True, method=method
    )
    last = ["test_own", *final] if moe else final
    values = once(strategy, benchmark, last, out_dir, settings)
    rows = {}
    for stream in streams:
        matrices = result.matrices[stream][ACCURACY]
        row = {**found, "matrix": matrices["E"], "before": matrices["before"]}
        if len(row["matrix"]) < len(tested):  # one training
            row.update(joint=True, matrix=constant_matrix(row["matrix"][-1]))
        if stream == "test":
            row.update(kept(values))
        if moe:
            row["routing"] = moe.routing[stream]
            row["own"] = float(np.mean(values["test_own"]))
        rows[method + VIEWS[stream].label] = row
    if moe:
        write_routing(moe.routing, out_dir)
    return rows


def choose(config: Config, methods: Sequence[str], out: Path) -> str:
    """Choose settings of methods on validation drawings; return what was tried."""

    def value(method: str, row: Mapping[str, Any]) -> float:
        return line(row)["last" if method == "joint" else "average"]

    facts = {
        **search_facts(config),
        "score": "average on validation drawings (last of joint training)",
    }
    study = study_of(STUDY, config.pretrained)
    grid = {m: GRID[m] for m in methods if m in GRID}
    runs = search_runs(study, grid, partial(run, config), value, facts, out)
    if runs:
        print("\n" + write_tables(runs, out, facts))
    return search_table(study)


def search_facts(config: Config) -> dict[str, Any]:
    """What the runs of a search have in common."""
    return {
        **base_facts(config.model, config.pretrained),
        "order": config.order,
        "seed": config.seed,
        "iterations": config.iterations,
        "train_mb_size": config.train_mb_size,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run methods x seeds, then write tables and plots over methods."""
    parser = study_parser(__doc__, METHODS, Config.pretrained)
    parser.add_argument("--order", choices=list(ORDERS), default=Config.order)
    parser.add_argument("--iterations", type=positive, default=Config.iterations)
    parser.add_argument("--curve", action="store_true", help="patching, early stopping")
    options = parser.parse_args(argv)
    with refusals(parser):
        _main(options, _methods(options))


def _methods(options: argparse.Namespace) -> list[str]:
    """Read the methods.

    :raises ValueError: for unknown ones, and options that do not go together.
    """
    known = list(GRID) if options.search else METHODS
    text = options.methods or ",".join(known)
    methods = list(dict.fromkeys(text.split(",")))
    names = {m if options.search else m.split(":")[0] for m in methods}
    if unknown := sorted(names - set(known)):
        given = "--search is for" if options.search else "use"
        raise ValueError(f"unknown method {unknown[0]}; {given} {', '.join(known)}")
    if options.search and (options.curve or options.seeds != [0]):
        raise ValueError("--search is with seed 0; leave out --seeds and --curve")
    if options.curve:
        methods = [m for m in methods if m.split(":")[0] == PLAIN]
        if len(methods) != 1:
            raise ValueError("--curve is of one training: --methods fine-tuning:RATE")
    check_start(Config.model, options.pretrained)
    for method in () if options.search else methods:
        settings_of(method, options.pretrained)
    return methods


def _main(options: argparse.Namespace, methods: list[str]) -> None:
    set_up()
    config = Config(
        pretrained=options.pretrained,
        order=options.order,
        iterations=options.iterations,
        warmup=min(Config.warmup, options.iterations // 2),
        validation=options.validation or options.search,
        device=options.device,
    )
    kind = "_curve" if options.curve else "_validation" if config.validation else ""
    order = "" if options.order == "I" else f"_{options.order}"
    out = Path(options.out or f"runs/{STUDY}{kind}{order}")
    if options.search:
        print("\n" + choose(config, methods, out))
        return
    if options.curve:
        from domain_curve import write_curve

        rate = settings_of(methods[0], config.pretrained)["lr"]
        print("\n" + write_curve(config, options.seeds, rate, out))
        return
    runs, folders = all_runs(
        methods,
        options.seeds,
        lambda method, seed, folder: run(replace(config, seed=seed), method, folder),
        out,
    )
    facts = {**asdict(config), "seed": None, "device": None, "seeds": options.seeds}
    print("\n" + write_tables(runs, out, facts))
    if folders:
        from avalanche_clip.evaluation.report.comparison import write_comparison

        print(f"\nPlots and tables over methods: {write_comparison(out, folders)}")


if __name__ == "__main__":
    main()
