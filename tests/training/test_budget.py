import warnings

import pytest

from avalanche_clip.budget import ComputeBudget
from avalanche_clip.training import (
    CumulativeAll,
    CumulativeAllStar,
    CumulativeExp,
    Restart,
    Sequential,
)
from tests.helpers import At, fit, stub_benchmark, stub_model


def report(cls, sizes=(12, 12, 12), steps=None, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strategy = fit(cls, stub_benchmark(sizes), steps, **options)
    return strategy.compute.report(strategy.model.macs())


@pytest.mark.parametrize("sizes", [(2, 3, 5), (9, 14, 4), (30, 30, 30)])
def test_iterations__are_exact_whatever_the_pool(sizes):
    for cls in (Sequential, CumulativeAll, CumulativeExp, Restart):
        assert report(cls, sizes)["steps"] == [5, 5, 5]


def test_plain_methods__cost_the_same():
    costs = {
        cls: report(cls)["total_macs"]
        for cls in (Sequential, CumulativeAll, CumulativeExp, Restart)
    }
    assert len(set(costs.values())) == 1


def test_samples__limit_the_training_pairs():
    options = {"budget_iterations": None, "budget_samples": 21}
    assert report(CumulativeAll, **options)["samples"] == [20, 20, 20]
    # A step smaller than a batch takes more steps for the same samples.
    assert report(Sequential, (3, 12), **options)["steps"] == [7, 5]


def test_macs__limit_the_forward_passes():
    macs = sum(stub_model().macs().values())
    options = {"budget_iterations": None, "budget_macs": 4 * 6 * macs}
    assert report(Sequential, **options)["steps"] == [6, 6, 6]


def test_epochs__split_a_budget():
    look = At(
        "before_training_epoch",
        lambda s: (s.clock.train_exp_iterations, len(s.dataloader)),
    )
    done = report(Sequential, steps=1, train_epochs=3, plugins=[look])
    assert done["steps"] == [5]
    assert look.seen == [(0, 1), (1, 2), (3, 2)]


def test_epochs__without_budget_are_full_batches_of_the_pool():
    done = report(CumulativeAll, (9, 12), budget_iterations=None, train_epochs=2)
    assert done["steps"] == [4, 10]


def test_all_star__trains_by_its_list():
    assert report(CumulativeAllStar, budget_factors=[1, 1.5, 2])["steps"] == [5, 7, 10]


def test_all_star__list_too_short_raises():
    with pytest.raises(ValueError, match="2 budget factors"):
        report(CumulativeAllStar, budget_factors=[1, 1])


def test_published_totals():
    for iterations, batch, steps, total in [
        (22_500, 8192, 7, 2.651e19),
        (20_500, 90112, 7, 2.657e20),
        (5_000, 8192, 4, 3.366e18),
    ]:
        budget = ComputeBudget(iterations=iterations)
        for _ in range(steps):
            budget.start_experience()
            size = iterations * batch
            budget.spend("train", images=size, texts=size, steps=iterations)
        done = budget.report({"image": 17.565e9, "text": 2.980e9})
        assert done["total_macs"] == pytest.approx(total, rel=1e-3)


def test_full_macs__count_training_three_times_and_teachers_once():
    budget = ComputeBudget()
    budget.spend("train", images=10, texts=10, steps=1)
    budget.spend("teacher", images=10, texts=10)
    done = budget.report({"image": 2, "text": 1})
    assert (done["total_macs"], done["full_macs"]) == (60, 120)


def test_budget_below_one_step__raises():
    with pytest.raises(ValueError, match="pays for 0.750 steps"):
        report(Sequential, budget_iterations=None, budget_samples=3)


def test_spend__unknown_kind_raises():
    with pytest.raises(ValueError, match="'search'"):
        ComputeBudget().spend("evaluation", images=1, texts=1)
