"""The contrastive term of C-CLIP: its formula, its teacher and its projector."""

import math

import pytest
import torch

from avalanche_clip.training import CCLIP, Sequential
from avalanche_clip.training import plugins as p
from tests.helpers import At, build, stub_benchmark, stub_model
from tests.training import moe_runs


def equation_5(new, old, scale):
    """Over all rows ``i``: the row's own partner against all rows, both ways."""
    total, rows = 0.0, range(len(new))
    for i in rows:
        for left, right in ((new, old), (old, new)):
            own = math.exp(scale * float(left[i] @ right[i]))
            every = sum(math.exp(scale * float(left[i] @ right[j])) for j in rows)
            total -= math.log(own / every)
    return total / len(new)


def test_term__is_equation_5_between_the_new_model_and_the_one_before():
    seen = At(
        "before_update",
        lambda s: (
            s.global_features,
            s.teachers.get("previous").features(s.mb_x),
            float(s.loss_terms["consolidation"]),
        ),
    )
    maps = At(
        "before_backward", lambda s: s.model.feature_projector.weight.detach().clone()
    )
    model = stub_model()
    model.pretrained = "stub"
    plugin = p.ContrastiveKnowledgeConsolidationPlugin(0.5)
    strategy = build(Sequential, model, plugins=[plugin, seen, maps])
    stream = stub_benchmark(model=model).train_stream
    for experience in stream[:2]:
        before = strategy.model.image_proj.weight.detach().clone()
        strategy.train(experience)
    teacher = strategy.teachers.get("previous").model
    assert torch.equal(teacher.image_proj.weight, before)
    for (student, old, found), weight in zip(seen.seen, maps.seen, strict=True):
        new = torch.cat([student.image_features, student.text_features]) @ weight.T
        new = (new / new.norm(dim=1, keepdim=True)).detach()
        old = torch.cat([old.image_features, old.text_features])
        expected = 0.5 * equation_5(new, old, student.logit_scale.item())
        assert found == pytest.approx(expected, rel=1e-4)
    first = len(maps.seen) // 2
    for start in (0, first):
        assert torch.equal(maps.seen[start], torch.eye(model.embed_dim))
        assert not torch.equal(maps.seen[start + 1], maps.seen[start])


def test_first_experience__has_a_term_if_there_is_something_to_keep():
    terms = At("before_update", lambda s: set(s.loss_terms))
    plugin = p.ContrastiveKnowledgeConsolidationPlugin()
    strategy = build(Sequential, stub_model(), plugins=[plugin, terms])
    for experience in stub_benchmark().train_stream[:2]:
        strategy.train(experience)
    assert "consolidation" not in terms.seen[0] and "consolidation" in terms.seen[-1]


@pytest.mark.parametrize(
    "pulling",
    [p.WeightConsolidationPlugin(1e3), p.WeightAveragingPlugin("we", interval=1)],
    ids=lambda plugin: type(plugin).__name__,
)
def test_projector__is_no_weight_of_the_model(pulling):
    """Neither consolidated nor averaged with it."""
    own = p.ContrastiveKnowledgeConsolidationPlugin(teach_first_experience=True)
    names = At("before_backward", lambda s: {*pulling.start, *_averaged(pulling)})
    strategy = build(Sequential, stub_model(), plugins=[own, pulling, names])
    strategy.train(stub_benchmark().train_stream[0])
    stored = {name for name, _ in strategy.model.named_parameters()}
    assert names.seen[-1] == stored - {"feature_projector.weight"}


def _averaged(plugin):
    return getattr(plugin, "average", ())


@pytest.mark.parametrize("first", [True, False])
def test_projector__is_trained_whatever_freezes_the_model(first):
    """It is saved neither with the model nor with what is frozen."""
    model = moe_runs.vit()
    parts = [p.ContrastiveKnowledgeConsolidationPlugin(), p.LoRAPlugin(merge=True)]
    plugins = parts if first else parts[::-1]
    strategy = Sequential(model=model, plugins=plugins, **moe_runs.options())
    assert "feature_projector.weight" not in strategy.frozen_base.unchanged()["names"]
    strategy.train(moe_runs.pairs(model).train_stream[0])
    width = model.embed_dim
    assert not torch.equal(model.feature_projector.weight, torch.eye(width))
    model.check_plain("a test")


def test_rates__are_those_of_the_towers_unless_an_optimizer_has_its_own():
    for options, wanted in (({"optimizer": None}, {3e-5, 3e-4}), ({}, {1e-2})):
        strategy = CCLIP(model=moe_runs.vit(), **moe_runs.options(**options))
        assert {group["lr"] for group in strategy.optimizer.param_groups} == wanted


def test_refused__in_words():
    with pytest.raises(ValueError, match="weight=-1"):
        p.ContrastiveKnowledgeConsolidationPlugin(-1)
