"""Tests of the training on icons: what is taught, what is held out, what is written."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.benchmarks.datasets import load_emoji_table
from avalanche_clip.models import create_dual_encoder
from tests.scripts import load_script

script = load_script("tools/train_icons.py")
web, sheet = script.icon_web, script.icon_sheet

PIN = [n for n, s in zip(load_emoji_table().names, load_emoji_table().step) if s == 0][
    7
]
TRAINED = {
    "tree evergreen": "ab",
    "dog": "abc",
    "kettle": "a",
    PIN: "a",
}
# Of these, all but the last two are taught after all.
HELD = {
    "evergreen tree": "a",
    "kettle again": "b",
    "serif letter": "o",
    PIN + "s": "a",
    "wind mill": "ab",
}


def icon(seed):
    """A drawing of one colour with an area, or every third one in colours."""
    values = np.random.default_rng(seed).integers(0, 255, (48, 48, 4), dtype=np.uint8)
    if seed % 3 == 0:
        return Image.fromarray(values, "RGBA")
    areas = np.zeros((48, 48), dtype=np.uint8)
    areas[10:30, 10:30] = 1
    return Image.fromarray(np.stack([areas, values[..., 3]], axis=-1), "LA")


def a_set(prefix, title, spdx, **info):
    author = {"name": f"{title}'s author", "url": f"https://{prefix}.example"}
    licence = {"spdx": spdx, "url": f"https://{prefix}.example/licence"}
    info = {"name": title, "author": author, "license": licence, **info}
    return web.IconSet(prefix, info, {})


SETS = [
    a_set("a", "Alpha", "MIT"),
    a_set("b", "Beta", "CC-BY-4.0"),
    a_set("c", "Gamma", "Apache-2.0"),
    a_set("o", "Omega", "OFL-1.1"),
    a_set("unused", "Unused", "MIT"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the script finds on disk: the package (without icons) and the drawings."""
    root = tmp_path_factory.mktemp("icons")
    (root / "package" / "json").mkdir(parents=True)
    (root / "package" / "collections.json").write_text("{}")
    for prefix, info, _ in SETS:
        content = {"prefix": prefix, "info": info, "icons": {}}
        (root / "package" / "json" / f"{prefix}.json").write_text(json.dumps(content))
    drawings = [
        (web.Drawing(name, p, name, held), icon(seed))
        for held, names in ((False, TRAINED), (True, HELD))
        for seed, (name, prefixes) in enumerate(names.items(), start=1 + 100 * held)
        for p in prefixes
    ]
    # "kettle again" is the picture of "kettle".
    same = {d.caption: image for d, image in drawings}["kettle"]
    drawings = [(d, same if d.caption == "kettle again" else i) for d, i in drawings]
    assert web.write_drawings(root / "drawn", iter(drawings)) == 13
    return root


@pytest.fixture(scope="module")
def icons(folder):
    return web.DrawnIcons(folder / "drawn")


@pytest.fixture(scope="module")
def held(folder):
    return web.DrawnIcons(folder / "drawn", held_out=True)


# ---------------------------------------------------------------- what is taught
def test_web__never_shows_what_is_held_out(icons):
    pairs = script.Web(icons, colour_times=3, emoji_times=4)
    assert set(icons.captions) == set(TRAINED)
    names = [pairs[i][1] for i in range(len(pairs))]
    flat = {text for name in names for text in ([name] if type(name) is str else name)}
    assert not flat & (set(HELD) - {PIN + "s"})
    assert sum(type(name) is list for name in names) == 4 * 2 * 719
    # "kettle" has colours and comes three times.
    assert names.count("kettle") == 3 and names.count("dog") == 3


def test_web__equal_names_are_one_concept_of_icons_and_emoji(icons):
    pairs = script.Web(icons, colour_times=1, emoji_times=1)
    names = [pairs[i][1] for i in range(len(pairs))]
    first = np.array([name if type(name) is str else name[0] for name in names])
    for name in ("dog", "tree evergreen", PIN):
        (number,) = set(pairs.targets[first == name])
        assert (first[pairs.targets == number] == name).all()
    assert (first == PIN).sum() == 3  # one icon, two drawings of the emoji
    assert len(set(pairs.targets)) == len(set(first))


def test_coloured__follows_torch_and_leaves_pictures_alone():
    def draws(seed):
        torch.manual_seed(seed)
        return [coloured(icon(i)).tobytes() for i in (1, 2, 3)]

    coloured = script.Coloured(lambda image: image)
    assert draws(0) == draws(0) != draws(1)
    assert {coloured(icon(i)).mode for i in (1, 3)} == {"RGB"}
    photo = Image.new("RGB", (48, 48), "red")
    assert coloured(photo) is photo
    # The text is part of a run's identity.
    assert repr(script.Coloured("t")) == "Coloured('t')"


def test_shuffled_words__are_the_same_words_and_follow_torch():
    text = script.ShuffledWords(lambda captions: captions[0], 0.5)
    given = ["one two three four", "other"]

    def draws(seed):
        torch.manual_seed(seed)
        return [text(given) for _ in range(40)]

    found = draws(0)
    assert found == draws(0) != draws(1)
    assert {" ".join(sorted(t.split())) for t in found} == {"four one three two"}
    assert 8 < found.count(given[0]) < 32
    assert script.ShuffledWords(text.choose, 0.0)(given) == given[0]


