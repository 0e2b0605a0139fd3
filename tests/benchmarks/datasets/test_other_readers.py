"""Folders, facts of archives, streamed rows and features, by their own writers."""

import io
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from avalanche_clip.benchmarks import (
    make_image_text_dataset,
    time_stamped_benchmark,
)
from avalanche_clip.benchmarks.datasets import (
    FolderIndex,
    FolderPairs,
    RowStream,
    TarIndex,
    TarPairs,
    WebFolder,
    file_time,
    read_clip_retrieval,
    read_rows,
)
from avalanche_clip.benchmarks.items.skipped import SampleFault
from avalanche_clip.common.files import file_limits
from tests.refused import refused
from tests.web_folders import picture, write_web_folder

pd = pytest.importorskip("pandas")
hf = pytest.importorskip("datasets")
wds = pytest.importorskip("webdataset")

DATES = ("2016-06-03", "2017-01-01", None)
TIMES = [1464912000.0, 1483228800.0, np.nan]


def img2dataset(folder, count=3):
    """What its format ``files`` looks like, with its files beside."""
    (folder / "00000").mkdir()
    for n in range(count):
        facts = {"key": f"{n:09d}", "exif": {"Date": DATES[n]}, "url": "x"}
        stem = folder / "00000" / f"{n:09d}"
        stem.with_suffix(".jpg").write_bytes(picture(n, "jpg"))
        stem.with_suffix(".txt").write_text(f"caption {n}")
        stem.with_suffix(".json").write_text(json.dumps(facts, indent=4))
    (folder / "00000.parquet").write_bytes(b"PAR1")
    (folder / "00000_stats.json").write_text("{}")
    return folder


def check(pairs, count=3):
    assert len(pairs) == count
    assert [pairs.text(k) for k in range(count)] == [
        f"caption {k}" for k in range(count)
    ]
    again = pickle.loads(pickle.dumps(pairs))
    for k in range(count):
        with Image.open(io.BytesIO(picture(k, "jpg"))) as image:
            assert again[k][0].tobytes() == image.convert("RGB").tobytes()


def test_folder__of_img2dataset_with_times(tmp_path):
    pairs = TarPairs(FolderIndex(img2dataset(tmp_path)), time="exif.Date")
    check(pairs)
    np.testing.assert_array_equal(pairs.timestamps, TIMES)
    data = make_image_text_dataset(pairs)
    steps = time_stamped_benchmark(data, period="year", missing="drop").train_stream
    assert [e.time_label for e in steps] == ["2016", "2017"]
    when = TarPairs(FolderIndex(tmp_path), time=file_time).timestamps
    assert when[0] == (tmp_path / "00000" / "000000000.jpg").stat().st_mtime


def test_folder__faults_are_those_of_archives(tmp_path):
    folder = img2dataset(tmp_path) / "00000"
    (folder / "000000002.JPG").write_bytes(b"x")
    refused("'00000/000000002' has the files", TarPairs, FolderIndex(tmp_path))
    (folder / "000000002.JPG").rename(folder / "a.b.jpg")
    refused("name of '00000/a.b.jpg' has several dots", TarPairs, FolderIndex(tmp_path))
    (folder / "a.b.jpg").unlink()
    (folder / "000000002.txt").unlink()
    (folder / "000000002.json").unlink()
    (folder / "000000001.json").write_text("[1]")
    with pytest.warns(UserWarning):
        pairs = TarPairs(FolderIndex(tmp_path), time="exif.Date", on_error="skip")
    assert pairs.skipped.counts() == {"no caption": 1, "row unreadable": 1}
    check(pairs, 1)
    limit, file_limits.member_bytes = file_limits.member_bytes, 10
    try:
        with pytest.raises(SampleFault, match="000000000.jpg has .*member_bytes"):
            pairs[0]
    finally:
        file_limits.member_bytes = limit
    (folder / "000000000.jpg").unlink()
    with pytest.raises(SampleFault, match="000000000.jpg is no file any more"):
        pairs[0]
    (tmp_path / "empty").mkdir()
    refused("None of the 0 samples", TarPairs, FolderIndex(tmp_path / "empty"))


def test_archives__of_webdatasets_writer_with_times(tmp_path):
    with wds.TarWriter(str(tmp_path / "0.tar")) as writer:
        for n in range(3):
            facts = {"exif": {"Date": DATES[n]}}
            writer.write(
                {
                    "__key__": f"{n}",
                    "jpg": picture(n, "jpg"),
                    "txt": f"caption {n}",
                    "json": facts,
                }
            )
    index = TarIndex.of([tmp_path / "0.tar"])
    pairs = TarPairs(index, time="exif.Date")
    check(pairs)
    np.testing.assert_array_equal(pairs.timestamps, TIMES)
    assert len({*TarPairs(index, time=file_time).timestamps}) == 1
    refused("0.tar and others: no row has a time", TarPairs, index, time="date")


def hub_rows(count=12):
    columns = {"image": [picture(n, "jpg") for n in range(count)]}
    columns["caption"] = [f"caption {n}" for n in range(count)]
    return hf.Dataset.from_dict(columns).cast_column("image", hf.Image())


