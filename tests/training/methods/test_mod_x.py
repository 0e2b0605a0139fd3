from functools import partial

import pytest
import torch

from avalanche_clip.evaluation.metrics.loss_terms import loss_term_metrics
from avalanche_clip.losses import contrastive_loss, off_diagonal_alignment_loss
from avalanche_clip.training.supervised import ModX
from avalanche_clip.training.templates.optim import one_group
from tests.helpers import (
    Recorder,
    build,
    fit,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    weights,
)


class Steps(Recorder):
    """Terms, features and teacher of every step."""

    def __init__(self):
        self.rows = []

    def after_backward(self, strategy, **kwargs):
        kinds = strategy.teachers.teachers
        self.rows.append(
            {
                "terms": dict(strategy.loss_terms),
                "output": strategy.global_features,
                "teachers": {k: weights(t.model) for k, t in kinds.items()},
                "batch": strategy.mb_x,
                "scale_grad": strategy.model.logit_scale.grad.clone(),
            }
        )


def watched(cls=ModX, steps=2, **options):
    seen = Steps()
    plugins = [*options.pop("plugins", []), seen]
    return fit(cls, steps=steps, plugins=plugins, **options), seen.rows


@pytest.mark.parametrize("mode", ["none", "own", "shared"])
@pytest.mark.parametrize("extra", [{}, {"row_filter": "soft", "temperature": 0.5}])
def test_term__equals_the_loss_on_both_models_scores(mode, extra):
    options = {"logit_scale_mode": mode, **extra}
    _, rows = watched(alpha=3.0, plugin_options=options)
    row = rows[7]
    teacher = stub_model()
    teacher.load_state_dict(row["teachers"]["previous"])
    with torch.no_grad():
        old = teacher.eval()(row["batch"])
    new, scales = row["output"], (1.0, 1.0)
    if mode == "own":
        scales = (new.logit_scale, old.logit_scale)
    elif mode == "shared":
        scales = (new.logit_scale, new.logit_scale)
    expected = 3.0 * off_diagonal_alignment_loss(
        scales[0] * new.image_features @ new.text_features.T,
        scales[1] * old.image_features @ old.text_features.T,
        **extra,
    )
    torch.testing.assert_close(row["terms"]["alignment"], expected.detach())


@pytest.mark.parametrize("mode, reached", [("none", 0), ("shared", 0), ("own", 1)])
def test_logit_scale__gets_its_gradient_from_the_contrastive_loss_alone(mode, reached):
    _, rows = watched(alpha=50.0, plugin_options={"logit_scale_mode": mode})
    row = rows[8]
    scale = row["output"].logit_scale.detach().log().requires_grad_()
    contrastive_loss(
        row["output"].image_features.detach(),
        row["output"].text_features.detach(),
        scale.exp(),
    ).backward()
    gap = abs(float(row["scale_grad"]) - float(scale.grad))
    assert (gap > 1e-3) if reached else (gap < 1e-6)


@pytest.mark.parametrize("kind", ["initial", "ema"])
def test_teacher__other_kinds(kind):
    strategy, _ = watched(
        plugin_options={"teacher": kind, "teach_first_experience": False}
    )
    assert set(strategy.teachers.teachers) == {kind}


def test_mod_x__optimizer_and_batch_of_the_source():
    strategy = ModX(model=stub_model(), evaluator=quiet_evaluator())
    assert type(strategy.optimizer) is torch.optim.AdamW
    assert strategy.train_mb_size == 280
    matrices, rest = strategy.optimizer.param_groups
    for group in (matrices, rest):
        assert group["lr"] == 5e-4 and group["eps"] == 1e-8
        assert group["betas"] == (0.9, 0.999)
    assert (matrices["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in matrices["params"])
    assert all(p.ndim < 2 for p in rest["params"])
    given = ModX(model=stub_model(), param_groups=one_group)
    assert [g["weight_decay"] for g in given.optimizer.param_groups] == [0.0]
    assert given.optimizer.param_groups[0]["lr"] == 5e-4
    # What builds a user's optimiser has its own weight decay.
    other = build(ModX, optimizer=partial(torch.optim.AdamW, lr=1.0, weight_decay=0.3))
    decays = [g["weight_decay"] for g in other.optimizer.param_groups]
    assert decays == [0.3, 0.0]


def test_step_values__are_logged_with_the_terms():
    evaluator = quiet_evaluator([loss_term_metrics(iteration=True)])
    strategy = build(ModX, alpha=2.0, evaluator=evaluator)
    benchmark = stub_benchmark()
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    found = evaluator.get_all_metrics()
    end = "/train_phase/train_stream/Task000/Exp001"
    names = ["loss_criterion", "loss_alignment", "loss_alignment_ratio"]
    names += ["alignment_unweighted", "alignment_kept_image_to_text"]
    last = {n: found[n + end][1][-1] for n in names}
    rows = [found[f"{n}_iteration{end}"][1] for n in names]
    assert all(len(row) == 5 for row in rows)
    assert last["loss_alignment"] == pytest.approx(sum(rows[1]) / 5)
    assert last["alignment_unweighted"] == pytest.approx(last["loss_alignment"] / 2)
    ratio = last["loss_alignment"] / last["loss_criterion"]
    assert last["loss_alignment_ratio"] == pytest.approx(ratio)
    assert 0 <= last["alignment_kept_image_to_text"] <= 1
    first = "loss_alignment/train_phase/train_stream/Task000/Exp000"
    assert first not in found


def test_bias__sigmoid_models_are_aligned_on_cosines():
    _, rows = watched(model=stub_model(bias=True))
    assert float(rows[-1]["terms"]["alignment"]) > 0
