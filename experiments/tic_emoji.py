"""TiC-Emoji: keep a CLIP model current on emoji as they were released.

Commands (from the repository root):

    python experiments/tic_emoji.py --preset demo
    python experiments/tic_emoji.py --preset full --seeds 0,1,2
    torchrun --nproc-per-node 2 experiments/tic_emoji.py --methods joint
    python experiments/tic_emoji.py --pretrained icons --seeds 0,1,2
    python experiments/tic_emoji.py --pretrained icons --search
    python experiments/tic_emoji.py --methods patching,lwf:3e-4 --out runs/mine

Each method is trained on six time steps (2010 to 2024) on Noto and OpenMoji
drawings, and tested by retrieval on Twemoji drawings, a style never seen in
training. The demo starts from weights that know a web of icons, a full run from
random ones unless ``--pretrained`` says otherwise. ``joint`` is one training on all
steps at once, from pretrained weights with the updates of all steps together. A killed
command, given again, goes on where it stopped.

Settings of a pretrained start are those that ``--search`` chose on validation
drawings; ``lwf:3e-4`` gives a method another learning rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from command_line import (
    check_start,
    device_name,
    refusals,
    run_stream,
    seed_list,
    set_up,
)
from search import base_facts, chosen, search, search_table, study_of
from tic_results import table, validation_score

METHODS = (
    "sequential",
    "cumulative-all",
    "cumulative-exp",
    "cumulative-equal",
    "cumulative-all-star",
    "restart",
    "oracle",
    "patching",
    "lwf",
    "ewc",
    "mod-x",
)
DEMO = ("sequential", "mod-x", "cumulative-all", "oracle")
START = {"demo": "icons", "full": None}
"""Weights that a preset starts from by default; None for random ones."""
STREAMS = ("test", "gallery")
ExtraPlugins = Sequence[Any] | Callable[[torch.optim.Optimizer], Sequence[Any]]


@dataclass(frozen=True)
class Config:
    """Settings of a run; variants use ``dataclasses.replace``.

    ``text_layers`` changes the number of blocks of a preset's text tower.
    ``pretrained`` names the weights to start from, None for random ones; Oracle and
    Restart begin anew from the same start. With ``validation`` methods are evaluated
    on held-out drawings of a trained style, and on nothing else; ``gallery`` says
    whether also on all emoji at once, which takes as long as the steps. ``buffer_size``
    counts drawings: 150 emoji in two styles. ``train_epochs``
    cuts the budget into parts after which epoch hooks run; with ``eval_every``
    the strategy is evaluated on stream ``valid`` after so many of them.
    """

    model: str = "tiny-emoji"
    pretrained: str | None = None
    text_layers: int | None = None
    validation: bool = False
    gallery: bool = True
    iterations: int = 120
    train_mb_size: int = 64
    optimizer: str = "adamw"
    lr: float = 7e-4
    weight_decay: float = 0.1
    warmup: int = 20
    buffer_size: int = 300
    budget_factors: tuple[float, ...] = (1, 1, 1, 1.5, 2, 3)
    lwf_weight: float = 1.0
    ewc_lambda: float = 100.0
    alpha: float = 20.0
    name_probability: float | None = 0.9
    positives: str = "targets"
    precision: str = "fp32"
    device: str = "cpu"
    num_workers: int = 0
    augmentation: dict[str, Any] | None = None
    train_epochs: int = 1
    eval_every: int = -1
    seed: int = 0


# Fits into six minutes on 2 CPU cores, as two processes of torchrun.
JOINT = Config(
    text_layers=1,
    iterations=1250,
    train_mb_size=128,
    optimizer="muon",
    lr=3e-3,
    weight_decay=0.3,
    warmup=50,
    name_probability=1.0,
    augmentation={
        "scale": (0.8, 1.15),
        "translate": 0.07,
        "degrees": 7.0,
        "brightness": 0.15,
        "contrast": 0.15,
        "saturation": 0.15,
    },
)
DEMO_CONFIG = Config(iterations=40, train_mb_size=64, warmup=10, gallery=False)
RATES = ({"lr": 1e-4}, {"lr": 3e-4}, {"lr": 7e-4})
LIKE = dict.fromkeys(
    ("cumulative-all-star", "restart", "oracle", "joint"), "cumulative-all"
)
"""Methods that differ from another one in compute and start only, and take its rate."""
WEIGHTS = {"lwf": "lwf_weight", "ewc": "ewc_lambda", "mod-x": "alpha"}


def candidates(method: str) -> list[dict[str, Any]]:
    """Return what ``--search`` tries: rates, and two weights of a method's term."""
    if method not in WEIGHTS:
        return [dict(rate) for rate in RATES]
    name = WEIGHTS[method]
    weights = [factor * getattr(Config, name) for factor in (1, 3)]
    return [{**rate, name: weight} for rate in RATES[:2] for weight in weights]


