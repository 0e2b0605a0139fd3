"""Rows by name: what their own writers wrote comes back, all else is refused."""

import csv
import datetime as dt
import gzip
import io
import json
import math
import os
import pickle
from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from avalanche_clip.benchmarks import (
    make_image_text_dataset,
    time_stamped_benchmark,
)
from avalanche_clip.benchmarks.datasets import (
    file_time,
    read_coco_captions,
    read_image_table,
    read_karpathy,
    read_parquet,
    read_rows,
)
from avalanche_clip.benchmarks.items.skipped import SampleFault
from avalanche_clip.common.files import file_limits
from avalanche_clip.common.pictures import read_picture
from tests.refused import refused
from tests.web_folders import picture

pa = pytest.importorskip("pyarrow")
pd = pytest.importorskip("pandas")
hf = pytest.importorskip("datasets")

OURS = (ValueError, FileNotFoundError)
NAMES = ("b/1.png", "a.png", "c.jpg")
ROWS = [  # name, caption, time
    ("b/1.png", 'two "words"', "2016-06-03"),
    ("a.png", "tab\tand, comma", "2017-01-01T00:00:00Z"),
    ("b/1.png", "line\nfeed", "2016-06-03"),
    ("c.jpg", "ä 漢字 \u2028 é", ""),
]
GROUPED = {
    "b/1.png": ['two "words"', "line\nfeed"],
    "a.png": ["tab\tand, comma"],
    "c.jpg": ["ä 漢字 \u2028 é"],
}
TIMES = [1464912000.0, 1483228800.0, math.nan]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "b").mkdir()
    for number, name in enumerate(NAMES):
        (folder / name).write_bytes(picture(number, name[-3:]))
    return folder


def frame(sep, **options):
    names = ("filepath", "title", "when")
    table = pd.DataFrame({n: c for n, c in zip(names, zip(*ROWS), strict=True)})
    return table.replace("", None).to_csv(sep=sep, index=False, **options)


def plain_csv():
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("filepath", "title", "when"), *ROWS])
    return text.getvalue()


def check(pairs, root, grouped=GROUPED, times=TIMES):
    assert [*pairs.names] == [*grouped] and len(pairs) == len(grouped)
    assert [pairs.text(k) for k in range(len(pairs))] == [*grouped.values()]
    np.testing.assert_array_equal(pairs.timestamps, times)
    for k, name in enumerate(grouped):
        image, text = pickle.loads(pickle.dumps(pairs))[k]
        assert text == grouped[name]
        assert image.tobytes() == read_picture(root / name).tobytes()


@pytest.mark.parametrize(
    ("name", "text"),
    [("t.csv", frame("\t")), ("t.csv", frame(",")), ("t.tsv", frame("\t", quoting=1))]
    + [
        ("t.csv", plain_csv()),
        ("t.csv.gz", frame("\t")),
        ("t.csv", "\ufeff" + frame(",")),
    ],
)
def test_table__of_open_clip_as_pandas_and_csv_write_it(name, text, tmp_path, root):
    raw = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name[-1] == "z" else raw)
    check(read_image_table(tmp_path / name, root, time="when"), root)


def test_table__of_json_and_absolute_paths(tmp_path, root):
    rows = [{"filepath": str(root / n), "title": c, "x": {"at": t}} for n, c, t in ROWS]
    (tmp_path / "t.json").write_text(json.dumps(rows))
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    whole = {str(root / name): captions for name, captions in GROUPED.items()}
    for name in ("t.json", "t.jsonl"):
        check(read_image_table(tmp_path / name, None, time="x.at"), root, whole)
        words = f"{name}, row 1 names the file .* relative"
        refused(words, read_image_table, tmp_path / name, root)
    single = read_image_table(tmp_path / "t.json", None, group="title")
    assert [single.text(k) for k in range(4)] == [row[1] for row in ROWS]


def test_table__goes_into_a_stream_of_time_steps(tmp_path, root):
    (tmp_path / "t.csv").write_text(frame("\t"))
    pairs = read_image_table(tmp_path / "t.csv", root, time="when")
    stream = time_stamped_benchmark(
        make_image_text_dataset(pairs), period="year", missing="drop"
    ).train_stream
    assert [(e.time_label, len(e.dataset)) for e in stream] == [
        ("2016", 1),
        ("2017", 1),
    ]
    assert stream[0].dataset[0][1] == GROUPED["b/1.png"]


