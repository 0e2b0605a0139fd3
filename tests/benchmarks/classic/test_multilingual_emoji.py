"""Emoji named in 36 languages."""

import random

import numpy as np
import pytest

from avalanche_clip.benchmarks import attribute_array, language_order
from avalanche_clip.benchmarks.classic.multilingual_emoji import (
    QUICK_LANGUAGES,
    emoji_language_dataset,
    multilingual_emoji,
)
from avalanche_clip.benchmarks.datasets import EMOJI_LANGUAGES, load_emoji_table
from tests.benchmarks.small_streams import check_ids_differ, sizes_of
from tests.refused import refused

ALPHABETICAL = (
    "ar bn cs da de el en es fa fi fil fr he hi hr hu id it ja ko mi nl no pl pt quz "
    "ro ru sv sw te th tr uk vi zh"
).split()
ORDER_222 = (
    "en it de fil tr uk nl bn he fi sv quz fa mi fr el zh id sw no hi da te th pt ru "
    "ro pl hr es vi ar cs ko ja hu"
).split()


def test_order__is_the_seeded_shuffle_with_english_first():
    random.seed(222)
    shuffled = list(ALPHABETICAL)
    random.shuffle(shuffled)
    shuffled.remove("en")
    assert ["en", *shuffled] == ORDER_222
    assert list(EMOJI_LANGUAGES) == ORDER_222
    random.seed(5)
    state = random.getstate()
    assert list(language_order(reversed(ALPHABETICAL))) == ORDER_222
    assert random.getstate() == state
    assert language_order(["it", "de"], seed=1)[0] != "en"


def test_stream__has_36_languages_over_the_emoji_of_2010():
    benchmark = multilingual_emoji()
    assert benchmark.languages == tuple(ORDER_222)
    assert benchmark.language_codes["hu"] == 35
    table = load_emoji_table()
    first = np.flatnonzero(table.step == 0)
    assert len(first) == 719
    for experience, test in zip(
        benchmark.train_stream, benchmark.test_stream, strict=True
    ):
        named = int(table.named(experience.language)[first].sum())
        assert len(experience.dataset) == 2 * named
        assert len(test.dataset) == named
        assert set(attribute_array(test.dataset, "targets")) <= set(first.tolist())
    assert sizes_of(benchmark.test_stream)[:2] == [719, 719]
    check_ids_differ(benchmark)


def test_unnamed__emoji_are_dropped_made_common_or_refused():
    table = load_emoji_table()
    everything = np.arange(len(table))
    chosen = ["en", "da", "mi", "quz"]
    dropped = multilingual_emoji(chosen, emoji=everything)
    assert sizes_of(dropped.test_stream) == [1911, 1646, 1565, 1624]
    common = multilingual_emoji(chosen, emoji=everything, unnamed="common")
    assert len(set(sizes_of(common.test_stream))) == 1
    both = np.all([table.named(c) for c in chosen], axis=0)
    assert sizes_of(common.train_stream) == [2 * int(both.sum())] * 4
    with pytest.raises(ValueError, match="'da' has no name for 265"):
        multilingual_emoji(chosen, emoji=everything, unnamed="raise")


def test_items__are_triplets_of_drawing_caption_and_english_name():
    data = emoji_language_dataset("de", ["noto", "openmoji"], [0, 5], captions="all")
    pairs = data._flat_data._datasets[0].pairs
    table = load_emoji_table()
    for k in range(4):
        emoji = [0, 5][k % 2]
        image, captions = pairs[k]
        assert image.size == (48, 48)
        assert captions == pairs.text(k)
        assert captions[0] == table.captions("de")[emoji]
        assert tuple(captions[1:]) == table.keywords("de")[emoji]
        assert pairs.english(k) == table.names[emoji]
        assert (
            pairs.image_name(k) == f"{['noto', 'openmoji'][k // 2]}/{table.ids[emoji]}"
        )
    assert attribute_array(data, "text_id").tolist() == [0, 5, 0, 5]
    assert attribute_array(data, "image_id").tolist() == [0, 5, 1911, 1916]
    assert set(attribute_array(data, "language")) == {2}
    same = emoji_language_dataset("it", ["noto", "openmoji"], [0, 5])
    assert attribute_array(same, "image_id").tolist() == [0, 5, 1911, 1916]
    assert not set(attribute_array(same, "sample_id")) & set(
        attribute_array(data, "sample_id")
    )


def test_quick_mode__keeps_codes_and_order():
    benchmark = multilingual_emoji(6)
    assert benchmark.languages == QUICK_LANGUAGES == tuple(ORDER_222[:6])
    other = multilingual_emoji(["tr", "de"], emoji=np.arange(5))
    assert other.languages == ("tr", "de")
    assert [e.language_code for e in other.train_stream] == [4, 2]


def test_validation__holds_out_openmoji_drawings():
    benchmark = multilingual_emoji(["en", "mi"], validation=True)
    for train, valid in zip(
        benchmark.train_stream, benchmark.streams["valid"], strict=True
    ):
        held = attribute_array(valid.dataset, "image_id")
        kept = attribute_array(train.dataset, "image_id")
        assert set((held // 1911).tolist()) == {1}
        assert not set(held.tolist()) & set(kept.tolist())
        named = len(kept) + len(held)
        assert named == 2 * len(set((kept % 1911).tolist()))
        assert 0.1 < len(held) / (named / 2) < 0.3
    assert sizes_of(benchmark.test_stream)[0] == 719


def test_teacher_source__covers_all_streams():
    benchmark = multilingual_emoji(["en", "it"], validation=True, emoji=np.arange(40))
    source = benchmark.teacher_source
    for name in ("image_id", "text_id"):
        known = set(attribute_array(source, name).tolist())
        for stream in benchmark.streams.values():
            for experience in stream:
                assert set(attribute_array(experience.dataset, name)) <= known
    assert benchmark.teacher_captions[3] == load_emoji_table().names[3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": 0}, ">= 1"),
        ({"languages": 37}, r"\[1, 36\]"),
        ({"languages": True}, "list of codes"),
        ({"languages": ["en", "en"]}, "distinct codes"),
        ({"languages": ["en", "xx"]}, "distinct codes"),
        ({"languages": []}, "distinct codes"),
        ({"styles": "noto"}, "list of styles"),
        ({"test_style": "noto"}, "also trained on"),
        ({"unnamed": "english"}, "unnamed="),
        ({"styles": ["noto"], "validation": True}, "train on it"),
    ],
)
def test_arguments__are_checked(options, message):
    refused(message, multilingual_emoji, **options)
