"""Alignment: which methods keep the image and the text space together.

Commands (from the repository root):

    python experiments/alignment.py --seeds 0,1,2
    python experiments/alignment.py --stream domains --seeds 0,1,2
    python experiments/alignment.py --methods sequential,mod-x,mod-x+replay
    python experiments/alignment.py --validation --methods mod-x:20,mod-x:44,mod-x:100
    python experiments/alignment.py --validation --methods zscl --consolidation 0.1

A tiny CLIP that knows the emoji of 2010 (``emoji-2010`` weights) learns the five
later time steps (``--stream time``), or two domains of the later emoji one after
the other (``--stream domains``). Tests are drawings in a style never trained on:
of the steps of the stream, and of 2010. The measures of spatial disorder are
taken on all 1,911 test pairs before the stream and after every step. Methods are
joined by ``+``; ``mod-x:44`` gives a method another weight. Weights were chosen
with ``--validation``: on drawings of a trained style that are kept out of
training. A killed command, given again, goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from command_line import device_name, seed_list

STREAMS = ("test", "base", "gallery")
DISORDER = ("imd_mean", "image_rotation_mean", "text_rotation_mean")
# Steps per experience, in both streams about 16 passes over the data.
ITERATIONS = {"time": 60, "domains": 150}
# Emoji groups of the first domain: living things. The second has the others.
LIVING = ("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink")


METHODS = ("sequential", "mod-x", "lwf", "vr-lwf", "zscl", "replay")
DEFAULT = (*METHODS, "mod-x+replay")


@dataclass(frozen=True)
class Config:
    """Settings of a run; variants use ``dataclasses.replace``.

    ``weights`` are those of the methods' terms; that of Mod-X multiplies a sum
    over the rows of a batch of ``train_mb_size``. ZSCL's published
    ``consolidation`` is 1, for a learning rate of 1e-5; at this one it leaves
    little of what is new. ``buffer_size`` counts drawings: 150 emoji in two
    styles; the emoji of 2010 are not replayed.
    """

    model: str = "tiny-emoji"
    iterations: int = ITERATIONS["time"]
    train_mb_size: int = 128
    lr: float = 3e-4
    weights: dict[str, float] = field(
        default_factory=lambda: {"mod-x": 44.0, "lwf": 1.0, "vr-lwf": 3.0, "zscl": 1.0}
    )
    consolidation: float = 0.01
    averaging_interval: int = 10
    buffer_size: int = 300
    probe_pairs: int = 1911
    validation: bool = False
    device: str = "cpu"
    seed: int = 0


def build_plugins(config: Config, method: str) -> list[Any]:
    """Return the plugins of a method; parts are joined by ``+``."""
    parts: dict[str, Callable[[Config, float], list[Any]]] = {
        "sequential": lambda config, weight: [],
        "mod-x": _mod_x,
        "lwf": _lwf,
        "vr-lwf": _vr_lwf,
        "zscl": _zscl,
        "replay": _replay,
    }
    plugins = []
    for part in method.split("+"):
        name, _, weight = part.partition(":")
        value = float(weight) if weight else config.weights.get(name, 1.0)
        plugins += parts[name](config, value)
    return plugins


def _mod_x(config: Config, weight: float) -> list[Any]:
    from avalanche_clip.training.plugins import OffDiagonalAlignmentPlugin

    return [OffDiagonalAlignmentPlugin(weight)]


def _lwf(config: Config, weight: float) -> list[Any]:
    from avalanche_clip.training.plugins import ContrastiveLwFPlugin

    # TiC's LwF does not teach the first step; here the base model is worth it.
    return [ContrastiveLwFPlugin(weight, teach_first_experience=True)]


def _vr_lwf(config: Config, weight: float) -> list[Any]:
    from avalanche_clip.training.plugins import VocabularyReplayPlugin

    return [VocabularyReplayPlugin(image_weight=weight, text_weight=weight)]


def _replay(config: Config, weight: float) -> list[Any]:
    from avalanche_clip.training.plugins import BudgetedReplayPlugin

    return [BudgetedReplayPlugin("exp", config.buffer_size)]


def _zscl(config: Config, weight: float) -> list[Any]:
    """ZSCL with the 2010 drawings and names as reference, unpaired."""
    from avalanche_clip.benchmarks.classic.tic_emoji import emoji_dataset
    from avalanche_clip.benchmarks.datasets import load_emoji_table
    from avalanche_clip.training.plugins import (
        ReferenceDistillationPlugin,
        WeightAveragingPlugin,
        WeightConsolidationPlugin,
    )

    table = load_emoji_table()
    known = np.flatnonzero(table.step == 0)
    return [
        ReferenceDistillationPlugin(
            emoji_dataset(("noto", "openmoji"), known),
            [table.names[k] for k in known],
            image_weight=weight,
            text_weight=weight,
        ),
        WeightConsolidationPlugin(config.consolidation),
        WeightAveragingPlugin("we", interval=config.averaging_interval),
    ]


def build_benchmark(config: Config, stream: str, model: Any) -> Any:
    """Return a stream of later emoji, prepared for the model."""
    from avalanche_clip.benchmarks import prepare_benchmark, tic_emoji

    if stream == "time":
        scenario = tic_emoji(first_step=1, validation=config.validation)
    else:
        scenario = two_domains()
    return prepare_benchmark(scenario, model)


def two_domains() -> Any:
    """Later emoji as two experiences: living things and food, then the rest."""
    from avalanche_clip.benchmarks import (
        make_image_text_dataset,
        tic_emoji,
        time_stamped_benchmark,
    )
    from avalanche_clip.benchmarks.datasets import load_emoji_table
    from avalanche_clip.benchmarks.datasets.emoji import EmojiPairs
    from avalanche_clip.benchmarks.items.scenario import make_scenario

    table = load_emoji_table()
    later = np.flatnonzero(table.step > 0)
    second = ~np.isin(table.group, [table.groups.index(name) for name in LIVING])

    def dataset(styles: Sequence[str], captions: Any) -> Any:
        pairs = EmojiPairs(styles, later, captions=captions)
        return make_image_text_dataset(
            pairs,
            sample_ids=pairs.sample_id,
            targets=pairs.emoji_index,
            # The generator cuts by any number: here 0 and 1 stand for domains.
            timestamps=second[pairs.emoji_index].astype(float),
        )

    domains = time_stamped_benchmark(
        dataset(("noto", "openmoji"), "all"),
        boundaries=[0.5],
        labels=["living", "things"],
        test=dataset(("twemoji",), "name"),
    )
    others = tic_emoji(first_step=1).streams
    extra = {name: others[name] for name in ("base", "gallery")}
    return make_scenario({**domains.streams, **extra}, domains)


def run(config: Config, stream: str, method: str, out_dir: str | Path) -> Any:
    """Run one method with one seed; return its ``RunResult``."""
    from avalanche.training.plugins import EvaluationPlugin

    from avalanche_clip.evaluation.metrics import (
        loss_term_metrics,
        retrieval_plugin_metrics,
        spatial_disorder_metrics,
    )
    from avalanche_clip.models import create_dual_encoder
    from avalanche_clip.training import Sequential, run_stream
    from avalanche_clip.training.plugins import ProgressPlugin

    torch.manual_seed(config.seed)
    model = create_dual_encoder(config.model, "emoji-2010", device=config.device)
    benchmark = build_benchmark(config, stream, model)
    metrics = [retrieval_plugin_metrics(), loss_term_metrics()]
    streams: Sequence[str] = ("valid",)
    if not config.validation:
        streams = STREAMS
        probe = benchmark.streams["gallery"][0].dataset
        metrics.append(spatial_disorder_metrics(probe, max_pairs=config.probe_pairs))
    strategy = Sequential(
        model=model,
        optimizer=lambda groups: torch.optim.AdamW(
            groups, lr=config.lr, betas=(0.9, 0.98), eps=1e-6, fused=True
        ),
        train_mb_size=config.train_mb_size,
        eval_mb_size=256,
        budget_iterations=config.iterations,
        positives="targets",
        device=config.device,
        seed=config.seed,
        plugins=[
            ProgressPlugin(description=f"{method} seed {config.seed}"),
            *build_plugins(config, method),
        ],
        evaluator=EvaluationPlugin(*metrics),
    )
    return run_stream(
        strategy, benchmark, out_dir, streams=streams, resume=True, method=method
    )


def summary_line(result: Any) -> dict[str, float]:
    """Figures of one run, recall in percent and angles in degrees.

    ``old`` is the mean over all earlier steps at the end, 2010 included; ``new``
    the mean over steps right after they were learned.
    """
    if "base" not in result.matrices:
        E = 100 * result.matrix("mean_R@1", "valid")
        return {"old": E[-1, :-1].mean(), "new": np.diag(E).mean(), "last": E[-1, -1]}
    E = 100 * result.matrix("mean_R@1", "test")
    base = 100 * result.matrix("mean_R@1", "base")
    curves = next(iter(result.results["metrics"].values()))
    total, plain = result.compute["total_macs"], result.compute["macs"][0]["train"]
    return {
        "2010": base[-1, 0],
        "old": np.append(E[-1, :-1], base[-1]).mean(),
        "new": np.diag(E).mean(),
        "last": E[-1, -1],
        "gallery": 100 * result.matrix("mean_R@1", "gallery")[-1, 0],
        **{key: curves["initial"][key][-1] for key in DISORDER},
        "cost": total / plain,
    }


def table(lines: dict[str, list[dict[str, float]]]) -> str:
    """Format mean and spread over seeds."""
    from avalanche_clip.evaluation.report.comparison import text_table

    rows = [text_table(lines)]
    rows.append("recall at 1 in percent, mean of both directions, at the end of the")
    rows.append("stream; new: right after each step was learned. Disorder in degrees,")
    rows.append(
        "end against the model before the stream. cost in plain steps' budgets."
    )
    return "\n".join(rows)


def plot(runs: dict[str, list[Any]], out: Path) -> None:
    """Draw the measures of disorder over the experiences."""
    from avalanche_clip.evaluation.report.disorder_plots import PANELS, plot_disorder
    from avalanche_clip.evaluation.report.plots import save_figure

    labels = next(iter(runs.values()))[0].results["data"]["labels"]["train"]
    for reference in ("initial", "previous"):
        curves = {}
        for method, results in runs.items():
            rows = [next(iter(r.results["metrics"].values())) for r in results]
            keys = [key for panel in PANELS for key in panel.keys]
            curves[method] = {k: [row[reference][k] for row in rows] for k in keys}
        figure = plot_disorder(
            curves, labels=labels, title=f"Disorder against the {reference} model"
        )
        save_figure(figure, out / f"disorder_{reference}.png")


def _weight_without_use(part: str) -> bool:
    name, colon, _ = part.partition(":")
    return bool(colon) and name not in Config().weights


def main(argv: Sequence[str] | None = None) -> None:
    """Run methods x seeds, then write tables and plots over methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(DEFAULT))
    parser.add_argument("--stream", choices=("time", "domains"), default="time")
    parser.add_argument(
        "--seeds", type=seed_list, default="0", help="comma-separated numbers"
    )
    parser.add_argument("--out", help="folder of the runs")
    parser.add_argument("--device", type=device_name, default="cpu")
    parser.add_argument("--iterations", type=int, help="per experience; default 60|150")
    parser.add_argument("--lr", type=float, default=Config.lr)
    parser.add_argument("--consolidation", type=float, default=Config.consolidation)
    parser.add_argument("--validation", action="store_true")
    options = parser.parse_args(argv)
    methods = list(dict.fromkeys(options.methods.split(",")))
    parts = [part.split(":")[0] for method in methods for part in method.split("+")]
    unknown = sorted(set(parts) - set(METHODS))
    if unknown:
        parser.error(f"unknown method {', '.join(unknown)}; use {', '.join(METHODS)}")
    bare = [m for m in methods for p in m.split("+") if _weight_without_use(p)]
    if bare:
        names = ", ".join(Config().weights)
        parser.error(f"in {bare[0]!r} a method has no weight; these have one: {names}")
    if options.validation and options.stream == "domains":
        parser.error("--validation goes with --stream time")
    torch.set_flush_denormal(True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", message="No loggers specified")
    iterations = options.iterations
    if iterations is None:
        iterations = ITERATIONS[options.stream]
    kind = "validation" if options.validation else options.stream
    out = Path(options.out or f"runs/alignment_{kind}")
    runs: dict[str, list[Any]] = {}
    for method in methods:
        for seed in options.seeds:
            config = replace(
                Config(),
                iterations=iterations,
                lr=options.lr,
                consolidation=options.consolidation,
                validation=options.validation,
                device=options.device,
                seed=seed,
            )
            folder = out / method.replace(":", "_") / f"seed_{seed}"
            result = run(config, options.stream, method, folder)
            runs.setdefault(method, []).append(result)
            print(f"{method}, seed {seed}: report in {folder / 'report.html'}")
    print(
        "\n" + table({m: [summary_line(r) for r in rows] for m, rows in runs.items()})
    )
    from avalanche_clip.evaluation.report.comparison import write_comparison

    report = write_comparison(out, [r.out_dir for rows in runs.values() for r in rows])
    if not options.validation:
        plot(runs, out)
    print(f"\nPlots and tables over methods: {report}")


if __name__ == "__main__":
    main()
