"""MTIL: eleven image data sets in sequence, with the published configurations.

Commands (from the repository root):

    python experiments/mtil.py --root data --device cuda
    python experiments/mtil.py --root data --methods moe-adapters --shots 5
    python experiments/mtil.py --root data --order II --alexnet alexnet.pth
    python experiments/mtil.py --root data --views image,batch --methods moe-adapters
    python experiments/mtil.py --root data --methods coleclip --order II

``--root`` holds the folders of all data sets (the module
avalanche_clip.benchmarks.datasets.mtil.readers lists them). Two methods need
more, below the root or where ``--reference`` and ``--captions`` say:

    tiny-imagenet-200/train/   images for MoE-Adapters' selector
    imagenet/train/            images for ZSCL
    captions.txt               sentences for ZSCL, one per line (the validation
                               captions of Conceptual Captions in the paper)

ViT-B/16 with OpenAI's weights, which open_clip fetches. The selector reads the
model's own early features; the paper's AlexNet takes its place with ``--alexnet``
(torchvision's state dictionary). A killed command, given again, goes on where it
stopped.

``--views`` tests MoE-Adapters with several choices of routers: ``image`` chooses for
each image, ``batch`` for each batch (as the authors do), ``newest`` always takes the
newest, and ``calibrated`` is ``image`` with a threshold from held-out training images,
on which no method is trained then. Runs with other views have a folder of their own.

CoLeCLIP is trained as its authors do (open-domain continual learning, all images), and
also tested without the identity of the data set (``open``): one that was learned among
the classes of all learned so far, one that was not among its own.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from command_line import device_name, run_stream, seed_list
from domain_study import (
    ACCURACY,
    all_runs,
    constant_matrix,
    once,
    parameter_counts,
    spread_table,
    summary_line,
    with_tests,
    write_routing,
    write_study,
)
from router_views import RouterView, RouterViewsPlugin, copy_test_stream

METHODS = ("zero-shot", "fine-tuning", "zscl", "moe-adapters", "coleclip")
REFERENCE = {"moe-adapters": "tiny-imagenet-200/train", "zscl": "imagenet/train"}
VIEWS = {
    "image": ("test", RouterView()),
    "batch": ("test_batch", RouterView(granularity="batch", label=" per batch")),
    "newest": ("test_newest", RouterView(rule="last", label=" no-ddas")),
    "calibrated": ("test_calibrated", RouterView(calibrated=True, label=" calibrated")),
}
"""Choices of routers: the tested copy of the test stream, and what is chosen there."""
OPEN = ("test_open", RouterView(label=" open"))
HELD_OUT = "held_out"
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
FAST_DOMAINS = ("Aircraft", "MNIST")
"""Data sets with five times ZSCL's learning rate."""


@dataclass(frozen=True)
class Config:
    """Settings of a run; variants use ``dataclasses.replace``.

    ``iterations`` counts the published ones: one more update follows at
    learning rate zero. ``shots`` None is the full setting. ``views`` are keys of
    ``VIEWS``; for ``"calibrated"`` the share ``held_out`` of the training images of
    each data set is kept back.
    """

    root: str
    method: str = "moe-adapters"
    order: str = "I"
    shots: int | None = None
    model: str = "ViT-B-16-quickgelu"
    pretrained: str = "openai"
    iterations: int = 1000
    warmup: int = 100
    train_mb_size: int = 64
    eval_mb_size: int = 128
    label_smoothing: float = 0.2
    num_experts: int = 22
    top_k: int = 2
    bottleneck: int = 64
    averaging_interval: int = 100
    reference: str | None = None
    captions: str | None = None
    alexnet: str | None = None
    views: tuple[str, ...] = ("image",)
    held_out: float = 0.1
    num_workers: int = 4
    device: str = "cpu"
    seed: int = 42


def published(config: Config) -> Config:
    """The paper's values that depend on the setting: 500 iterations for few shots."""
    return replace(config, iterations=1000 if config.shots is None else 500)


