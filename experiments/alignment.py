"""Alignment: which methods keep the image and the text space together.

Commands (from the repository root):

    python experiments/alignment.py --search
    python experiments/alignment.py --seeds 0,1,2
    python experiments/alignment.py --stream domains --seeds 0,1,2
    python experiments/alignment.py --methods sequential,sequential:1e-4,mod-x+replay

A tiny CLIP that knows icons and the emoji of 2010 (``--pretrained``) learns the five
later time steps (``--stream time``), or two domains of the later emoji one after the
other (``--stream domains``). Tests are drawings in a style never trained on: of the
steps of the stream, of 2010, and icons with names that no training has seen (four of
five held-out ones). The measures of spatial disorder are taken on all 1,911 test pairs
before the stream and after every step.

Methods are joined by ``+``. ``mod-x:44`` gives a method another weight (``zscl`` its
pull to the start, 1 in the paper; ``lora`` and ``c-clip`` the alpha of their updates,
for ``--model tiny-emoji-vit``), and ``sequential:1e-4`` another learning rate: with
several of these, methods are compared with the fine-tuning that learns as much.
``--search`` chooses the learning rate for ``sequential``, then at this rate the weights
of the others, each by itself: on drawings of a trained style that are kept out of
training, and icons that are not tested. Sums use the weights of their parts. A killed
command, given again, goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alignment_methods import (
    RATES,
    SUMS,
    WEIGHTS,
    build_plugins,
    check_methods,
    methods_for,
)
from alignment_study import (
    FINE_TUNING,
    base_line,
    plot_disorder_over_time,
    run_line,
    score,
    write_tables,
)
from command_line import (
    check_start,
    device_name,
    positive,
    refusals,
    run_stream,
    seed_list,
    set_up,
)
from search import base_facts, chosen, search, search_table
from tic_emoji import JOINT

STREAMS = ("test", "base", "icons", "gallery")
VALIDATION_STREAMS = ("valid", "base", "icons")
# Of so many held-out icons one is for choosing settings, the others are tested.
ICONS_PER_CHOICE = 5
# Steps per experience, in both streams about 16 passes over the data.
ITERATIONS = {"time": 60, "domains": 150}
# Emoji groups of the first domain: living things. The second has the others.
LIVING = ("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink")


@dataclass(frozen=True)
class Config:
    """Settings of a run; variants use ``dataclasses.replace``.

    ``weights`` are those of the methods' terms; that of Mod-X multiplies a sum
    over the rows of a batch of ``train_mb_size``, that of ZSCL is its pull to the
    start of each step, whose distillation has weight 1 as published.
    ``buffer_size`` counts drawings: 150 emoji in two styles; the emoji of 2010 are
    not replayed. Captions and drawings are varied as in the training of the base.
    """

    model: str = "tiny-emoji"
    pretrained: str = "icons"
    iterations: int = ITERATIONS["time"]
    train_mb_size: int = 128
    lr: float = 3e-4
    weights: dict[str, float] = field(default_factory=dict)
    averaging_interval: int = 10
    buffer_size: int = 300
    name_probability: float = 0.8
    probe_pairs: int = 1911
    validation: bool = False
    device: str = "cpu"
    seed: int = 0

    @property
    def study(self) -> str:
        """Name of the file of settings that were chosen with this base."""
        if (self.model, self.pretrained) == (Config.model, Config.pretrained):
            return "alignment"
        return f"alignment_{self.model}_{Path(self.pretrained).stem}"


def configured(config: Config, method: str, lr: float | None = None) -> Config:
    """Return the settings of a method: those given, else those chosen by a search.

    :param method: parts joined by ``+``, each with ``:`` and a weight, or none.
    :param lr: learning rate; default the chosen one. That of ``sequential:RATE`` wins.
    :raises ValueError: if a setting was neither given nor chosen.
    """
    weights = {}
    for part in method.split("+"):
        name, _, value = part.partition(":")
        if name == FINE_TUNING and value:
            lr = float(value)
        elif name in WEIGHTS:
            weights[name] = (
                float(value) if value else chosen(config.study, name)["weight"]
            )
    if lr is None:
        lr = chosen(config.study, FINE_TUNING)["lr"]
    return replace(config, lr=lr, weights=weights)


def build_benchmark(config: Config, stream: str, model: Any) -> Any:
    """Return a stream of later emoji, prepared for the model.

    Streams ``test`` (or ``valid``), ``base`` with the emoji of 2010, ``icons``, and
    ``gallery`` in tests. In validation no drawing is in the style that is tested, and
    no icon is one of those tested.
    """
    from avalanche_clip.benchmarks import (
        RandomCaption,
        emoji_dataset,
        held_out_icons,
        prepare_benchmark,
        tic_emoji,
    )
    from avalanche_clip.benchmarks.datasets import load_emoji_table
    from avalanche_clip.benchmarks.items.scenario import make_experience, make_scenario
    from avalanche_clip.models import TinyAugmentation

    if stream == "time":
        scenario = tic_emoji(first_step=1, validation=config.validation)
    else:
        scenario = two_domains()
    icons = held_out_icons()
    for_choice = np.arange(len(icons)) % ICONS_PER_CHOICE == 0
    streams = dict(scenario.streams)
    if config.validation:
        known = np.flatnonzero(load_emoji_table().step == 0)
        streams["base"] = [make_experience(emoji_dataset(["openmoji"], known))]
    shown = np.flatnonzero(for_choice == config.validation).tolist()
    streams["icons"] = [make_experience(icons.subset(shown))]
    return prepare_benchmark(
        make_scenario(streams, scenario),
        model,
        train_transform=model.transform(True, TinyAugmentation(**JOINT.augmentation)),
        train_text_transform=RandomCaption(config.name_probability),
    )


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
    from avalanche_clip.training import Sequential

    torch.manual_seed(config.seed)
    model = create_dual_encoder(config.model, config.pretrained, device=config.device)
    benchmark = build_benchmark(config, stream, model)
    metrics = [retrieval_plugin_metrics(), loss_term_metrics()]
    streams: Sequence[str] = VALIDATION_STREAMS
    if not config.validation:
        streams = STREAMS
        probe = benchmark.streams["gallery"][0].dataset
        metrics.append(spatial_disorder_metrics(probe, max_pairs=config.probe_pairs))
    strategy = Sequential(
        model=model,
        optimizer=lambda groups: torch.optim.AdamW(
            groups,
            lr=config.lr,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.2,
            fused=True,
        ),
        train_mb_size=config.train_mb_size,
        eval_mb_size=256,
        budget_iterations=config.iterations,
        positives="targets",
        device=config.device,
        seed=config.seed,
        plugins=build_plugins(config, method),
        evaluator=EvaluationPlugin(*metrics),
    )
    return run_stream(
        strategy, benchmark, out_dir, streams=streams, resume=True, method=method
    )


def search_settings(config: Config, methods: Sequence[str], out: Path) -> str:
    """Choose settings on validation drawings; write the trade-offs of all tried.

    :param methods: besides fine-tuning.
    :return: what was tried and chosen, and the trade-offs, as text.
    """
    facts = {
        "score": "mean of old, new and icons",
        **base_facts(config.model, config.pretrained),
        **{
            key: getattr(config, key) for key in ("iterations", "train_mb_size", "seed")
        },
    }
    config = replace(config, validation=True)

    def result(method: str, candidate: Any) -> Any:
        name = f"{method}:{next(iter(candidate.values())):g}"
        lr = candidate.get("lr", facts.get("lr"))
        return run(configured(config, name, lr), "time", name, out / folder_name(name))

    def try_it(method: str, candidate: Any) -> float:
        return score(run_line(result(method, candidate)))

    grid: dict[str, list[dict[str, float]]] = {FINE_TUNING: [{"lr": r} for r in RATES]}
    best = search(config.study, grid, try_it, facts)
    facts["lr"] = best[FINE_TUNING]["lr"]
    others = {name: [{"weight": w} for w in WEIGHTS[name]] for name in methods}
    search(config.study, others, try_it, facts)
    results = {}
    for method, candidates in {**grid, **others}.items():
        for candidate in candidates:
            (value,) = candidate.values()
            with suppress(FloatingPointError):  # it diverges, as the search says
                results[f"{method}:{value:g}"] = result(method, candidate)
    lines = {name: [run_line(found)] for name, found in results.items()}
    bases = [base_line(next(iter(results.values())))]
    text = write_tables(lines, bases, out, facts)
    return f"{search_table(config.study)}\n\n{text}"


def folder_name(method: str) -> str:
    """Name of the folder of a method's runs."""
    return method.replace(":", "_")


