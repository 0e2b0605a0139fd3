"""SIT: the texts of the batch, repeated steps, online streams."""

import copy
import math
from unittest import mock

import numpy as np
import pytest
import torch
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, ReplayPlugin

from avalanche_clip.benchmarks import split_online
from avalanche_clip.training import plugins, run_stream
from avalanche_clip.training.methods.sit import SIT, DoubleSoftmaxLoss
from avalanche_clip.training.templates import ClassNameTemplate
from tests.helpers import (
    At,
    assert_same_weights,
    quiet_evaluator,
    stub_model,
    train_stream,
    weights,
)
from tests.training import moe_runs
from tests.training.classes import (
    accuracy_evaluator,
    class_benchmark,
    class_strategy,
)
from tests.training.given import GivenFeatures, given_benchmark

pytestmark = pytest.mark.filterwarnings("ignore")

# The example of the specification: classes 7, 3 and 9 have these texts.
TEXTS = [[0.0, 0.0]] * 10
TEXTS = [*TEXTS[:3], [0.0, 1.0], *TEXTS[4:7], [1.0, 0.0], [0.0, 1.0], [0.8, 0.6]]
IMAGES = [[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]
SEVEN = (IMAGES, [7, 3, 7])
NINE = ([[0.8, 0.6]], [9])


def steps_of(space, *steps, criterion=None, order=None):
    """Loss, text gradients by class, and columns of the last step."""
    model = GivenFeatures(TEXTS)
    benchmark = given_benchmark(model, steps, [NINE])
    kept = At("after_forward", lambda s: s.global_features.text_features.retain_grad())
    last = At(
        "after_backward",
        lambda s: (
            float(s.loss),
            dict(zip(s.label_ids, s.global_features.text_features.grad.tolist())),
            dict(zip(s.mb_targets.tolist(), s.mb_y.tolist())),
            len(s.mb_x["text"]),
        ),
    )
    strategy = ClassNameTemplate(
        model=model,
        label_space=space,
        criterion=criterion,
        optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0),
        train_mb_size=3,
        plugins=[kept, last],
        evaluator=quiet_evaluator(),
    )
    train_stream(strategy, benchmark)
    return strategy, model, last.seen[-1]


@pytest.mark.parametrize("steps", [(SEVEN,), (NINE, SEVEN)])
def test_batch__loss_and_gradients_of_the_specification(steps):
    strategy, model, (loss, gradients, columns, texts) = steps_of("batch", *steps)
    assert loss == pytest.approx(0.388957, abs=1e-6)
    assert gradients.keys() == {3, 7} and texts == 2
    np.testing.assert_allclose(gradients[7], [-0.318944, -0.239831], atol=1e-6)
    np.testing.assert_allclose(gradients[3], [0.318944, 0.239831], atol=1e-6)
    assert columns == {3: 0, 7: 1}  # ascending
    assert strategy.seen_classes == ((7, 3) if len(steps) == 1 else (9, 7, 3))
    # The others were never encoded.
    assert model.texts == 2 + (len(steps) == 2)


def test_all__old_texts_are_pushed_away():
    _, _, (loss, gradients, columns, _) = steps_of("seen", NINE, SEVEN)
    assert loss == pytest.approx(0.855200, abs=1e-6)
    np.testing.assert_allclose(gradients[9], [0.428247, 0.430043], atol=1e-6)
    np.testing.assert_allclose(sum(map(np.array, gradients.values())), 0, atol=1e-6)
    assert columns == {3: 0, 7: 1}


@pytest.mark.parametrize(
    ("space", "expected"), [("batch", 0.521010), ("seen", 0.980133)]
)
def test_double_softmax__values_of_the_specification(space, expected):
    found = steps_of(space, NINE, SEVEN, criterion=DoubleSoftmaxLoss())[-1][0]
    assert found == pytest.approx(expected, abs=1e-6)


def test_double_softmax__limits():
    logits = torch.tensor([[1e4, 0.0, 0.0, 0.0]])
    right, wrong = (
        float(DoubleSoftmaxLoss()(logits, torch.tensor([k]))) for k in (0, 1)
    )
    assert right == pytest.approx(math.log(1 + 3 / math.e), abs=1e-6)
    assert wrong == pytest.approx(math.log(3 + math.e), abs=1e-6)


