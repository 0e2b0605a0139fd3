import numpy as np

from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.training import Sequential
from avalanche_clip.training.plugins import BudgetedReplayPlugin
from tests.helpers import At, fit, stub_benchmark


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
