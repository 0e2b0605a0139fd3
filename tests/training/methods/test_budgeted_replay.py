import numpy as np
import pytest

from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.checkpointing import load_state, save_state
from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import BudgetedReplayPlugin
from tests.helpers import At, build, fit, stub_benchmark, train_stream
from tests.refused import refused
from tests.training import classes


def pools(kind, buffer_size=None, sizes=(8, 8, 8, 8, 8), seed=0, **options):
    """Sample ids of the pool of each step."""
    look = At(
        "before_training_exp", lambda s: attribute_array(s.adapted_dataset, "sample_id")
    )
    plugins = [BudgetedReplayPlugin(kind, buffer_size, **options), look]
    fit(
        Sequential,
        stub_benchmark(sizes),
        plugins=plugins,
        budget_iterations=1,
        seed=seed,
    )
    return look.seen


def counts(pool, sizes=(8, 8, 8, 8, 8)):
    edges = np.concatenate([[0], np.cumsum(sizes)])
    return np.histogram(pool, edges)[0].tolist()


def test_exp__halves_old_steps():
    found = [counts(p)[: t + 1] for t, p in enumerate(pools("exp", 8))]
    assert found == [[8], [8, 8], [4, 4, 8], [2, 2, 4, 8], [1, 1, 2, 4, 8]]


def test_equal__shares_equally():
    found = [counts(p)[: t + 1] for t, p in enumerate(pools("equal", 8))]
    assert found == [[8], [8, 8], [4, 4, 8], [2, 3, 3, 8], [2, 2, 2, 2, 8]]


def test_choice__is_nested_and_without_repetition():
    old = [set(p[p < 8 * t].tolist()) for t, p in enumerate(pools("exp", 8))]
    for t in range(2, 5):
        before = {i for i in old[t] if i < 8 * (t - 1)}
        assert before <= old[t - 1]


def test_choice__depends_on_the_seed():
    def third(**options):
        return sorted(pools("exp", 8, **options)[2].tolist())

    assert third() == third()
    assert third(seed=1) != third(seed=2)


def test_cap__deficits_are_left_unused_or_redistributed():
    sizes = (3, 20, 20)
    assert counts(pools("exp", 8, sizes)[2], sizes) == [3, 4, 20]
    found = counts(pools("exp", 8, sizes, redistribute=True)[2], sizes)
    assert found == [3, 5, 20]


def test_buffer__zero_and_current():
    assert [len(p) for p in pools("exp", 0)] == [8] * 5
    sizes = (10, 4, 6)
    assert [len(p) for p in pools("equal", "current", sizes)] == [10, 8, 12]


# ------------------------------------------------------------------------ by class
def memories(strategy, benchmark, steps=None, order=None, **options):
    """How many old samples of each class each pool holds, and their ids."""
    counts, found, plugin = [], [], strategy.plugins[0]
    look = At(
        "before_training_exp",
        lambda s: [
            attribute_array(s.adapted_dataset, name)
            for name in ("targets", "sample_id")
        ],
    )
    strategy.plugins.insert(1, look)
    for number in order or range(steps or len(benchmark.train_stream)):
        new = set(attribute_array(benchmark.train_stream[number].dataset, "sample_id"))
        strategy.train(benchmark.train_stream[number], eval_streams=[])
        targets, ids = look.seen[-1]
        old = ~np.isin(ids, list(new))
        counts.append(np.bincount(targets[old], minlength=6).tolist())
        found.append(set(ids[old].tolist()))
        assert sum(~old) == len(new) and len(set(ids)) == len(ids)
    assert plugin.stored == [len(plugin._kept[step]) for step in plugin.steps]
    return counts, found


def by_class(**options):
    """Three steps of two classes, six samples each."""
    plugin = BudgetedReplayPlugin("class", **options)
    strategy = classes.class_strategy(plugins=[plugin], budget_iterations=1)
    return strategy, classes.class_benchmark(strategy.model)


