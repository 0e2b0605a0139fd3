"""Low-rank updates in training: what moves, what merging does, who goes along."""

import copy
from functools import partial

import pytest
import torch

from avalanche_clip.models import attach_lora, create_dual_encoder
from avalanche_clip.training import LoRA
from avalanche_clip.training import plugins as p
from tests.helpers import At, assert_same_weights, weights
from tests.models.experts import features, make_batch
from tests.training import moe_runs


def build(*plugins, model=None, **options):
    """A strategy on a small transformer, and its stream."""
    model = model or moe_runs.vit()
    options = {"rank": 2, "targets": ("qkv", "out"), **options}
    strategy = LoRA(model=model, plugins=plugins, **moe_runs.options(**options))
    return strategy, moe_runs.pairs(model).train_stream


def base_of(model):
    """Weights without those of updates."""
    return {name: value for name, value in weights(model).items() if "lora" not in name}


def update_of(model, block=0):
    """Update of the queries, keys and values of a block of the image tower."""
    parts = next(iter(model.lora.branches("image")[block].table.values()))
    return parts.delta("qkv").detach().clone()


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_merge__moves_weights_by_the_share_of_the_update(share):
    last = At("before_training_exp", lambda s: base_of(s.model))
    inside = At(
        "after_training_epoch", lambda s: (base_of(s.model), update_of(s.model))
    )
    outputs = At(
        "after_training_epoch", lambda s: features(s.model, make_batch(s.model))
    )
    strategy, stream = build(last, inside, outputs, merge=True, share=share)
    model = strategy.model
    weight = "clip.visual.transformer.resblocks.0.attn.in_proj_weight"
    for number in range(2):
        strategy.train(stream[number])
        start, (trained, update) = last.seen[number], inside.seen[number]
        assert_same_weights(start, trained)  # weights move by merging alone
        assert update.abs().max() > 1e-4
        expected = start[weight] + share * update
        torch.testing.assert_close(model.state_dict()[weight], expected)
        model.check_plain("a test")
        merged = features(model, make_batch(model))
        if share == 1:
            torch.testing.assert_close(merged, outputs.seen[-1], rtol=0, atol=1e-6)
        else:
            assert (merged - outputs.seen[-1]).abs().max() > 1e-5
    assert strategy.lora.merged == 2


def test_merge__updates_begin_anew_without_moments():
    """Even where moments go on from step to step."""
    state = At("before_training_iteration", lambda s: len(s.optimizer.state))
    up = At("before_training_exp", lambda s: update_of(s.model).abs().max().item())
    down = At(
        "before_training_exp",
        lambda s: copy.deepcopy(s.model.lora.branches()[0].table),
    )
    strategy, stream = build(state, up, down, merge=True, reset_optimizer_state=False)
    for experience in stream[:2]:
        strategy.train(experience)
    steps = len(state.seen) // 2
    assert state.seen[0] == state.seen[steps] == 0 < state.seen[1]
    assert up.seen == [0.0, 0.0]
    first, second = ([*table.values()][0].qkv_down for table in down.seen)
    assert not torch.equal(first, second)


def test_without_merge__updates_go_on():
    up = At("before_training_exp", lambda s: update_of(s.model).abs().max().item())
    strategy, stream = build(up)
    start = base_of(strategy.model)
    for experience in stream[:2]:
        strategy.train(experience)
    assert up.seen[0] == 0 < up.seen[1]
    assert_same_weights(start, base_of(strategy.model))


