import math

import numpy as np
import pytest
import torch

from avalanche_clip.training.plugins import VocabularyReplayPlugin
from avalanche_clip.training.supervised import Sequential
from tests.helpers import (
    StubTokenizer,
    fit,
    stub_model,
)

SMALL = {"num_texts": 20, "text_length": 3}


def replayed(steps=2, *, model=None, extra=(), first=(), run=None, **settings):
    """Train the stub with the plugin; ``first`` come before it."""
    plugin = VocabularyReplayPlugin(**{**SMALL, **settings})
    plugins = [*first, plugin, *extra]
    return fit(Sequential, steps=steps, model=model, plugins=plugins, **(run or {}))


class Each:
    """Call a function at a hook of every step of later experiences."""

    supports_distributed = True

    def __init__(self, hook, function, experience=1):
        self.function, self.experience = function, experience
        setattr(self, hook, self.call)

    def call(self, strategy, **kwargs):
        if strategy.clock.train_exp_counter >= self.experience:
            self.function(strategy)


def plugin_of(strategy):
    return next(p for p in strategy.plugins if isinstance(p, VocabularyReplayPlugin))


# -------------------------------------------------------------------------- terms
def slow_terms(strategy, images, *, tau=2.0, student_text=False):
    """Both terms by loops in float64, from the models themselves."""
    plugin, model = plugin_of(strategy), strategy.model
    teacher = strategy.teachers.get("previous").model
    ids = plugin.token_ids
    with torch.no_grad():
        ours, theirs = model.encode_image(images), teacher.encode_image(images)
        references = teacher.encode_text(ids)
        own = model.encode_text(ids) if student_text else references
    scale = math.exp(model.logit_scale.item())
    student = scale * ours.double().numpy() @ own.double().numpy().T
    teacher_logits = scale * theirs.double().numpy() @ references.double().numpy().T

    def distance(t_rows, s_rows):
        total = 0.0
        for t, s in zip(t_rows / tau, s_rows / tau):
            p = np.exp(t - t.max())
            p /= p.sum()
            q = s - s.max() - np.log(np.exp(s - s.max()).sum())
            total -= (p * q).sum()
        return tau**2 * total / len(t_rows)

    return distance(teacher_logits, student), distance(teacher_logits.T, student.T)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"distill_batch": "separate", "distill_batch_size": 3},
        {"student_text": True, "temperature": 0.7},
        {"redraw": "iteration", "image_weight": 5.0, "text_weight": 0.5},
        {"texts": ["ab", "c", "def", "ba"], "num_texts": 3, "redraw": "iteration"},
        {"allow_special": True, "text_weight": 0.0},
        {"image_weight": 0.0},
    ],
    ids=str,
)
def test_terms__equal_loops(settings):
    rows, batches = [], []
    separate = settings.get("distill_batch") == "separate"

    def look(strategy):
        plugin = plugin_of(strategy)
        images = batches[-1] if separate else strategy.mb_x["image"]
        rest = {"student_text": settings.get("student_text", False)}
        found = slow_terms(strategy, images, tau=plugin.temperature, **rest)
        terms = strategy.loss_terms
        weight = (plugin.image_weight, plugin.text_weight)
        rows.append([w * v for w, v in zip(weight, found)])
        for name, w, value in zip(("vr_image", "vr_text"), weight, rows[-1]):
            assert (name in terms) == (w > 0)
            if w > 0:
                assert float(terms[name]) == pytest.approx(value, rel=1e-4)
        total = sum(float(v) for v in terms.values())
        assert float(strategy.loss.detach()) == pytest.approx(total, rel=1e-5)

    plugin = VocabularyReplayPlugin(**{**SMALL, **settings})
    following = plugin._next_images

    def keep(strategy):
        batches.append(following(strategy))
        return batches[-1]

    plugin._next_images = keep
    looker = Each("after_backward", look)
    fit(Sequential, steps=2, plugins=[plugin, looker])
    assert len(rows) == 5 and (not separate or batches[0].shape[0] == 3)


def gradients(settings, step, seed_model=None, run=None):
    """Gradients of the terms alone at one step of the second experience."""
    found = {}

    def only(strategy):
        if strategy.clock.train_exp_iterations == step:
            strategy.loss = strategy.loss * 0

    def look(strategy):
        if strategy.clock.train_exp_iterations == step:
            for name, parameter in strategy.model.named_parameters():
                if parameter.requires_grad:
                    found[name] = float(parameter.grad.abs().max())
            model = strategy.teachers.get("previous").model
            assert not any(p.requires_grad for p in model.parameters())
            assert all(p.grad is None for p in model.parameters())
            assert not model.training

    replayed(
        model=seed_model,
        first=[Each("before_backward", only)],
        extra=[Each("after_backward", look)],
        run=run,
        **settings,
    )
    return found


