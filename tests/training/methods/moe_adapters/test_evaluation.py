"""MoEAdaptersPlugin on image-text pairs, and its selector on both templates."""

import pytest
import torch

from avalanche_clip.training import Sequential
from avalanche_clip.training.methods.moe_adapters.evaluation import _most_frequent
from avalanche_clip.training.plugins import MoEAdaptersPlugin
from avalanche_clip.training.templates import ClassNameTemplate
from tests.helpers import At, assert_same_weights, train_stream
from tests.training import moe_runs
from tests.training.moe_runs import ADAPTERS

pytestmark = pytest.mark.slow


def build(cls=Sequential, plugins=(), model=None, options=None, **given):
    plugin = MoEAdaptersPlugin(ADAPTERS, **given)
    model = model or moe_runs.vit()
    settings = moe_runs.options(**{"schedule": "constant", **(options or {})})
    settings["warmup_iterations"] = 0
    strategy = cls(model=model, plugins=[*plugins, plugin], **settings)
    return strategy, plugin


def selecting(**options):
    return {
        "selector": moe_runs.selector(**options),
        "reference_images": moe_runs.reference(),
    }


def features(strategy, stream):
    keep = At("after_eval_forward", lambda strategy: strategy.mb_features)
    strategy.plugins.append(keep)
    try:
        strategy.eval(stream)
    finally:
        strategy.plugins.remove(keep)
    return keep.seen


def test_pairs__equal_the_base_model_before_training_and_zero_shot_for_ever():
    plain = Sequential(model=moe_runs.vit(), **moe_runs.options())
    plain.model.freeze()  # frozen weights round otherwise
    strategy, plugin = build(router_for_eval="zero-shot")
    benchmark = moe_runs.pairs(strategy.model)
    expected = features(plain, benchmark.test_stream)
    for step in range(3):
        found = features(strategy, benchmark.test_stream)
        for ours, theirs in zip(found, expected, strict=True):
            assert torch.equal(ours.image_features, theirs.image_features)
            assert torch.equal(ours.text_features, theirs.text_features)
        if step < 2:
            strategy.train(benchmark.train_stream[step], eval_streams=[])


def test_pairs__own_routers_of_steps_and_the_newest_for_other_streams():
    strategy, plugin = build(router_for_eval="own")
    benchmark = moe_runs.pairs(strategy.model)
    train_stream(strategy, benchmark, 2)
    moe, model = strategy.model.moe_adapters, strategy.model
    found = features(strategy, benchmark.test_stream)
    assert plugin.routing["test"] == {
        "2,0": {"0": 8},
        "2,1": {"1": 8},
        "2,2": {"-1": 8},
    }
    assert moe.routers == {"image": 1, "text": 1}
    model.eval()
    batch = next(iter(benchmark.test_stream[0].dataset.eval()))
    with torch.no_grad(), moe.using_router(0):
        image = model.encode_image(batch[0][None])
    torch.testing.assert_close(found[0].image_features[:1], image)
    gallery = moe_runs.pairs(model, steps=1)
    strategy.eval(gallery.test_stream)  # of one step: not one per training step
    assert plugin.routing["test"]["2,0"] == {"1": 8}


def test_pairs__images_are_routed_one_by_one_and_captions_by_majority():
    strategy, plugin = build(**selecting())
    benchmark = moe_runs.pairs(strategy.model)
    train_stream(strategy, benchmark)
    moe, model = strategy.model.moe_adapters, strategy.model
    passes = []

    def compare(strategy):
        images = strategy.mb_x["image"]
        routes = plugin.auto_selector.route(images)
        majority = _most_frequent(routes)
        out = strategy.mb_features
        with torch.no_grad(), moe.using_router(image=routes, text=majority):
            image = model.encode_image(images)
            text = model.encode_text(strategy.mb_x["text"])
        torch.testing.assert_close(out.image_features, image)
        torch.testing.assert_close(out.text_features, text)

    note = At("after_eval_forward", compare)
    strategy.plugins.append(note)
    handle = model.clip.visual.conv1.register_forward_pre_hook(
        lambda module, args: passes.append(len(args[0]))
    )
    strategy.eval(benchmark.test_stream)
    handle.remove()
    # per step a batch of 6 and one of 2: the model's pass, and those of compare
    assert len(passes) - 6 - len(note.seen) <= 6 and len(note.seen) == 6
    counts = plugin.routing["test"]
    assert sum(sum(row.values()) for row in counts.values()) == 24
    assert len({router for row in counts.values() for router in row}) > 1
    assert moe.routers == {"image": 2, "text": 2}


def test_most_frequent__lowest_of_several():
    assert _most_frequent(torch.tensor([3, 1, 1, 3])) == 1
    assert _most_frequent(torch.tensor([-1, 1, 1, -1, 0])) == -1
    assert _most_frequent(torch.tensor([], dtype=torch.int64)) == -1


