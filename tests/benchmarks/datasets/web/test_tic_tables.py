"""TiC-YFCC and TiC-RedCaps: captions, batches and the split by a hash."""

import csv
import hashlib
import json
import random
import sys

import pytest

from avalanche_clip.benchmarks.datasets.web.tic_tables import (
    build_tic_redcaps,
    build_tic_yfcc,
    read_pair_table,
    yfcc_caption,
)
from avalanche_clip.common.files import read_json
from tests.damage import PAGE, POINTER
from tests.refused import refused


@pytest.mark.parametrize(
    ("given", "caption"),
    [
        (("A+B", "&lt;b&gt;x", None), "A B. x. "),
        (
            ("Caf%C3%A9", '<a href="u">link</a> 3 < 4 > 2', "dog,cat"),
            "Café. link 3  2. dog,cat",
        ),
        ((None, None, None), ". . "),
        ((float("nan"), "", "a"), ". . a"),
        (("%3Cb%3Ebold%3C%2Fb%3E", "x%0Ay", "t"), "bold. x\ny. t"),
        (("a<\nb>c", "", ""), "a<\nb>c. . "),
        (("sch%C3%83%C2%B6n", "", ""), "schön. . "),
        (("100%25+%2B+1", 7, "ü"), "100% + 1. 7. ü"),
    ],
)
def test_caption__is_decoded_mended_and_stripped_in_order(given, caption):
    assert yfcc_caption(*given) == caption


def test_caption__is_cut_last():
    assert yfcc_caption("x" * 300, "y" * 300, "") == "x" * 300 + ". " + "y" * 198
    assert len(yfcc_caption("%41" * 499, "&amp;&amp;", "")) == 500 - 0
    tags = "<i>" * 400
    assert yfcc_caption(tags, "y" * 600, "") == ". " + "y" * 498


def test_caption__says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(ImportError, match=r"avalanche-clip\[data\]"):
        yfcc_caption("a", "b", "c")


def photo(number, date, **more):
    key = hashlib.md5(str(number).encode()).hexdigest()
    texts = {"title": f"t{number}", "description": "d", "usertags": "u"}
    return {"key": key, **texts, "dateuploaded": date, **more}


def tables(folder, batches=(0, 1, 2, 3)):
    found = {}
    for part in ("train", "test"):
        for batch in batches:
            path = folder / f"{part}_batch_{batch}.csv"
            with open(path, encoding="utf-8", newline="") as file:
                rows = list(csv.reader(file, delimiter="\t"))
            assert rows[0] == ["path", "caption"]
            names, captions = read_pair_table(path)
            assert [list(pair) for pair in zip(names, captions)] == rows[1:]
            found[part, batch] = [tuple(row) for row in rows[1:]]
    return found


def test_yfcc__batches_are_years_in_utc(tmp_path):
    dates = {
        1072915199: None,  # the last second of 2003
        1072915200: 0,
        1230767999: 0,
        "1230768000": 1,
        1293839999.0: 1,
        1293840000: 2,
        1356998399: 2,
        1356998400: 3,
        1420070399: 3,
        1420070400: None,
    }
    rows = [photo(n, date) for n, date in enumerate(dates)]
    rows += [photo(n, d) for n, d in enumerate((None, "", "x", float("nan")), 50)]
    facts = build_tic_yfcc(iter(rows), tmp_path / "splits")
    assert facts["dropped"] == {"other year": 2, "no date": 4}
    found = tables(tmp_path / "splits")
    for number, batch in enumerate(dates.values()):
        key = photo(number, 0)["key"]
        row = f"{key[:3]}/{key[3:6]}/{key}.jpg", f"t{number}. d. u"
        places = [b for (_, b), rows in found.items() if row in rows]
        assert places == ([] if batch is None else [batch])


