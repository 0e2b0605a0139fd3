"""The emoji world as streams."""

import warnings

import numpy as np
import pytest

from avalanche_clip.benchmarks import attribute_array, prepare_benchmark, tic_emoji
from avalanche_clip.benchmarks.classic.tic_emoji import tic_emoji_joint
from avalanche_clip.benchmarks.datasets import (
    EMOJI_STEPS,
    EMOJI_STYLES,
    load_emoji_table,
    validation_mask,
)
from tests.benchmarks.small_streams import CharModel, column, sizes_of
from tests.refused import refused

SIZES = [719, 139, 446, 264, 175, 168]


@pytest.fixture(scope="module")
def plain():
    return tic_emoji()


@pytest.fixture(scope="module")
def validated():
    return tic_emoji(validation=True)


def columns(stream, name="sample_id"):
    return [column(exp, name) for exp in stream]


def styles_of(stream):
    codes = np.unique(np.concatenate(columns(stream)) // len(load_emoji_table()))
    return [EMOJI_STYLES[code] for code in codes]


def test_tic_emoji__sizes_labels_and_order(plain):
    assert list(plain.streams) == ["train", "test", "gallery"]
    assert sizes_of(plain.test_stream) == SIZES
    assert sizes_of(plain.train_stream) == [2 * n for n in SIZES]
    assert sizes_of(plain.streams["gallery"]) == [1911]
    labels = [step.label for step in EMOJI_STEPS]
    assert plain.time_labels == labels
    for stream in (plain.train_stream, plain.test_stream):
        assert [e.time_label for e in stream] == labels
    for index, times in enumerate(columns(plain.train_stream, "timestamp")):
        low, high = EMOJI_STEPS[index].bounds
        assert (times >= low).all() and (times < high).all()


def test_tic_emoji__test_style_is_never_trained_on(plain, validated):
    assert sorted(styles_of(plain.train_stream)) == ["noto", "openmoji"]
    for scenario in (plain, validated):
        assert "twemoji" not in styles_of(scenario.train_stream)
        assert styles_of(scenario.test_stream) == ["twemoji"]
    assert styles_of(validated.streams["valid"]) == ["openmoji"]


def test_tic_emoji__every_drawing_once(plain):
    train = np.concatenate(columns(plain.train_stream))
    test = np.concatenate(columns(plain.test_stream))
    assert len(np.unique(train)) == len(train) == 2 * 1911
    assert len(np.unique(test)) == 1911 and not np.intersect1d(train, test).size
    gallery = columns(plain.streams["gallery"])[0]
    assert np.array_equal(np.sort(gallery), np.sort(test))


def test_tic_emoji__validation_is_a_hashed_fifth_kept_out_of_training(plain, validated):
    held = np.flatnonzero(validation_mask(load_emoji_table().ids, 0.2))
    valid = columns(validated.streams["valid"], "targets")
    assert np.array_equal(np.sort(np.concatenate(valid)), held) and len(held) == 372
    for before, train, out in zip(
        columns(plain.train_stream),
        columns(validated.train_stream),
        columns(validated.streams["valid"]),
        strict=True,
    ):
        assert not np.intersect1d(train, out).size
        assert np.array_equal(np.sort(np.concatenate([train, out])), np.sort(before))
        assert 0.1 < len(out) / (len(before) / 2) < 0.3
    # The other style of a held-out emoji is still trained on.
    assert np.isin(
        held, np.concatenate(columns(validated.train_stream, "targets"))
    ).all()


def test_tic_emoji__captions(plain, validated):
    table = load_emoji_table()
    dataset = plain.train_stream[3].dataset
    row = attribute_array(dataset, "targets")[0]
    image, captions, *_ = dataset[0]
    assert image.size == (48, 48)
    assert captions == [table.names[row], *table.keywords("en")[row]]
    for stream in (plain.test_stream, validated.streams["valid"]):
        dataset = stream[5].dataset
        assert dataset[1][1] == table.names[attribute_array(dataset, "targets")[1]]


def test_tic_emoji__prepares_without_a_warning(plain, validated):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = prepare_benchmark(validated, CharModel())
        prepare_benchmark(plain, CharModel())
    assert prepared.time_labels == plain.time_labels
    assert prepared.train_stream[0].time_label == "2010"


def test_tic_emoji__other_styles_and_no_gallery():
    scenario = tic_emoji(styles=("twemoji",), test_style="noto", gallery=False)
    assert list(scenario.streams) == ["train", "test"]
    assert styles_of(scenario.train_stream) == ["twemoji"]
    assert sizes_of(scenario.train_stream) == SIZES


@pytest.mark.parametrize("validation", [False, True])
@pytest.mark.parametrize("first", [1, 4, 5])
def test_tic_emoji__later_start_keeps_the_other_steps(first, validation, plain):
    whole = tic_emoji(validation=validation)
    scenario = tic_emoji(validation=validation, first_step=first)
    assert list(scenario.streams) == [
        *("train", "test"),
        *(["valid"] if validation else []),
        *("base", "gallery"),
    ]
    labels = [step.label for step in EMOJI_STEPS]
    assert scenario.time_labels == labels[first:]
    assert [e.time_label for e in scenario.train_stream] == labels[first:]
    assert [e.time_label for e in scenario.streams["base"]] == labels[:first]
    for name in ("train", "test", "valid")[: 3 if validation else 2]:
        ours, all_steps = scenario.streams[name], whole.streams[name]
        assert [e.current_experience for e in ours] == list(range(6 - first))
        for left, right in zip(columns(ours), columns(all_steps)[first:], strict=True):
            assert np.array_equal(np.sort(left), np.sort(right))
    base = columns(scenario.streams["base"])
    for left, right in zip(base, columns(whole.test_stream)[:first], strict=True):
        assert np.array_equal(np.sort(left), np.sort(right))
    (gallery,) = columns(scenario.streams["gallery"])
    assert len(gallery) == 1911
    for experience, step in zip(scenario.streams["base"], EMOJI_STEPS):
        assert (experience.time_start, experience.time_end) == step.bounds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"first_step": 6}, r"first_step=6 is unknown; use one of 0, 1, 2, 3, 4, 5"),
        ({"first_step": -1}, "first_step=-1"),
        ({"styles": ("noto", "twemoji")}, "also trained on"),
        ({"styles": ()}, "no styles"),
        ({"styles": "noto"}, "list of styles"),
        ({"styles": ("noto", "noto")}, "more than once"),
        ({"test_style": "apple"}, "apple"),
        ({"styles": ("noto",), "validation": True}, "in 'openmoji'; train on it"),
    ],
)
def test_tic_emoji__bad_styles_raise(options, message):
    refused(message, tic_emoji, **options)


def test_tic_emoji_joint__trains_on_everything_at_once(plain):
    joint = tic_emoji_joint()
    assert sizes_of(joint.train_stream) == [2 * 1911]
    assert sizes_of(joint.test_stream) == SIZES
    left, right = columns(joint.train_stream)[0], columns(plain.train_stream)
    assert np.array_equal(np.sort(left), np.sort(np.concatenate(right)))
