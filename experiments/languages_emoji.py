"""Thirty-six languages, one after the other: which methods keep the earlier ones.

Commands (from the repository root):

    python experiments/languages_emoji.py --search
    python experiments/languages_emoji.py --seeds 0,1,2
    python experiments/languages_emoji.py --quick --methods er,er+teir,mla,mla+teir
    python experiments/languages_emoji.py --quick --validation --methods teir:3e-3

A tiny CLIP that knows icons and the emoji of 2010 by their English names (``icons``
weights) learns the names of these emoji in the 36 languages of XM3600, in the task
order of CLL-CLIP, English first. Training sees names and keywords beside drawings of
two styles, as stored features; tests are names and drawings in a style never trained on
(Twemoji), searched among all drawings of the language's emoji. After each language
those learned so far are tested, and what is kept of the base: English names of icons
that it was never taught. ``--search`` chooses the learning rates, one for all methods
that train the token table, as in the paper, and one for those that train the text
tower: on the first six languages, seed 0 and OpenMoji drawings that are kept out of
training, on which ``--validation`` tests, too. ``method:0.001`` gives a method another
rate. ``--quick`` takes the first six languages. A killed command, given again, goes on
where it stopped; commands with other methods or seeds may share a folder and run side
by side.
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
    device_name,
    positive,
    refusals,
    run_stream,
    seed_list,
    set_up,
)
from language_study import (
    read_study,
    save_study,
    seen_only,
    study_line,
    table_facts,
    write_plots,
    write_study,
)
from search import base_facts, chosen, search, search_table, study_of

DEFAULT = (
    "cll-clip",
    "teir",
    "init-only",
    "regularize-only",
    "teir-snapshots",
    "fine-tune",
)
BASELINES = ("fine-tune", "er", "der", "oewc", "mla", "lora")
METHODS = (
    *DEFAULT,
    "cll-clip-snapshots",
    "joint",
    "frozen",
    *BASELINES[1:],
    *(f"{name}+teir" for name in BASELINES),
)
STUDY = "languages_emoji"
RATES: dict[str, tuple[str, tuple[float, ...]]] = {
    "tokens": ("lr", (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)),
    "text": ("text_lr", (5e-4, 1e-3, 2e-3, 4e-3)),
}
"""Kind of method -> setting that ``--search`` chooses, and the rates tried."""
JUDGED = {"tokens": ("cll-clip", "teir"), "text": ("fine-tune", "fine-tune+teir")}
"""Kind of method -> its forms whose mean chooses the rate, so that none is favoured."""
ICONS = "icons"
QUICK = 6
WARMUP = 0.1
"""Share of the updates of a language in which the rate rises, as published."""


@dataclass(frozen=True)
class Config:
    """Settings of a run; variants use ``dataclasses.replace``.

    ``vocab_size`` are the tokens learnt per language. Warm-up, clipping and the
    weights of the losses are the published ones. ``buffer_size`` is about 2 % of the
    stream's samples. ``name_probability`` is that of the name among the
    captions of a training item, as in the training of the base model.

    ``task_decay`` is the share by which a decayed row shrinks per language; the
    weight decay follows from it and the rate. Published: 3.1 %, from 13,281 steps at
    5e-5 with a weight decay of 0.05, which over so few steps would do nothing.

    ``lr`` is that of the token table, ``text_lr`` that of methods that train the whole
    text tower; the command line takes those that were chosen with ``--search``. The
    updates leave the table its scale, as the published ones do: TEIR draws new rows
    from the table as it is. Settings tried by hand are in ``experiments/LOG.md``.
    """

    model: str = "tiny-emoji"
    pretrained: str = "icons"
    languages: int = 36
    vocab_size: int = 3000
    iterations: int = 60
    train_mb_size: int = 128
    eval_mb_size: int = 256
    length_groups: int = 4
    lr: float = 2e-3
    text_lr: float = 1e-3
    task_decay: float = 0.03105
    buffer_size: int = 1000
    name_probability: float | None = 0.5
    validation: bool = False
    device: str = "cpu"
    seed: int = 0


def kind_of(method: str) -> str:
    """What a method trains, ``"tokens"`` or ``"text"``: a key of ``RATES``."""
    return "text" if method.startswith("fine-tune") else "tokens"


def learning_rate(config: Config, method: str) -> float:
    """Learning rate of a method: the one behind its colon, or that of its kind."""
    rate = method.partition(":")[2]
    return float(rate) if rate else getattr(config, RATES[kind_of(method)][0])


def weight_decay(config: Config, method: str) -> float:
    """Decay that shrinks unused rows per language as much as the published one."""
    updates = config.iterations * (1 - WARMUP / 2)
    return -math.log1p(-config.task_decay) / (learning_rate(config, method) * updates)


def variant(method: str) -> dict[str, Any]:
    """Options of ``CLLCLIP`` that make up a method, without plugins."""
    from avalanche_clip.training.methods.cll_clip.strategy import CLL_VARIANTS

    name, _, teir = method.partition(":")[0].partition("+")
    form = name.removesuffix("-snapshots")
    if form != name:
        scope = {"tokenizer_options": {"scope": "language"}}
        return {**CLL_VARIANTS[form], "expansion": scope}
    if name in BASELINES:
        options = CLL_VARIANTS["teir" if teir else "cll-clip"]
        return {**options, **({"trainable": "text"} if name == "fine-tune" else {})}
    return dict(CLL_VARIANTS[name])


def build_plugins(config: Config, method: str) -> list[Any]:
    """Return the plugins of a method beside those of ``CLLCLIP``."""
    from avalanche_clip.training.plugins import (
        LanguageAdapterPlugin,
        OnlineEWCPlugin,
        ReservoirReplayPlugin,
    )

    name = method.partition(":")[0].partition("+")[0]
    replay = partial(ReservoirReplayPlugin, config.buffer_size)
    makers = {
        "er": replay,
        "der": partial(replay, target="student"),
        "oewc": OnlineEWCPlugin,
        "mla": partial(LanguageAdapterPlugin, "mla"),
        "lora": partial(LanguageAdapterPlugin, "lora"),
    }
    return [makers[name]()] if name in makers else []


def build_model(config: Config) -> Any:
    """Return the model that knows the emoji of 2010 in English."""
    from avalanche_clip.models import create_dual_encoder

    return create_dual_encoder(config.model, config.pretrained, device=config.device)


def build_benchmark(config: Config, model: Any, folder: str | Path) -> Any:
    """Return the stream of languages with stored features, prepared for the model.

    Stream ``icons`` has held-out icons with English names. No picture is decoded after
    the features have been stored in ``folder``.
    """
    from avalanche_clip.benchmarks import (
        RandomCaption,
        attach_teacher_features,
        make_experience,
        make_scenario,
        multilingual_emoji,
        precompute_teacher_features,
        prepare_benchmark,
    )

    stream = multilingual_emoji(config.languages, validation=config.validation)
    store = precompute_teacher_features(model, stream.teacher_source, folder)
    stream = attach_teacher_features(stream, store, images=False)
    tested = [name for name in stream.streams if name != "train"]
    stream = attach_teacher_features(
        stream, store, streams=tested, kinds=["image"], images=False
    )
    icons = make_experience(
        icon_features(model, Path(folder) / ICONS), language="en", label=ICONS
    )
    stream = make_scenario({**stream.streams, ICONS: [icons]}, stream)
    captions = RandomCaption(config.name_probability)
    return prepare_benchmark(stream, model, train_text_transform=captions)


def icon_features(model: Any, folder: Path) -> Any:
    """Return held-out icons with English names and stored features."""
    from avalanche_clip.benchmarks import (
        attach_teacher_features,
        held_out_icons,
        precompute_teacher_features,
        with_facts,
    )
    from avalanche_clip.benchmarks.datasets import EMOJI_LANGUAGES

    icons = held_out_icons()
    store = precompute_teacher_features(model, icons, folder)
    icons = attach_teacher_features(icons, store, kinds=["image"], images=False)
    english = np.full(len(icons), EMOJI_LANGUAGES.index("en"))
    return with_facts(icons, {"language": english})


def build_strategy(config: Config, method: str, model: Any, benchmark: Any) -> Any:
    """Return the strategy of a method; ``name:rate`` sets the learning rate."""
    from avalanche.training.plugins import EvaluationPlugin

    from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics

    options = variant(method)
    iterations, vocab_size = config.iterations, config.vocab_size
    if method.startswith("joint"):
        iterations *= config.languages
        vocab_size *= config.languages
        captions = _captions(benchmark)
        options["expansion"] = {"oracle_vocabulary": captions}
    lr = learning_rate(config, method)
    optimizer = partial(torch.optim.AdamW, lr=lr, eps=1e-6, fused=True)
    return seen_only(benchmark)(
        **{
            **options,
            "model": model,
            "optimizer": optimizer,
            "vocab_size": vocab_size,
            "budget_iterations": iterations,
            "train_mb_size": config.train_mb_size,
            "eval_mb_size": config.eval_mb_size,
            "length_groups": config.length_groups,
            "weight_decay": weight_decay(config, method),
            "warmup_fraction": WARMUP,
            "device": config.device,
            "seed": config.seed,
            "plugins": build_plugins(config, method),
            "evaluator": EvaluationPlugin(retrieval_plugin_metrics()),
        }
    )


def _captions(benchmark: Any) -> list[str]:
    """All training captions, from which the oracle vocabulary is learnt."""
    from avalanche_clip.benchmarks.items.captions import read_captions

    captions: dict[str, None] = {}
    for experience in benchmark.train_stream:
        for texts in read_captions(experience.dataset):
            captions.update(dict.fromkeys(texts))
    return list(captions)


def run(config: Config, method: str, out_dir: str | Path) -> dict[str, Any]:
    """Run one method with one seed.

    :return: ``matrices`` (metric -> ``E[i, j]`` in [0, 1], NaN for languages not yet
        learned), ``before`` (metric -> row), ``labels``, ``icons`` (names of held-out
        icons after each language, the first value before), ``growth`` (one row per
        growth of the vocabulary), ``table`` (what became of the token table) and
        ``seconds``.
    """
    from avalanche_clip.benchmarks import joint_languages

    settings = {"method": method, **asdict(config)}
    settings |= base_facts(config.model, config.pretrained)
    found = read_study(out_dir, settings)
    if found is not None:
        return found
    torch.manual_seed(config.seed)
    model = build_model(config)
    benchmark = build_benchmark(config, model, Path(out_dir) / "teacher_features")
    if method.startswith("joint"):
        benchmark = joint_languages(benchmark)
    strategy = build_strategy(config, method, model, benchmark)
    base = token_rows(model)
    result = run_stream(
        strategy,
        benchmark,
        out_dir,
        streams=("valid" if config.validation else "test", ICONS),
        resume=True,
        checkpoint_iterations=None,
        method=method,
    )
    facts = table_facts(base, token_rows(model))
    return save_study(out_dir, settings, result, strategy.expansion.growth, facts)


def token_rows(model: Any) -> torch.Tensor:
    """Return a copy of the token table."""
    from avalanche_clip.models import find_token_embedding

    table = find_token_embedding(model)
    assert table is not None
    return table.weight.detach().cpu().clone()


def configured(config: Config, method: str) -> Config:
    """Return the settings of a method: the chosen rate, unless it has its own.

    :raises ValueError: if none was chosen.
    """
    if ":" in method or method == "frozen":
        return config
    study = study_of(STUDY, config.pretrained)
    return replace(config, **chosen(study, kind_of(method)))


def choose_rates(config: Config, out: Path) -> str:
    """Choose the learning rates on validation drawings; return what was tried."""

    def score(kind: str, candidate: Mapping[str, Any]) -> float:
        changed = replace(config, **candidate)
        (rate,) = candidate.values()
        found = [run(changed, m, out / f"{m}_{rate:g}") for m in JUDGED[kind]]
        return float(np.mean([study_line(one)["AR"] for one in found]))

    free = {name for name, _ in RATES.values()} | {"device"}
    facts = {k: v for k, v in asdict(config).items() if k not in free}
    facts |= base_facts(config.model, config.pretrained)
    grid = {k: [{name: r} for r in rates] for k, (name, rates) in RATES.items()}
    study = study_of(STUDY, config.pretrained)
    search(study, grid, score, facts)
    return search_table(study)


def _refused(method: str) -> str:
    """Why a method cannot be run, empty if it can."""
    name, colon, rate = method.partition(":")
    if name not in METHODS:
        return f"unknown method {name}; use {', '.join(METHODS)}"
    if name == "frozen" and colon:
        return f"{method!r}: frozen trains nothing and has no rate"
    try:
        fits = not colon or 0 < float(rate) < math.inf
    except ValueError:
        fits = False
    return "" if fits else f"{rate!r} in {method!r} is no learning rate"


def main(argv: Sequence[str] | None = None) -> None:
    """Run methods x seeds, then write tables and plots over methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", help=f"default {','.join(DEFAULT)}")
    parser.add_argument(
        "--seeds", type=seed_list, default="0", help="comma-separated numbers"
    )
    parser.add_argument("--out", help="folder of the runs")
    parser.add_argument("--device", type=device_name, default="cpu")
    parser.add_argument("--pretrained", default=Config.pretrained, help="tag or file")
    parser.add_argument("--iterations", type=positive, default=Config.iterations)
    parser.add_argument(
        "--task-decay",
        type=float,
        default=Config.task_decay,
        help="share by which rows of the table decay per language",
    )
    parser.add_argument("--quick", action="store_true", help="six languages")
    parser.add_argument("--validation", action="store_true")
    parser.add_argument("--search", action="store_true", help="choose learning rates")
    options = parser.parse_args(argv)
    methods = list(dict.fromkeys((options.methods or ",".join(DEFAULT)).split(",")))
    wrong = [reason for reason in map(_refused, methods) if reason]
    if not 0 <= options.task_decay < 1:
        wrong.append(f"--task-decay {options.task_decay} is no share; use 0 to 1")
    if options.search and (options.methods or options.seeds != [0]):
        wrong.append("--search chooses for all methods, with seed 0; leave both out")
    if wrong:
        parser.error(wrong[0])
    with refusals(parser):
        _main(options, methods)