@pytest.mark.parametrize("criterion", [None, DoubleSoftmaxLoss()])
def test_one_class__has_no_loss_and_no_gradient(criterion):
    one = (IMAGES, [7, 7, 7])
    _, _, (loss, gradients, _, _) = steps_of("batch", one, criterion=criterion)
    assert loss == 0 and gradients == {7: [0.0, 0.0]}


def test_all_classes_in_the_batch__both_forms_are_equal():
    whole = (IMAGES, [7, 3, 9])
    found = [steps_of(space, NINE, whole)[-1][:2] for space in ("batch", "seen")]
    assert found[0] == found[1]


def test_batch__has_no_budget_in_macs_and_no_evaluation():
    model = GivenFeatures(TEXTS)
    with pytest.raises(ValueError, match="budget_iterations"):
        ClassNameTemplate(model=model, label_space="batch", budget_macs=1e9)
    with pytest.raises(ValueError, match="eval_label_space"):
        ClassNameTemplate(model=model, eval_label_space="batch")
    assert ClassNameTemplate(model=model, label_space="batch").eval_label_space == (
        "seen"
    )


# ------------------------------------------------------------------- strategy
def sit(*plugins, model=None, **options):
    """A strategy, and a stream of three steps of twelve images."""
    model = model or moe_runs.vit()
    noise = options.pop("noise", 0.0)
    settings = {"train_mb_size": 5, "evaluator": accuracy_evaluator(), "seed": 3}
    strategy = SIT(model=model, plugins=plugins, **{**settings, **options})
    return strategy, moe_runs.domains(model, noise=noise)


def features(model):
    """Of some images and texts."""
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    tokens = model.tokenizer(["ab", "cd"])
    model.eval()
    with torch.no_grad():
        return model.encode_image(images), model.encode_text(tokens)


@pytest.mark.parametrize(
    ("options", "same", "count"),
    [
        ({}, True, 6 * 4 * 64),
        ({"tuning": "adapters"}, True, 129 * 64 + 64),
        ({"lora_init": "xavier"}, False, 6 * 4 * 64),
    ],
)
def test_start__identity_and_counts(options, same, count):
    model = moe_runs.vit()
    start = features(model)
    strategy, benchmark = sit(model=model, **options)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == 2 * 2 * count
    for ours, expected in zip(features(model), start):
        assert torch.allclose(ours, expected, atol=1e-6) == same
    group = strategy.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (5e-4, 1e-5)
    assert type(strategy.optimizer) is torch.optim.AdamW
    before = weights(model)
    train_stream(strategy, benchmark, 1)
    kind = "adapter." if "tuning" in options else ".lora."
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]) == (kind not in key), key


def test_tower__the_other_one_stays():
    strategy, benchmark = sit(tower="image")
    images, texts = features(strategy.model)
    train_stream(strategy, benchmark, 1)
    after = features(strategy.model)
    assert torch.equal(after[1], texts) and not torch.equal(after[0], images)


def batches(strategy):
    """Samples and pixels of the step."""
    order = strategy.mb_x["sample_id"].argsort()
    pixels = strategy.mb_x["image"][order]
    return strategy.mb_x["sample_id"][order].tolist(), pixels.sum((1, 2, 3)).tolist()


def test_repeats__each_batch_in_a_row_with_its_own_augmentations():
    look = At("after_forward", batches)
    strategy, benchmark = sit(look, noise=0.1)
    train_stream(strategy, benchmark, 1)
    ids = [found for found, _ in look.seen]
    assert [len(i) for i in ids] == [5] * 6 + [2] * 3
    assert ids[0] == ids[1] == ids[2] and ids[3] == ids[5] and ids[6] == ids[8]
    assert sorted(ids[0] + ids[3] + ids[6]) == list(range(12))
    assert len({tuple(pixels) for _, pixels in look.seen}) == 9
    assert strategy.clock.train_exp_epochs == 1


