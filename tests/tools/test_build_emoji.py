"""Tests of the pure parts of the scripts that build the embedded emoji data."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from PIL import Image

from tests.scripts import load_script

data = load_script("tools/build_emoji_data.py")
bpe = load_script("tools/build_emoji_tokenizer.py")


@pytest.mark.parametrize("key", ["\u2764", "\u2764\ufe0f"])
@pytest.mark.parametrize("asked", ["\u2764", "\u2764\ufe0f"])
def test_annotate__finds_names_with_and_without_variation_selector(key, asked):
    source = {key: {"tts": ["red heart"], "default": ["heart"]}}
    assert data.annotate([source], asked) == ("red heart", ["heart"])


def test_annotate__falls_back_to_the_derived_set():
    own, derived = {"x": {"default": ["flag"]}}, {"x": {"tts": ["flag: Chad"]}}
    assert data.annotate([own, derived], "x") == ("flag: Chad", [])
    assert data.annotate([own, derived], "y") == (None, [])


def test_annotate__drops_repeated_and_blank_words():
    entry = {"tts": ["Red  heart", "heart"], "default": ["HEART", " ", "red heart"]}
    assert data.annotate([{"x": entry}], "x") == ("Red heart", ["heart"])


def test_on_white__hides_the_colour_of_transparent_pixels():
    image = Image.new("RGBA", (96, 96), (255, 0, 0, 0))
    assert data.on_white(image).getextrema() == ((255, 255),) * 3
    image.putalpha(255)
    tile = data.on_white(image)
    assert tile.size == (48, 48) and tile.getpixel((24, 24)) == (255, 0, 0)


def test_build_sheet__places_tiles_row_by_row():
    colours = ["red", "lime", "blue", "black", "yellow"]
    sheet = data.build_sheet(
        [{"colour": c} for c in colours],
        lambda e: Image.new("RGB", (64, 64), e["colour"]),
    )
    assert sheet.size == (3 * 48, 2 * 48)
    centres = [
        sheet.getpixel((24 + 48 * (i % 3), 24 + 48 * (i // 3))) for i in range(6)
    ]
    expected = [Image.new("RGB", (1, 1), c).getpixel((0, 0)) for c in colours]
    assert centres == [*expected, (255, 255, 255)]


def test_write_table__is_free_of_clock_and_file_name(tmp_path):
    for name in ("a.gz", "b.gz"):
        data.write_table(tmp_path / name, [{"k": ["é"]}])
    content = (tmp_path / "a.gz").read_bytes()
    assert content == (tmp_path / "b.gz").read_bytes()
    assert content[4:8] == bytes(4)  # the gzip time stamp


def test_check_counts__refuses_another_source_version():
    with pytest.raises(ValueError, match="found 1 emoji"):
        data.check_counts([{"added_in": "0.6"}])


def test_package_root__names_the_missing_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="openmoji@17.0.0"):
        data.package_root(tmp_path, "openmoji")


def test_count_words__splits_like_clip():
    counts = bpe.count_words(["Ab's 12", "ab"])
    words = {"".join(word): n for word, n in counts.items()}
    assert words == {"ab</w>": 2, "'s</w>": 1, "1</w>": 1, "2</w>": 1}


def test_learn_merges__matches_a_hand_computed_case():
    counts = Counter(
        {("l", "o", "w</w>"): 5, ("l", "o", "t</w>"): 3, ("a", "w</w>"): 5}
    )
    # (l, o) occurs 8 times; then (a, w) and (lo, w) tie at 5: the smaller wins.
    expected = [("l", "o"), ("a", "w</w>"), ("lo", "w</w>"), ("lo", "t</w>")]
    assert bpe.learn_merges(counts, 10) == expected
    assert bpe.learn_merges(counts, 2) == expected[:2]


def test_learn_merges__agrees_with_a_slow_version():
    texts = ["banana bandana", "a ban on bananas", "aaaa aa aaa", "nab nana"]
    counts = bpe.count_words(texts)
    words = dict(counts)
    for expected in bpe.learn_merges(counts, 12):
        pairs: Counter[tuple[str, str]] = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                pairs[pair] += n
        assert expected == min(pairs, key=lambda p: (-pairs[p], p))
        words = {bpe.merge_pair(word, expected): n for word, n in words.items()}


def test_build_tokenizer__too_small_size_is_refused():
    with pytest.raises(ValueError, match="at least 514"):
        bpe.build_tokenizer(["a"], 100)