def test_per_class__the_memory_grows_with_the_classes():
    counts, found = memories(*by_class(per_class=2))
    assert counts == [[0] * 6, [2, 2, 0, 0, 0, 0], [2, 2, 2, 2, 0, 0]]
    assert found[1] < found[2]


def test_in_total__the_memory_is_shared_by_the_classes():
    counts, found = memories(*by_class(buffer_size=7))
    assert counts == [[0] * 6, [4, 3, 0, 0, 0, 0], [2, 2, 2, 1, 0, 0]]
    first = {number for number in found[2] if number % 6 < 2}  # classes 0 and 1
    assert len(first) == 4 and first < found[1], "what was dropped is not used again"
    counts, _ = memories(*by_class(buffer_size=20))
    assert counts[1:] == [[6, 6, 0, 0, 0, 0], [5, 5, 5, 5, 0, 0]]


def test_in_total__quota_that_a_class_cannot_fill_goes_to_the_others():
    plugin = BudgetedReplayPlugin("class", 12, redistribute=True)
    sizes = np.array([1, 20, 3, 20])
    assert plugin._quotas(sizes).tolist() == [1, 4, 3, 4]
    assert BudgetedReplayPlugin("class", 12)._quotas(sizes).tolist() == [1, 3, 3, 3]
    plugin = BudgetedReplayPlugin("class", 99, redistribute=True)
    assert plugin._quotas(sizes).tolist() == sizes.tolist()


def test_by_class__a_step_that_comes_again_is_no_memory():
    strategy, benchmark = by_class(per_class=2)
    counts, _ = memories(strategy, benchmark, order=[0, 1, 0, 2])
    assert counts[2:] == [[0, 0, 2, 2, 0, 0], [2, 2, 2, 2, 0, 0]]


def test_by_class__a_class_may_occur_in_several_steps():
    data = stub_benchmark((8, 8, 8), targets=True, groups=2)
    for experience in data.train_stream:  # the same two classes in each step
        column = experience.dataset.targets
        assert len(set(column)) == 2
    plugin = BudgetedReplayPlugin("class", per_class=3)
    look = At("before_training_exp", lambda s: len(s.adapted_dataset))
    fit(Sequential, data, plugins=[plugin, look], budget_iterations=1)
    assert look.seen == [8, 8 + 6, 8 + 12]


@pytest.mark.parametrize("options", [{"per_class": 2}, {"buffer_size": 5}])
def test_by_class__resumes_with_the_same_memory(options, tmp_path):
    strategy, benchmark = by_class(**options)
    counts, found = memories(strategy, benchmark, 2)
    save_state(strategy, tmp_path / "state.pt")
    other, benchmark = by_class(**options)
    load_state(other, tmp_path / "state.pt", benchmark)
    for one in (strategy, other):
        _, last = memories(one, benchmark, order=[2])
        found.append(last[0])
    assert found[-1] == found[-2] and len(found[-1]) in (5, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "exactly one of"),
        ({"buffer_size": 3, "per_class": 2}, "exactly one of"),
        ({"per_class": -1}, "per_class=-1 must be an integer >= 0"),
        ({"buffer_size": "current"}, "buffer_size='current' must be an integer"),
        ({"per_class": 2, "redistribute": True}, "no effect on per_class"),
        ({"kind": "equal", "buffer_size": 3, "per_class": 2}, "of kind='class', not"),
        ({"kind": "all", "per_class": 2}, "of kind='class', not of kind='all'"),
    ],
)
def test_by_class__bad_sizes_are_refused(options, message):
    refused(message, BudgetedReplayPlugin, **{"kind": "class", **options})


def test_by_class__without_targets_is_refused():
    strategy = build(Sequential, plugins=[BudgetedReplayPlugin("class", 3)])
    words = "needs the class of each sample"
    refused(words, train_stream, strategy, stub_benchmark(), 1)
