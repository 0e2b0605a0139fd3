"""DDAS: autoencoders, fused errors, decisions, thresholds, state."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from avalanche_clip.benchmarks.datasets import EmojiPairs, load_emoji_table
from avalanche_clip.models import (
    AlexNetFeatures,
    AutoSelector,
    SelectorTraining,
    create_dual_encoder,
)
from avalanche_clip.models.selector.decisions import (
    autoencoder_errors,
    choose_routes,
    conformal_threshold,
)
from tests.models.selectors import (
    SHORT,
    Pixels,
    domain,
    learned,
    slow_errors,
    through_file,
    write_alexnet,
)
from tests.refused import refused

# decisions --------------------------------------------------------------------


def test_route__rule_on_a_given_matrix():
    errors = torch.tensor(
        [
            [0.30, 0.10, 0.20, 0.40],  # task 0
            [0.30, 0.20, 0.20, 0.40],  # tie of tasks 0 and 1
            [0.10, 0.10, 0.20, 0.40],  # tie with the reference
            [0.05, 0.10, 0.20, 0.40],  # reference
            [0.90, 0.80, 0.70, 0.60],  # above the threshold
            [0.90, 0.80, 0.70, 0.50],  # at the threshold
            [math.nan] * 4,
            [math.inf] * 4,
        ]
    )
    selector = AutoSelector("model", threshold=0.5)
    routes = selector.route(errors)
    assert routes.tolist() == [0, 0, -1, -1, -1, 2, -1, -1]
    assert routes.dtype is torch.int64
    off = AutoSelector("model", threshold=math.inf)
    assert off.route(errors[:6]).tolist() == [0, 0, -1, -1, 2, 2]
    assert AutoSelector("model", threshold=0.0).route(errors).eq(-1).all()
    assert selector.route(errors[:0]).tolist() == []


def test_route__threshold_in_float32_is_exact():
    for value in (0.1, 0.065, 0.0655):
        errors = torch.tensor([[1.0, value]])
        assert AutoSelector(threshold=value).route(errors).tolist() == [0]


def test_route__batch_takes_the_mean_row():
    errors = torch.tensor([[0.3, 0.1, 0.2], [0.3, 0.5, 0.2]])
    one = AutoSelector(granularity="batch")
    assert AutoSelector().route(errors).tolist() == [0, 1]
    assert one.route(errors).tolist() == [1, 1]  # means 0.3, 0.3, 0.2
    assert AutoSelector(granularity="batch", threshold=0.19).route(errors)[0] == -1
    assert one.route(errors[:0]).shape == (0,)


def test_route__batch_equals_sample_on_identical_rows():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        row = torch.rand(1, 5, generator=generator)
        limit = float(row.min())  # the mean must not exceed it by rounding
        limits = torch.full((5,), limit)
        rows = row.repeat(7, 1)
        left = choose_routes(rows, limits, "sample")
        assert torch.equal(left, choose_routes(rows, limits, "batch"))


def test_route__other_shapes_raise():
    selector = learned(2)
    refused(r"errors \(B, 3\)", selector.route, torch.zeros(2, 4))
    refused("route takes", selector.route, torch.zeros(3))


def test_conformal_threshold__by_hand():
    errors = torch.arange(1, 20).float()  # 19 errors
    assert conformal_threshold(errors, 0.95) == 19
    assert conformal_threshold(errors, 0.9) == 18
    assert conformal_threshold(errors, 0.05) == 1
    assert conformal_threshold(errors, 1.0) == 19
    assert conformal_threshold(torch.tensor([3.0]), 0.1) == 3


# errors -----------------------------------------------------------------------


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("rows", [1, 5])
def test_errors__fused_pass_equals_loops(standardize, rows):
    selector = learned(extractor=Pixels(standardize))
    images = torch.cat([domain(1, rows), domain(7, rows)])[:rows]
    errors = selector.errors(images)
    assert errors.shape == (rows, 4)
    torch.testing.assert_close(
        errors.double(), slow_errors(selector, images), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("piece", [1, 300, 20_000, 1 << 25])
def test_errors__pieces_of_any_size_agree(monkeypatch, piece):
    monkeypatch.setattr(
        "avalanche_clip.models.selector.decisions._PIECE", {"cpu": piece}
    )
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    a, w, b = torch.sigmoid(draw(7, 700)), draw(4, 6, 700) / 20, draw(4, 6)
    v, c = draw(4, 700, 6), draw(4, 700)
    expected = [
        (torch.sigmoid(torch.relu(a @ w[i].T + b[i]) @ v[i].T + c[i]) - a)
        .square()
        .mean(1)
        for i in range(4)
    ]
    found = autoencoder_errors(a, w, b, v, c)
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-6, atol=1e-7)


def test_errors__do_not_depend_on_other_rows_or_on_autocast():
    selector = learned()
    images = torch.cat([domain(t, 3) for t in range(3)])
    errors = selector.errors(images)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(selector.errors(images[order]), errors[order])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(selector.errors(images), errors)
    assert not errors.requires_grad


# thresholds -------------------------------------------------------------------


def test_calibration__per_task_and_global():
    selector = learned(2, threshold=0.3)
    assert selector.threshold == 0.3
    held = [domain(0, 39), domain(1, 39)]
    own = [selector.errors(x)[:, t + 1].sort().values for t, x in enumerate(held)]
    found = selector.calibrate(held, 0.9, per_task=True)
    expected = [float(e[35]) for e in own]  # the 36th of 39
    assert found.given == 0.3
    assert selector.threshold == tuple(expected) == tuple(found.per_task.values())
    assert found.threshold == max(expected)
    for task, images in enumerate(held):
        kept = selector.route(images).eq(task)
        assert kept.sum() == 36
    selector.calibrate(held, 0.9)
    assert selector.threshold == max(expected)
    assert selector.given_threshold == 0.3


def test_calibration__grows_task_by_task():
    selector = learned(1)
    first = selector.calibrate({0: domain(0, 20)}, per_task=True).per_task[0]
    selector.fit_task(domain(1))
    assert selector.threshold == (first, first)  # the largest known one
    second = selector.calibrate({1: domain(1, 20)}, per_task=True)
    assert set(second.per_task) == {0, 1}
    assert second.per_task[0] == first
    batch = learned(1, granularity="batch")
    loader = DataLoader(domain(0, 24), 8)
    means = [float(batch.errors(x)[:, 1].double().mean()) for x in loader]
    assert batch.calibrate({0: loader}).threshold == pytest.approx(max(means))


# state ------------------------------------------------------------------------


@pytest.mark.parametrize("tasks", [0, 1, 3])
def test_state__round_trip_continues_identically(tasks):
    selector = learned(tasks, threshold=0.2, granularity="batch", seed=3)
    if tasks:
        selector.calibrate({0: domain(0, 9)}, per_task=True)
    state = through_file(selector.state_dict())
    fresh = AutoSelector(Pixels(), hidden=5, training=SHORT)
    fresh.load_state_dict(state)
    assert (fresh.granularity, fresh.seed, fresh.num_tasks) == ("batch", 3, tasks)
    assert fresh.threshold == selector.threshold
    images = domain(0, 4)
    expected = selector.errors(images)
    assert torch.equal(fresh.errors(images), expected)
    twin = copy.deepcopy(selector)
    for each in (selector, fresh):
        each.fit_task(domain(9))
    assert torch.equal(twin.errors(images), expected) and not list(twin.parameters())
    assert torch.equal(fresh.encoder_weight, selector.encoder_weight)
    assert torch.equal(fresh.decoder_weight, selector.decoder_weight)
    longer = learned(4)
    longer.load_state_dict(state)
    assert longer.num_tasks == tasks


def test_state__other_extractors_are_refused():
    selector = learned(1)
    state = selector.state_dict()
    for other in (
        AutoSelector(Pixels(), hidden=6),
        AutoSelector("model", hidden=5),
        AutoSelector(Pixels(scale=1.5), hidden=5),
    ):
        refused(r"state (belongs|cannot)", other.load_state_dict, state)
        assert other.num_autoencoders == 0
    wide = Pixels()
    wide.feature_size = 50
    refused("feature_size", AutoSelector(wide, hidden=5).load_state_dict, state)


# the model's own features -----------------------------------------------------


def model_selector(model, **options):
    selector = AutoSelector("model", model, hidden=8, training=SHORT, **options)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(3, 40, 3, 32, 32, generator=generator)
    images = images + torch.tensor([0.0, 2.0, -2.0]).view(3, 1, 1, 1, 1)
    selector.fit_reference(images[0])
    selector.fit_task(images[1])
    selector.fit_task(images[2])
    return selector, images


def test_model_state__base_is_checked_or_stored(one, tiny_cfg):
    one.freeze()
    selector, images = model_selector(one)
    state = through_file(selector.state_dict())
    assert state["_extra_state"]["layers"] is None
    torch.manual_seed(0)
    late = AutoSelector("model", hidden=8)
    late.load_state_dict(state)
    late.bind(create_dual_encoder(tiny_cfg))
    assert torch.equal(late.errors(images[1]), selector.errors(images[1]))
    torch.manual_seed(1)
    other = create_dual_encoder(tiny_cfg)
    bound = AutoSelector("model", other, hidden=8)
    refused("other weights", bound.load_state_dict, state)
    unbound = AutoSelector("model", hidden=8)
    unbound.load_state_dict(state)
    refused("other weights", unbound.bind, other)
    # trainable layers go with the state, so any later weights will do
    one.unfreeze()
    trained, _ = model_selector(one)
    kept = through_file(trained.state_dict())
    for fresh in (
        AutoSelector("model", other, hidden=8),
        AutoSelector("model", hidden=8),
    ):
        fresh.load_state_dict(kept)
        fresh.bind(other)
        assert torch.equal(fresh.errors(images[1]), trained.errors(images[1]))
        again = through_file(fresh.state_dict())["_extra_state"]["layers"]
        assert again is not None


def test_alexnet__has_the_published_sizes_and_keeps_its_input(tmp_path):
    path = write_alexnet(tmp_path)
    selector = AutoSelector("alexnet", weights=path)
    assert selector.autoencoder_size == 8_696_164
    assert selector.threshold == 0.065
    assert selector.training_plan == SelectorTraining()
    assert selector.encoder_weight.shape == (0, 100, 43264)
    small = AlexNetFeatures(path, image_size=64)
    small.set_input_statistics((0.5,) * 3, (0.25,) * 3)
    selector = AutoSelector(small, hidden=8, training=SHORT, threshold=math.inf)
    images = torch.rand(16, 3, 64, 64)
    selector.fit_reference(images)
    selector.fit_task(-8 * images)
    assert selector.route(-8 * images).eq(0).all()
    assert torch.equal(selector.feature_std, torch.ones(2304))
    stored, expected = through_file(selector.state_dict()), selector.errors(images)
    assert not any("layers" in key for key in stored)
    twin = AlexNetFeatures(path, image_size=64)
    other = AutoSelector(twin, hidden=8, training=SHORT)
    other.load_state_dict(stored)
    assert torch.equal(other.errors(images), expected)


def test_seed__may_be_negative():
    one, two = learned(1, seed=-1), learned(1, seed=0)
    assert not torch.equal(one.encoder_weight, two.encoder_weight)
    assert torch.equal(one.encoder_weight, learned(1, seed=-1).encoder_weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-emoji", "tiny-emoji-vit"])
def test_emoji__unseen_style_is_sent_to_its_group(name):
    table = load_emoji_table()
    model = create_dual_encoder(name, pretrained="emoji-2010").eval()
    transform = model.transform(False)

    def drawings(style, chosen):
        pairs = EmojiPairs(style, chosen)
        return torch.stack([transform(pairs[i][0]) for i in range(len(pairs))])

    late = table.step > 0
    groups = [table.groups.index(g) for g in ("Smileys & Emotion", "Symbols", "Flags")]
    chosen = [np.flatnonzero(late & (table.group == g))[:60] for g in groups]
    selector = AutoSelector(
        "model",
        model,
        training=SelectorTraining(300, 200, decay_epochs=None),
    )
    selector.fit_reference(drawings("noto", np.flatnonzero(~late)[::4]))
    for part in chosen:
        selector.fit_task(drawings(["noto", "openmoji"], part))
    right = []
    for task, part in enumerate(chosen):
        errors = selector.errors(drawings("twemoji", part))
        right.append(float(errors[:, 1:].argmin(1).eq(task).float().mean()))
    assert np.mean(right) > 0.6  # chance: 0.33