@pytest.mark.parametrize(("shards", "parts"), [(1, 1), (1, 2), (6, 3)])
def test_stream__every_reader_has_its_own_rows(shards, parts):
    rows = hub_rows()
    stream = RowStream(rows.to_iterable_dataset(num_shards=shards), len(rows), buffer=4)
    passes = [[t for _, t, _ in stream.samples(p, parts, None)] for p in range(parts)]
    assert sorted(sum(passes, [])) == sorted(rows["caption"])
    ids = {n for p in range(parts) for _, _, n in stream.samples(p, parts, None)}
    assert len(ids) == 12
    several = []
    for part in range(parts):
        drawn = stream.samples(part, parts, (1, 2))
        several.append([next(drawn)[1] for _ in range(12 // parts * parts)])
        again = stream.samples(part, parts, (1, 2))
        assert [next(again)[1] for _ in range(5)] == several[-1][:5]
        if shards == 6 or parts == 1:  # in `parts` passes a reader has all rows once
            assert len({*several[-1]}) == 12
    first = [t for own in several for t in own[: 12 // parts]]
    assert sorted(first) == sorted(rows["caption"])  # one pass of all readers
    if parts == 1:
        assert several[0] != passes[0]


def test_stream__faults(tmp_path):
    rows = [
        {"image": picture(0), "caption": "a"},
        {"image": b"x", "caption": "b"},
        {"image": None, "caption": ""},
    ]
    source = hf.IterableDataset.from_generator(lambda: iter(rows))
    with pytest.raises(SampleFault, match="IterableDataset"):
        [*RowStream(source, 3).samples(0, 1, None)]
    skipping = RowStream(source, 3, on_error="skip")
    with pytest.warns(UserWarning):
        assert [t for _, t, _ in skipping.samples(0, 1, None)] == ["a"]
    assert skipping.skipped.counts() == {"picture unreadable": 1, "no caption": 1}
    refused("give a datasets.IterableDataset", RowStream, rows, 3, error=TypeError)
    del rows[0]
    with pytest.raises(
        ValueError, match="No sample of the rows of the IterableDataset"
    ):
        next(iter(skipping.samples(0, 1, (1, 2))))
    assert skipping.fingerprint() != RowStream(source, 4).fingerprint()


def write_features(folder, sizes, *, texts=True):
    """As the writer of clip-retrieval does it."""
    draw, whole = np.random.default_rng(0), []
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir()
    for part, size in enumerate(sizes):
        features = draw.normal(size=(2, size, 4)).astype(np.float16)
        np.save(folder / "img_emb" / f"img_emb_{part:02d}.npy", features[0])
        if texts:
            np.save(folder / "text_emb" / f"text_emb_{part:02d}.npy", features[1])
        numbers = range(len(whole), len(whole) + size)
        frame = pd.DataFrame({"image_path": [f"/p/{n}.png" for n in numbers]})
        frame["caption"] = [f"caption {n}" for n in numbers]
        frame.join(
            pd.json_normalize([{"exif": {"Date": "2016-06-03"}}] * size)
        ).to_parquet(folder / "metadata" / f"metadata_{part:02d}.parquet")
        whole += [*features.swapaxes(0, 1)]
    return np.stack(whole).swapaxes(0, 1)


@pytest.mark.parametrize("sizes", [(3,), (2, 11, 1)])
def test_features__of_clip_retrieval_go_with_their_rows(tmp_path, sizes):
    features = write_features(tmp_path, sizes)
    store, rows = read_clip_retrieval(tmp_path)
    np.testing.assert_array_equal(store.images(np.arange(sum(sizes))), features[0])
    np.testing.assert_array_equal(store.texts(np.arange(sum(sizes))), features[1])
    pairs = read_rows(rows, None, image="image_path", time="exif.Date")
    assert pairs.text(sum(sizes) - 1) == f"caption {sum(sizes) - 1}"
    assert {*pairs.timestamps} == {TIMES[0]}
    assert pairs.rows.tolist() == [*range(sum(sizes))]  # ids of the features


def test_features__columns_are_those_of_the_rows(tmp_path):
    write_features(tmp_path, (1, 1))
    _, rows = read_clip_retrieval(tmp_path, ["caption"])
    assert [row["caption"] for row in rows] == ["caption 0", "caption 1"]
    assert "image_path" not in rows[0]
    refused("columns of .*'text'", read_clip_retrieval, tmp_path, ["text"])
    refused("columns", read_clip_retrieval, tmp_path, "caption", error=TypeError)


def test_features__parts_that_do_not_fit_are_named(tmp_path):
    write_features(tmp_path, (2, 3))
    path = tmp_path / "text_emb" / "text_emb_01.npy"
    for array in (
        np.zeros((2, 4)),
        np.zeros((3, 5)),
        np.zeros(3),
        np.zeros((3, 4), int),
    ):
        np.save(path, array)
        refused("text_emb_01.npy is not features", read_clip_retrieval, tmp_path)
    path.write_bytes(b"x")
    refused("text_emb_01.npy is not a NumPy array", read_clip_retrieval, tmp_path)
    path.unlink()
    refused(
        "text_emb has the parts .._00.., metadata others", read_clip_retrieval, tmp_path
    )
    (tmp_path / "metadata" / "metadata_01.parquet").write_bytes(b"x")
    refused("metadata_01.parquet is not a parquet", read_clip_retrieval, tmp_path)
    refused(
        "metadata_", read_clip_retrieval, tmp_path / "img_emb", error=FileNotFoundError
    )


def test_clip_benchmark__retrieval_sets_are_pairs(tmp_path):
    samples = [{"png": picture(n), "txt": f"caption {n}\nother {n}"} for n in range(3)]
    pairs = FolderPairs(
        WebFolder(write_web_folder(tmp_path / "a", samples, kind="retrieval"))
    )
    data = make_image_text_dataset(pairs)
    assert data[2][1] == pairs.text(2) == ["caption 2", "other 2"]
    samples = [{"png": picture(n), "cls": "0"} for n in range(3)]
    classes = WebFolder(
        write_web_folder(tmp_path / "b", samples, classes=["a"], templates=["a {c}"])
    )
    refused("kind='classification'", FolderPairs, classes)
