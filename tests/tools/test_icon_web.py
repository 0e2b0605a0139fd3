"""Tests of the choice and the drawing of icons, on a small package of the same form."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.scripts import load_script

web = load_script("tools/icon_web.py")

SQUARE = '<path fill="currentColor" d="M4 4h8v8h-8z"/>'
RED = '<path fill="#f00" d="M4 4h8v8h-8z"/>'


def a_set(prefix, icons, spdx="MIT", category="UI 24px", name="Things"):
    info = {"name": name, "license": {"spdx": spdx}, "category": category}
    return prefix, {"prefix": prefix, "info": info, "width": 16, "icons": icons}


@pytest.fixture
def package(tmp_path):
    def write(*sets):
        (tmp_path / "json").mkdir()
        (tmp_path / "collections.json").write_text("{}")
        for prefix, content in sets:
            (tmp_path / "json" / f"{prefix}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def test_read_sets__keeps_open_licences_and_no_emoji_or_brands(package):
    icon = {"dog": {"body": SQUARE}}
    root = package(
        a_set("b", icon, "CC-BY-4.0"),
        a_set("a", icon),
        a_set("alike", icon, "CC-BY-SA-4.0"),
        a_set("unpaid", icon, "CC-BY-NC-4.0"),
        a_set("copyleft", icon, "GPL-3.0"),
        a_set("none", icon, None),
        a_set("faces", icon, category="Emoji"),
        a_set("fluent-emoji", icon, category=None),
        a_set("plain", icon, category=None, name="Noto Emoji"),
        a_set("brands", icon, category="Logos"),
        a_set("code", icon, category="Programming"),
        a_set("fa-brands", icon, category=None),
        a_set("dinkie-icons", icon),
    )
    assert [one.prefix for one in web.read_sets(root)] == ["a", "b"]


def test_read_sets__boxes_of_the_set_and_no_hidden_icons(package):
    icons = {
        "dog": {"body": SQUARE},
        "cat": {"body": SQUARE, "width": 24},
        "old": {"body": SQUARE, "hidden": True},
    }
    (one,) = web.read_sets(package(a_set("a", icons)))
    assert {name: icon["width"] for name, icon in one.icons.items()} == {
        "dog": 16,
        "cat": 24,
    }


def test_read_sets__says_what_to_fetch(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"npm pack @iconify/json@2"):
        web.read_sets(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("dog-side-outline-24", "dog side"),
        ("baseline-local_florist", "local florist"),
        ("Hot-Dog-Filled", "hot dog"),
        ("user-2-line", "user"),
        ("grid-3x3", "grid"),
        ("a-b-c-d-e", None),
        ("2g", None),
        ("up", None),
        ("café", None),
        ("pneumonoultramicroscopicsilico", None),
        ("outline", None),
    ],
)
def test_caption__is_what_the_name_says_without_style(name, text):
    assert web.caption(name) == text


def test_flag_names__pairs_of_regional_letters_only():
    ids = ["1F1E8-1F1ED", "1F600", "1F3F4-200D", "1F1E6-1F1FF"]
    names = ["flag: Switzerland", "grinning face", "pirate flag", "flag: Azerbaijan"]
    assert web.flag_names(ids, names) == {
        "ch": "flag: Switzerland",
        "az": "flag: Azerbaijan",
    }


def sets_of(**icons):
    return [web.IconSet(p, {}, dict.fromkeys(names, {})) for p, names in icons.items()]


def test_choose__one_drawing_per_name_and_set_of_names_that_several_share():
    sets = sets_of(a=["dog", "dog-outline", "rare"], b=["dog-fill"], c=["other"])
    chosen = [d for d in web.choose(sets, {}, least=2) if not d.held_out]
    assert [(d.caption, d.prefix) for d in chosen] == [("dog", "a"), ("dog", "b")]
    assert chosen[0].name in ("dog", "dog-outline")
    assert web.choose(sets[::-1], {}, least=2) == web.choose(sets, {}, least=2)


def test_choose__holds_out_names_whatever_their_number_of_sets():
    names = [f"thing {chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(26)]
    chosen = web.choose(sets_of(a=names), {}, least=3)
    assert all(d.held_out and web.share(d.caption) < 0.02 for d in chosen)
    assert len(chosen) == sum(web.share(name) < 0.02 for name in names) > 0


def test_choose__flags_by_the_names_of_their_codes():
    sets = [web.IconSet("flag", {}, {"ch-4x3": {}, "ch-1x1": {}, "zz": {}})]
    (one,) = web.choose(sets, {"ch": "flag: Switzerland"}, least=3)
    assert one.caption == "flag: Switzerland" and not one.held_out


# ---------------------------------------------------------------------- drawing
def ring(side, low, high):
    alpha = np.zeros((side, side), dtype=np.uint8)
    alpha[low:high, low:high] = 255
    alpha[low + 4 : high - 4, low + 4 : high - 4] = 0
    return alpha


def test_areas__numbers_what_ink_encloses_by_size():
    alpha = ring(96, 4, 24) | ring(96, 40, 90)
    numbers = web.areas(alpha)
    assert numbers.shape == (48, 48)
    assert numbers[32, 32] == 1 and numbers[7, 7] == 2
    assert numbers[0, 0] == numbers[16, 40] == 0


def test_areas__open_shapes_and_specks_enclose_nothing():
    alpha = ring(96, 40, 90)
    alpha[60:64, 86:] = 0  # a gap in the right side
    alpha[4:10, 4:10] = 255
    alpha[6:8, 6:8] = 0  # four pixels
    assert not web.areas(alpha).any()


def test_draw__zooms_to_what_is_drawn_and_keeps_colours():
    plain = web.draw({"body": SQUARE})
    assert plain.mode == "LA" and plain.size == (48, 48)
    ink = np.asarray(plain)[..., 1]
    assert (ink[2:-2, 2:-2] == 255).all() and not ink[0].any()
    coloured = web.draw({"body": RED})
    assert coloured.mode == "RGBA" and coloured.getpixel((24, 24)) == (255, 0, 0, 255)
    assert web.draw({"body": ""}) is None


def test_write_drawings__are_read_back(tmp_path):
    sets = [web.IconSet("a", {}, {"dog": {"body": SQUARE}, "cat": {"body": RED}})]
    chosen = [
        web.Drawing("cat", "a", "cat", False),
        web.Drawing("dog", "a", "dog", False),
        web.Drawing("fox", "a", "dog", True),
    ]
    assert web.write_drawings(tmp_path, web.draw_all(sets, chosen)) == 3
    icons, held = web.DrawnIcons(tmp_path), web.DrawnIcons(tmp_path, held_out=True)
    assert icons.captions == ["cat", "dog"] and held.captions == ["fox"]
    for item, body in enumerate((RED, SQUARE)):
        image, text = icons[item]
        drawn = web.draw({"body": body})
        assert (image.mode, image.tobytes()) == (drawn.mode, drawn.tobytes())
        assert text == icons.text(item)
