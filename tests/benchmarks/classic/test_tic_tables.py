"""TiC-YFCC and TiC-RedCaps: steps from tables, no photo in both streams."""

import csv
import json
import pickle
import shutil

import numpy as np
import pytest

from avalanche_clip.benchmarks import attribute_array
from avalanche_clip.benchmarks.classic import tic_redcaps, tic_yfcc
from avalanche_clip.benchmarks.datasets import (
    TarPairs,
    build_tic_redcaps,
    build_tic_yfcc,
    open_tar_index,
)
from avalanche_clip.benchmarks.items.items import ReadableItems
from tests.benchmarks.datasets.web.test_tic_tables import (
    entries,
    photo,
    write_annotations,
)
from tests.refused import refused
from tests.tar_files import write_tar
from tests.web_folders import picture

STARTS = (1072915200, 1230768000, 1293840000, 1356998400)
COUNTS = (101, 102, 4, 3)


def write_pictures(folder, root, batches):
    for part in ("train", "test"):
        for batch in batches:
            for number, (name, _) in enumerate(rows(root, f"{part}_batch_{batch}")):
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
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


def sizes(scenario):
    return {n: [len(e.dataset) for e in s] for n, s in scenario.streams.items()}


WANTED = {"train": [99, 100, 3, 2], "test": [2, 2, 1, 1]}


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


def test_yfcc__photos_of_test_sets_are_left_out(yfcc, tmp_path):
    for path in yfcc[0].iterdir():
        shutil.copy(path, tmp_path)
    stolen = rows(yfcc[0], "test_batch_3")[0][0]
    changed = rows(yfcc[0], "train_batch_0")
    changed[5][0] = stolen
    with open(
        tmp_path / "train_batch_0.csv", "w", encoding="utf-8", newline=""
    ) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerows([["path", "caption"], *changed])
    scenario = tic_yfcc(tmp_path, yfcc[1])
    assert sizes(scenario)["train"] == [98, *WANTED["train"][1:]]
    assert scenario.train_stream[0].counts == {"found": 99, "in test sets": 1}
    dataset = pickle.loads(pickle.dumps(scenario.train_stream[0].dataset))
    assert [dataset[k][1] for k in (4, 5, 97)] == [changed[k][1] for k in (4, 6, 98)]


def test_yfcc__shards_of_the_tables_are_pairs_like_any(yfcc, tmp_path):
    """As the released script writes them: no texts, and an empty one at the end."""
    whole = list(enumerate(rows(yfcc[0], "train_batch_3")))
    for n, piece in enumerate((whole, [])):
        content = [
            entry
            for row, (name, caption) in piece
            for entry in (
                (f"{row}.jpg", (yfcc[1] / name).read_bytes()),
                (f"{row}.json", json.dumps({"caption": caption}).encode()),
            )
        ]
        write_tar(tmp_path / f"train_batch_3__{n:08d}.tar", content)
    pairs = TarPairs(open_tar_index(tmp_path))
    dataset = tic_yfcc(*yfcc).train_stream[3].dataset
    assert len(pairs) == len(dataset) == 2
    for k in range(2):
        assert pairs[k][1] == dataset[k][1]
        assert pairs[k][0].tobytes() == dataset[k][0].tobytes()


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
    lost = images / rows(root, "train_batch_3")[1][0]
    lost.rename(tmp_path / "lost.jpg")
    dataset = tic_yfcc(root, images).train_stream[3].dataset
    refused("does not exist", dataset.__getitem__, 1)
    step = tic_yfcc(root, images, on_error="skip").train_stream[3]
    with pytest.warns(UserWarning, match="left out"):
        found = ReadableItems(step.dataset).__getitems__([0, 1])
    assert [item[1] for item in found] == [rows(root, "train_batch_3")[0][1]]
    assert step.skipped[0].total == 1
    (tmp_path / "lost.jpg").rename(lost)
    refused("on_error", tic_yfcc, root, images, on_error="ignore")
    refused("no effect without gallery_size", tic_yfcc, root, images, seed=1)


def test_yfcc__missing_files_are_named(yfcc, tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        tic_yfcc(tmp_path / "absent", yfcc[1])
    with pytest.raises(FileNotFoundError, match="absent"):
        tic_yfcc(yfcc[0], tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="test_batch_0.csv"):
        tic_yfcc(tmp_path, yfcc[1])
    (tmp_path / "test_batch_0.csv").write_text("path,caption\n")
    refused("test_batch_0.csv", tic_yfcc, tmp_path, yfcc[1])


def test_redcaps__from_tables(tmp_path):
    counts = {2017: 101, 2018: 3, 2019: 2, 2020: 2}
    files = {f"cats_{y}": entries(f"cats{y}", count) for y, count in counts.items()}
    source = write_annotations(tmp_path / "annotations", **files)
    build_tic_redcaps(source, tmp_path / "splits")
    images = write_pictures(tmp_path / "images", tmp_path / "splits", range(2017, 2021))
    scenario = tic_redcaps(tmp_path / "splits", images)
    assert sizes(scenario) == {"train": [99, 2, 1, 1], "test": [2, 1, 1, 1]}
    assert scenario.time_labels == ["2017", "2018", "2019", "2020"]
    assert scenario.train_stream[0].time_start == -np.inf
    assert scenario.train_stream[1].time_start == scenario.train_stream[0].time_end
    assert scenario.train_stream[3].dataset[0][1].startswith("c c")
    (tmp_path / "splits/train_batch_2018.csv").write_text("path\tcaption\n")
    refused("0 rows, .* says 2", tic_redcaps, tmp_path / "splits", images)
    (tmp_path / "splits/split.json").unlink()
    refused("no pairs of train_batch_2018", tic_redcaps, tmp_path / "splits", images)
