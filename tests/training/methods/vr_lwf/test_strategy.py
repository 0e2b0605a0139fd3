import pytest
import torch

from avalanche_clip import distributed
from avalanche_clip.common.randomness import rng_state
from avalanche_clip.training.plugins import VocabularyReplayPlugin
from avalanche_clip.training.supervised import Sequential, VRLwF
from avalanche_clip.training.templates.distillation import own_share
from tests.helpers import (
    At,
    assert_other_weights,
    assert_same_weights,
    build,
    fit,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
)
from tests.processes import run_in_processes
from tests.training.methods.vr_lwf.test_plugin import Each

SETTINGS = {"num_texts": 20, "text_length": 3}
SMALL = {"num_texts": 20, "plugin_options": {"text_length": 3}}


def test_strategy__is_the_template_with_the_plugin():
    strategy = fit(VRLwF, image_weight=5.0, text_weight=5.0, **SMALL)
    (plugin,) = [p for p in strategy.plugins if isinstance(p, VocabularyReplayPlugin)]
    assert (plugin.num_texts, plugin.text_length) == (20, 3)
    assert (plugin.image_weight, plugin.text_weight) == (5.0, 5.0)
    same = VocabularyReplayPlugin(
        num_texts=20, text_length=3, image_weight=5.0, text_weight=5.0
    )
    other = fit(Sequential, plugins=[same], schedule="cosine")
    assert_same_weights(strategy.model, other.model)
    assert_other_weights(strategy.model, fit(VRLwF, **SMALL).model)


def test_defaults__are_those_of_the_source():
    model = stub_model()
    strategy = VRLwF(
        model=model, evaluator=quiet_evaluator(), budget_iterations=2, **SMALL
    )
    assert strategy.train_mb_size == 64 and strategy.schedule == "cosine"
    with pytest.warns(UserWarning, match="fewer than a batch"):
        train_stream(strategy, stub_benchmark(model=model), 2)
    (group,) = strategy.optimizer.param_groups
    assert type(strategy.optimizer) is torch.optim.AdamW
    assert group["initial_lr"] == 1e-5 and group["weight_decay"] == 0
    assert group["betas"] == (0.9, 0.999)
    assert len(group["params"]) == len(list(model.parameters())) - 1
    plugin = strategy.plugins[0]
    plain = VocabularyReplayPlugin()
    assert (plain.num_texts, plain.text_length, plain.temperature) == (1000, 10, 2.0)
    assert plugin.image_weight == plugin.text_weight == 1.0
    assert plugin.distill_batch == "same" and not plugin.allow_special
    assert plugin.freeze_logit_scale and not plugin.student_text


def test_own_optimizer_and_groups__are_kept():
    def rule(named):
        return [{"names": [n for n, _ in named], "weight_decay": 0.3}]

    strategy = fit(VRLwF, optimizer=None, param_groups=rule, **SMALL)
    (group,) = strategy.optimizer.param_groups
    assert group["weight_decay"] == 0.3 and group["initial_lr"] == 1e-5
    strategy = fit(VRLwF, **SMALL)
    assert [g["initial_lr"] for g in strategy.optimizer.param_groups] == [1e-2] * 2


# ------------------------------------------------------------------- second batch
def test_second_batch__has_evaluation_transform_and_its_own_order():
    batches, training = [], []
    model = stub_model(noise=1.0)
    data = stub_benchmark(model=model)
    plugin = VocabularyReplayPlugin(**SETTINGS, distill_batch="separate")
    following = plugin._next_images

    def keep(strategy):
        batches.append(following(strategy))
        return batches[-1]

    plugin._next_images = keep
    look = Each("after_update", lambda s: training.append(s.mb_x["sample_id"]))
    run = {"budget_iterations": 6}
    fit(Sequential, data, 2, model=model, plugins=[plugin, look], **run)
    dataset = data.train_stream[1].dataset.eval()
    images = torch.stack([dataset[i][0] for i in range(12)])
    found = []
    for batch in batches:
        distance = torch.cdist(batch.flatten(1), images.flatten(1))
        assert distance.min(dim=1).values.max() < 1e-6
        found += distance.argmin(dim=1).tolist()
    # Two passes over twelve images, in another order than that of the training.
    assert sorted(found) == sorted([*range(12), *range(12)])
    assert found != (torch.cat(training) - training[0].min().item()).tolist()


@pytest.mark.parametrize("redraw", ["experience", "iteration"])
def test_global_generators__are_those_of_plain_training(redraw):
    def generators(strategy):
        now = rng_state()
        return [now["torch"], *(now[name][1] for name in ("python", "numpy"))]

    def states(plugins):
        note = At("after_update", lambda s: [g.tolist() for g in generators(s)])
        model = stub_model(dropout=0.3, noise=0.2)
        data = stub_benchmark(model=model)
        fit(Sequential, data, 2, model=model, plugins=[*plugins, note])
        return note.seen

    plugin = VocabularyReplayPlugin(
        **SETTINGS, distill_batch="separate", student_text=True, redraw=redraw
    )
    assert states([plugin]) == states([])


def test_second_batch__does_not_depend_on_workers():
    def once(**options):
        plugin = VocabularyReplayPlugin(**SETTINGS, distill_batch="separate")
        strategy = build(Sequential, plugins=[plugin])
        return train_stream(strategy, stub_benchmark(), 2, **options)

    plain = once()
    workers = once(num_workers=1, multiprocessing_context="fork")
    assert_same_weights(plain.model, workers.model)


def shares():
    return own_share(torch.arange(5)).tolist()


def test_own_share__covers_all_rows(tmp_path):
    parts = run_in_processes({"share": shares}, tmp_path)
    assert parts["share"] == [[0, 1, 2], [3, 4, 0]]
    assert torch.equal(own_share(torch.arange(5)), torch.arange(5))
    assert not distributed.is_distributed()
