"""Published settings of CoLeCLIP, SIT and Continual-CLIP, one name each.

Commands (from the repository root):

    python experiments/published.py cifar100-10 cifar100-20 cifar100-50 --root data
    python experiments/published.py core50 --root data
    python experiments/published.py si-blurry-cifar100 --root data --device cuda
    python experiments/published.py odcl-I odcl-II --root data --device cuda

``--root`` holds the data sets that a setting needs: ``cifar-100-python``,
``tiny-imagenet-200``, ``imagenet``, ``imagenet-r``, ``core50_128x128``, and those of
MTIL for ``odcl`` and for the zero-shot tests of ``si-blurry``. ViT-B/16 with OpenAI's
weights, which open_clip fetches. What the papers report stands below our table.

Classes of ``cifar100``, ``tiny``, ``imagenet100`` and ``imagenet1k`` come in steps, as
many as the name says (after the first 100 of ``tiny``; for ``imagenet100`` it has the
classes of the first step). They are told apart among those seen, and among those of all
steps (``all``, task-agnostic). ``core50``: the same classes under new conditions.
``continual-clip`` trains nothing. SIT and its counterpart learn batches of 64, each
once, with the authors' augmentations drawn for each image, CLIP's mean and deviation,
and the loss of the paper. ``--as-released`` has their code's double softmax, initial
values, optimisers made anew at each task, and mean and deviation of the data set.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import mtil
import numpy as np
import torch
from command_line import device_name, refusals, run_stream, seed_list
from domain_study import ACCURACY, all_runs, summary_line, with_tests
from figures import Lines, write_figures
from mtil import Config
from multi_domain_emoji import quiet
from online_emoji import METHODS as ONLINE_METHODS
from online_emoji import STILL, ZERO_SHOT, build_strategy, run_online

RATE, BATCH, PERIOD = 5e-4, 64, 1000
"""Learning rate, batch and period of evaluation of SIT's scripts."""
IMAGENET_NORM = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMS = {
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "tiny": ((0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)),
}
"""Mean and deviation in SIT's code; ImageNet's for other data sets."""
FOLDERS = {
    "cifar100": ".",
    "tiny": "tiny-imagenet-200",
    "imagenet100": "imagenet",
    "imagenet1k": "imagenet",
    "imagenet-r": "imagenet-r",
    "core50": "core50_128x128",
}


class Setting(NamedTuple):
    """One published setting.

    :param kind: ``"classes"``, ``"conditions"``, ``"si-blurry"`` or ``"odcl"``.
    :param data: data set, key of :data:`FOLDERS`; order of MTIL.
    :param build: name of the benchmark's function.
    :param options: of that function.
    :param quoted: figures of the paper, in percent.
    :param source: where they stand.
    """

    kind: str
    data: str
    build: str = ""
    options: Mapping[str, Any] = {}
    quoted: Mapping[str, float] = {}
    source: str = ""


def _steps(
    data: str, build: str, option: str, quoted: Mapping[int, Any], source: str
) -> dict[str, Setting]:
    """Settings of one data set, by the number that their name ends with."""
    return {
        f"{data}-{number}": Setting(
            "classes",
            data,
            build,
            {option: number},
            dict(zip(("average", "last"), figures, strict=False)),
            source,
        )
        for number, figures in quoted.items()
    }


_CIFAR = {10: (75.17, 66.72), 20: (75.95, 66.72), 50: (76.49, 66.72)}
_TINY = {5: (70.49, 66.43), 10: (70.55, 66.43), 20: (70.51, 66.43)}
_AUTHORS = "Continual-CLIP, the authors' repository"
_PAPER = "Continual-CLIP, the paper; not checked against it"
SETTINGS = {
    **_steps("cifar100", "cil_cifar100", "steps", _CIFAR, _AUTHORS),
    **_steps("tiny", "cil_tiny_imagenet", "steps", _TINY, _PAPER),
    **_steps(
        "imagenet100", "cil_imagenet100", "base", {10: (85.0, 75.42), 50: ()}, _PAPER
    ),
    **_steps("imagenet1k", "cil_imagenet1k", "steps", {10: (75.51, 67.71)}, _PAPER),
    "core50": Setting("conditions", "core50", "core50"),
    **{
        f"si-blurry-{data}": Setting("si-blurry", data, "si_blurry", {"dataset": name})
        for data, name in (
            ("cifar100", "CIFAR100"),
            ("tiny", "TinyImageNet"),
            ("imagenet-r", "ImageNetR"),
        )
    },
    "odcl-I": Setting(
        "odcl",
        "I",
        quoted={"transfer": 68.8, "average": 73.7, "last": 79.7},
        source="CoLeCLIP without identity (open), as listed by Jang et al., 2026",
    ),
    "odcl-II": Setting("odcl", "II"),
}
SEEDS = {"odcl": [42], "si-blurry": [1, 2, 3, 4, 5]}
"""Published seeds; 1 for other settings, where nothing is drawn without training."""


