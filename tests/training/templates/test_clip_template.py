import io
import math
import warnings

import pytest
import torch
from avalanche.evaluation.metrics import (
    accuracy_metrics,
    loss_metrics,
)
from avalanche.logging import InteractiveLogger
from avalanche.training.plugins import EvaluationPlugin

from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.training import NonFiniteLossError, Sequential
from avalanche_clip.training.plugins import ProgressPlugin
from tests.helpers import (
    At,
    build,
    fit,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
    weights,
)


# ------------------------------------------------------------ construction
@pytest.mark.parametrize(
    "options, message",
    [
        ({"accumulation_steps": 0}, "accumulation_steps=0"),
        ({"train_mb_size": 0}, "train_mb_size=0"),
        ({"train_mb_size": None}, "train_mb_size=None"),
        ({"train_epochs": 1.5}, "train_epochs=1.5"),
        ({"train_epochs": [1, 0]}, "train_epochs=0.*one per experience"),
        ({"train_epochs": []}, "train_epochs=..? must be"),
        ({"warmup_iterations": -1}, "warmup_iterations=-1"),
        ({"clip_grad_norm": 0.0}, "clip_grad_norm=0.0"),
        ({"positives": "labels"}, "positives='labels'"),
        ({"budget_samples": 5}, "one budget only"),
        ({"eval_every": -2}, "eval_every=-2"),
        ({"eval_every": 1.0}, "eval_every=1.0"),
        ({"eval_every": True}, "eval_every=True"),
        ({"peval_mode": "epochs"}, "peval_mode='epochs'.*Did you mean 'epoch'"),
        ({"seed": None}, "seed=None must be an integer"),
        ({"seed": True}, "seed=True must be an integer"),
    ],
)
def test_constructor__wrong_values_raise(options, message):
    with pytest.raises(ValueError, match=message):
        build(Sequential, **options)


# -------------------------------------------------------------------- data
def test_unprepared_benchmark__raises_in_training_and_evaluation():
    benchmark = stub_benchmark(prepare=False)
    with pytest.raises(ValueError, match="prepare_benchmark"):
        fit(Sequential, benchmark)
    with pytest.raises(ValueError, match="prepare_benchmark"):
        build(Sequential).eval(benchmark.test_stream)


def test_one_sample_step__raises():
    with pytest.raises(ValueError, match="one training pair"):
        fit(Sequential, stub_benchmark((1, 6)))


def test_empty_pool__raises():
    def empty(strategy):
        strategy.adapted_dataset = strategy.adapted_dataset.subset([])

    with pytest.raises(ValueError, match="no training data"):
        fit(Sequential, plugins=[At("after_train_dataset_adaptation", empty)])


def test_batch_larger_than_the_step__warns():
    with pytest.warns(UserWarning, match="fewer than a batch of 64"):
        strategy = fit(Sequential, steps=1, train_mb_size=64)
    assert strategy.compute.report()["samples"] == [60]


def test_batch_of_one__warns():
    with pytest.warns(UserWarning, match="single pair is zero"):
        fit(Sequential, steps=1, train_mb_size=1)


# ----------------------------------------------------------- reproducibility
def test_batch_state__survives_an_evaluation_in_training():
    data = stub_benchmark()
    look = At("after_training_exp", lambda s: (len(s.mb_x), s.mb_output.shape, s.loss))
    strategy = build(Sequential, plugins=[look], eval_every=1)
    strategy.train(data.train_stream[0], eval_streams=[data.valid_stream])
    assert look.seen[0][:2] == (4, (4, 4)) and float(look.seen[0][2].detach()) > 0


def test_frozen_modes__survive_an_evaluation():
    model = stub_model(dropout=0.3)
    strategy = build(Sequential, model)
    model.dropout.eval()
    strategy.eval(stub_benchmark().test_stream)
    assert model.training and not model.dropout.training


# ---------------------------------------------------------------- contract
def test_batch__is_what_stock_plugins_expect():
    def facts(strategy):
        return (
            strategy.mb_y.tolist(),
            tuple(strategy.mb_output.shape),
            torch.equal(strategy.mb_targets, strategy.mb_x["sample_id"]),
            strategy.mb_task_id.tolist(),
            tuple(strategy.loss.shape),
            strategy.global_features is strategy.mb_features,
        )

    look = At("before_backward", facts)
    fit(Sequential, steps=1, plugins=[look])
    assert look.seen == [([0, 1, 2, 3], (4, 4), True, [0] * 4, (1,), True)] * 5


