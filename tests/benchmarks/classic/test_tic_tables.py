"""TiC-YFCC and TiC-RedCaps: from tables and from shards, no photo in both."""

import csv
import json
import pickle

import numpy as np
import pytest

from avalanche_clip.benchmarks import attribute_array
from avalanche_clip.benchmarks.classic import tic_redcaps, tic_yfcc
from avalanche_clip.benchmarks.datasets import build_tic_redcaps, build_tic_yfcc
from tests.benchmarks.datasets.web.test_tic_tables import (
    entries,
    photo,
    write_annotations,
)
from tests.refused import refused
from tests.tar_files import write_tar
from tests.web_folders import picture

STARTS = (1072915200, 1230768000, 1293840000, 1356998400)
COUNTS = (150, 101, 99, 3)


def write_pictures(folder, root, batches, skip=()):
    for part in ("train", "test"):
        for batch in batches:
            for number, (name, _) in enumerate(rows(root, f"{part}_batch_{batch}")):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if name not in skip:
                    path.write_bytes(picture(number % 20, "jpg"))
    return folder


def rows(root, stem):
    with open(root / f"{stem}.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file, delimiter="\t"))[1:]


@pytest.fixture(scope="module")
def yfcc(tmp_path_factory):
    root = tmp_path_factory.mktemp("yfcc") / "splits"
    numbers = [range(s, s + c) for s, c in zip((0, 200, 400, 600), COUNTS, strict=True)]
    photos = [photo(n, s) for s, own in zip(STARTS, numbers) for n in own]
    build_tic_yfcc(photos, root)
    return root, write_pictures(root.parent / "images", root, range(4))


@pytest.fixture(scope="module")
def shards(yfcc, tmp_path_factory):
    """The same in shards as the released script writes them, with its defects."""
    root = tmp_path_factory.mktemp("shards")
    for part in ("train", "test"):
        for batch in range(4):
            stem = f"{part}_batch_{batch}"
            whole = list(enumerate(rows(yfcc[0], stem)))
            pieces = [whole[i : i + 50] for i in range(0, len(whole), 50)] + [[]]
            for n, piece in enumerate(pieces):
                content = [
                    entry
                    for row, (name, caption) in piece
                    for entry in (
                        (f"{row}.jpg", (yfcc[1] / name).read_bytes()),
                        (f"{row}.json", json.dumps({"caption": caption}).encode()),
                    )
                ]
                write_tar(root / f"{stem}__{n:08d}.tar", content)
    return root


def sizes(scenario):
    return {n: [len(e.dataset) for e in s] for n, s in scenario.streams.items()}


WANTED = {"train": [148, 99, 98, 2], "test": [2, 2, 1, 1]}


def test_yfcc__from_tables(yfcc):
    scenario = tic_yfcc(*yfcc)
    assert sizes(scenario) == WANTED
    assert scenario.time_labels == ["2008", "2010", "2012", "2014"]
    for stream in (scenario.train_stream, scenario.test_stream):
        starts = [np.datetime64(int(e.time_start), "s") for e in stream]
        assert [str(s)[:10] for s in starts] == [
            *("2004-01-01", "2009-01-01", "2011-01-01", "2013-01-01")
        ]
        assert [e.time_end for e in stream][:3] == [e.time_start for e in stream][1:]
        assert [e.step for e in stream] == [0, 1, 2, 3]
    ids = [
        attribute_array(e.dataset, "sample_id")
        for s in scenario.streams.values()
        for e in s
    ]
    assert len(np.unique(np.concatenate(ids))) == sum(map(sum, WANTED.values()))
    name, caption = rows(yfcc[0], "train_batch_1")[98]
    image, text, *_ = scenario.train_stream[1].dataset[98]
    assert text == caption and image.mode == "RGB"
    assert scenario.test_stream[0].names == [
        r[0] for r in rows(yfcc[0], "test_batch_0")
    ]


def test_yfcc__shards_hold_the_same(yfcc, shards, tmp_path):
    one, two = tic_yfcc(*yfcc), tic_yfcc(shards, index=tmp_path / "index")
    assert sizes(two) == WANTED and not (shards / "tar_index").exists()
    for stream in ("train", "test"):
        for a, b in zip(one.streams[stream], two.streams[stream]):
            assert a.dataset[0][1] == b.dataset[0][1]
            assert np.array_equal(
                np.asarray(a.dataset[0][0]), np.asarray(b.dataset[0][0])
            )
    assert two.test_stream[3].names == ["test_batch_3/0"]
    pickle.loads(pickle.dumps(two.train_stream[0].dataset))


@pytest.mark.parametrize("packed", [False, True])
def test_yfcc__photos_of_test_sets_are_left_out(yfcc, shards, tmp_path, packed):
    for path in [*yfcc[0].iterdir(), *(shards.glob("*.tar") if packed else ())]:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    stolen = rows(yfcc[0], "test_batch_3")[0][0]
    changed = rows(yfcc[0], "train_batch_0")
    changed[5][0] = stolen
    with open(
        tmp_path / "train_batch_0.csv", "w", encoding="utf-8", newline=""
    ) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([["path", "caption"], *changed])
    scenario = tic_yfcc(tmp_path, None if packed else yfcc[1])
    assert sizes(scenario)["train"] == [147, 99, 98, 2]
    assert scenario.train_stream[0].counts == {"found": 148, "in test sets": 1}
    texts = [scenario.train_stream[0].dataset[k][1] for k in (4, 5, 146)]
    assert texts == [changed[k][1] for k in (4, 6, 147)]


def test_yfcc__galleries_have_one_size(yfcc):
    refused("test_batch_2", tic_yfcc, *yfcc, gallery_size=2)
    scenario = tic_yfcc(*yfcc, gallery_size=1, seed=5)
    assert sizes(scenario) == {"train": WANTED["train"], "test": [1] * 4}
    tested = {r[0] for b in range(4) for r in rows(yfcc[0], f"test_batch_{b}")}
    assert all({*e.names} < tested and len(e.names) == 1 for e in scenario.test_stream)
    assert scenario.gallery_size == 1
    chosen = {
        tic_yfcc(*yfcc, gallery_size=1, seed=s).test_stream[0].names[0]
        for s in range(6)
    }
    assert len(chosen) == 2


def test_yfcc__missing_pictures_are_told_or_left_out(yfcc, tmp_path):
    root, images = yfcc
    lost = rows(root, "train_batch_3")[1][0]
    write_pictures(tmp_path / "images", root, range(4), skip=(lost,))
    dataset = tic_yfcc(root, tmp_path / "images").train_stream[3].dataset
    refused("does not exist", dataset.__getitem__, 1)
    scenario = tic_yfcc(root, tmp_path / "images", on_error="skip")
    dataset = scenario.train_stream[3].dataset
    with pytest.raises(ValueError):  # batches leave it out
        dataset[1]
    assert dataset[0][1] == rows(root, "train_batch_3")[0][1]
    refused("on_error", tic_yfcc, root, images, on_error="ignore")
    refused("no effect without gallery_size", tic_yfcc, root, images, seed=1)
    refused("index=.*no effect", tic_yfcc, root, images, index=tmp_path)


def test_yfcc__missing_files_are_named(yfcc, shards, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        tic_yfcc(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="absent"):
        tic_yfcc(yfcc[0], tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="tar"):
        tic_yfcc(yfcc[0])
    for path in shards.glob("*.tar"):
        if not path.name.startswith("train_batch_2"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(FileNotFoundError, match="train_batch_2"):
        tic_yfcc(tmp_path)
    (tmp_path / "test_batch_0.csv").write_text("path\tcaption\na.jpg\tb\n")
    refused("no row of its 1", tic_yfcc, tmp_path)
    (tmp_path / "test_batch_0.csv").write_text("path,caption\n")
    refused("test_batch_0.csv", tic_yfcc, tmp_path)


def test_redcaps__from_tables(tmp_path):
    files = {f"cats_{year}": entries(f"cats{year}", 101) for year in range(2017, 2021)}
    source = write_annotations(tmp_path / "annotations", **files)
    build_tic_redcaps(source, tmp_path / "splits")
    images = write_pictures(tmp_path / "images", tmp_path / "splits", range(2017, 2021))
    scenario = tic_redcaps(tmp_path / "splits", images)
    assert sizes(scenario) == {"train": [99] * 4, "test": [2] * 4}
    assert scenario.time_labels == ["2017", "2018", "2019", "2020"]
    assert scenario.train_stream[0].time_start == -np.inf
    assert scenario.train_stream[1].time_start == scenario.train_stream[0].time_end
    assert scenario.train_stream[3].dataset[0][1].startswith("c c")