def methods_of(setting: Setting) -> tuple[str, ...]:
    """Methods that a setting has, those of the default first."""
    if setting.kind == "odcl":
        return ("coleclip",)
    return ONLINE_METHODS if setting.data in (*NORMS, "imagenet-r") else (STILL,)


def default_methods(setting: Setting) -> list[str]:
    """Methods that are run where none are named."""
    forms = ("sit", "ait") if setting.kind == "si-blurry" else ("sit",)
    names = [STILL, *(f"{f}-{t}-both" for t in ("lora", "adapters") for f in forms)]
    return [name for name in methods_of(setting) if name in (*names, "coleclip")]


def build_scenario(setting: Setting, config: Config) -> Any:
    """Return the stream of a setting, its batches not yet cut."""
    from avalanche_clip.benchmarks import classic

    options = dict(setting.options)
    if setting.kind == "si-blurry":
        zero_shot = {"zero_shot": classic.SIT_ZERO_SHOT, "zero_shot_root": config.root}
        options |= {"seed": config.seed, **zero_shot}
    options["root"] = Path(config.root) / FOLDERS[setting.data]
    return getattr(classic, setting.build)(**options)


def transforms(data: str, model: Any, released: bool) -> dict[str, Callable[..., Any]]:
    """Transforms of SIT's scripts.

    :param data: key of :data:`FOLDERS`.
    :param released: with mean and deviation of the data set, and tests that are scaled
        and not cut. ImageNet-R's random cut of test images is left out.
    """
    from torchvision.transforms import v2

    size = (model.image_size, model.image_size)
    final = model.transform(False)
    if released:
        mean, std = NORMS.get(data, IMAGENET_NORM)
        steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
        final = v2.Compose([v2.Resize(size), *steps, v2.Normalize(mean, std)])
    policies = v2.AutoAugmentPolicy
    policy = policies.CIFAR10 if data == "cifar100" else policies.IMAGENET
    train = v2.Compose(
        [
            v2.AutoAugment(policy),
            v2.Resize(size),
            v2.RandomCrop(size, padding=4),
            v2.RandomHorizontalFlip(),
            final,
        ]
    )
    return {"train_transform": train, "eval_transform": final}


def run(
    setting: Setting, config: Config, method: str, out_dir: Path, released: bool
) -> dict[str, dict[str, float]]:
    """Run one method; return figures in percent by the name of their row."""
    if setting.kind == "odcl":
        rows = mtil.run(replace(config, method=method, order=setting.data), out_dir)
        names = ("transfer", "average", "last")
        lines = {name: summary_line(row["matrix"]) for name, row in rows.items()}
        return {
            row: {name: line[name] for name in names} for row, line in lines.items()
        }
    from avalanche_clip.benchmarks import prepare_benchmark, split_online

    scenario = build_scenario(setting, config)  # what is missing is told first
    torch.manual_seed(config.seed)
    model = mtil.build_model(config)
    shared = {
        "model": model,
        "eval_label_space": "all" if setting.kind == "conditions" else "seen",
        "eval_mb_size": config.eval_mb_size,
        "device": config.device,
        "seed": config.seed,
        **quiet(),
    }
    trained = {"repeats": 3, "train_mb_size": BATCH}
    if released:
        trained |= {"double_softmax": True, "reset_optimizer": True}
        trained |= {"lora_init": "xavier"} if "lora" in method else {}
    strategy = build_strategy(method, RATE, shared, **trained)
    if setting.kind == "classes":
        scenario = with_tests(scenario, "all")
    if setting.kind == "si-blurry" or method != STILL:
        scenario = split_online(scenario, BATCH)
    changed = {} if method == STILL else transforms(setting.data, model, released)
    benchmark = prepare_benchmark(scenario, model, **changed)
    more = {"num_workers": config.num_workers, "method": method}
    if setting.kind == "si-blurry":
        final = (ZERO_SHOT,)
        return {
            method: run_online(
                strategy, benchmark, out_dir, PERIOD, final=final, **more
            )
        }
    return {method: _run_steps(strategy, benchmark, out_dir, more)}