def build_model(config: Config) -> Any:
    """Return the model, with random weights unless the start is pretrained."""
    from avalanche_clip.models import create_dual_encoder
    from avalanche_clip.models.encoders.presets import preset_config

    name: Any = config.model
    if config.text_layers is not None:
        name = preset_config(config.model)
        name["model_cfg"]["text_cfg"]["layers"] = config.text_layers
    return create_dual_encoder(name, config.pretrained, device=config.device)


def build_benchmark(config: Config, method: str, model: Any) -> Any:
    """Return the stream of a method, prepared for a model."""
    from avalanche_clip.benchmarks import RandomCaption, prepare_benchmark, tic_emoji
    from avalanche_clip.benchmarks.classic.tic_emoji import tic_emoji_joint
    from avalanche_clip.models import TinyAugmentation

    scenario = (
        tic_emoji_joint()
        # the order of samples that the published score belongs to
        if method == "joint" and config.pretrained is None
        else tic_emoji(
            validation=method == "patching"
            or config.validation
            or config.eval_every >= 0
        )
    )
    augmentation = config.augmentation and TinyAugmentation(**config.augmentation)
    return prepare_benchmark(
        scenario,
        model,
        train_transform=model.transform(True, augmentation or None),
        train_text_transform=RandomCaption(config.name_probability),
    )


def build_optimizer(config: Config, model: Any) -> torch.optim.Optimizer:
    """AdamW, or Muon for hidden matrices; weight decay on matrices only.

    Muon (timm's) orthogonalises the update of every hidden matrix. Embeddings,
    the stem, depthwise filters and vectors are left to its AdamW.
    """
    from avalanche_clip.training.templates.optim import clip_param_groups, trainable

    named = trainable(model)
    if config.optimizer == "muon":
        from timm.optim import muon

        if config.device == "cpu":
            _float32_products(muon)
        hidden, first = [], []
        for name, p in named.items():
            inner = p.ndim >= 2 and not (p.ndim == 4 and p.shape[1] == 1)
            outer = "embedding" in name or ".stem." in name
            (hidden if inner and not outer else first).append(name)
        rest = clip_param_groups([(n, named[n]) for n in first], config.weight_decay)
        return muon.Muon(
            [
                {"params": [named[n] for n in hidden], "use_fallback": False},
                *(
                    {
                        "params": [named[n] for n in g["names"]],
                        "weight_decay": g["weight_decay"],
                        "use_fallback": True,
                        "fallback_lr_scale": 1 / 3,
                    }
                    for g in rest
                ),
            ],
            lr=config.lr,
            weight_decay=config.weight_decay,
            nesterov=True,
            betas=(0.9, 0.98),
        )
    groups = clip_param_groups(named.items(), config.weight_decay)
    return torch.optim.AdamW(
        [
            {
                "params": [named[n] for n in g["names"]],
                "weight_decay": g["weight_decay"],
            }
            for g in groups
        ],
        lr=config.lr,
        betas=(0.9, 0.98),
        eps=1e-6,
        fused=True,
    )


def _float32_products(muon: Any) -> None:
    """Let timm's Muon work in float32: bfloat16 is slow on most CPUs."""
    if not isinstance(muon.zeropower_via_newtonschulz, partial):
        muon.zeropower_via_newtonschulz = partial(
            muon.zeropower_via_newtonschulz, dtype=torch.float32
        )