def test_hooks__come_in_avalanches_order():
    order = []

    class Trace:
        def __getattr__(self, name):
            if name.startswith(("before_", "after_")):
                return lambda strategy, **kwargs: order.append(name)
            raise AttributeError(name)

    strategy = build(Sequential, budget_iterations=1)
    strategy.plugins.insert(0, Trace())
    train_stream(strategy, stub_benchmark(), 1)
    assert order == [
        "before_training",
        "before_train_dataset_adaptation",
        "after_train_dataset_adaptation",
        "before_training_exp",
        "before_training_epoch",
        "before_training_iteration",
        "before_forward",
        "after_forward",
        "before_backward",
        "after_backward",
        "before_update",
        "after_update",
        "after_training_iteration",
        "after_training_epoch",
        "after_training_exp",
        "after_training",
    ]


def test_several_captions__work_in_evaluation():
    model = stub_model()
    data = stub_benchmark(model=model, test_captions=3)
    evaluator = quiet_evaluator(
        [retrieval_plugin_metrics(), accuracy_metrics(experience=True)]
    )
    strategy = build(Sequential, model, evaluator=evaluator, eval_mb_size=4)
    look = At(
        "after_eval_iteration", lambda s: (s.mb_output.shape, len(s.mb_x["text"]))
    )
    strategy.plugins.insert(0, look)
    values = strategy.eval(data.test_stream)
    assert look.seen[:2] == [((4, 4), 12), ((2, 2), 6)]
    assert values["mean_R@1/eval_phase/test_stream/Task000/Exp000"] >= 0
    assert values["Top1_Acc_Exp/eval_phase/test_stream/Task000/Exp000"] >= 0


def test_several_captions__in_training_raise():
    class All:
        def __call__(self, captions):
            return captions

    data = stub_benchmark(captions=2, train_text_transform=All())
    with pytest.raises(ValueError, match="one caption per image"):
        fit(Sequential, data)


