"""Tests of the embedded emoji data and its reader."""

from __future__ import annotations

import json
import pickle
from importlib import resources

import numpy as np
import pytest
from tokenizers import Tokenizer

from avalanche_clip.benchmarks.datasets import emoji
from avalanche_clip.benchmarks.datasets.emoji import (
    EMOJI_LANGUAGES,
    EMOJI_STEPS,
    EMOJI_STYLES,
    EmojiImages,
    EmojiPairs,
    load_emoji_table,
    validation_mask,
)
from tests.refused import refused
from tests.scripts import loaded_after

COUNT = 1911
STEP_SIZES = [719, 139, 446, 264, 175, 168]


def test_table__has_documented_counts():
    table = load_emoji_table()
    assert len(table) == len(set(table.ids)) == len(set(table.names)) == COUNT
    assert np.bincount(table.step).tolist() == STEP_SIZES
    assert len(table.groups) == 9 and "Component" not in table.groups
    assert set(table.group) == set(range(9))
    assert set(table.subgroup) == set(range(len(table.subgroups)))


def test_table__columns_agree_on_known_emoji():
    table = load_emoji_table()
    row = table.ids.index("1F9D1-200D-1F52C")
    assert table.chars[row] == "\U0001f9d1\u200d\U0001f52c"
    assert table.names[row] == "scientist"
    assert table.versions[row] == "12.1"
    assert table.timestamps[row] == 1571616000.0  # 2019-10-21 00:00 UTC
    assert table.groups[table.group[row]] == "People & Body"
    assert table.subgroups[table.subgroup[row]] == "person-role"
    assert EMOJI_STEPS[table.step[row]].label == "2018-2019"


def test_table__rows_are_sorted_by_release_and_inside_half_open_steps():
    table = load_emoji_table()
    assert (np.diff(table.timestamps) >= 0).all()
    for code, step in enumerate(EMOJI_STEPS):
        start, end = step.bounds
        inside = (table.timestamps >= start) & (table.timestamps < end)
        assert np.array_equal(inside, table.step == code)
    ends = [step.end for step in EMOJI_STEPS[:-1]]
    assert ends == [step.start for step in EMOJI_STEPS[1:]]


def test_table__languages_have_documented_coverage():
    table = load_emoji_table()
    named = {language: table.named(language).sum() for language in EMOJI_LANGUAGES}
    assert len(named) == 36
    sparse = {"da": 1646, "mi": 1565, "quz": 1624}
    assert {language: named[language] for language in sparse} == sparse
    assert all(n >= 1908 for key, n in named.items() if key not in sparse)


@pytest.mark.parametrize("language", EMOJI_LANGUAGES)
def test_table__captions_of_an_emoji_are_clean_and_distinct(language):
    table = load_emoji_table()
    names, keywords = table.captions(language), table.keywords(language)
    assert len(names) == len(keywords) == COUNT
    for name, words in zip(names, keywords, strict=True):
        if name is None:
            assert words == ()
            continue
        texts = [name, *words]
        assert all(text and text == " ".join(text.split()) for text in texts)
        assert len({text.casefold() for text in texts}) == len(texts)


def test_table__arrays_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        load_emoji_table().step[0] = 1


def test_table__pickles_as_a_reference():
    table = load_emoji_table()
    assert len(pickle.dumps(table)) < 200
    assert pickle.loads(pickle.dumps(table)) is table


@pytest.mark.parametrize("style", EMOJI_STYLES)
def test_images__every_drawing_is_there_on_white(style):
    images = EmojiImages(style)
    assert len(images) == COUNT
    tiles = np.stack([np.asarray(images[i]) for i in range(COUNT)])
    assert tiles.shape == (COUNT, 48, 48, 3) and tiles.dtype == np.uint8
    # The faintest drawing, Twemoji's "white large square", has 3.1.
    assert (tiles.reshape(COUNT, -1).std(axis=1) > 2).all(), "empty drawing"
    corners = tiles[:, [0, 0, -1, -1], [0, -1, 0, -1]].reshape(COUNT, -1)
    assert (corners.min(axis=1) > 240).mean() > 0.6
    assert len(np.unique(tiles.reshape(COUNT, -1), axis=0)) > 0.98 * COUNT


def test_images__drawings_are_assigned_to_the_right_emoji():
    table = load_emoji_table()
    colour = {"red circle": 0, "green circle": 1, "blue circle": 2}
    rows = [table.names.index(name) for name in colour]
    for style in EMOJI_STYLES:
        for channel, image in zip(
            colour.values(), EmojiImages(style, rows), strict=True
        ):
            pixel = np.asarray(image)[24, 24].astype(int)
            assert pixel.argmax() == channel, (style, pixel)


def test_images__changing_an_item_leaves_the_data_intact():
    images = EmojiImages("noto", [0])
    before = images[0].tobytes()
    images[0].paste("black", (0, 0, 48, 48))
    assert images[0].tobytes() == before


def test_images__pickle_holds_no_pixels():
    images = EmojiImages("noto", [5])
    images[0]
    copy = pickle.loads(pickle.dumps(images))
    assert len(pickle.dumps(images)) < 1000
    assert copy[0].tobytes() == images[0].tobytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("apple",), "style='apple' is unknown; use one of 'noto'"),
        (("noto", [0, COUNT]), "indices holds 0 to 1911; indices must lie in 0..1910"),
        (("noto", [-1]), "must lie in 0..1910"),
        (("noto", [0.5]), "integers of shape"),
        (("noto", [True, False]), "numpy.flatnonzero"),
        (("noto", [[0]]), r"shape \(1, 1\)"),
    ],
)
def test_images__bad_arguments_are_refused(arguments, message):
    refused(message, EmojiImages, *arguments)