@pytest.mark.parametrize("kind", ["previous", "ema", "initial"])
def test_teachers__know_what_was_merged(kind):
    batch = make_batch(moe_runs.vit())
    align = partial(p.OffDiagonalAlignmentPlugin, alpha=5.0, row_filter="none")
    taught = At(
        "before_training_iteration",
        lambda s: features(s.teachers.get(kind).model, batch),
    )
    strategy, stream = build(align(teacher=kind), taught, merge=True)
    before = features(strategy.model, batch)
    strategy.train(stream[0])
    merged, count = features(strategy.model, batch), len(taught.seen)
    strategy.train(stream[1])
    found = {"previous": merged, "initial": before}.get(kind)
    if kind == "ema":  # hardly moved, and not thrown off by the merge
        found = taught.seen[count - 1]
        way = (merged - before).abs().max()
        assert (found - before).abs().max() < way / 10
        for later in taught.seen[count : count + 2]:
            assert (later - found).abs().max() < way / 100
    else:
        torch.testing.assert_close(taught.seen[count], found, rtol=0, atol=1e-6)


def test_patching__mixes_merged_weights():
    updates = At("after_training_epoch", lambda s: update_of(s.model))
    patching = p.PatchingPlugin(grid=[0.25])
    strategy, stream = build(patching, updates, merge=True)
    weight = "clip.visual.transformer.resblocks.0.attn.in_proj_weight"
    strategy.train(stream[0])
    before = weights(strategy.model)[weight]
    strategy.train(stream[1])
    expected = before + 0.25 * updates.seen[1]
    torch.testing.assert_close(weights(strategy.model)[weight], expected)


def test_averaging__averages_updates_before_they_are_merged():
    averaging = p.WeightAveragingPlugin("wise", alpha=0.0)  # back to the start
    strategy, stream = build(averaging, merge=True)
    start = base_of(strategy.model)
    for experience in stream[:2]:
        strategy.train(experience)
    assert_same_weights(start, strategy.model)


def test_convolutional_tower__has_no_updates():
    model = create_dual_encoder("tiny-emoji")
    with pytest.raises(ValueError, match="tiny-emoji-vit"):
        LoRA(model=model, evaluator=None)
    LoRA(model=model, tower="text", evaluator=None)
    trained = {name for name, q in model.named_parameters() if q.requires_grad}
    assert trained and all(model.tower_of(name) == "text" for name in trained)


@pytest.mark.parametrize(
    ("plugins", "options", "message"),
    [
        ([partial(p.MoEAdaptersPlugin, moe_runs.ADAPTERS)], {}, "routes batches"),
        ([p.LanguageAdapterPlugin], {}, "routes batches"),
        ([p.TokenEmbeddingExpansionPlugin], {}, "token table"),
        ([p.RestartPlugin], {}, "begins each one anew"),
        ([p.ContrastiveEWCPlugin], {"merge": True}, "protect nothing"),
        (
            [p.ConstantCosinePlugin],
            {"merge": True, "schedule": "const-cosine"},
            "from others",
        ),
        (
            [partial(p.WeightAveragingPlugin, "wise", anchor="initial")],
            {"merge": True},
            "anchor='start'",
        ),
        ([p.LoRAPlugin], {}, "use one"),
        ([], {"share": 0.5}, "merge=True"),
        ([], {"merge": 1}, "True or False"),
        ([], {"merge": True, "share": 0.0}, "share=0.0"),
        ([], {"alpha": -1.0}, "alpha=-1"),
        ([], {"blocks": [7]}, "blocks 0 to 1"),
        ([], {"targets": ("w",)}, "targets"),
    ],
)
def test_refused__in_words(plugins, options, message):
    with pytest.raises(ValueError, match=message):
        build(*[make() for make in plugins], **options)


def test_refused__a_model_with_updates():
    model = moe_runs.vit()
    attach_lora(model)
    with pytest.raises(ValueError, match="already"):
        LoRA(model=model, evaluator=None)


def test_appended_plugin__still_finds_the_updates_at_the_end_of_an_experience():
    strategy, stream = build(merge=True)
    late = At("after_training_exp", lambda s: update_of(s.model).abs().max().item())
    strategy.plugins.append(late)
    strategy.train(stream[0])
    assert late.seen[0] > 1e-4
    strategy.model.check_plain("a test")
