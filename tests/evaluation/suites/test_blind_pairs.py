"""Blind pairs over a run, against sets of pairs that are counted in plain loops."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from avalanche_clip.benchmarks.datasets import EmojiImages
from avalanche_clip.evaluation.metrics import BlindPairsMetric
from avalanche_clip.evaluation.suites import (
    BlindPairsSuite,
    MMVPVLMSuite,
)
from avalanche_clip.models import create_dual_encoder, drawing_features
from avalanche_clip.training import Sequential
from tests.evaluation.helpers import Silent
from tests.evaluation.suites.test_mmvp_vlm import Few
from tests.helpers import (
    IMAGE_SIZE,
    assert_same_weights,
    build,
    quiet_evaluator,
    stub_benchmark,
    stub_model,
    train_stream,
    weights,
)
from tests.training.small_runs import Interrupted, assert_same_runs, go

SIZE = 14


def pictures(count=SIZE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, IMAGE_SIZE, IMAGE_SIZE)
    common = torch.randn(3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return list(common + 0.7 * torch.randn(shape, generator=generator))


def reference(count=SIZE, width=5):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(1))


def suite(**options):
    given = {"clip_threshold": 0.8, "reference_threshold": 0.4, **options}
    images = given.pop("images", None) or pictures()
    return BlindPairsSuite(images, given.pop("reference", reference()), **given)


@torch.no_grad()
def by_hand(model, images=None, rows=None, high=0.8, low=0.4):
    """The blind pairs of a stub, one cosine at a time."""
    model = copy.deepcopy(model).eval()
    images = pictures() if images is None else images
    rows = reference() if rows is None else rows
    seen = [model.encode_image(image[None])[0].double() for image in images]
    return {
        (a, b)
        for a in range(len(images))
        for b in range(a + 1, len(images))
        if F.cosine_similarity(seen[a], seen[b], dim=0) > high
        and F.cosine_similarity(rows[a].double(), rows[b].double(), dim=0) < low
    }


def test_suite__born_and_healed_against_first_and_last():
    models = [stub_model(seed) for seed in (0, 1, 2, 2, 0)]
    followed, sets = suite(batch_size=5), []
    for model in models:
        found = followed.evaluate(model)["all"]
        sets.append(by_hand(model))
        now, first, last = sets[-1], sets[0], sets[max(0, len(sets) - 2)]
        assert set(followed.blind_pairs()) == now
        assert found == {
            "blind_share": pytest.approx(len(now) / (SIZE * (SIZE - 1) / 2)),
            "blind_count": len(now),
            "born_count": len(now - first),
            "healed_count": len(first - now),
            "born_since_last_count": len(now - last),
            "healed_since_last_count": len(last - now),
            "count": SIZE,
        }
        assert list(found)[0] == "blind_share"
    assert followed.blind_pairs(0) == sorted(sets[0])
    assert len(sets[0]) > 3 and sets[1] - sets[0] and sets[0] - sets[1]
    assert followed.features.encoded["images"] == 4 * SIZE


def test_suite__order_of_images_and_batches_do_not_matter():
    model, order = stub_model(), torch.randperm(SIZE, generator=torch.manual_seed(5))
    wanted = suite().evaluate(model)
    images = [pictures()[k] for k in order]
    moved = suite(images=images, reference=reference()[order], batch_size=1)
    assert moved.evaluate(model) == wanted


def test_suite__leaves_the_model_alone():
    model = stub_model(dropout=0.3).train()
    before, state = weights(model), torch.get_rng_state()
    suite().evaluate(model)
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert_same_weights(before, model)


def test_suite__collapsed_model_is_blind_to_all_that_differs():
    model = stub_model()
    with torch.no_grad():
        model.image_proj.weight.zero_()
        model.image_proj.bias.fill_(1)
    found = suite(reference_threshold=1).evaluate(model)["all"]
    assert found["blind_share"] == 1 and found["blind_count"] == SIZE * (SIZE - 1) / 2


def test_suite__reference_from_array_file_encoder_and_function(tmp_path):
    model, rows, other = stub_model(), reference(), stub_model(7)
    path = tmp_path / "rows.npy"
    np.save(path, rows.numpy())
    wanted = suite().evaluate(model)
    for given in (rows.numpy(), rows.double(), path, str(path)):
        assert suite(reference=given).evaluate(model) == wanted
    with torch.no_grad():
        features = other.eval().encode_image(torch.stack(pictures()))
    wanted = suite(reference=features).evaluate(model)
    assert suite(reference=other).evaluate(model) == wanted
    by_function = suite(
        reference=lambda part: other.encode_image(torch.stack(part)), batch_size=4
    )
    assert by_function.evaluate(model) == wanted
    assert by_function.evaluate(stub_model(3)) != wanted


def test_suite__identity_tells_images_thresholds_and_reference():
    known = suite().identity()
    assert suite().identity() == known
    changes = [
        {"images": pictures(seed=1)},
        {"reference": reference() + 1},
        {"reference": drawing_features},
        {"clip_threshold": 0.81},
        {"reference_threshold": 0.41},
    ]
    others = [str(suite(**change).identity()) for change in changes]
    assert len({str(known), *others}) == len(changes) + 1


def test_suite__state_goes_on_where_it_was():
    whole = suite()
    assert whole.state_dict() == {}
    values = [whole.evaluate(stub_model(seed)) for seed in (0, 1, 2)]
    stopped = suite()
    stopped.evaluate(stub_model(0))
    resumed = suite()
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    assert [resumed.evaluate(stub_model(seed)) for seed in (1, 2)] == values[1:]
    resumed.load_state_dict({})
    assert resumed.points == []
    assert resumed.evaluate(stub_model(0)) == values[0]
    with pytest.raises(ValueError, match="gives other features"):
        suite(reference=reference() + 1).load_state_dict(stopped.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reference": reference(3)}, "3 rows of reference given, 14 are needed"),
        ({"reference": torch.zeros(SIZE, 2)}, "zeros only"),
        ({"reference": reference().half()}, "half precision"),
        ({"images": pictures(1)}, "There are 1 images to pair"),
        ({"images": [*pictures(13), "x.png"]}, "Picture 13"),
        ({"images": range(6000)}, "at most 5,000"),
        ({"clip_threshold": 2}, "clip_threshold=2"),
    ],
)
def test_suite__refuses_before_anything_is_trained(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        built = suite(**options)
        built.check(stub_model())
        built.evaluate(stub_model())


def test_suite__emoji_need_no_downloads():
    few = BlindPairsSuite(EmojiImages("twemoji", range(0, 1911, 40)), drawing_features)
    found = few.evaluate(create_dual_encoder("tiny-emoji", "emoji-2010"))["all"]
    assert found["count"] == 48 and found["blind_count"] < 48


# --------------------------------------------------------------------- in runs
def test_run_stream__stopped_and_resumed_equals_whole(tmp_path):
    def run(folder, **options):
        return go(tmp_path / folder, run={"suites": [suite()]}, **options)

    whole = run("whole")
    rows = whole[1].results["suites"]["blind-pairs"]
    assert list(rows) == ["before", "0", "1", "2"]
    assert rows["before"]["all"]["born_count"] == 0 < rows["2"]["all"]["blind_count"]
    with pytest.raises(Interrupted):
        run("part", stop={"train": 8})
    resumed = run("part", resume=True)
    assert_same_runs(whole, resumed)
    assert str(resumed[1].results["suites"]) == str(whole[1].results["suites"])
    with pytest.raises(ValueError, match="clip_threshold"):
        other = [suite(clip_threshold=0.7)]
        go(tmp_path / "whole", resume=True, run={"suites": other})


def test_metric__follows_a_strategy_and_changes_nothing():
    def train(*metrics, loggers=()):
        model = stub_model(dropout=0.2, noise=0.1)
        plugin = quiet_evaluator(list(metrics))
        plugin.loggers = list(loggers)
        strategy = build(Sequential, model, seed=3, evaluator=plugin)
        return train_stream(strategy, stub_benchmark(model=model))

    options = {"clip_threshold": 0.8, "reference_threshold": 0.4}
    metric, silent = BlindPairsMetric(pictures(), reference(), **options), Silent()
    measured = train(metric, loggers=[silent])
    assert_same_weights(train().model, measured.model)
    curves = metric.result()
    assert len(curves["born_count"]) == 4 and curves["born_count"][0] == 0
    name = "BlindPairs/born_count/train_phase/train_stream"
    logged = [value for n, value, _ in silent.values if n == name]
    assert logged == curves["born_count"][1:]
    assert set(metric.suite.blind_pairs()) == by_hand(measured.model)

    again = BlindPairsMetric(pictures(), reference(), **options)
    again.load_state_dict(metric.state_dict())
    assert again.result() == curves
    again.reset()
    assert again.result() == {} and again.suite.state_dict() == {}
    with pytest.raises(ValueError, match="BlindPairs"):
        train(metric, BlindPairsMetric(pictures(), reference()))
    with pytest.raises(ValueError, match="without '/'"):
        BlindPairsMetric(pictures(), reference(), name="a/b")


def values_of_pairs():
    """What both suites of pairs find with a small model."""
    torch.manual_seed(0)
    model = create_dual_encoder("tiny-emoji")
    found = MMVPVLMSuite(Few(range(0, 135, 27)), batch_size=4).evaluate(model)
    few = BlindPairsSuite(
        EmojiImages("noto", range(9)), drawing_features, clip_threshold=0.5
    )
    return found, few.evaluate(model)


def test_images__are_opened_in_any_mode():
    images = [Image.new(mode, (9, 7)) for mode in ("L", "RGBA", "P", "RGB")]
    few = BlindPairsSuite(images, reference(4), clip_threshold=-1)
    assert few.evaluate(create_dual_encoder("tiny-emoji"))["all"]["count"] == 4


def test_check__leaves_the_reference_and_the_generators_alone():
    class Reference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.drop = torch.nn.BatchNorm1d(3), torch.nn.Dropout(0.5)

        def forward(self, pictures):
            return self.drop(self.norm(torch.stack(pictures).mean((2, 3)) + 1))

    reference, model = Reference(), stub_model()
    shown = list(torch.rand(9, 3, IMAGE_SIZE, IMAGE_SIZE))
    torch.manual_seed(3)
    drawn = torch.rand(4)
    torch.manual_seed(3)
    BlindPairsSuite(shown, reference).check(model)
    assert torch.equal(torch.rand(4), drawn) and reference.training
    assert not reference.norm.running_mean.any()