def test_images__index_past_the_end_raises():
    assert len(EmojiImages("noto", [])) == 0
    with pytest.raises(IndexError):
        EmojiImages("noto", [0, 1])[2]


def test_pairs__run_style_by_style_with_stable_ids():
    table = load_emoji_table()
    rows = [7, 1900, 2]
    pairs = EmojiPairs(["twemoji", "noto"], rows)
    assert len(pairs) == 6
    assert pairs.emoji_index.tolist() == rows * 2
    assert pairs.style_code.tolist() == [2, 2, 2, 0, 0, 0]
    expected = [2 * COUNT + r for r in rows] + rows
    assert pairs.sample_id.tolist() == expected
    assert np.array_equal(pairs.timestamps, table.timestamps[rows * 2])
    for k, (image, text) in enumerate(pairs):
        style, row = ("twemoji", "noto")[k // 3], rows[k % 3]
        assert text == table.names[row]
        assert image.tobytes() == EmojiImages(style)[row].tobytes()
    assert pairs[-1][1] == pairs[5][1]


def test_pairs__all_captions_start_with_the_name():
    table = load_emoji_table()
    _, texts = EmojiPairs("noto", [4], language="ja", captions="all")[0]
    assert texts == [table.captions("ja")[4], *table.keywords("ja")[4]]
    assert len(texts) > 1


def test_pairs__unnamed_emoji_are_refused_and_can_be_left_out():
    refused("'da' has no name for 265 of the 1911", EmojiPairs, "noto", language="da")
    rows = np.flatnonzero(load_emoji_table().named("da"))
    assert len(EmojiPairs("noto", rows, language="da")) == 1646


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"styles": []}, "no styles"),
        ({"styles": ["noto", "noto"]}, "more than once"),
        ({"styles": "noto", "captions": "first"}, "captions='first' is unknown"),
        ({"styles": "noto", "language": "tlh"}, "language='tlh' is unknown"),
    ],
)
def test_pairs__bad_arguments_are_refused(arguments, message):
    refused(message, EmojiPairs, **arguments)


def test_pairs__empty_selection_has_no_samples():
    pairs = EmojiPairs(EMOJI_STYLES, [])
    assert len(pairs) == 0 and pairs.sample_id.shape == (0,)
    with pytest.raises(IndexError):
        pairs[0]


def test_validation_mask__depends_on_the_single_id_only():
    ids = load_emoji_table().ids
    mask = validation_mask(ids)
    assert np.array_equal(validation_mask(ids[::-1]), mask[::-1])
    assert not np.array_equal(validation_mask(ids, seed=1), mask)
    assert (mask <= validation_mask(ids, fraction=0.4)).all()


def test_validation_mask__bounds_and_bad_input():
    assert not validation_mask(["a", "b"], fraction=0.0).any()
    assert validation_mask(["a", "b"], fraction=1.0).all()
    assert validation_mask([]).shape == (0,)
    refused(r"must lie in \[0, 1\]", validation_mask, ["a"], fraction=20)
    refused("one string", validation_mask, "1F600")


def test_reader__needs_neither_torch_nor_avalanche():
    # Loaded by path: importing it by name would run the parent packages too.
    statement = f"import tests.scripts; tests.scripts.load_script({emoji.__file__!r})"
    assert loaded_after(statement, ("torch", "avalanche")) == []


def test_package_data__stays_small_and_carries_licences():
    data = resources.files("avalanche_clip.benchmarks.datasets") / "data"
    files = [entry for entry in data.iterdir() if entry.is_file()]
    assert sum(len(entry.read_bytes()) for entry in files) < 8_000_000
    notice = data.joinpath("NOTICE").read_text(encoding="utf-8")
    for entry in files:
        assert entry.name == "NOTICE" or entry.name in notice
    for licence in data.joinpath("LICENSES").iterdir():
        assert f"LICENSES/{licence.name}" in notice


def load_tokenizer() -> Tokenizer:
    path = resources.files("avalanche_clip.models") / "data" / "emoji_bpe.json"
    return Tokenizer.from_str(path.read_text(encoding="utf-8"))


def test_tokenizer__has_the_id_layout_of_clip():
    tokenizer = load_tokenizer()
    size = tokenizer.get_vocab_size()
    assert 3000 <= size <= 4096
    assert tokenizer.id_to_token(0) == "!" and tokenizer.id_to_token(256) == "!</w>"
    assert tokenizer.id_to_token(size - 2) == "<|startoftext|>"
    assert tokenizer.id_to_token(size - 1) == "<|endoftext|>"
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    assert size == 512 + len(merges) + 2


def test_tokenizer__fits_every_name_in_32_tokens_without_unknowns():
    tokenizer = load_tokenizer()
    end = tokenizer.get_vocab_size() - 1
    encodings = tokenizer.encode_batch(list(load_emoji_table().names))
    assert max(len(e.ids) for e in encodings) == 20
    assert all(e.ids.index(end) == len(e.ids) - 1 for e in encodings)