def build_strategy(
    config: Config, method: str, model: Any, plugins: ExtraPlugins = ()
) -> Any:
    """Return the strategy of a method with a quiet evaluator."""
    from avalanche.training.plugins import EvaluationPlugin

    from avalanche_clip.distributed import world_size
    from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
    from avalanche_clip.training.supervised import TIC_STRATEGIES, Joint, ModX

    restart = {"restart_from": "initial" if config.pretrained else "random"}
    own: dict[str, dict[str, Any]] = {
        "cumulative-exp": {"buffer_size": config.buffer_size},
        "cumulative-equal": {"buffer_size": config.buffer_size},
        "cumulative-all-star": {"budget_factors": config.budget_factors},
        "lwf": {"lwf_weight": config.lwf_weight},
        "ewc": {"ewc_lambda": config.ewc_lambda},
        "mod-x": {"alpha": config.alpha},
        "restart": restart,
        "oracle": restart,
    }
    cls = {**TIC_STRATEGIES, "mod-x": ModX, "joint": Joint}[method]
    optimizer = build_optimizer(config, model)
    extra = plugins(optimizer) if callable(plugins) else plugins
    return cls(
        model=model,
        optimizer=optimizer,
        train_mb_size=config.train_mb_size // world_size(),
        eval_mb_size=256,
        budget_iterations=config.iterations,
        train_epochs=config.train_epochs,
        eval_every=config.eval_every,
        warmup_iterations=config.warmup,
        positives=config.positives,
        precision=config.precision,
        device=config.device,
        seed=config.seed,
        plugins=list(extra),
        evaluator=EvaluationPlugin(retrieval_plugin_metrics()),
        **own.get(method, {}),
    )


def run(
    config: Config,
    method: str,
    out_dir: str | Path,
    *,
    plugins: ExtraPlugins = (),
    suites: Sequence[Any] = (),
) -> Any:
    """Run one method with one seed; return its ``RunResult``.

    :param plugins: further Avalanche plugins, stock ones included, or a
        function that makes them from the optimiser (schedulers need it).
    :param suites: scored at each evaluation, not yet used.
    """

    torch.manual_seed(config.seed)
    model = build_model(config)
    benchmark = build_benchmark(config, method, model)
    strategy = build_strategy(config, method, model, plugins)
    options: dict[str, Any] = {}
    if config.num_workers:
        options = {
            "num_workers": config.num_workers,
            "multiprocessing_context": "spawn",
            "persistent_workers": True,
        }
    tests = [name for name in STREAMS if config.gallery or name != "gallery"]
    streams = ["valid"] if config.validation else tests
    return run_stream(
        strategy,
        benchmark,
        out_dir,
        streams=streams,
        resume=True,
        suites=suites,
        **options,
    )


def require_one_start(out: Path, pretrained: str | None) -> None:
    """Refuse a folder with runs that began from other weights.

    :raises ValueError: naming such a run.
    """
    from avalanche_clip.evaluation.report.results import load_results

    for path in sorted(out.glob("*/seed_*/results.json")):
        start = load_results(path)["config"]["pretrained"]
        if start != pretrained:
            raise ValueError(
                f"{path.parent} began from {start or 'random weights'}, these runs "
                f"would from {pretrained or 'random weights'}; give another --out."
            )


def settings_of(base: Config, preset: str, method: str) -> Config:
    """Return the settings of ``method`` or ``method:rate``.

    :raises ValueError: where none were searched for a pretrained start.
    """
    from avalanche_clip.benchmarks.datasets.emoji import EMOJI_STEPS

    name, _, rate = method.partition(":")
    if base.pretrained:
        study = study_of(f"tic_emoji_{preset}", base.pretrained)
        base = replace(base, **chosen(study, LIKE.get(name, name)))
        if name == "joint":
            base = replace(base, iterations=base.iterations * len(EMOJI_STEPS))
    elif name == "joint":
        shared = ("device", "num_workers", "precision", "gallery")
        base = replace(JOINT, **{name: getattr(base, name) for name in shared})
    return replace(base, lr=float(rate)) if rate else base