@pytest.mark.parametrize("count", [1, 99, 100, 101, 250, 1000])
def test_split__covers_each_batch_with_a_hundredth_held_out(tmp_path, count):
    rows = [photo(n, 1072915200) for n in range(count)]
    facts = build_tic_yfcc(rows, tmp_path / "splits", seed=3)
    found = tables(tmp_path / "splits")
    train, test = {*found["train", 0]}, {*found["test", 0]}
    assert len(test) == -(-count // 100) and not train & test
    assert len(train | test) == len(found["train", 0]) + len(test) == count
    assert facts["batches"]["0"] == {"train": count - len(test), "test": len(test)}
    assert read_json(tmp_path / "splits" / "split.json", checksum=True) == facts


def test_split__depends_on_the_seed_and_not_on_the_order(tmp_path):
    rows = [photo(n, 1072915200) for n in range(300)]
    chosen = {}
    for seed in (0, 1):
        for shuffled in (False, True):
            given = random.Random(1).sample(rows, 300) if shuffled else rows
            build_tic_yfcc(given, tmp_path / "splits", seed=seed)
            found = tables(tmp_path / "splits")
            chosen[seed, shuffled] = {*found["test", 0]}
    assert chosen[0, False] == chosen[0, True] != chosen[1, False] == chosen[1, True]


def test_split__photos_that_come_twice_in_a_batch_are_one(tmp_path):
    rows = [photo(n, 1072915200) for n in range(150)]
    again = [photo(n, 1072915300, title="again") for n in range(150)]
    facts = build_tic_yfcc([*rows, *again], tmp_path / "splits")
    found = tables(tmp_path / "splits")
    build_tic_yfcc(rows, tmp_path / "once")
    assert found == tables(tmp_path / "once")
    assert facts["dropped"] == {"twice": 150}
    assert facts["batches"]["0"] == {"train": 148, "test": 2}


def test_yfcc__columns_that_are_missing_are_named(tmp_path):
    row = photo(1, 1.1e9)
    del row["usertags"]
    refused(
        "Row 2 has no column 'usertags'",
        build_tic_yfcc,
        [photo(1, 1.1e9), row],
        tmp_path / "a",
    )
    refused("Row 1 has no column", build_tic_yfcc, "yfcc.tsv", tmp_path / "a")


@pytest.mark.parametrize("key", ["", "abc", "../../etc", "a b c d e f", None, "ä" * 9])
def test_yfcc__keys_that_are_no_hash_are_refused(tmp_path, key):
    refused("no hash", build_tic_yfcc, [photo(1, 1.1e9, key=key)], tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_split__other_files_are_not_replaced(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    refused("mine.txt", build_tic_yfcc, [photo(1, 1.1e9)], tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    refused("seed", build_tic_yfcc, [photo(1, 1.1e9)], tmp_path / "s", seed=1.5)


def write_annotations(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, entries in files.items():
        content = {"info": {}, "annotations": entries}
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def entries(subreddit, count, caption="c"):
    made = {"subreddit": subreddit, "created_utc": 1, "raw_caption": "R"}
    ids = [f"{subreddit[0]}{n}" for n in range(count)]
    return [{**made, "image_id": i, "caption": f"{caption} {i}"} for i in ids]


def test_redcaps__years_are_those_of_the_files(tmp_path):
    source = write_annotations(
        tmp_path / "annotations",
        cats_2017=entries("cats", 120),
        a_b_2018=entries("a_b", 5, 'tab\there, "quoted"\nand a\rline'),
        old_2012=entries("old", 3),
        dogs_2020=[
            *entries("dogs", 2),
            *entries("more", 1, "\ud800"),
            *entries("n", 1, "\0"),
            *entries("long", 1, "x" * 200_000),
            {"subreddit": "n", "image_id": "blank", "caption": " "},
        ],
        new_2021=entries("new", 4),
    )
    (source / "README.json").write_text("{}")
    facts = build_tic_redcaps(source, tmp_path / "splits", seed=1)
    assert facts["dropped"] == {"other year": 4, "no text": 4}
    found = tables(tmp_path / "splits", (2017, 2018, 2019, 2020))
    both = {b: [*found["train", b], *found["test", b]] for b in range(2017, 2021)}
    assert {b: len(rows) for b, rows in both.items()} == {
        **{2017: 123, 2018: 5, 2019: 0, 2020: 2}
    }
    assert len(found["test", 2017]) == 2 and len(found["test", 2018]) == 1
    assert ("a_b/a3.jpg", 'tab\there, "quoted"\nand a line a3') in both[2018]
    assert ("old/o1.jpg", "c o1") in both[2017]


@pytest.mark.parametrize(
    "wrong",
    [
        [{"subreddit": "a", "image_id": "b"}],
        [{"subreddit": "a", "caption": "b"}],
        ["text"],
        5,
        None,
        [{"subreddit": "..", "image_id": "../x", "caption": "c"}],
        [{"subreddit": "a", "image_id": "b\rc", "caption": "c"}],
        [{"subreddit": "a", "image_id": "\ud800", "caption": "c"}],
    ],
)
def test_redcaps__annotations_that_are_not_whole_are_refused(tmp_path, wrong):
    source = write_annotations(tmp_path / "annotations", a_2017=wrong)
    refused("a_2017.json", build_tic_redcaps, source, tmp_path / "splits")
    assert not (tmp_path / "splits").exists()


def test_redcaps__a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="annotations"):
        build_tic_redcaps(tmp_path / "absent", tmp_path / "splits")
    with pytest.raises(FileNotFoundError, match="year"):
        build_tic_redcaps(tmp_path, tmp_path / "splits")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        PAGE,
        POINTER,
        b"path,caption\na,b\n",
        b"path\tcaption\na\n",
        b"path\tcaption\na\tb\tc\n",
        b'path\tcaption\na\t"b\n',
        b"path\tcaption\n../a\tb\n",
        b"path\tcaption\n\tb\n",
        b"path\tcaption\na\t\xff\n",
    ],
)
def test_table__anything_else_is_refused(tmp_path, content):
    path = tmp_path / "train_batch_0.csv"
    path.write_bytes(content)
    refused("train_batch_0.csv", read_pair_table, path)


def test_table__that_was_cut_is_told(tmp_path):
    rows = [photo(n, 1072915200) for n in range(5)]
    build_tic_yfcc(rows, tmp_path / "splits")
    path = tmp_path / "splits" / "train_batch_0.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    refused("train_batch_0.csv .* last line has no end", read_pair_table, path)
    path.write_bytes(whole[: whole[:-1].rindex(b"\n") + 1])
    refused("it has 3 rows, .*split.json says 4", read_pair_table, path)
    (tmp_path / "splits" / "split.json").unlink()  # tables of the released scripts
    assert len(read_pair_table(path)[0]) == 3