# -------------------------------------------------------------- what is held out
def test_held_out__leaves_out_what_is_taught_and_other_licences(icons, held):
    chosen = sheet.choose_held_out(held, icons, SETS)
    assert list(chosen) == [PIN + "s", "wind mill"]
    assert all(held.captions[item] == name for name, item in chosen.items())
    taught = sheet.taught_words(icons.captions)
    assert sheet.words(PIN) in taught and sheet.words("Tree EVERGREEN") in taught


def test_held_out__sheet_table_and_notice(icons, held, tmp_path):
    chosen = sheet.choose_held_out(held, icons, SETS)
    for out in (tmp_path / "one", tmp_path / "two"):
        sheet.write_held_out(held, chosen, SETS, out)
        torch.rand(3)  # the colours do not depend on what was drawn before
    one, two = (
        {path.name: path.read_bytes() for path in out.iterdir()}
        for out in (tmp_path / "one", tmp_path / "two")
    )
    assert one == two
    table = json.loads(one["icons_held_out.json"])
    assert table["names"] == list(chosen)
    assert table["sets"] == [held.prefixes[item] for item in chosen.values()]
    assert Image.open(tmp_path / "one" / "icons_held_out.webp").size == (96, 48)
    notice = one["NOTICE_icons"].decode()
    used = {f"({prefix}), by" for prefix in table["sets"]}
    named = {f"({s.prefix}), by" for s in SETS if f"({s.prefix}), by" in notice}
    assert named == used


def test_credits__name_authors_addresses_and_licences():
    lines = sheet.credits(SETS[::-1], ["b", "a", "a"])
    assert lines == [
        "CC-BY-4.0: https://creativecommons.org/licenses/by/4.0/",
        "  Beta (b), by Beta's author",
        "    https://b.example",
        "    https://b.example/licence",
        "",
        "MIT: LICENSES/MIT.txt",
        "  Alpha (a), by Alpha's author",
        "    https://a.example",
        "    https://a.example/licence",
        "",
    ]
    assert set(sheet.LICENCE_TEXTS) >= web.LICENCES - {"BSD-2-Clause"}


# ------------------------------------------------------------------------- a run
@pytest.mark.slow
def test_main__trains_once_and_notes_beside_what_others_noted(
    folder, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "weights"
    out.mkdir()
    (out / "icons.json").write_text('{"tiny-emoji-vit": {"iterations": 1}}')
    monkeypatch.setitem(script.RECIPE, "train_mb_size", 16)
    argv = [str(folder), "--models", "tiny-emoji", "--iterations", "2"]
    argv += ["--out", str(out)]
    script.main(argv)
    notes = json.loads((out / "icons.json").read_text())
    assert notes["tiny-emoji-vit"] == {"iterations": 1}
    entry = notes["tiny-emoji"]
    assert entry["iterations"] == 2 and entry["recipe"]["lr"] == script.RECIPE["lr"]
    later = entry["later groups image_to_text_R@1"]
    assert list(later) == sorted(load_emoji_table().groups)
    mean = entry["later groups image_to_text_R@1, mean"]
    assert mean == pytest.approx(np.mean(list(later.values())), abs=0.06)
    del later["Flags"]
    mean = entry["later groups image_to_text_R@1, mean without Flags"]
    assert mean == pytest.approx(np.mean(list(later.values())), abs=0.06)
    assert len(entry["test image_to_text_R@1"]) == 6
    assert len(entry["held-out icons image_to_text_R@1"]) == 1
    assert "(o), by Omega" not in (out / "NOTICE").read_text()
    assert "(c), by Gamma" in (out / "NOTICE").read_text()

    path = out / "tiny-emoji-icons.safetensors"
    before = create_dual_encoder("tiny-emoji", str(path)).state_dict()
    assert path.stat().st_size <= 4e6
    path.unlink()
    # Again: the run is found finished, whatever it would do.
    monkeypatch.setattr(script, "score", lambda model: {"scored": "again"})
    script.main(argv)
    notes = json.loads((out / "icons.json").read_text())
    assert notes["tiny-emoji"]["scored"] == "again"
    assert notes["tiny-emoji"]["seconds"] == entry["seconds"]
    after = create_dual_encoder("tiny-emoji", str(path)).state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    # Other settings are another run, and refused in this one's folder.
    monkeypatch.setitem(script.RECIPE, "shuffled", 0.5)
    with pytest.raises(ValueError, match="transforms"):
        script.main(argv)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--models", "tiny"], "known are tiny-emoji, tiny-emoji-vit"),
        (["--iterations", "5"], "name their folder with --out"),
        (["--iterations", "0", "--out", "w"], "at least 2"),
    ],
)
def test_main__refuses_before_any_work(argv, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([str(tmp_path), *argv])
    assert message in capsys.readouterr().err


def test_main__says_what_to_fetch(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="npm pack @iconify/json@2"):
        script.main([str(tmp_path)])
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install resvg-py scipy"):
        script.main([str(tmp_path)])
