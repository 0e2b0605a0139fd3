import pytest

from avalanche_clip.training import ContrastiveLwF
from avalanche_clip.training.plugins import ContrastiveLwFPlugin
from tests.helpers import At, build, fit, stub_benchmark, train_stream


def terms_of_steps():
    return At("after_backward", lambda strategy: dict(strategy.loss_terms))


def test_term__is_absent_in_the_first_step_and_zero_at_the_start_of_the_second():
    terms = terms_of_steps()
    strategy = fit(ContrastiveLwF, steps=2, plugins=[terms])
    assert all("lwf" not in row for row in terms.seen[:5])
    values = [float(row["lwf"]) for row in terms.seen[5:]]
    assert values[0] == pytest.approx(0, abs=1e-6) and min(values[1:]) > 1e-5
    assert strategy.teachers.get("previous").forward_passes == 5


def test_term__at_the_teacher_has_no_gradient():
    gradients = []

    class Only:
        def before_backward(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter and not gradients:
                strategy.loss = strategy.loss * 0

        def after_backward(self, strategy, **kwargs):
            if strategy.clock.train_exp_counter and not gradients:
                gradients.append(strategy.model.token.weight.grad.abs().max())

    strategy = build(ContrastiveLwF)
    # Before the plugin of the method, so that only its term is left.
    strategy.plugins.insert(0, Only())
    train_stream(strategy, stub_benchmark(), 2)
    assert float(gradients[0]) < 1e-6


def test_weight__scales_the_term():
    rows = []
    for weight in (1.0, 3.0):
        terms = terms_of_steps()
        fit(ContrastiveLwF, steps=2, lwf_weight=weight, plugins=[terms])
        rows.append(terms.seen[6]["lwf"])
    # The first update is not yet influenced by the term, whose gradient is 0.
    assert float(rows[1]) == pytest.approx(3 * float(rows[0]), rel=1e-2)


def test_cost__one_teacher_pass_is_booked():
    strategy = fit(ContrastiveLwF, steps=2)
    assert "teacher" not in strategy.compute.experiences[0]
    spent = strategy.compute.experiences[1]["teacher"]
    assert spent["texts"] == 20 and 12 <= spent["images"] <= 20
    assert ContrastiveLwFPlugin.nominal_cost == 1.2
