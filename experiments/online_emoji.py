"""Emoji as an endless stream: SIT, its asymmetric counterpart, and no training at all.

Commands (from the repository root):

    python experiments/online_emoji.py --search
    python experiments/online_emoji.py --seeds 0,1,2
    python experiments/online_emoji.py --seeds 0,1,2 --methods sit-lora-both:1e-3

A tiny CLIP that knows icons and the emoji of 2010 (``icons`` weights) meets drawings of
emoji in batches of 64, each once, with their subgroups ("face smiling", "sky and
weather") as classes. The stream is Si-Blurry: five tasks with random borders, half of
the classes in one task only, 10 % of the drawings of the others in other tasks; its
seed is that of the run. Tests are drawings in a style never trained on (Twemoji), after
every 250 drawings and at the ends of tasks, among the classes that have come. Before
the stream and at its end groups that are no part of it, and icons whose names were
never trained on, are tested among their own classes (zero-shot).

``sit`` compares a batch with the texts of its own classes, ``ait`` with those of all
classes that have come; all else is the same. ``lora`` or ``adapters`` are trained in
``both`` towers, that of the ``image`` or that of the ``text``; ``continual-clip``
trains nothing. ``--search`` chooses a learning rate for ``lora`` and one for
``adapters``, with both towers, by the mean A_AUC of SIT and its counterpart on drawings
kept out of training (OpenMoji, a fifth of the emoji). ``method:0.001`` gives another
rate. A killed command, given again, goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
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
from domain_study import ACCURACY, all_runs, parameter_counts
from figures import Lines, write_figures
from multi_domain_emoji import quiet
from search import base_facts, chosen, search, search_table, study_of

STUDY = "online_emoji"
STILL = "continual-clip"
FORMS = {"sit": "batch", "ait": "all"}
"""What batches are compared with -> ``visible`` of the strategy."""
TUNINGS, TOWERS = ("lora", "adapters"), ("both", "image", "text")
KINDS = tuple(f"{tuning}-{tower}" for tuning in TUNINGS for tower in TOWERS)
METHODS = (STILL, *(f"{form}-{kind}" for kind in KINDS for form in FORMS))
GRID = {
    tuning: [{"lr": rate} for rate in (3e-4, 1e-3, 3e-3, 1e-2)] for tuning in TUNINGS
}
"""Candidates of ``--search``."""
ONLINE = ("A_AUC", "A_Avg", "A_Last", "F_Last")
ZERO_SHOT = "zero_shot"

NOTE = """\
percent, mean ± standard deviation over seeds, each of which has a stream of its own;
A_AUC: accuracy among the classes that have come, mean over the stream, A_Avg: at the
ends of tasks, A_Last: at the end; F_Last: what classes lose since the end of the task
they were best at; zero-shot: mean of the data sets behind it, at the end; thousands: of
numbers trained."""
GAINS = """\
SIT minus its asymmetric counterpart, with equal settings and the same stream."""


@dataclass(frozen=True)
class Config:
    """Settings of a run; variants use ``dataclasses.replace``.

    ``held_out`` are groups of emoji outside the stream. Batches, steps on each and
    sampler are published; the period between evaluations is 1,000 there, for streams of
    50,000 images.
    """

    model: str = "tiny-emoji-vit"
    pretrained: str = "icons"
    held_out: tuple[str, ...] = ("Food & Drink", "Objects")
    train_mb_size: int = 64
    repeats: int = 3
    period: int = 250
    validation: bool = False
    device: str = "cpu"
    seed: int = 0


def build_model(config: Config) -> Any:
    """Return the model before the stream."""
    from avalanche_clip.models import create_dual_encoder

    return create_dual_encoder(config.model, config.pretrained, device=config.device)


def build_scenario(config: Config) -> Any:
    """Return the stream of tasks, not yet cut into batches."""
    from avalanche_clip.benchmarks import si_blurry_emoji

    return si_blurry_emoji(
        held_out=config.held_out, validation=config.validation, seed=config.seed
    )


def settings_of(method: str, pretrained: str = Config.pretrained) -> dict[str, float]:
    """Learning rate of a method: the one that it names, or the one chosen.

    :param pretrained: the weights that it was chosen for.
    :raises ValueError: for unknown methods, what is no rate, or one that has not been
        chosen yet.
    """
    name, colon, text = method.partition(":")
    if name not in METHODS:
        raise ValueError(f"unknown method {name}; use {', '.join(METHODS)}")
    if name == STILL:
        if colon:
            raise ValueError(f"{method!r}: {STILL} trains nothing and has no rate")
        return {}
    if not colon:
        return chosen(study_of(STUDY, pretrained), name.split("-")[1])
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise ValueError(f"{text!r} in {method!r} is no learning rate above 0")
    return {"lr": rate}


def build_strategy(
    name: str, rate: float | None, shared: Mapping[str, Any], **trained: Any
) -> Any:
    """Return the strategy of a method.

    :param rate: learning rate; ``continual-clip`` has no use for it.
    :param shared: options of all strategies.
    :param trained: those of :class:`SIT`.
    """
    from avalanche_clip.training import supervised
    from avalanche_clip.training.methods.sit import sit_groups

    if name == STILL:
        return supervised.ContinualCLIP(**shared)
    form, tuning, tower = name.split("-")
    return supervised.SIT(
        visible=FORMS[form],
        tuning=tuning,
        tower=tower,
        optimizer=partial(torch.optim.AdamW, lr=rate),
        param_groups=sit_groups,
        **trained,
        **shared,
    )


def run_online(
    strategy: Any,
    benchmark: Any,
    out_dir: str | Path,
    period: int,
    *,
    stream: str = "test",
    final: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Train on a Si-Blurry stream cut into batches, and evaluate at any time.

    :param stream: that is tested, an experience per class.
    :param final: streams of zero-shot tests.
    :param options: of ``run_stream``.
    :return: figures of :func:`online_accuracy`, of the zero-shot data sets by their
        labels and their mean, and of the numbers trained. Accuracies are in percent.
    """

    trainable = parameter_counts(strategy)["trainable"]
    result = run_stream(
        strategy,
        benchmark,
        out_dir,
        streams=(stream,),
        evaluate_at={"samples": period, "task_ends": True},
        final_streams=tuple(final),
        resume=True,
        checkpoint_iterations=None,
        shuffle=False,
        **options,
    )
    summary = result.summary[stream][ACCURACY]
    found = {name: 100 * summary.get(name, math.nan) for name in ONLINE}
    for name in final:
        values = 100 * result.matrix(ACCURACY, name)[-1]
        found["zero-shot"] = float(np.mean(values))
        labels = [experience.label for experience in benchmark.streams[name]]
        found.update(zip(labels, values.tolist(), strict=True))
    return {**found, "thousands": trainable / 1000}