def test_time__from_the_file_or_a_function_of_the_row(tmp_path, root):
    (tmp_path / "t.csv").write_text(frame("\t"))
    os.utime(root / "a.png", (5e8, 5e8))
    pairs = read_image_table(tmp_path / "t.csv", root, time=file_time)
    assert pairs.timestamps[1] == 5e8
    with pytest.warns(UserWarning, match="time unreadable.*row 4 has"):
        years = read_image_table(
            tmp_path / "t.csv",
            root,
            time=lambda row: row["when"][:4] + "-01-01",
            on_error="skip",
        )
    assert years.skipped.counts() == {"time unreadable": 1} and len(years) == 2
    refused(
        "no row has a time .'wen'",
        read_rows,
        [{"image": b"", "caption": "x"}],
        time="wen",
    )


def karpathy(**more):
    def image(number, split, name, captions, **facts):
        raw = [
            {"raw": c, "tokens": c.split(), "imgid": number, "sentid": 9}
            for c in captions
        ]
        return {
            "imgid": number,
            "split": split,
            "filename": name,
            "sentences": raw,
            **facts,
        }

    images = [
        image(0, "train", "1.png", GROUPED["b/1.png"], filepath="b", cocoid=77, **more),
        image(1, "test", "a.png", ["no"], filepath="", cocoid=78, **more),
        image(2, "restval", "c.jpg", ["one", "two"], cocoid=79, **more),
    ]
    return {"images": images, "dataset": "coco"}


def test_karpathy__splits_and_ids(tmp_path, root):
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(karpathy(on="2016-06-03")))
    pairs = read_karpathy(path, root, ("train", "restval"), time="on")
    check(
        pairs,
        root,
        {"b/1.png": GROUPED["b/1.png"], "c.jpg": ["one", "two"]},
        TIMES[:1] * 2,
    )
    assert pairs.image_id.tolist() == [77, 79]
    refused(
        "no image of 'val', but of .'restval', 'test', 'train'",
        read_karpathy,
        path,
        root,
        "val",
    )
    flickr = json.loads(path.read_text())
    for image in flickr["images"]:
        del image["cocoid"]
    path.write_text(json.dumps(flickr))
    assert read_karpathy(path, root, "test").image_id.tolist() == [1]


def coco():
    images = [
        {"id": 5, "file_name": "b/1.png", "date_captured": "2016-06-03 00:00:00"},
        {"id": 3, "file_name": "a.png", "date_captured": "2017-01-01 00:00:00"},
    ]
    notes = [(3, "first"), (5, 'two "words"'), (5, "line\nfeed"), (3, "second")]
    notes = [{"id": n, "image_id": i, "caption": c} for n, (i, c) in enumerate(notes)]
    return {"images": images, "annotations": notes, "info": {}, "licenses": []}


def test_coco__captions_by_image(tmp_path, root):
    path = tmp_path / "captions_val2017.json"
    path.write_text(json.dumps(coco()))
    pairs = read_coco_captions(path, root, time="date_captured")
    check(
        pairs,
        root,
        {"b/1.png": GROUPED["b/1.png"], "a.png": ["first", "second"]},
        TIMES[:2],
    )
    assert pairs.image_id.tolist() == [5, 3]
    wrong = coco()
    wrong["images"] += [
        {"id": 9, "file_name": "c.jpg"},
        {"id": 5, "file_name": "c.jpg"},
    ]
    wrong["annotations"] += [{"image_id": 4, "caption": "lost"}, {"caption": "lost"}]
    path.write_text(json.dumps(wrong))
    with pytest.warns(UserWarning):
        pairs = read_coco_captions(path, root, on_error="skip")
    assert pairs.skipped.counts() == {"no caption": 2, "row unreadable": 2}
    assert pairs.image_id.tolist() == [5, 3]
    refused(
        "captions_val2017.json, row 3 has no caption", read_coco_captions, path, root
    )


def turned():
    """A JPEG file whose EXIF says that the camera was held on its side."""
    exif, content = Image.Exif(), io.BytesIO()
    exif[274] = 6
    Image.new("RGB", (8, 4), "red").save(content, "JPEG", exif=exif)
    return content.getvalue()


def hub_rows(root):
    """A data set of Hugging Face's, its pictures embedded; one is turned."""
    x = [{"raw": "x"}]
    return hf.Dataset.from_dict(
        {
            "image": [(root / n).read_bytes() for n in NAMES] + [turned()],
            "sentences": [*([{"raw": c} for c in GROUPED[n]] for n in NAMES), x],
            "on": [dt.datetime(2016, 6, 3), dt.datetime(2017, 1, 1), None, None],
            "name": [*NAMES, "t"],
        }
    ).cast_column("image", hf.Image())


def check_hub(pairs, root):
    assert [pairs.text(k) for k in range(3)] == [*GROUPED.values()]
    np.testing.assert_array_equal(pairs.timestamps[:3], TIMES)
    for k, name in enumerate(NAMES):
        found = pickle.loads(pickle.dumps(pairs))[k][0]
        assert found.tobytes() == read_picture(root / name).tobytes()
    assert pairs[3][0].size == (8, 4)  # as stored, by the one rule