def test_repeats__a_loader_that_repeats_nothing_is_refused():
    strategy, benchmark = sit(ReplayPlugin(4))
    train_stream(strategy, benchmark, 1)  # it replaces the loader later
    with pytest.raises(ValueError, match="repeats=3.*BudgetedReplayPlugin"):
        strategy.train(benchmark.train_stream[1], eval_streams=[])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"visible": "seen"}, "visible"),
        ({"tuning": "prompt"}, "tuning"),
        ({"tower": "none"}, "tower"),
        ({"repeats": 0}, "repeats"),
        ({"tuning": "adapters", "lora_init": "xavier"}, "leave it out"),
        ({"label_space": "all"}, "use visible"),
        ({"criterion": print}, "use double_softmax"),
        ({"reset_optimizer_state": True}, "use reset_optimizer"),
        ({"double_softmax": True, "label_smoothing": 0.1}, "label_smoothing"),
        ({"double_softmax": "no"}, "double_softmax"),
    ],
)
def test_options__are_refused(options, words):
    model = moe_runs.vit()
    with pytest.raises(ValueError, match=words):
        SIT(model=model, **options)
    assert model.lora is None and model.adapters is None


# --------------------------------------------------------------------- online
def test_online__equals_one_pass_over_the_whole_steps():
    found = []
    for online in (False, True):
        strategy, benchmark = sit(repeats=2)
        if online:
            benchmark = split_online(benchmark, 5)
        train_stream(strategy, benchmark, shuffle=False)
        found.append(strategy.model)
    assert_same_weights(*found)


def test_online__classes_and_moments_are_those_of_what_has_come():
    steps = At(
        "after_update",
        lambda s: int(next(iter(s.optimizer.state.values()))["step"]),
    )
    seen = At("after_training_exp", lambda s: (s.seen_classes, s.experience.class_ids))
    for reset in (False, True):
        strategy, benchmark = sit(steps, seen, reset_optimizer=reset, repeats=1)
        benchmark = split_online(benchmark, 2)
        train_stream(strategy, benchmark, 7)
    assert steps.seen == [1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 1]
    assert [len(all_) for all_, _ in seen.seen[:7]] == [2, 3, 3, 3, 3, 3, 5]
    assert seen.seen[1][1] == (2, 0)


def test_online__run_is_evaluated_by_samples_and_resumed(tmp_path):
    def run(folder, *plugins, resume=False):
        strategy, benchmark = sit(*plugins, noise=0.1, repeats=2)
        with mock.patch("avalanche_clip.training.runs.stream.write_report"):
            result = run_stream(
                strategy,
                split_online(benchmark, 5),
                folder,
                evaluate_at={"samples": 10},
                checkpoint_iterations=1,
                resume=resume,
            )
        return strategy, result

    def stop(strategy):
        if strategy.clock.train_iterations == 9:
            raise KeyboardInterrupt

    whole, result = run(tmp_path / "whole")
    assert result.results["evaluations"]["samples"] == [12, 22, 34, 36]
    assert not np.isnan(result.E).any()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", At("after_update", stop))
    resumed, again = run(tmp_path / "cut", resume=True)
    assert_same_weights(whole.model, resumed.model)
    np.testing.assert_array_equal(again.E, result.E)
    assert resumed.seen_classes == whole.seen_classes
    assert again.compute == result.compute


def test_copy__of_a_trained_model_is_its_own():
    strategy, benchmark = sit()
    train_stream(strategy, benchmark, 1)
    copied = copy.deepcopy(strategy.model)
    start = weights(copied)
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    assert_same_weights(copied, start)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EWCPlugin(ewc_lambda=1.0),
        lambda: AGEMPlugin(patterns_per_experience=4, sample_size=4),
        lambda: plugins.OnlineEWCPlugin(1.0, fisher_batch_size=4),
        lambda: plugins.BudgetedReplayPlugin("equal", buffer_size=8),
    ],
)
def test_batch__goes_with_plugins_that_have_batches_of_their_own(make):
    model = stub_model()
    strategy = class_strategy(model, label_space="batch", plugins=[make()])
    benchmark = class_benchmark(model, classes=6, increment=2)
    widths = At("after_forward", lambda s: (s.mb_output.shape[1], s.mb_y.max() + 1))
    strategy.plugins.append(widths)
    train_stream(strategy, benchmark)
    assert all(width >= top for width, top in widths.seen)
    replays = isinstance(strategy.plugins[0], plugins.BudgetedReplayPlugin)
    assert (max(width for width, _ in widths.seen) > 2) == replays
    assert strategy.eval(benchmark.test_stream)
    with pytest.raises(ValueError, match="no label space"):
        _ = strategy.label_ids