def default_methods(config: Config) -> list[str]:
    """All methods, and fine-tuning at the other learning rates."""
    rate = chosen(config.study, FINE_TUNING)["lr"]
    others = [f"{FINE_TUNING}:{r:g}" for r in RATES if r != rate]
    return [FINE_TUNING, *others, *methods_for(config.model)[1:], *SUMS]


def main(argv: Sequence[str] | None = None) -> None:
    """Run methods x seeds, then write tables and plots over methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", help="default all, with their sums")
    parser.add_argument("--stream", choices=("time", "domains"), default="time")
    parser.add_argument(
        "--seeds", type=seed_list, default="0", help="comma-separated numbers"
    )
    parser.add_argument("--out", help="folder of the runs")
    parser.add_argument("--device", type=device_name, default="cpu")
    parser.add_argument("--model", default=Config.model)
    parser.add_argument("--pretrained", default=Config.pretrained, help="tag or file")
    parser.add_argument(
        "--iterations", type=positive, help="per experience; default 60|150"
    )
    parser.add_argument("--lr", type=float, help="default the chosen one")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--search", action="store_true", help="choose settings")
    options = parser.parse_args(argv)
    if (options.validation or options.search) and options.stream == "domains":
        parser.error("--validation and --search go with --stream time")
    if options.lr is not None and not 0 < options.lr < np.inf:
        parser.error(f"--lr {options.lr} must be a positive number")
    own = options.lr is not None or options.validation or options.seeds != [0]
    if options.search and own:
        parser.error(
            "--search chooses the learning rate, on validation drawings, seed 0"
        )
    with refusals(parser):
        _main(options)


def _main(options: argparse.Namespace) -> None:
    config = Config(
        model=options.model,
        pretrained=options.pretrained,
        iterations=options.iterations or ITERATIONS[options.stream],
        validation=options.validation,
        device=options.device,
    )
    methods = list(dict.fromkeys(options.methods.split(","))) if options.methods else []
    set_up()
    kind = "validation" if options.validation else options.stream
    out = Path(options.out or f"runs/alignment_{'search' if options.search else kind}")
    check_start(config.model, config.pretrained)
    check_methods(methods, config.model)
    if options.search:
        weighed = [name for name in methods_for(config.model) if name in WEIGHTS]
        if unknown := sorted(set(methods) - set(weighed)):
            raise ValueError(f"--search is for {', '.join(weighed)}, not {unknown[0]}")
        print(search_settings(config, methods or weighed, out))
        return
    methods = methods or default_methods(config)
    configs = {method: configured(config, method, options.lr) for method in methods}
    runs: dict[str, list[Any]] = {}
    for method in methods:
        for seed in options.seeds:
            folder = out / folder_name(method) / f"seed_{seed}"
            changed = replace(configs[method], seed=seed)
            result = run(changed, options.stream, method, folder)
            runs.setdefault(method, []).append(result)
            print(f"{method}, seed {seed}: report in {folder / 'report.html'}")
    facts = {
        "study": "alignment",
        "stream": kind,
        "seeds": options.seeds,
        "settings": {m: {"lr": c.lr, "weights": c.weights} for m, c in configs.items()},
        **{
            key: getattr(config, key)
            for key in ("model", "pretrained", "iterations", "validation")
        },
    }
    lines = {method: [run_line(r) for r in rows] for method, rows in runs.items()}
    bases = [base_line(r) for r in next(iter(runs.values()))]
    print("\n" + write_tables(lines, bases, out, facts))
    from avalanche_clip.evaluation.report.comparison import write_comparison

    report = write_comparison(out, [r.out_dir for rows in runs.values() for r in rows])
    if not options.validation:
        plot_disorder_over_time(runs, out)
    print(f"\nPlots and tables over methods: {report}")


if __name__ == "__main__":
    main()