def _main(options: argparse.Namespace, methods: Sequence[str]) -> None:
    set_up("The caption .* is cut to")
    config = Config(
        pretrained=options.pretrained,
        languages=QUICK if options.quick or options.search else Config.languages,
        iterations=options.iterations,
        task_decay=options.task_decay,
        validation=options.validation or options.search,
        device=options.device,
    )
    parts = [n for n in ("quick", "validation", "search") if getattr(options, n)]
    out = Path(options.out or "_".join(["runs/languages_emoji", *parts]))
    check_start(config.model, config.pretrained)
    if options.search:
        print(choose_rates(config, out))
        return
    configs = {method: configured(config, method) for method in methods}
    runs: dict[str, list[dict[str, Any]]] = {}
    folders: list[Path] = []
    for seed in options.seeds:
        for method, own in configs.items():
            folder = out / method.replace(":", "_") / f"seed_{seed}"
            found = run(replace(own, seed=seed), method, folder)
            runs.setdefault(method, []).append(found)
            if not method.startswith("joint"):  # one step, nothing over time
                folders.append(folder)
            print(f"{method}, seed {seed}: {folder}")
    shared = ("model", "pretrained", "languages", "iterations", "task_decay")
    facts = {
        "study": STUDY,
        "seeds": options.seeds,
        "rates": {m: learning_rate(own, m) for m, own in configs.items()},
        **{name: getattr(config, name) for name in (*shared, "validation")},
    }
    print("\n" + write_study(runs, out, facts))
    write_plots(runs, out)
    if folders:
        from avalanche_clip.evaluation.report.comparison import write_comparison

        print(f"\nPlots and tables over methods: {write_comparison(out, folders)}")


if __name__ == "__main__":
    main()