@pytest.mark.parametrize("batch", ["same", "separate"])
@pytest.mark.parametrize("student_text", [False, True])
def test_gradient__is_zero_in_the_first_step_and_reaches_the_right_tower(
    batch, student_text
):
    settings = {"distill_batch": batch, "student_text": student_text}
    start = gradients(settings, 0)
    assert max(start.values()) < 1e-6
    later = gradients(settings, 2)
    assert "logit_scale" not in later
    assert later["image_proj.weight"] > 1e-4
    for name in ("token.weight", "text_proj.weight"):
        assert later[name] > 1e-4 if student_text else later[name] == 0
    # A scale that is trained takes no gradient from the terms either.
    trained = gradients({**settings, "freeze_logit_scale": False}, 2)
    assert trained["logit_scale"] == 0


# ------------------------------------------------------------- neutral, and scale
def test_logit_scale__leaves_the_optimiser_and_stays():
    model = stub_model()
    start = model.logit_scale.item()
    strategy = replayed(model=model)
    held = {id(p) for g in strategy.optimizer.param_groups for p in g["params"]}
    assert id(model.logit_scale) not in held
    assert len(held) == len(list(model.parameters())) - 1
    assert model.logit_scale.item() == start
    free = replayed(freeze_logit_scale=False)
    assert free.model.logit_scale.item() != start


# ------------------------------------------------------------------------ teacher
def encodings(settings, steps=3, run=None):
    """Calls of the teachers' text towers per experience, and token ids per step."""
    calls, ids = [0, 0, 0], []

    def spy(strategy):
        model = strategy.teachers.get("previous").model
        if hasattr(model, "counted"):
            return
        model.counted, encode = True, model.encode_text

        def counted(*args, **kwargs):
            calls[strategy.clock.train_exp_counter] += 1
            return encode(*args, **kwargs)

        model.encode_text = counted

    def look(strategy):
        plugin = plugin_of(strategy)
        assert plugin.text_features.shape == (len(plugin.token_ids), 8)
        ids.append(plugin.token_ids)

    strategy = replayed(
        steps,
        first=[Each("before_forward", spy)],
        extra=[Each("after_update", look)],
        run=run,
        **settings,
    )
    assert plugin_of(strategy).token_ids is None
    assert plugin_of(strategy).text_features is None
    return calls, ids, strategy


def test_pseudo_texts__are_encoded_once_and_differ_between_experiences():
    calls, ids, strategy = encodings({"distill_batch": "separate"})
    assert calls == [0, 1, 1]
    assert all(torch.equal(ids[0], row) for row in ids[:5])
    assert all(torch.equal(ids[5], row) for row in ids[5:])
    assert not torch.equal(ids[0], ids[5])
    # The stub sees whole rows, so padding is not drawn, and nothing is cut.
    assert ids[0].shape == (20, 6) and (ids[0][:, 1:4] > 2).all()
    assert strategy.compute.experiences[1]["teacher"]["texts"] == 20
    # With the training batch its captions are encoded, too.
    spent = encodings({})[2].compute.experiences[1]["teacher"]
    assert spent["texts"] == 20 + 5 * 4
    again = encodings({})[1]
    other = encodings({}, run={"seed": 1})[1]
    assert torch.equal(ids[0], again[0]) and not torch.equal(ids[0], other[0])


def test_pseudo_texts__many_are_encoded_in_parts_and_redrawn_on_request():
    other = {"distill_batch": "separate"}
    assert encodings({**other, "num_texts": 600})[0] == [0, 3, 3]
    calls, ids, _ = encodings({**other, "redraw": "iteration"})
    assert calls == [0, 5, 5]
    assert len({row.numpy().tobytes() for row in ids}) == 10
    _, ids, _ = encodings({"allow_special": True, "num_texts": 200})
    assert (ids[0][:, 1:4] <= 2).any()


def test_pseudo_texts__sentences_of_the_user():
    texts = ["ab", "cd", "e", "fgh"]
    _, ids, strategy = encodings({"texts": texts})
    assert torch.equal(ids[0], StubTokenizer()(texts))
    assert torch.equal(ids[0], ids[5])
    _, ids, _ = encodings({"texts": texts, "num_texts": 2})
    known = {tuple(row) for row in StubTokenizer()(texts).tolist()}
    for rows in ids:
        chosen = {tuple(row) for row in rows.tolist()}
        assert len(chosen) == 2 and chosen <= known


def test_cost__of_a_second_batch_and_of_student_texts():
    strategy = replayed(distill_batch="separate", student_text=True)
    spent = strategy.compute.experiences[1]
    assert spent["teacher"] == {"images": 20, "texts": 20, "steps": 0}
    assert spent["reference"] == {"images": 20, "texts": 5 * 20, "steps": 0}
    assert spent["train"] == {"images": 20, "texts": 20, "steps": 5}
    assert strategy.compute.experiences[0]["train"]["images"] == 20


# ---------------------------------------------------------------------- settings
def test_compatible__another_model_raises():
    class Strategy:
        model = torch.nn.Linear(2, 2)
        plugins = ()

    with pytest.raises(ValueError, match="Linear lacks.*encode_image"):
        VocabularyReplayPlugin(**SMALL).check_compatible(Strategy)