def test_hub__rows_and_the_parquet_files_they_write(tmp_path, root):
    rows = hub_rows(root)
    fields = {"caption": "sentences.raw", "time": "on"}
    check_hub(read_rows(rows, **fields), root)
    check_hub(read_rows(rows.with_format("numpy", columns=["image"]), **fields), root)
    for number, part in enumerate((rows.select([0, 1]), rows.select([2, 3]))):
        part.to_parquet(tmp_path / f"{number}.parquet", batch_size=1)
    check_hub(read_parquet(tmp_path, **fields), root)
    named = read_parquet(
        tmp_path,
        caption=lambda row: row["name"],
        time=lambda row: f"201{row['__file__'].stem}-01-01",
    )
    assert [named.text(k) for k in range(4)] == [*NAMES, "t"] and named.single
    assert named.timestamps.tolist() == [1262304000.0] * 2 + [1293840000.0] * 2
    refused("has no column 'imag', but", read_rows, rows, image="imag", **fields)
    refused(
        "0.parquet.* has no column", read_parquet, tmp_path / "0.parquet", caption="txt"
    )
    refused("take one", read_rows, hf.DatasetDict(train=rows), error=TypeError)
    refused("a list of mappings", read_rows, rows.to_pandas(), error=TypeError)


def test_parquet__of_pyarrow_grouped_and_with_paths(tmp_path, root):
    from pyarrow import parquet

    table = {
        "jpg": [(root / n).read_bytes() for n, _, _ in ROWS],
        "txt": [c for _, c, _ in ROWS],
        "key": [n for n, _, _ in ROWS],
        "year": [t or None for _, _, t in ROWS],
    }
    path = tmp_path / "00000.parquet"
    parquet.write_table(pa.table(table), path, row_group_size=3)
    pairs = read_parquet(path, image="jpg", caption="txt", group="key", time="year")
    assert [pairs.text(k) for k in range(3)] == [*GROUPED.values()]
    assert pairs.rows.tolist() == [0, 1, 3]
    assert pairs[2][0].tobytes() == read_picture(root / NAMES[2]).tobytes()
    by_name = read_parquet(path, root, image="key", caption="txt")
    assert by_name[3][0].tobytes() == read_picture(root / NAMES[2]).tobytes()
    with pytest.raises(SampleFault, match="row 1 names the picture .* give root="):
        read_parquet(path, image="key", caption="txt")[0]
    limit, file_limits.member_bytes = file_limits.member_bytes, 100
    try:
        refused("00000.parquet .*smaller row_group_size", read_parquet, path)
    finally:
        file_limits.member_bytes = limit


CAUSES = {
    "no picture": {"image": None},
    "no caption": {"caption": " "},
    "caption unreadable": {"caption": ["x", 3]},
    "picture unreadable": {"image": b"GIF"},
    "picture too large": {"image": {"bytes": picture(1, "png", 20), "path": None}},
    "member refused": {"image": "../x.png"},
    "time unreadable": {"on": "yesterday"},
}


def test_errors__have_causes_and_are_counted(root):
    sound = {"image": str(root / "a.png"), "caption": "a", "on": "2016-06-03"}
    rows = [sound, *({**sound, **wrong} for wrong in CAUSES.values()), "no row"]
    with pytest.warns(UserWarning):
        pairs = read_rows(rows, root.parent, time="on", on_error="skip")
    file_limits.picture_pixels = 100
    try:
        for cause, wrong in CAUSES.items():
            with pytest.raises(SampleFault) as told:
                read_rows([{**sound, **wrong}], root, time="on")[0]
            assert told.value.cause == cause
            assert "rows of the list, row 1" in str(told.value)
    finally:
        file_limits.picture_pixels = None
    at_once = (
        "no picture",
        "no caption",
        "caption unreadable",
        "time unreadable",
        "row unreadable",
    )
    assert pairs.skipped.counts() == dict.fromkeys(at_once, 1)
    missing = read_rows([{**sound, "image": str(root / "x.png")}], None)
    refused("x.png does not exist", missing.__getitem__, 0, error=FileNotFoundError)


