"""The three streams of the leaderboard, and how one method is trained on one of them.

Streams, models and tests are those of the studies; here they get one base, one length
and one set of drawings kept out of training, whatever the method.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import alignment
import languages_emoji
import multi_domain_emoji
import numpy as np
import torch
from domain_study import ACCURACY, accuracies, constant_matrix
from icon_classes import with_icons
from language_study import IMAGE_TO_TEXT, seen_only
from leaderboard_rows import Row

from avalanche_clip.benchmarks import (
    make_experience,
    make_scenario,
    prepare_benchmark,
)
from avalanche_clip.training import MethodPlugin, run_stream

RECALL = "mean_R@1"
ICONS = "icons"
PLUGINS = "avalanche_clip.training.plugins"


@dataclass(frozen=True)
class Config:
    """What all methods share; ``dict`` fields hold a value per stream.

    ``iterations`` are updates per step of the stream, of ``train_mb_size`` each.
    ``lr`` is that of methods which say no other.
    """

    model: str = "tiny-emoji-vit"
    pretrained: str = "icons"
    iterations: dict[str, int] = field(
        default_factory=lambda: {"time": 40, "domain": 24, "language": 40}
    )
    lr: dict[str, float] = field(
        default_factory=lambda: {"time": 3e-4, "domain": 1e-3, "language": 2e-3}
    )
    train_mb_size: int = 64
    languages: int = 6
    selector_iterations: int = 200


class Watch(MethodPlugin):
    """Counts updates, and the numbers that train in the largest step."""

    stateless = True

    def __init__(self, found: dict[str, int]):
        super().__init__()
        self.found = found

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        """Count what trains, after the model has grown and plugins have frozen."""
        sizes = [p.numel() for p in strategy.model.parameters() if p.requires_grad]
        self.found["trainable"] = max(self.found["trainable"], sum(sizes))

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """Count the update."""
        self.found["updates"] += 1


# ------------------------------------------------------------------- the streams
class World:
    """A stream, the model that learns it, and the plain way of training on it.

    :param stream: ``"time"``, ``"domain"`` or ``"language"``.
    :param folder: for stored features.
    :param joint: merge all steps into one, with the updates of all.
    """

    metric = RECALL
    names = IMAGE_TO_TEXT
    """Metric of pictures told apart by names."""

    def __init__(
        self, config: Config, stream: str, seed: int, folder: Path, joint: bool = False
    ):
        from avalanche_clip.models import create_dual_encoder

        self.config, self.seed, self.folder = config, seed, folder
        self.model = create_dual_encoder(config.model, config.pretrained)
        benchmark = self.build()
        self.merged = len(benchmark.train_stream) if joint else 1
        if joint:
            from avalanche_clip.benchmarks import merge_experiences

            benchmark = merge_experiences(benchmark.train_stream).benchmark
        self.iterations = config.iterations[stream] * self.merged
        self.lr = config.lr[stream]
        self.benchmark = benchmark

    def build(self) -> Any:
        """Return the stream, with ``valid`` kept out of training, and ``icons``."""
        raise NotImplementedError

    def plain(self) -> type:
        """Return the strategy that trains without a method."""
        raise NotImplementedError

    def options(self, lr: float) -> dict[str, Any]:
        """Arguments of strategies on this stream beside those all have."""
        raise NotImplementedError

    def figures(self, E: np.ndarray) -> dict[str, float]:
        """The score and what it is made of, in percent.

        :param E: ``(T, T)`` in [0, 1].
        """
        raise NotImplementedError

    # ------------------------------------------------------------ the method
    def strategy(self, row: Row, watch: Watch) -> Any:
        """Build the strategy of a method."""
        from avalanche.evaluation.metrics import accuracy_metrics
        from avalanche.training.plugins import EvaluationPlugin

        from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics

        settings = dict(row.settings)
        metrics = retrieval_plugin_metrics()
        if self.metric == ACCURACY:
            metrics = accuracy_metrics(experience=True)
        cls = find(row.strategy, __name__) if row.strategy else self.plain()
        return cls(
            **{
                "model": self.model,
                "train_mb_size": self.config.train_mb_size,
                "eval_mb_size": 256,
                "budget_iterations": self.iterations,
                "seed": self.seed,
                "evaluator": EvaluationPlugin(metrics),
                **self.options(float(settings.pop("lr", self.lr))),
                **settings,
                "plugins": [*self.plugins(row), watch],
            }
        )

    def plugins(self, row: Row) -> list[Any]:
        """Build the plugins of a method."""
        return [
            find(name, PLUGINS)(**{k: self._given(v) for k, v in given.items()})
            for name, given in row.plugins.items()
        ]

    def _given(self, value: Any) -> Any:
        named: dict[str, Callable[[], Any]] = {
            "@images": lambda: _known()[0],
            "@texts": lambda: _known()[1],
            "@selector": self._selector,
            "@factors": self._factors,
        }
        if isinstance(value, str) and value.startswith("@"):
            return named[value]()
        return value

    def _selector(self) -> Any:
        config = replace(
            multi_domain_emoji.Config(),
            model=self.config.model,
            pretrained=self.config.pretrained,
            selector_iterations=self.config.selector_iterations,
            seed=self.seed,
        )
        return multi_domain_emoji.build_selector(config)

    def _factors(self) -> list[float]:
        """The budgets that TiC-CLIP used, for as many steps as there are."""
        from avalanche_clip.training.methods.restart import L_SCALE_FACTORS as known

        steps = len(self.benchmark.train_stream)
        places = np.linspace(0, len(known) - 1, steps)
        return np.interp(places, np.arange(len(known)), known).tolist()


class TimeWorld(World):
    """Later emoji as they were released, by their captions."""

    def build(self) -> Any:
        """Return the five later time steps, and all held-out icons."""
        from avalanche_clip.benchmarks import held_out_icons

        config = replace(alignment.Config(), validation=True)
        stream = alignment.build_benchmark(config, "time", self.model)
        shown = make_experience(held_out_icons(), time_label=ICONS)
        icons = prepare_benchmark(make_scenario({ICONS: [shown]}), self.model)
        return make_scenario({**stream.streams, **icons.streams}, stream)

    def plain(self) -> type:
        """Return warm-start training."""
        from avalanche_clip.training import Sequential

        return Sequential

    def options(self, lr: float) -> dict[str, Any]:
        """AdamW as in the study of alignment."""
        optimizer = partial(
            torch.optim.AdamW,
            lr=lr,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.2,
            fused=True,
        )
        return {"optimizer": optimizer, "positives": "targets"}

    def figures(self, E: np.ndarray) -> dict[str, float]:
        """Levels of recall; the score is the mean of in-domain and backward."""
        from avalanche_clip.evaluation.functional import time_transfer

        levels = {k: 100 * float(v) for k, v in time_transfer(E).items()}
        return {"score": (levels["in_domain"] + levels["backward"]) / 2, **levels}


class DomainWorld(World):
    """Later emoji group by group, their names as classes."""

    metric = names = ACCURACY

    def build(self) -> Any:
        """Return the nine groups, and the icons as a domain behind them."""
        from avalanche_clip.benchmarks import multi_domain_emoji as groups

        stream = with_icons(groups(validation=True, seed=self.seed))
        return prepare_benchmark(stream, self.model)

    def plain(self) -> type:
        """Return fine-tuning on class names."""
        from avalanche_clip.training.supervised import ClassNameFineTuning

        return ClassNameFineTuning

    def options(self, lr: float) -> dict[str, Any]:
        """MTIL's optimisation with a warm-up over a quarter of each step."""
        return {"lr": lr, "warmup_iterations": self.iterations // 4}

    def figures(self, E: np.ndarray) -> dict[str, float]:
        """The figures of MTIL; the score is the mean of Average and Last."""
        from avalanche_clip.evaluation.functional import transfer_average_last

        found = {k: 100 * float(v) for k, v in transfer_average_last(E).items()}
        return {"score": (found["average"] + found["last"]) / 2, **found}


class LanguageWorld(World):
    """Emoji of 2010, named in one language after the other."""

    def build(self) -> Any:
        """Return the first languages of CLL-CLIP's order, with stored features."""
        config = replace(
            languages_emoji.Config(), languages=self.config.languages, validation=True
        )
        return languages_emoji.build_benchmark(
            config, self.model, self.folder / "teacher_features"
        )

    def plain(self) -> type:
        """Return CLL-CLIP, tested on languages learned so far."""
        return seen_only(self.benchmark)

    def options(self, lr: float) -> dict[str, Any]:
        """The study's, without TEIR: new rows are drawn, and all rows may change."""
        per_language = self.config.iterations["language"]
        study = replace(languages_emoji.Config(), iterations=per_language, lr=lr)
        return {
            **languages_emoji.variant("cll-clip"),
            "optimizer": partial(torch.optim.AdamW, lr=lr, eps=1e-6, fused=True),
            "vocab_size": study.vocab_size * self.merged,
            "length_groups": study.length_groups,
            "weight_decay": languages_emoji.weight_decay(study, "cll-clip"),
            "warmup_fraction": languages_emoji.WARMUP,
        }

    def figures(self, E: np.ndarray) -> dict[str, float]:
        """Average recall, which is the score, and forgetting."""
        from avalanche_clip.evaluation.functional import recall_forgetting

        found = {k: 100 * float(v) for k, v in recall_forgetting(E).items()}
        return {"score": found["average_recall"], **found}


WORLDS = {"time": TimeWorld, "domain": DomainWorld, "language": LanguageWorld}


def _known() -> tuple[Any, list[str]]:
    """Drawings and names of the emoji of 2010, as reference."""
    from avalanche_clip.benchmarks import emoji_dataset
    from avalanche_clip.benchmarks.datasets import load_emoji_table

    table = load_emoji_table()
    rows = np.flatnonzero(table.step == 0)
    return emoji_dataset(("noto", "openmoji"), rows), [table.names[k] for k in rows]


def find(name: str, home: str) -> Any:
    """The class of a name, or of ``"module:Class"``."""
    module, _, attribute = name.rpartition(":")
    return getattr(import_module(module or home), attribute)


# -------------------------------------------------------------------- one cell
def measure(
    config: Config, stream: str, row: Row, seed: int, folder: Path, *, validation: bool
) -> dict[str, Any]:
    """Train one method on one stream.

    :param folder: of the run.
    :param validation: test on stream ``valid`` instead of the unseen style.
    :return: ``figures`` in percent and ``cost``; or the ``reason`` why the method
        has none here, in the words of its refusal or of a training that diverged.
    """
    torch.manual_seed(seed)
    tested = "valid" if validation else "test"
    world = WORLDS[stream](config, stream, seed, folder, row.joint)
    found = {"trainable": 0, "updates": 0}
    try:
        strategy = world.strategy(row, Watch(found))
        begin = time.process_time()
        macs, E = 0.0, None
        if row.trained:
            result = run_stream(
                strategy,
                world.benchmark,
                folder / "run",
                streams=(tested,),
                checkpoint_iterations=None,
                method=row.name,
            )
            macs, E = result.compute["total_macs"], result.matrix(world.metric, tested)
    # what this package refuses, or cannot go on with, and why
    except (ValueError, FloatingPointError) as error:
        moment = f"after {found['updates']} updates: " if found["updates"] else ""
        return {"reason": moment + " ".join(str(error).split())}
    if E is None:
        values = accuracies(
            strategy, world.benchmark.streams[tested], tested, world.metric
        )
        E = constant_matrix(values)
    seconds = time.process_time() - begin
    icons = accuracies(strategy, world.benchmark.streams[ICONS], ICONS, world.names)
    return {
        "figures": {**world.figures(_square(E)), "zero_shot": 100 * icons[0]},
        "cost": {
            "macs": float(macs),
            "seconds": seconds,
            "memory": peak_memory(),
            "trainable": found["trainable"],
        },
    }


def _square(E: np.ndarray) -> np.ndarray:
    """What a single training on all steps has: one model, whichever step it is."""
    return E if len(E) > 1 else constant_matrix(E[0])


def peak_memory() -> float:
    """The most memory that this process has had so far, in MiB.

    On Linux that of this program: ``getrusage`` goes on from the one that started it.
    """
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.is_file() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
