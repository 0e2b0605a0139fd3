"""Alignment: which methods keep the image and the text space together.

Commands (from the repository root):

    python experiments/alignment.py --methods sequential,mod-x
    python experiments/alignment.py --seeds 0,1,2
    python experiments/alignment.py --stream domains --seeds 0,1,2
    python experiments/alignment.py --preset quick --methods sequential,mod-x

A tiny CLIP that knows the emoji of 2010 (``emoji-2010`` weights) learns the five
later time steps (``--stream time``), or two domains of the later emoji one after
the other (``--stream domains``). Tests are drawings in a style never trained on:
of the steps of the stream, and of 2010. The measures of spatial disorder are
taken on all 1,911 test pairs before the stream and after every step. A killed
command, given again, goes on where it stopped.
"""

from __future__ import annotations

import argparse
import csv
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

STREAMS = ("test", "base", "gallery")
DISORDER = ("imd_mean", "image_rotation_mean", "text_rotation_mean")
# Emoji groups of the first domain: living things. The second has the others.
LIVING = ("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink")


@dataclass(frozen=True)
class Config:
    """Settings of a run; variants use ``dataclasses.replace``.

    ``alpha`` weighs the alignment loss, a sum over the rows of a batch of 128.
    ``buffer_size`` counts drawings: 150 emoji in two styles.
    """

    model: str = "tiny-emoji"
    iterations: int = 60
    train_mb_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.1
    alpha: float = 20.0
    row_filter: str = "correct"
    lwf_weight: float = 1.0
    vr_weight: float = 1.0
    zscl_weight: float = 1.0
    wc_weight: float = 1.0
    we_interval: int = 10
    buffer_size: int = 300
    probe_pairs: int = 1911
    device: str = "cpu"
    seed: int = 0


QUICK = Config(iterations=20, probe_pairs=300)


def build_plugins(config: Config, method: str, benchmark: Any, model: Any) -> list[Any]:
    """Return the plugins of a method; parts are joined by ``+``."""
    parts: dict[str, Callable[[], list[Any]]] = {
        "sequential": list,
        "mod-x": lambda: [_mod_x(config)],
        "lwf": lambda: [_lwf(config)],
        "vr-lwf": lambda: [_vr_lwf(config)],
        "zscl": lambda: _zscl(config, benchmark, model),
        "replay": lambda: [_replay(config)],
    }
    plugins = []
    for part in method.split("+"):
        plugins += parts[part]()
    return plugins


def _mod_x(config: Config) -> Any:
    from avalanche_clip.training.plugins import OffDiagonalAlignmentPlugin

    return OffDiagonalAlignmentPlugin(config.alpha, row_filter=config.row_filter)


def _lwf(config: Config) -> Any:
    from avalanche_clip.training.plugins import ContrastiveLwFPlugin

    # TiC's LwF never teaches the first experience; the base model does here.
    return ContrastiveLwFPlugin(config.lwf_weight)


def _vr_lwf(config: Config) -> Any:
    from avalanche_clip.training.plugins import VocabularyReplayPlugin

    return VocabularyReplayPlugin(
        image_weight=config.vr_weight, text_weight=config.vr_weight
    )


def _replay(config: Config) -> Any:
    from avalanche_clip.training.plugins import BudgetedReplayPlugin

    return BudgetedReplayPlugin("exp", config.buffer_size)


def _zscl(config: Config, benchmark: Any, model: Any) -> list[Any]:
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
            image_weight=config.zscl_weight,
            text_weight=config.zscl_weight,
        ),
        WeightConsolidationPlugin(config.wc_weight),
        WeightAveragingPlugin("we", interval=config.we_interval),
    ]


def build_benchmark(stream: str, model: Any) -> Any:
    """Return a stream of later emoji, prepared for the model."""
    from avalanche_clip.benchmarks import prepare_benchmark, tic_emoji

    scenario = tic_emoji(first_step=1) if stream == "time" else two_domains()
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
    from avalanche_clip.benchmarks.prepare import attach_scenario

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
    scenario = attach_scenario(
        [*domains.streams.values(), others["base"], others["gallery"]]
    )
    scenario.time_labels = domains.time_labels
    return scenario


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
    benchmark = build_benchmark(stream, model)
    probe = benchmark.streams["gallery"][0].dataset
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
            *build_plugins(config, method, benchmark, model),
        ],
        evaluator=EvaluationPlugin(
            retrieval_plugin_metrics(),
            loss_term_metrics(),
            spatial_disorder_metrics(probe, max_pairs=config.probe_pairs),
        ),
    )
    return run_stream(strategy, benchmark, out_dir, streams=STREAMS, resume=True)
