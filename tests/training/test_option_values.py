"""NaN, infinity, flags and zero as options: refused in words, never taken for 1."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import RandomCaption, split_online, split_validation
from avalanche_clip.benchmarks.items.class_labels import few_shot_indices
from avalanche_clip.benchmarks.streams.quotas import replay_quotas
from avalanche_clip.budget import ComputeBudget
from avalanche_clip.evaluation.functional import retrieval_metrics
from avalanche_clip.evaluation.metrics import RetrievalMetric
from avalanche_clip.losses import temperature_distillation_loss
from avalanche_clip.training import Sequential, run_stream
from avalanche_clip.training.plugins import (
    BudgetedReplayPlugin,
    BudgetFactorPlugin,
    CheckpointPlugin,
    ConstantCosinePlugin,
    ContrastiveEWCPlugin,
    ContrastiveLwFPlugin,
    MoEAdaptersPlugin,
    OffDiagonalAlignmentPlugin,
    OnlineEWCPlugin,
    PatchingPlugin,
    ReservoirReplayPlugin,
    TokenEmbeddingExpansionPlugin,
    VocabularyReplayPlugin,
    WeightAveragingPlugin,
    WeightConsolidationPlugin,
)
from avalanche_clip.training.templates.class_matrix import ClassMatrices
from avalanche_clip.training.templates.order import worker_options
from tests.benchmarks.small_streams import counted_benchmark
from tests.helpers import build, quiet_evaluator, stub_benchmark, stub_model

ONE = torch.ones(1, 1)
scores = partial(retrieval_metrics, ONE, ONE)
WRONG = {
    "numbers": (math.nan, math.inf, -1.0, True, "1", np.float32("nan")),
    "sizes": (0, -1, True, 1.5, math.nan, "2", np.True_),
    "counts": (-1, True, False, 1.5, math.nan),
}
"""Kind of an option -> values that it may not have; a count may be 0."""


def cases(call, numbers="", sizes="", counts="", **fixed):
    """A call with wrong values of some options, one after the other."""
    kinds = {"numbers": numbers, "sizes": sizes, "counts": counts}
    return [
        (call, {**fixed, name: value}, name)
        for kind, names in kinds.items()
        for name in names.split()
        for value in WRONG[kind]
    ]


CASES = [
    *cases(BudgetedReplayPlugin, counts="buffer_size", kind="exp"),
    *cases(ReservoirReplayPlugin, "weight", "buffer_size"),
    *cases(CheckpointPlugin, "every_seconds", "every_iterations keep", folder="x"),
    (CheckpointPlugin, {"folder": "x", "every_seconds": 0}, "every_seconds"),
    *cases(ConstantCosinePlugin, "decay_fraction"),
    *cases(ContrastiveLwFPlugin, "lwf_weight"),
    *cases(
        ContrastiveEWCPlugin, "ewc_lambda decay", "fisher_batch_size fisher_batches"
    ),
    *cases(OnlineEWCPlugin, "ewc_lambda gamma", "fisher_batches"),
    *cases(OffDiagonalAlignmentPlugin, "alpha temperature"),
    *cases(WeightConsolidationPlugin, "weight"),
    *cases(WeightAveragingPlugin, "alpha", "interval", mode="we+wise"),
    *cases(
        VocabularyReplayPlugin,
        "image_weight text_weight temperature",
        "num_texts text_length",
    ),
    *cases(MoEAdaptersPlugin, "balance_weight", counts="count"),
    *cases(TokenEmbeddingExpansionPlugin, "weight_decay", "vocab_size"),
    *cases(ComputeBudget, "macs", "iterations samples"),
    *cases(RandomCaption, "name_probability"),
    *cases(ClassMatrices, sizes="batch_size"),
    *cases(RetrievalMetric, "tie_eps", "chunk_size"),
    *cases(scores, "tie_eps", "chunk_size"),
    *cases(partial(temperature_distillation_loss, ONE, ONE), "temperature"),
    *cases(
        lambda **options: worker_options(options),
        sizes="prefetch_factor",
        counts="num_workers",
    ),
    *cases(
        replay_quotas, "", "step", "total", **{"total": 4, "step": 2, "kind": "exp"}
    ),
    *cases(partial(few_shot_indices, np.array([0, 1])), sizes="shots"),
    *cases(partial(split_validation, counted_benchmark()), "fraction"),
    *cases(partial(split_online, counted_benchmark()), sizes="experience_size"),
]


@pytest.mark.parametrize(
    ("call", "options", "name"), CASES, ids=[f"{n}-{o[n]}" for _, o, n in CASES]
)
def test_options__are_refused_in_words(call, options, name):
    with pytest.raises(ValueError, match=f"{name}="):
        call(**options)


@pytest.mark.parametrize("value", [math.nan, math.inf, True, -0.1, "a"])
def test_lists_of_numbers__hold_numbers_only(value):
    with pytest.raises(ValueError, match=r"grid=.*values in \[0, 1\]"):
        PatchingPlugin([0.5, value])
    with pytest.raises(ValueError, match="factors=.*positive numbers"):
        BudgetFactorPlugin([1.0, value])
    for word in ("steps", "one number per experience"):
        with pytest.raises(ValueError, match=f"factors='{word}' is unknown; use 'st"):
            BudgetFactorPlugin(word)
    for empty in ([], ()):
        with pytest.raises(ValueError, match="grid="):
            PatchingPlugin(empty)
        with pytest.raises(ValueError, match="factors"):
            BudgetFactorPlugin(empty)


@pytest.mark.parametrize("ks", [[0], [True], [1.5], [], [math.nan], [1, -1]])
def test_ks__are_sizes(ks):
    with pytest.raises(ValueError, match="ks="):
        scores(ks=ks)
    with pytest.raises(ValueError, match="ks="):
        RetrievalMetric(ks=ks)


def test_options__numpys_numbers_are_taken():
    plugin = BudgetedReplayPlugin("exp", np.int64(3))
    assert plugin.buffer_size == 3 and type(plugin.buffer_size) is int
    assert PatchingPlugin(np.linspace(0, 1, 3)).grid == (0.0, 0.5, 1.0)
    assert BudgetFactorPlugin(torch.tensor([1.0, 2.0])).factors == (1.0, 2.0)
    assert replay_quotas(np.int32(8), np.uint8(4), "equal") == [2, 3, 3]


@pytest.mark.parametrize("kind", [np.int64, torch.tensor, np.array])
def test_options__numbers_of_other_libraries_are_pythons_and_resumed(kind, tmp_path):
    def fresh(number):
        options = {
            name: number(2)
            for name in ("train_mb_size", "eval_mb_size", "accumulation_steps", "seed")
        }
        model = stub_model()
        strategy = build(
            Sequential,
            model,
            budget_iterations=number(3),
            warmup_iterations=number(1),
            clip_grad_norm=np.float32(1.0),
            optimizer=partial(torch.optim.AdamW, lr=np.float64(1e-3)),
            evaluator=quiet_evaluator([RetrievalMetric(ks=(1,))]),
            **options,
        )
        assert {type(getattr(strategy, name)) for name in options} == {int}
        assert type(strategy.compute.iterations) is int
        return strategy, stub_benchmark(model=model)

    run_stream(*fresh(kind), tmp_path / "run")
    run_stream(*fresh(int), tmp_path / "run", resume=True)
    run_stream(*fresh(kind), tmp_path / "run", resume=True)
