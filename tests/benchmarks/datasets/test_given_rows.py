"""Rows as people hold them in memory: pandas' NA, paths as objects, streams, gaps."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avalanche_clip.benchmarks import SampleFault
from avalanche_clip.benchmarks.datasets import (
    read_image_table,
    read_parquet,
    read_rows,
)
from avalanche_clip.benchmarks.datasets.web.tic_tables import yfcc_caption
from avalanche_clip.benchmarks.items.times import stored_timestamp
from tests.refused import refused
from tests.web_folders import picture

RED = Image.new("RGB", (8, 8), "red")


def cause_of(call):
    with pytest.raises(SampleFault) as told:
        call()
    return told.value.cause


def test_paths__as_objects_stay_in_their_folder_too(tmp_path):
    RED.save(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    RED.save(tmp_path / "in" / "b.png")

    def first(path, *root):
        return read_rows([{"image": path, "caption": "x"}], *root)[0][0]

    assert first(Path("b.png"), tmp_path / "in").size == (8, 8)
    assert first(tmp_path / "a.png", None).size == (8, 8)
    for path, *root in (
        (tmp_path / "a.png",),
        (tmp_path / "a.png", tmp_path / "in"),
        (Path("../a.png"), tmp_path / "in"),
        (Path("b.png"), None),
    ):
        assert cause_of(lambda p=path, r=root: first(p, *r)) == "member refused"


def test_missing_values__of_pandas_are_missing():
    pandas = pytest.importorskip("pandas")
    sound = {"image": RED, "caption": "x", "on": "2016-06-03"}
    rows = [sound, {**sound, "caption": pandas.NA}, {**sound, "on": pandas.NA}]
    with pytest.warns(UserWarning, match="no caption"):
        pairs = read_rows(rows, time="on", on_error="skip")
    assert pairs.skipped.counts() == {"no caption": 1}
    np.testing.assert_array_equal(pairs.timestamps, [1464912000, np.nan])
    assert np.isnan(stored_timestamp(pandas.NaT))
    assert yfcc_caption("A+B", pandas.NA, np.nan) == "A B. . "
    unread = [{**sound, "caption": np.array(["x", "y"])}]
    assert cause_of(lambda: read_rows(unread)) == "caption unreadable"


def test_pictures__that_are_not_there_are_left_out_at_once():
    rows = [{"image": RED, "caption": "x"}, {"image": None, "caption": "y"}]
    assert cause_of(lambda: read_rows(rows)) == "no picture"
    assert cause_of(lambda: read_rows(rows, image="photo")) == "no picture"
    with pytest.warns(UserWarning, match="row 2 has no picture"):
        pairs = read_rows([*rows, rows[0]], on_error="skip")
    assert len(pairs) == 2 and pairs.skipped.counts() == {"no picture": 1}
    assert pairs.rows.tolist() == [0, 2] and pairs[1][1] == "x"


def test_streams__are_another_reader_s():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": [picture(1)], "caption": ["x"]})
    given = rows.to_iterable_dataset()
    refused("RowStream", read_rows, given, error=TypeError)
    refused("no column 'a.image'", read_rows, rows, image="a.image")


def test_parquet__columns_have_one_name_and_pictures_their_own(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    cells = [pa.array([picture(1)]), pa.array(["x"]), pa.array(["y"])]
    twice = pa.Table.from_arrays(cells, ["image", "caption", "caption"])
    parquet.write_table(twice, path)
    refused("a.parquet.*'caption' occurs more than once", read_parquet, path)
    nested = pa.table({"a": [{"image": picture(1)}], "caption": ["x"]})
    parquet.write_table(nested, path)
    refused("no column 'a.image'", read_parquet, path, image="a.image")


def test_parquet__folders_may_be_links(tmp_path):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        table = pa.table({"image": [picture(1)], "caption": [name]})
        parquet.write_table(table, tmp_path / name / "0.parquet")
    (tmp_path / "one" / "linked").symlink_to(tmp_path / "two")
    (tmp_path / "one" / "again").symlink_to(tmp_path / "one")
    pairs = read_parquet(tmp_path / "one")
    assert [pairs.text(k) for k in range(2)] == ["one", "two"]


def test_tables__that_are_empty_or_have_empty_lines(tmp_path):
    (tmp_path / "a.csv").write_text("")
    refused("a.csv .* it is empty", read_image_table, tmp_path / "a.csv", tmp_path)
    line = json.dumps({"filepath": "a.png", "title": "x"})
    (tmp_path / "a.jsonl").write_text(f"{line}\n\n{line}\n\n")
    pairs = read_image_table(tmp_path / "a.jsonl", tmp_path)
    assert len(pairs) == 1 and pairs.text(0) == ["x", "x"]


def test_times__of_exif_as_img2dataset_stores_them():
    date = "EXIF DateTimeOriginal"
    exif = [json.dumps({date: "2016:06:03 00:00:01"}), "{}", None]
    rows = [{"image": RED, "caption": "x", "exif": text} for text in exif]
    pairs = read_rows(rows, time=f"exif.{date}")
    np.testing.assert_array_equal(pairs.timestamps, [1464912001, np.nan, np.nan])
    assert stored_timestamp("1970:01:02") == 86400
    broken = [{**rows[0], "exif": "{"}]
    assert cause_of(lambda: read_rows(broken, time="exif.a")) == "row unreadable"
    for wrong in ("1970:01", "1970:01:02:03", "0000:00:00 00:00:00"):
        refused("no ISO date|no time", stored_timestamp, wrong)