def main(argv: Sequence[str] | None = None) -> None:
    """Run methods x seeds, then write tables and plots over methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options, methods = _parse(parser, argv)
    with refusals(parser):
        _main(options, methods)


def _main(options: argparse.Namespace, methods: list[str]) -> None:
    from avalanche_clip import distributed

    place = distributed.init_distributed()  # joins the processes of torchrun
    is_main = distributed.is_main_process()
    # Moments of rarely used tokens become denormal, which slows the CPU tenfold.
    set_up()
    start, study = options.pretrained, f"tic_emoji_{options.preset}"
    base = replace(
        DEMO_CONFIG if options.preset == "demo" else Config(),
        pretrained=start,
        validation=options.search,
        device=str(place) if options.device == "auto" else options.device,
        precision=options.precision,
        num_workers=options.num_workers,
    )
    parts = [study]
    if start != START[options.preset]:
        parts.append(Path(start).stem if start else "random")
    parts += ["search"] * options.search
    out = Path(options.out or f"runs/{'_'.join(parts)}")
    check_start(base.model, start)
    require_one_start(out, start)
    if options.search:
        facts = {
            **base_facts(base.model, start),
            **{
                name: getattr(base, name)
                for name in ("iterations", "train_mb_size", "seed")
            },
        }

        def score(method: str, candidate: Any) -> float:
            words = "_".join(f"{key}_{value}" for key, value in candidate.items())
            config = replace(base, **candidate)
            return validation_score(run(config, method, out / f"{method}_{words}"))

        grid = {LIKE.get(name, name): candidates(name) for name in methods}
        kept = study_of(study, start)
        search(kept, grid, score, facts)
        print(search_table(kept))
        return
    configs = {m: settings_of(base, options.preset, m) for m in methods}
    runs: dict[str, list[Any]] = {}
    for method in methods:
        for seed in options.seeds:
            config = replace(configs[method], seed=seed)
            folder = out / method.replace(":", "_") / f"seed_{seed}"
            result = run(config, method.split(":")[0], folder)
            runs.setdefault(method, []).append(result)
            if is_main:
                print(f"{method}, seed {seed}: report in {folder / 'report.html'}")
    if not is_main:
        return
    print("\n" + table(runs))
    # a joint training has no matrix over time
    folders = [r.out_dir for rs in runs.values() for r in rs if len(r.E) > 1]
    if folders:
        from avalanche_clip.evaluation.report.comparison import write_comparison

        print(f"\nPlots and tables over methods: {write_comparison(out, folders)}")


def _parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; return its options, and the methods."""
    parser.add_argument("--preset", choices=("demo", "full"), default="full")
    parser.add_argument(
        "--methods", help=f"comma-separated: {', '.join(METHODS)}, joint"
    )
    parser.add_argument(
        "--pretrained",
        default="",
        help="weights to start from: a tag of tiny-emoji, a file, or none for random"
        " ones; default icons in the demo, else none",
    )
    parser.add_argument(
        "--search",
        action="store_true",
        help="choose the settings of a pretrained start on validation drawings",
    )
    parser.add_argument(
        "--seeds", type=seed_list, default="0", help="comma-separated numbers"
    )
    parser.add_argument("--out", help="folder of the runs")
    parser.add_argument(
        "--device",
        type=lambda text: text if text == "auto" else device_name(text),
        default="auto",
    )
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32")
    parser.add_argument("--num-workers", type=int, default=0)
    options = parser.parse_args(argv)
    names = options.methods.split(",") if options.methods else None
    methods = list(dict.fromkeys(names or [])) or list(
        DEMO if options.preset == "demo" else METHODS
    )
    unknown = sorted({m.split(":")[0] for m in methods} - {*METHODS, "joint"})
    if unknown:
        parser.error(
            f"unknown method {', '.join(unknown)}; use {', '.join(METHODS)} or joint"
        )
    for method in methods:
        _, colon, rate = method.partition(":")
        if colon and not _is_rate(rate):
            parser.error(f"{rate!r} in {method!r} is no learning rate")
    given = options.pretrained
    options.pretrained = (
        START[options.preset] if not given else None if given == "none" else given
    )
    own = options.seeds != [0] or any(":" in m for m in methods)
    if options.search and (own or not options.pretrained):
        parser.error(
            "--search is for a pretrained start, and chooses rates itself, with seed 0;"
            " leave out rates and --seeds, and give --pretrained"
        )
    return options, methods


def _is_rate(text: str) -> bool:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False


if __name__ == "__main__":
    main()