def learning_rates(config: Config, names: Sequence[str]) -> list[float]:
    """Published learning rates in the order of the stream.

    For MoE-Adapters they are published for Order I; other orders use those of the
    same data sets (our choice).

    :param names: data sets in the order of the stream.
    """
    from avalanche_clip.benchmarks.datasets.mtil import MTIL_NAMES
    from avalanche_clip.training.supervised import MTIL_RATES

    if config.method != "moe-adapters":
        return [5e-5 if name in FAST_DOMAINS else 1e-5 for name in names]
    kind = "full" if config.shots is None else "few-shot"
    rates = dict(zip(MTIL_NAMES, MTIL_RATES[kind], strict=True))
    return [rates.get(name, 1e-3) for name in names]


class ImageFiles(torch.utils.data.Dataset):
    """All images below a folder, sorted by path.

    :raises FileNotFoundError: if there is none.
    """

    def __init__(self, folder: str | Path):
        self.files = sorted(
            p for p in Path(folder).rglob("*") if p.suffix.lower() in SUFFIXES
        )
        if not self.files:
            raise FileNotFoundError(
                f"There are no images below {folder}; give their folder with "
                "--reference."
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Any:
        from avalanche_clip.common.pictures import read_picture

        return read_picture(self.files[index])


def reference_images(config: Config) -> ImageFiles:
    """Images that the method takes for everything else."""
    place = config.reference or Path(config.root) / REFERENCE[config.method]
    return ImageFiles(place)


def reference_texts(config: Config) -> list[str]:
    """Sentences of ZSCL."""
    path = Path(config.captions or Path(config.root) / "captions.txt")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: ZSCL needs sentences, one per line; give the file "
            "with --captions."
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    return [text for text in map(str.strip, lines) if text]


def build_model(config: Config) -> Any:
    """Return the pretrained model."""
    from avalanche_clip.models import create_dual_encoder

    return create_dual_encoder(config.model, config.pretrained, device=config.device)


def build_scenario(config: Config) -> Any:
    """Return MTIL, not yet prepared for a model.

    :raises FileNotFoundError: listing the folders that are expected.
    """
    from avalanche_clip.benchmarks.classic import mtil
    from avalanche_clip.benchmarks.datasets.mtil import DATASETS, MTIL_NAMES

    try:
        return mtil(
            config.root, order=config.order, shots=config.shots, seed=config.seed
        )
    except FileNotFoundError as error:
        layouts = [f"  {name}: {DATASETS[name].layout}" for name in MTIL_NAMES]
        raise FileNotFoundError(
            f"{error}\nMTIL needs all of these below {config.root}:\n"
            + "\n".join(layouts)
        ) from error


def build_selector(config: Config) -> Any:
    """The selector with the published training; AlexNet if its weights are given."""
    from avalanche_clip.models.selector.selector import AutoSelector
    from avalanche_clip.models.selector.training import SelectorTraining

    if config.alexnet is None:
        return AutoSelector("model", seed=config.seed)
    few = config.shots is not None
    return AutoSelector(
        "alexnet",
        weights=config.alexnet,
        threshold=0.06 if few else 0.065,
        # the published few-shot rate never decays: it counts epochs of the full data
        training=SelectorTraining(lr=0.003, decay_epochs=None)
        if few
        else SelectorTraining(lr=0.01),
        seed=config.seed,
    )


def reference_data(config: Config) -> dict[str, Any]:
    """Arguments of the method's strategy that come from files."""
    found: dict[str, Any] = {}
    if config.method in REFERENCE:
        found["reference_images"] = reference_images(config)
    if config.method == "zscl":
        found["reference_texts"] = reference_texts(config)
    return found


def build_strategy(
    config: Config, model: Any, names: Sequence[str], reference: dict[str, Any]
) -> Any:
    """Return the strategy of the configured method."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin

    from avalanche_clip.training.supervised import (
        COLECLIP_EPOCHS,
        ClassNameFineTuning,
        ClassNameZSCL,
        CoLeCLIP,
        MoEAdapters,
    )

    options: dict[str, Any] = {
        "model": model,
        "eval_mb_size": config.eval_mb_size,
        "device": config.device,
        "seed": config.seed,
        "plugins": [],
        "evaluator": EvaluationPlugin(accuracy_metrics(experience=True)),
    }
    if config.method == "coleclip":
        epochs = [COLECLIP_EPOCHS[name] for name in names]
        return CoLeCLIP(train_epochs=epochs, eval_label_space="own", **options)
    options |= {
        "lr": learning_rates(config, names),
        "budget_iterations": config.iterations + 1,
        "warmup_iterations": config.warmup,
        "train_mb_size": config.train_mb_size,
        "label_smoothing": config.label_smoothing,
    }
    if config.method == "moe-adapters":
        options["plugins"].append(RouterViewsPlugin(dict(VIEWS.values())))
        calibration = HELD_OUT if "calibrated" in config.views else None
        return MoEAdapters(
            selector=build_selector(config),
            plugin_options={"calibration": calibration},
            num_experts=config.num_experts,
            top_k=config.top_k,
            bottleneck=config.bottleneck,
            **reference,
            **options,
        )
    if config.method == "zscl":
        interval = config.averaging_interval
        return ClassNameZSCL(averaging_interval=interval, **reference, **options)
    return ClassNameFineTuning(**options)


def build_benchmark(config: Config, scenario: Any, model: Any) -> Any:
    """Return the stream for the model, with what the views of the method need."""
    from avalanche_clip.benchmarks import prepare_benchmark, split_validation

    if "calibrated" in config.views:
        scenario = split_validation(
            scenario, config.held_out, seed=config.seed, valid_name=HELD_OUT
        )
    names = [VIEWS[view][0] for view in config.views]
    if config.method == "coleclip":
        scenario = with_tests(scenario, "open")
    return prepare_benchmark(copy_test_stream(scenario, names), model)


def run(config: Config, out_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Run one method.

    :return: rows of the table by name, one per view with MoE-Adapters, with and without
        the identity of the data set with CoLeCLIP: ``matrix`` in the order of the
        stream, ``labels``, ``trainable``, ``routing`` and the ``thresholds`` of the
        selector, both None for other methods.
    """

    scenario = build_scenario(config)  # what is missing is told before the model loads
    reference = reference_data(config)
    torch.manual_seed(config.seed)
    model = build_model(config)
    benchmark = build_benchmark(config, scenario, model)
    labels = [experience.label for experience in benchmark.test_stream]
    strategy = build_strategy(config, model, labels, reference)
    found: dict[str, Any] = {
        "labels": labels,
        "trainable": parameter_counts(strategy)["trainable"],
        "routing": None,
        "thresholds": None,
    }
    if config.method == "zero-shot":
        settings = {**asdict(config), "device": None, "base": model.state_fingerprint()}
        row = once(strategy, benchmark, ("test",), out_dir, settings)["test"]
        return {"zero-shot": {**found, "trainable": 0, "matrix": constant_matrix(row)}}
    adapters = config.method == "moe-adapters"
    views = [VIEWS[v] for v in config.views] if adapters else [VIEWS["image"]]
    more = {}
    if config.method == "coleclip":
        views.append(OPEN)
        more["drop_last"] = False  # its epochs have the small last batch, too
    result = run_stream(
        strategy,
        benchmark,
        out_dir,
        streams=tuple(stream for stream, _ in views),
        resume=True,
        method=config.method,
        num_workers=config.num_workers,
        **more,
    )
    if adapters:
        write_routing(strategy.moe.routing, out_dir)
        found["thresholds"] = thresholds(strategy.moe.auto_selector, labels)
    rows = {}
    for stream, view in views:
        routing = strategy.moe.routing[stream] if adapters else None
        matrix = result.matrix(ACCURACY, stream)
        rows[config.method + view.label] = {
            **found,
            "matrix": matrix,
            "routing": routing,
        }
    return rows


def thresholds(selector: Any, labels: Sequence[str]) -> str:
    """Say which reconstruction error still is familiar: given, and calibrated."""
    lines = [f"thresholds of the selector: given {selector.given_threshold:.4g}"]
    known = selector.calibrated[~selector.calibrated.isnan()]
    if len(known):
        each = zip(labels, selector.calibrated.tolist(), strict=False)
        found = ", ".join(f"{label} {value:.4g}" for label, value in each)
        lines.append(f"calibrated {known.max():.4g}, the largest of: {found}")
    return "\n".join(lines)


def write_tables(runs: dict[str, list[dict[str, Any]]], out: Path) -> str:
    """Write tables and plots over methods; return the text."""
    lines = {
        method: [
            {**summary_line(found["matrix"]), "trainable": found["trainable"]}
            for found in rows
        ]
        for method, rows in runs.items()
    }
    rows = [found for rows in runs.values() for found in rows]
    said = [found["thresholds"] for found in rows if found["thresholds"] is not None]
    return write_study([spread_table(lines), *dict.fromkeys(said)], runs, lines, out)


def main(argv: Sequence[str] | None = None) -> None:
    """Run methods x seeds, then write tables and plots over methods."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", required=True, help="folder of all data sets")
    parser.add_argument("--methods", help=f"default {','.join(METHODS)}")
    parser.add_argument("--order", choices=("I", "II"), default="I")
    parser.add_argument("--shots", type=int, help="images per class; default all")
    parser.add_argument(
        "--seeds", type=seed_list, default="42", help="comma-separated numbers"
    )
    parser.add_argument("--out", help="folder of the runs")
    parser.add_argument("--device", type=device_name, default="cpu")
    parser.add_argument("--reference", help="folder of reference images")
    parser.add_argument("--captions", help="file of ZSCL's sentences")
    parser.add_argument("--alexnet", help="torchvision's AlexNet weights")
    parser.add_argument(
        "--views",
        default="image",
        help=f"choices of routers in tests of MoE-Adapters, of {', '.join(VIEWS)}",
    )
    options = parser.parse_args(argv)
    few = [m for m in METHODS if m != "coleclip" or options.shots is None]
    methods = list(dict.fromkeys((options.methods or ",".join(few)).split(",")))
    unknown = sorted(set(methods) - set(METHODS))
    if unknown:
        parser.error(f"unknown method {', '.join(unknown)}; use {', '.join(METHODS)}")
    if "coleclip" in methods and options.shots is not None:
        parser.error("coleclip has published epochs for all images; leave out --shots")
    views = tuple(dict.fromkeys(options.views.split(",")))
    unknown = sorted(set(views) - set(VIEWS))
    if unknown:
        parser.error(f"unknown view {', '.join(unknown)}; use {', '.join(VIEWS)}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    warnings.filterwarnings("ignore", message="No loggers specified")
    shots = "full" if options.shots is None else f"{options.shots}_shot"
    kind = "" if options.views == "image" else "_" + "_".join(views)
    out = Path(options.out or f"runs/mtil_{options.order}_{shots}{kind}")
    base = Config(
        root=options.root,
        order=options.order,
        shots=options.shots,
        reference=options.reference,
        captions=options.captions,
        alexnet=options.alexnet,
        views=views,
        device=options.device,
    )

    def one(method: str, seed: int, folder: Path) -> dict[str, dict[str, Any]]:
        return run(published(replace(base, method=method, seed=seed)), folder)

    try:
        runs, _ = all_runs(methods, options.seeds, one, out)
    except FileNotFoundError as error:
        parser.error(str(error))
    print("\n" + write_tables(runs, out))


if __name__ == "__main__":
    main()