def _run_steps(
    strategy: Any, benchmark: Any, out_dir: Path, options: dict[str, Any]
) -> dict[str, float]:
    """Run a stream of steps; return mean and last accuracy after the steps."""

    streams = [name for name in ("test", "test_all") if name in benchmark.streams]
    result = run_stream(
        strategy,
        benchmark,
        out_dir,
        streams=streams,
        evaluate_at={"task_ends": True},
        resume=True,
        shuffle=False,
        **options,
    )
    found = {}
    for name in streams:
        label = "all " if name == "test_all" else ""
        summary = result.summary[name][ACCURACY]
        own = {
            f"{label}{k}": summary.get(f"incremental_{k}") for k in ("average", "last")
        }
        if None in own.values():  # one test set, the same after all steps
            rows = result.matrix(ACCURACY, name)[:, 0]
            own = {"average": float(np.mean(rows)), "last": float(rows[-1])}
        found.update({key: 100 * value for key, value in own.items()})
    return found


def table(setting: Setting, lines: Lines, out: Path, facts: Mapping[str, Any]) -> str:
    """Write figures of a setting; return them with those of its paper."""
    quoted = ", ".join(f"{key} {value:.2f}" for key, value in setting.quoted.items())
    said = f"{quoted} ({setting.source})" if quoted else "no figures that we know of"
    return write_figures(lines, out, facts, f"published: {said}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run settings x methods x seeds, and write a table for each setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "settings",
        nargs="+",
        metavar="SETTING",
        choices=SETTINGS,
        help=f"of {', '.join(SETTINGS)}",
    )
    parser.add_argument("--root", required=True, help="folder of the data sets")
    parser.add_argument("--methods", help="default those of the papers")
    parser.add_argument("--seeds", type=seed_list, help="default the published ones")
    parser.add_argument("--out", default="runs/published", help="folder of the runs")
    parser.add_argument("--device", type=device_name, default="cpu")
    parser.add_argument("--as-released", action="store_true", help="SIT as in its code")
    options = parser.parse_args(argv)
    given = options.methods.split(",") if options.methods else None
    for name in options.settings:
        known = methods_of(SETTINGS[name])
        if unknown := [m for m in given or () if m not in known]:
            parser.error(f"{name} has no method {unknown[0]}; use {', '.join(known)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", message="No loggers specified")
    config = Config(root=options.root, device=options.device)
    try:
        with refusals(parser):
            for name in options.settings:
                print("\n" + _run_setting(name, config, given, options))
    except FileNotFoundError as error:
        parser.error(str(error))


def _run_setting(
    name: str, config: Config, given: list[str] | None, options: argparse.Namespace
) -> str:
    setting, released = SETTINGS[name], options.as_released
    methods = given or default_methods(setting)
    if released and not any(m.startswith(("sit", "ait")) for m in methods):
        raise ValueError(f"--as-released is of SIT, which {name} is not run with")
    seeds = options.seeds or SEEDS.get(setting.kind, [1])
    out = Path(options.out) / (f"{name}_as_released" if released else name)

    def one(method: str, seed: int, folder: Path) -> dict[str, dict[str, float]]:
        return run(setting, replace(config, seed=seed), method, folder, released)

    lines, _ = all_runs(methods, seeds, one, out)
    facts = {"setting": name, "seeds": seeds, "as_released": released}
    facts |= {"model": config.model, "pretrained": config.pretrained}
    return table(setting, lines, out, facts)


if __name__ == "__main__":
    main()