# ------------------------------------------------------------------------- selector
def domains_with(granularity="sample", calibration=None, noise=0.0, **options):
    strategy, plugin = build(
        ClassNameTemplate,
        calibration=calibration,
        options=options,
        **selecting(granularity=granularity),
    )
    benchmark = moe_runs.domains(strategy.model, noise=noise)
    return strategy, plugin, benchmark


@pytest.mark.parametrize("granularity", ["sample", "batch"])
def test_selector__routes_as_it_decides(granularity):
    strategy, plugin, benchmark = domains_with(granularity)
    train_stream(strategy, benchmark)
    assert plugin.auto_selector is plugin.selector
    assert plugin.auto_selector.num_tasks == 3
    strategy.eval(benchmark.test_stream)
    for number, experience in enumerate(benchmark.test_stream):
        data = experience.dataset.eval()
        images = torch.stack([data[k][0] for k in range(len(data))])
        ids, counts = torch.unique(
            plugin.auto_selector.route(images), return_counts=True
        )
        expected = {str(i): n for i, n in zip(ids.tolist(), counts.tolist())}
        assert plugin.routing["test"][f"3,{number}"] == expected
        if granularity == "batch":
            assert len(expected) == 1


def test_selector__sees_each_image_once_and_unknown_images_are_zero_shot():
    strategy, plugin, benchmark = domains_with()
    train_stream(strategy, benchmark, 1)
    passes = []
    handle = strategy.model.clip.visual.conv1.register_forward_hook(
        lambda module, args, output: passes.append(len(args[0]))
    )
    plugin.auto_selector.given_threshold = 0.0  # nothing is familiar
    strategy.eval(benchmark.test_stream)
    handle.remove()
    assert passes.count(6) == 3  # a few test images check the early layers
    assert set(plugin.routing["test"]["1,0"]) == {"-1"}


def test_selector__before_the_first_experience_all_is_zero_shot():
    strategy, plugin, benchmark = domains_with()
    strategy.eval(benchmark.test_stream)
    assert plugin.routing["test"]["0,0"] == {"-1": 6}


def test_selector__does_not_disturb_training():
    plain, _ = build(ClassNameTemplate)
    train_stream(plain, moe_runs.domains(plain.model, noise=0.1), 2)
    strategy, plugin, benchmark = domains_with(noise=0.1)
    train_stream(strategy, benchmark, 2)
    assert_same_weights(strategy.model, plain.model)


def test_selector__known_experience_is_not_learned_twice():
    strategy, plugin, benchmark = domains_with()
    train_stream(strategy, benchmark, 2)
    before = plugin.auto_selector.state_dict()["encoder_weight"].clone()
    spent = strategy.compute.experiences[0]["search"]["images"]
    assert spent > 0
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    assert torch.equal(plugin.auto_selector.encoder_weight, before)
    assert "search" not in strategy.compute.experiences[2]


def test_selector__is_calibrated_on_held_out_images():
    strategy, plugin, benchmark = domains_with(calibration="valid")
    train_stream(strategy, benchmark, 2)
    chosen = plugin.auto_selector
    assert chosen.threshold_kind == "global" and chosen.threshold < float("inf")
    strategy, plugin, benchmark = domains_with(calibration="held out")
    with pytest.raises(ValueError, match="'held out' needs a stream"):
        train_stream(strategy, benchmark, 1)


def test_selector__of_another_run_is_refused():
    strategy, plugin, benchmark = domains_with()
    train_stream(strategy, benchmark, 1)
    with pytest.raises(ValueError, match="knows 1 tasks, the model's adapters 0"):
        build(ClassNameTemplate, selector=plugin.auto_selector)


def test_selector__by_name_and_reference_of_many_kinds():
    model = moe_runs.vit()
    benchmark = moe_runs.domains(model)
    images = moe_runs.pictures(torch.arange(6) + 20, 1).sigmoid()  # in [0, 1]
    sources = [benchmark.test_stream, benchmark.test_stream[0], images]
    from avalanche_clip.models.selector.selector import AutoSelector
    from avalanche_clip.models.selector.training import SelectorTraining

    for source in sources:
        training = SelectorTraining(reference_iterations=2, task_iterations=2)
        chosen = AutoSelector("model", hidden=4, training=training)
        strategy, plugin = build(
            ClassNameTemplate,
            model=moe_runs.vit(),
            selector=chosen,
            reference_images=source,
        )
        train_stream(strategy, moe_runs.domains(strategy.model), 1)
        assert plugin.auto_selector.num_autoencoders == 2


def test_selector_transform__new_augmentations_or_features_computed_once():
    spent = {}
    for how in ("train", "eval"):
        strategy, plugin, benchmark = domains_with(noise=0.1)
        plugin.selector_transform = how
        strategy.train(benchmark.train_stream[0], eval_streams=[])
        spent[how] = strategy.compute.experiences[0]["search"]["images"]
    # 150 steps of batches, against one pass; the reference is computed once in both
    assert spent["train"] > 10 * spent["eval"] > 0
