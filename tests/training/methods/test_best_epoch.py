"""The epoch that retrieves best on validation data ends the experience."""

import pytest
import torch

from avalanche_clip.benchmarks import prepare_benchmark
from avalanche_clip.benchmarks.streams.languages import multilingual_benchmark
from avalanche_clip.evaluation.loop import evaluate_retrieval
from avalanche_clip.models import find_token_embedding
from avalanche_clip.training.plugins import (
    BestEpochPlugin,
    LanguageAdapterPlugin,
    OnlineEWCPlugin,
)
from avalanche_clip.training.supervised import Sequential
from tests.helpers import (
    At,
    fit,
    stub_benchmark,
    train_stream,
    weights,
)
from tests.methods.rows import ROWS
from tests.methods.worlds import build
from tests.training.languages import (
    CODES,
    language_data,
    language_strategy,
    tiny_model,
)


class Scripted(BestEpochPlugin):
    """Scores that are given instead of measured."""

    def __init__(self, scores):
        super().__init__()
        self.script, self.after = list(scores), []

    def _score(self, strategy):
        self.after.append(weights(strategy.model))
        table = find_token_embedding(strategy.model)
        if table is not None:
            name = "clip.token_embedding.weight"
            self.after[-1] = {name: table.table()}
        return self.script[len(self.after) - 1]


def stream(model, *, features=False):
    """English and German, with validation data."""

    def part(first, with_features):
        return {
            name: language_data(
                name, first=first + 100 * CODES[name], features=with_features
            )
            for name in ("en", "de")
        }

    benchmark = multilingual_benchmark(
        part(0, True),
        test=part(1000, False),
        valid=part(2000, features),
        languages=CODES,
    )
    return prepare_benchmark(benchmark, model)


def strategy_of(model, *plugins, **options):
    options = {"budget_iterations": 6, "train_epochs": 3, **options}
    return language_strategy(model, plugins=list(plugins), **options)


@pytest.mark.parametrize("scores", [[1, 3, 2], [2, 2, 1], [1, 2, 3]])
def test_weights__are_those_of_the_first_best_epoch(scores):
    plugin = Scripted(scores)
    strategy = fit(Sequential, steps=1, train_epochs=3, plugins=[plugin])
    best = scores.index(max(scores))
    assert plugin.chosen == [best]
    for name, value in weights(strategy.model).items():
        assert torch.equal(value, plugin.after[best][name]), name


@pytest.mark.parametrize("regularize", ["gd", None])
def test_table__rows_outside_the_task_go_back_too(regularize):
    plugin, model = Scripted([1, 3, 2]), tiny_model()
    strategy = strategy_of(model, plugin, regularize=regularize, weight_decay=0.3)
    train_stream(strategy, stream(model), 1)
    found = find_token_embedding(model)
    expected = plugin.after[1]["clip.token_embedding.weight"]
    assert found.active is None and torch.equal(found.weight, expected)
    assert not torch.equal(expected, plugin.after[2]["clip.token_embedding.weight"])


def test_ewc__is_anchored_at_the_kept_weights_whatever_the_order():
    for order in (0, 1):
        plugin, ewc = Scripted([3, 2, 1]), OnlineEWCPlugin(fisher_batch_size=4)
        plugins = [plugin, ewc] if order else [ewc, plugin]
        fit(Sequential, steps=1, train_epochs=3, plugins=plugins)
        for name, value in ewc.anchor.items():
            assert torch.equal(value, plugin.after[0][name]), name


@pytest.mark.parametrize("features", [False, True])
def test_score__is_the_mean_recall_on_the_current_language(features):
    model, seen = tiny_model(), []

    class Look(BestEpochPlugin):
        def _data(self, strategy):
            found = super()._data(strategy)
            seen.append({int(c) for d in found for c in d.language})
            return found

    passes = []
    model.clip.visual.register_forward_hook(lambda *a: passes.append(1))
    plugin = Look()
    strategy = strategy_of(model, plugin, LanguageAdapterPlugin("mla"))
    train_stream(strategy, stream(model, features=features))
    assert seen == [{0}] * 4 + [{1}] * 4 and len(plugin.chosen) == 2
    spent = strategy.compute.experiences[1]["search"]
    images = 0 if features else 36
    assert (spent["images"], spent["texts"]) == (images, 36)
    assert bool(passes) is not features
    assert model.language_adapters.ids == {"text": -1}


def test_score__equals_retrieval_of_the_model_at_that_moment():
    plugin = BestEpochPlugin()
    benchmark = stub_benchmark()
    data = benchmark.valid_stream[0].dataset

    def both(strategy):
        found = evaluate_retrieval(strategy.model, data)["rsum"] / 600
        return found, list(plugin.scores)

    compare = At("after_training_epoch", both)
    fit(Sequential, benchmark, 1, train_epochs=3, plugins=[compare, plugin])
    # the other plugin looks first: it has seen all scores but the last
    found, scores = zip(*compare.seen)
    assert scores[-1] == pytest.approx(found[:2])


def test_one_epoch__needs_no_validation():
    benchmark, plugin = stub_benchmark(valid=False), BestEpochPlugin()
    fit(Sequential, benchmark, 1, plugins=[plugin])
    assert plugin.chosen == [0]
    with pytest.raises(ValueError, match="chooses on stream 'valid'"):
        fit(Sequential, benchmark, 1, plugins=[BestEpochPlugin()], train_epochs=2)


def test_expert_adapters__closed_before_stay_closed():
    plugin = Scripted([0.9, 0.1] * 2)
    row = ROWS["MoEAdapters on pairs"]
    strategy, benchmark = build(row, plugin, train_epochs=2, budget_iterations=4)
    strategy.plugins.remove(plugin)
    strategy.plugins.insert(1, plugin)  # behind the adapters' own
    train_stream(strategy, benchmark, 2)
    moe = strategy.model.moe_adapters
    assert moe.learned == [0, 1] and not moe.moe.in_task
    assert all(adapter.frozen.any() for adapter in moe.adapters())
