import pytest

from avalanche_clip.training import (
    TIC_STRATEGIES,
    CumulativeAll,
    CumulativeEqual,
    CumulativeExp,
    Oracle,
    Patching,
    Sequential,
)
from tests.helpers import (
    Recorder,
    assert_other_weights,
    assert_same_weights,
    fit,
    stub_benchmark,
)

SIZES = (8, 8, 8, 8)


def after(cls, steps, **options):
    return fit(cls, stub_benchmark(SIZES), steps, **options)


def test_second_step__exp_equal_and_all_coincide_with_equal_sizes():
    models = [
        after(CumulativeExp, 2, buffer_size=8).model,
        after(CumulativeEqual, 2, buffer_size=8).model,
        after(CumulativeAll, 2).model,
    ]
    assert_same_weights(models[0], models[1])
    assert_same_weights(models[0], models[2])


def test_third_step__exp_equals_equal_and_the_fourth_differs():
    def pair(steps):
        return [
            after(cls, steps, buffer_size=8).model
            for cls in (CumulativeExp, CumulativeEqual)
        ]

    assert_same_weights(*pair(3))
    assert_other_weights(*pair(4))
    assert_other_weights(after(CumulativeAll, 3).model, pair(3)[0])


@pytest.mark.parametrize("name", TIC_STRATEGIES)
def test_one_step__equals_oracle(name):
    data = stub_benchmark((12,))
    ours = fit(TIC_STRATEGIES[name], data)
    assert_same_weights(ours.model, fit(Oracle, data).model)


def test_published_relative_costs():
    costs = {}
    for name in ("sequential", "oracle", "cumulative-all-star"):
        data = stub_benchmark((4,) * 7, groups=4)
        strategy = fit(TIC_STRATEGIES[name], data, budget_iterations=2)
        costs[name] = sum(strategy.compute.report()["steps"])
    assert costs["oracle"] / costs["sequential"] == 4
    assert costs["oracle"] / costs["cumulative-all-star"] == pytest.approx(8 / 3)


def test_user_plugins__come_after_those_of_the_method():
    mine = Recorder()
    strategy = fit(Patching, steps=1, plugins=[mine])
    assert strategy.plugins.index(strategy._own[0]) < strategy.plugins.index(mine)


def test_default_evaluator__reports_retrieval(capsys):
    from avalanche_clip.training import default_clip_evaluator

    strategy = fit(Sequential, steps=1, evaluator=default_clip_evaluator)
    values = strategy.eval(stub_benchmark().test_stream)
    assert "mean_R@1/eval_phase/test_stream/Task000/Exp000" in values
    assert "Epoch" in capsys.readouterr().out