def test_positives__targets_differ_from_the_diagonal_and_need_ids():
    data = stub_benchmark(targets=True, groups=2)
    runs = [
        weights(fit(Sequential, data, 1, positives=p).model)
        for p in ("diagonal", "targets")
    ]
    assert not torch.equal(runs[0]["token.weight"], runs[1]["token.weight"])
    # Without ids of its own every sample is its own group.
    data = stub_benchmark(groups=2)
    plain = fit(Sequential, data, 1).model
    with pytest.warns(UserWarning, match="the data have no targets"):
        same = [plain, fit(Sequential, data, 1, positives="targets").model]
    for a, b in zip(same[0].parameters(), same[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


# ----------------------------------------------------------------- metrics
def test_progress_bars__have_the_planned_length(monkeypatch):
    totals = []

    class Bar(InteractiveLogger):
        def before_training_epoch(self, strategy, metric_values, **kwargs):
            super().before_training_epoch(strategy, metric_values, **kwargs)
            totals.append(self._progress.total)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = EvaluationPlugin(loss_metrics(epoch=True), loggers=[Bar()])
    file = io.StringIO()
    fit(
        Sequential,
        steps=1,
        evaluator=evaluator,
        train_epochs=2,
        plugins=[ProgressPlugin(file=file)],
    )
    assert totals == [2, 3]
    assert "5/5" in file.getvalue() and "step 0" in file.getvalue()


# --------------------------------------------------------------- precision
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_half_precision__stays_finite_and_near(precision, accumulation_steps):
    options = {"precision": precision, "accumulation_steps": accumulation_steps}
    model = fit(Sequential, steps=2, **options).model
    expected = fit(Sequential, steps=2).model
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.isfinite(ours).all() and ours.dtype == torch.float32
        assert (ours - theirs).abs().mean() < 0.05


def test_scaler__skipped_step_counts_and_gradients_are_unscaled():
    norms, moved = [], []

    class Spoil:
        def after_backward(self, strategy, **kwargs):
            norms.append(float(strategy.model.token.weight.grad.norm()))
            if strategy.clock.train_exp_iterations == 7:
                # What the scaler found when it unscaled the gradients.
                state = strategy.step.scaler._per_optimizer_states[
                    id(strategy.optimizer)
                ]
                for found in state["found_inf_per_device"].values():
                    found.fill_(1.0)

        def before_update(self, strategy, **kwargs):
            self.before = strategy.model.token.weight.clone()

        def after_update(self, strategy, **kwargs):
            now = strategy.model.token.weight
            moved.append(not torch.equal(self.before, now))

    strategy = fit(
        Sequential, steps=1, precision="fp16", plugins=[Spoil()], budget_iterations=10
    )
    assert moved[6] and not moved[7] and moved[8]
    assert strategy.compute.report()["steps"] == [10]
    assert max(norms[5:]) < 100


def test_scaler__starts_anew_with_each_experience():
    look = At("before_training_exp", lambda strategy: strategy.step.scaler)
    fit(Sequential, steps=2, precision="fp16", plugins=[look])
    assert look.seen[0] is not look.seen[1]


# --------------------------------------------------------- step by step
def test_clipping__bounds_the_norm():
    def norm(strategy):
        parts = [p.grad.norm() for p in strategy.model.parameters()]
        return float(torch.stack(parts).norm())

    look = At("after_update", norm)
    fit(Sequential, steps=1, clip_grad_norm=0.01, plugins=[look])
    assert look.seen == pytest.approx([0.01] * 5, rel=1e-3)


@pytest.mark.parametrize("start, end", [(10.0, math.log(100)), (-3.0, 0.0)])
def test_logit_scale__is_clamped(start, end):
    model = stub_model()
    model.logit_scale.data.fill_(start)
    fit(Sequential, steps=1, model=model)
    assert float(model.logit_scale.detach()) == pytest.approx(end, abs=0.06)
    assert 0 <= float(model.logit_scale.detach()) <= math.log(100) + 1e-6


def test_logit_scale__bound_is_the_loaded_value_where_larger():
    model = stub_model()
    model.max_log_scale = 5.0
    model.logit_scale.data.fill_(5.2)
    fit(Sequential, steps=1, model=model, budget_iterations=1)
    assert float(model.logit_scale.detach()) <= 5.0 + 1e-6
    assert float(model.logit_scale.detach()) > math.log(100)


def test_logit_scale__is_free_with_a_bias():
    model = stub_model(bias=True)
    model.logit_scale.data.fill_(-3.0)
    fit(Sequential, steps=1, model=model, budget_iterations=1)
    assert float(model.logit_scale.detach()) < -2.9


def test_nan__stops_the_run_and_names_where():
    def poison(strategy):
        if strategy.clock.train_iterations == 7:
            strategy.add_loss("poison", torch.tensor(float("nan")))

    strategy = build(Sequential, plugins=[At("before_backward", poison)])
    data = stub_benchmark()
    strategy.train(data.train_stream[0], eval_streams=[])
    with pytest.raises(
        NonFiniteLossError, match="experience 1, iteration 2: term 'poison'"
    ):
        strategy.train(data.train_stream[1], eval_streams=[])
    assert all(torch.isfinite(p).all() for p in strategy.model.parameters())


def test_nan__of_a_stock_plugin_is_told_apart():
    def poison(strategy):
        strategy.loss = strategy.loss + float("inf")

    with pytest.raises(NonFiniteLossError, match="stock plugin is not finite"):
        fit(Sequential, plugins=[At("before_backward", poison)])


def test_nan__in_the_gradient_of_the_last_iteration_is_noticed():
    def poison(strategy):
        if strategy.clock.train_exp_iterations == 2:
            strategy.model.token.weight.grad[0, 0] = float("nan")

    with pytest.raises(NonFiniteLossError, match=r"token.weight.*after experience 0"):
        fit(Sequential, plugins=[At("before_update", poison)], budget_iterations=3)


def test_stop__in_one_experience_does_not_end_the_next():
    def stop(strategy):
        if strategy.clock.train_exp_counter == 0:
            strategy.stop_training()

    strategy = build(Sequential, plugins=[At("after_training_iteration", stop)])
    strategy.train(list(stub_benchmark().train_stream)[:2], eval_streams=[])
    assert strategy.compute.report()["steps"] == [1, 5]