def run(config: Config, method: str, out_dir: str | Path) -> dict[str, float]:
    """Run one method with one seed; return its figures, see :func:`run_online`."""
    from avalanche_clip.benchmarks import prepare_benchmark, split_online

    torch.manual_seed(config.seed)
    model = build_model(config)
    scenario = split_online(build_scenario(config), config.train_mb_size)
    shared = {
        "model": model,
        "eval_mb_size": 256,
        "device": config.device,
        "seed": config.seed,
        **quiet(),
    }
    strategy = build_strategy(
        method.partition(":")[0],
        settings_of(method, config.pretrained).get("lr"),
        shared,
        repeats=config.repeats,
        train_mb_size=config.train_mb_size,
    )
    return run_online(
        strategy,
        prepare_benchmark(scenario, model),
        out_dir,
        config.period,
        stream="valid" if config.validation else "test",
        # their drawings are in the style of the test
        final=() if config.validation else (ZERO_SHOT,),
        method=method,
    )


def gains(lines: Lines) -> dict[str, list[dict[str, float]]]:
    """What SIT has more than its counterpart, by kind and seed."""
    found = {}
    for method, rows in lines.items():
        kind = method.partition("-")[2]
        if method.startswith("sit-") and f"ait-{kind}" in lines:
            found[kind] = [
                {name: a[name] - b[name] for name in a if name != "thousands"}
                for a, b in zip(rows, lines[f"ait-{kind}"], strict=True)
            ]
    return found


def write_tables(lines: Lines, out: Path, facts: Mapping[str, Any]) -> str:
    """Write figures of methods, and SIT's gains; return the text."""
    text = write_figures(lines, out, facts, NOTE)
    if more := gains(lines):
        text += "\n\n" + write_figures(more, out / "gains", facts, GAINS)
    return text


def choose(config: Config, out: Path) -> str:
    """Choose learning rates on validation drawings; return what was tried."""

    def score(tuning: str, candidate: Mapping[str, Any]) -> float:
        names = [f"{form}-{tuning}-both:{candidate['lr']:g}" for form in FORMS]
        found = [run(config, n, out / n.replace(":", "_") / "seed_0") for n in names]
        return float(np.mean([one["A_AUC"] for one in found]))

    facts = {k: v for k, v in asdict(config).items() if k != "device"}
    facts |= base_facts(config.model, config.pretrained)
    facts |= {"held_out": list(config.held_out)}
    facts |= {"score": "mean A_AUC of sit and ait on validation drawings"}
    name = study_of(STUDY, config.pretrained)
    search(name, GRID, score, facts)
    return search_table(name)


def main(argv: Sequence[str] | None = None) -> None:
    """Run methods x seeds, then write tables over methods."""
    parser = study_parser(__doc__, METHODS, Config.pretrained)
    parser.add_argument("--period", type=positive, default=Config.period)
    options = parser.parse_args(argv)
    methods = list(dict.fromkeys((options.methods or ",".join(METHODS)).split(",")))
    with refusals(parser):
        if options.search and (options.methods or options.seeds != [0]):
            raise ValueError("--search is of all methods, with seed 0; leave both out")
        check_start(Config.model, options.pretrained)
        for method in () if options.search else methods:
            settings_of(method, options.pretrained)
        _main(options, methods)


def _main(options: argparse.Namespace, methods: Sequence[str]) -> None:
    set_up("Si-Blurry: .* classes are not used")
    config = Config(
        pretrained=options.pretrained,
        period=options.period,
        validation=options.validation or options.search,
        device=options.device,
    )
    kind = "_validation" if config.validation else ""
    out = Path(options.out or f"runs/{STUDY}{kind}")
    if options.search:
        print("\n" + choose(config, out))
        return

    def one(method: str, seed: int, folder: Path) -> dict[str, dict[str, float]]:
        return {method: run(replace(config, seed=seed), method, folder)}

    runs, _ = all_runs(methods, options.seeds, one, out)
    shared = {**asdict(config), "seed": None, "device": None, "seeds": options.seeds}
    rates = {m: settings_of(m, config.pretrained).get("lr") for m in methods}
    facts = {"study": STUDY, **shared, "rates": rates}
    facts["held_out"] = list(config.held_out)
    print("\n" + write_tables(runs, out, facts))


if __name__ == "__main__":
    main()