TABLES = {
    "short row": ("filepath,title\na.png\n", "t.csv: a row has 1 cells"),
    "open quote": ('filepath,title\na.png,"x\nb,y\n', "t.csv is not .*line"),
    "text behind a quote": ('filepath,title\na.png,"x"y\n', "t.csv is not .*line"),
    "cut": ("filepath,title\na.png,captio", "t.csv is not a whole table.*cut"),
    "no columns": ("path,title\na.png,x\n", "t.csv is not a table with the columns"),
    "columns twice": ("filepath,title,title\na.png,x,y\n", "more than once .*t.csv"),
    "no rows": ("filepath,title\n", "t.csv has no row"),
    "empty": ("", "t.csv is not"),
    "outside": ("filepath,title\n../a.png,x\n", "t.csv, row 1 names"),
    "absolute": ("filepath,title\n/etc/passwd,x\n", "t.csv, row 1 names"),
    "times": (
        "filepath,title,on\na.png,x,2016-01-01\na.png,y,2017-01-01\n",
        "row 2 has another",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_table__what_is_wrong_is_named(name, tmp_path, root):
    text, words = TABLES[name]
    (tmp_path / "t.csv").write_text(text)
    time = "on" if name == "times" else None
    refused(words, read_image_table, tmp_path / "t.csv", root, time=time)


# ------------------------------------------------------------------------- fuzzing
FUZZ = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# Not of all characters, whose table takes seconds to make.
LETTERS = st.sampled_from("ab.,;\"'\\/ \t\n\r\x0b\x1c\x85\u2028ä漢\U0001f600\ufeff{[0")
CELLS = st.text(LETTERS, min_size=1).filter(str.strip)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | CELLS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(CELLS, inner, max_size=3)
    ),
    max_leaves=6,
)


@FUZZ
@given(
    rows=st.lists(st.tuples(st.sampled_from(NAMES), CELLS), min_size=1),
    tab=st.booleans(),
)
def test_fuzz__whatever_csv_writes_is_read(rows, tab, tmp_path_factory):
    text, path = io.StringIO(newline=""), tmp_path_factory.getbasetemp() / "round.csv"
    csv.writer(text, delimiter="\t" if tab else ",").writerows(
        [("filepath", "title"), *rows]
    )
    path.write_bytes(text.getvalue().encode())
    pairs, grouped = read_image_table(path, "pictures"), {}
    for name, caption in rows:  # line ends are line feeds
        grouped.setdefault(name, []).append(caption.replace("\r\n", "\n"))
    found = [pairs.text(k) for k in range(len(pairs))]
    assert [*pairs.names] == [*grouped]
    assert [[t] if isinstance(t, str) else t for t in found] == [*grouped.values()]


def sources(folder, root):
    """A sound file of each format, and what reads it whole."""

    def every(pairs):
        for k in range(len(pairs)):
            assert isinstance(pairs[k][0], Image.Image)
            text = pairs.text(k)
            assert all(map(str.strip, [text] if isinstance(text, str) else text))

    (folder / "t.csv").write_text(plain_csv())
    (folder / "k.json").write_text(json.dumps(karpathy()))
    (folder / "c.json").write_text(json.dumps(coco()))
    hub_rows(root).to_parquet(folder / "h.parquet")
    readers = {
        "t.csv": partial(read_image_table, root=root, time="when"),
        "k.json": partial(read_karpathy, root=root),
        "c.json": partial(read_coco_captions, root=root),
        "h.parquet": partial(read_parquet, caption="sentences.raw", time="on"),
    }
    return {
        name: lambda path, e, read=read: every(read(path, on_error=e))
        for name, read in readers.items()
    }


@pytest.mark.parametrize("name", ["t.csv", "k.json", "c.json", "h.parquet"])
@pytest.mark.filterwarnings("ignore")
def test_fuzz__damaged_files_are_refused_by_name_or_read(name, tmp_path, root):
    read, path = sources(tmp_path, root)[name], tmp_path / name
    whole = path.read_bytes()
    read(path, "raise")

    @FUZZ
    @given(
        start=st.integers(0, len(whole)),
        end=st.integers(0, 9),
        put=st.binary(max_size=4),
        on_error=st.sampled_from(("raise", "skip")),
    )
    def damage(start, end, put, on_error):
        path.write_bytes(whole[:start] + put + whole[start + end :])
        try:
            read(path, on_error)
        except OURS as error:
            said = str(error)
            assert name in said or str(root) in said, said  # the file, or a picture

    damage()


@FUZZ
@given(
    rows=st.lists(
        st.fixed_dictionaries({"filepath": VALUES, "title": VALUES, "on": VALUES})
        | VALUES
    )
)
@pytest.mark.filterwarnings("ignore")
def test_fuzz__hostile_rows(rows, tmp_path_factory, root):
    path = tmp_path_factory.getbasetemp() / "hostile.json"
    path.write_text(json.dumps(rows))
    for content in (rows, {"images": rows, "annotations": rows}):
        path.write_text(json.dumps(content))
        for read in (read_image_table, read_karpathy, read_coco_captions):
            for where in (root, None):
                try:
                    pairs = read(path, where, time="on", on_error="skip")
                except OURS as error:
                    assert path.name in str(error)
                else:
                    assert all(pairs.text(k) for k in range(len(pairs)))
