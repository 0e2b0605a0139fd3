"""An index of archives: built once, mapped, and told when it fits no longer."""

import os
import pickle
import shutil
import struct
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.benchmarks import (
    CorruptSampleError,
    SampleFault,
    find_corrupt_samples,
    make_image_text_dataset,
    without_images,
)
from avalanche_clip.benchmarks.datasets import TarIndex, TarPairs, open_tar_index
from avalanche_clip.benchmarks.datasets.web import tar_index
from avalanche_clip.benchmarks.items.items import ReadableItems
from avalanche_clip.common.arrays import write_safetensors
from avalanche_clip.common.pictures import read_picture
from avalanche_clip.training.templates.order import TrainingOrder, TrainLoader
from tests.refused import refused
from tests.tar_files import sample, samples, write_shards, write_tar
from tests.web_folders import picture


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path / "set")


def no_building(monkeypatch):
    """Let an index be opened, but no archive be read."""

    def scan(path, *args, **kwargs):
        pytest.fail(f"{path} is read again")

    monkeypatch.setattr(tar_index, "scan", scan)


def same_as_written(index, numbers):
    assert [index.names[n] for n in range(len(index))] == [f"{n:08d}" for n in numbers]
    order = np.random.default_rng(0).permutation(len(index)).tolist()
    for row in order:
        whole = {name.partition(".")[2]: raw for name, raw in sample(numbers[row])}
        assert {e: index.read(row, e) for e in index.sample(row)} == whole
        assert index.read(row, "cls") is None


def test_index__gives_any_member_in_any_order_and_is_built_once(shards, monkeypatch):
    folder = shards[0].parent
    same_as_written(open_tar_index(folder), range(20))
    assert os.listdir(folder / "tar_index") == ["index.safetensors"]
    no_building(monkeypatch)
    index = open_tar_index(folder)
    same_as_written(index, range(20))
    same_as_written(open_tar_index(shards), range(20))  # its archives by name
    again = pickle.loads(pickle.dumps(index))
    same_as_written(again, range(20))
    assert len(pickle.dumps(index)) < 2000  # mapped by each process, not copied
    with pytest.raises(IndexError, match="20 is out of range"):
        index.read(20, "txt")


def test_index__lies_where_it_is_wanted(shards, tmp_path, monkeypatch):
    open_tar_index(shards, tmp_path / "elsewhere")
    assert not (shards[0].parent / "tar_index").exists()
    no_building(monkeypatch)
    same_as_written(open_tar_index(shards, tmp_path / "elsewhere"), range(20))


def test_index__in_memory_needs_no_folder(shards):
    index = pickle.loads(pickle.dumps(TarIndex.of(iter(shards))))
    same_as_written(index, range(20))
    assert not index.members[:, 2].any()  # no checksums
    assert len(os.listdir(shards[0].parent)) == 4


def test_index__of_nested_folders_is_in_order_of_names(tmp_path):
    for n, name in enumerate(("2017/2", "2017/10", "2016/9", "b/1")):
        write_tar(tmp_path / "set" / f"{name}.tar", samples([n]))
    names = open_tar_index(tmp_path / "set").names
    assert [int(names[n]) for n in range(4)] == [2, 1, 0, 3]
    with pytest.raises(FileNotFoundError, match=r"no \*.tar files"):
        open_tar_index(tmp_path / "nothing")


def test_index__of_one_archive_is_beside_it(shards):
    assert len(open_tar_index(str(shards[1]))) == 5
    assert (shards[1].parent / "tar_index").is_dir()


def test_index__moves_with_its_archives(shards, tmp_path, monkeypatch):
    open_tar_index(shards[0].parent)
    shutil.copytree(shards[0].parent, tmp_path / "moved", copy_function=shutil.copy2)
    no_building(monkeypatch)
    same_as_written(open_tar_index(tmp_path / "moved"), range(20))


def test_copies__of_another_time_are_read_again(shards):
    index = open_tar_index(shards[0].parent)
    os.utime(shards[1], (1, 1))
    same_as_written(open_tar_index(shards[0].parent), range(20))
    same_as_written(index, range(20))


def replaced(path, numbers):
    write_tar(path, samples(numbers))


def flipped(path):
    raw = bytearray(path.read_bytes())
    raw[700] ^= 1  # inside the first picture
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: flipped(s[1]), "00000001.tar was changed after"),
        (lambda s: replaced(s[1], range(5)), "00000001.tar was changed after"),
        (lambda s: s[2].write_bytes(s[2].read_bytes()[:9000]), "2.tar was changed"),
        (lambda s: s[3].unlink(), "of others: .*3.tar is not given"),
        (lambda s: shutil.copy(s[3], s[3].with_name("4.tar")), "without .*4.tar"),
    ],
)
def test_changed_archives__are_told_and_indexed_again_on_demand(shards, change, words):
    folder = shards[0].parent
    open_tar_index(folder)
    change(shards)
    with pytest.raises(ValueError, match=words):
        open_tar_index(folder, on_error="skip")
    index = open_tar_index(folder, on_error="skip", rebuild=True)
    assert len(index) and len(open_tar_index(folder, on_error="skip")) == len(index)


def test_archives__that_are_gone_are_told(shards):
    open_tar_index(shards)
    shards[3].unlink()
    with pytest.raises(SampleFault, match="3.tar cannot be read .* not complete"):
        open_tar_index(shards)


@pytest.mark.parametrize("cut", [False, True])
def test_archives__changed_behind_our_back__are_told_when_they_are_read(shards, cut):
    index = open_tar_index(shards[0].parent)
    times = shards[1].stat()
    if cut:
        os.truncate(shards[1], 600)
    else:
        flipped(shards[1])
    os.utime(shards[1], ns=(times.st_atime_ns, times.st_mtime_ns))
    if not cut:  # size and time are the old ones
        index = open_tar_index(shards[0].parent)
    with pytest.raises(SampleFault, match="00000001.tar was cut or changed") as told:
        index.read(5, "png")
    assert told.value.cause == "content changed"
    assert index.read(0, "txt") == b"caption 0"


def test_index__that_is_damaged__is_told(shards, tmp_path):
    folder = shards[0].parent / "tar_index"
    open_tar_index(shards[0].parent)
    write_shards(tmp_path / "other", 3)
    open_tar_index(tmp_path / "other")
    path = folder / "index.safetensors"
    raw = path.read_bytes()
    flips = [len(raw) * part // 9 for part in range(9)]
    damaged = [
        raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :] for place in flips
    ]
    damaged += [raw[:-3], b"", (tmp_path / "other/tar_index" / path.name).read_bytes()]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=str(folder)):
            open_tar_index(shards[0].parent)
    write_safetensors(path, {"x": torch.zeros(1)}, {})
    with pytest.raises(ValueError, match="no index of this version"):
        open_tar_index(shards[0].parent)
    same_as_written(open_tar_index(shards[0].parent, rebuild=True), range(20))
    path.unlink()  # building was interrupted
    same_as_written(open_tar_index(shards[0].parent), range(20))


def test_index__of_a_broken_set__raises_or_leaves_out(shards):
    os.truncate(shards[0], 4000)
    shards[1].write_bytes(b"no tar")
    shards[2].unlink()
    with pytest.raises(SampleFault, match="0.tar is not a tar of samples: it is cut"):
        open_tar_index(shards)
    with pytest.raises(SampleFault):  # built, but still not whole
        open_tar_index(shards)
    index = open_tar_index(shards, on_error="skip")
    causes = [fault.cause for fault in index.faults]
    assert causes == ["archive cut off", "archive damaged", "archive missing"]
    same_as_written(index, [*range(1), *range(15, 20)])
    nothing = open_tar_index(shards[1:3], shards[0].parent / "b", on_error="skip")
    assert (
        len(nothing)
        == len(open_tar_index(nothing.tars, shards[0].parent / "b", on_error="skip"))
        == 0
    )
    with pytest.raises(ValueError, match="on_error='warn'"):
        open_tar_index(shards, on_error="warn")


def test_index__is_built_by_one_of_several(shards, monkeypatch):
    built, scan = [], tar_index.scan

    def slow(path, *args, **kwargs):
        built.append(path)
        time.sleep(0.02)
        return scan(path, *args, **kwargs)

    monkeypatch.setattr(tar_index, "scan", slow)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(open_tar_index(shards)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and len(built) == 4  # one per archive
    for index in found:
        same_as_written(index, range(20))


def test_index__that_cannot_be_written__says_what_to_do(shards, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="give a folder that can be written to"):
        open_tar_index(shards, tmp_path / "file")


# ------------------------------------------------------------------------------- pairs
def test_pairs__are_pictures_and_captions(shards):
    pairs = TarPairs(open_tar_index(shards[0].parent))
    assert len(pairs) == 20 and pairs.skipped is None
    image, text = pairs[7]
    assert text == pairs.text(7) == "caption 7"
    assert image.tobytes() == read_picture(picture(7)).tobytes()
    assert pairs.text(-1) == "caption 19"
    with pytest.raises(IndexError):
        pairs[20]


@pytest.mark.parametrize(
    "members, options, wanted",
    [
        ({"json": '{"caption": "of json"}'}, {}, "of json"),
        ({"json": '{"caption": ["a", "b"]}'}, {}, ["a", "b"]),
        ({"json": '{"alt": "x", "caption": "y"}'}, {"captions": "json:alt"}, "x"),
        ({"txt": "a\nb"}, {}, "a\nb"),
        ({"txt": "\ufeffa"}, {}, "a"),
        ({"txt": "no", "cap": "yes"}, {"captions": ["cap", "txt"]}, "yes"),
    ],
)
def test_captions__are_where_they_are_said_to_be(tmp_path, members, options, wanted):
    entries = [(f"1.{ending}", text.encode()) for ending, text in members.items()]
    path = write_tar(tmp_path / "a.tar", [*entries, ("1.png", picture(1))])
    assert TarPairs(TarIndex.of([path]), **options)[0][1] == wanted


def test_captions__of_no_place_are_refused(shards):
    for given in ([], ""):
        refused("captions|picture", TarPairs, TarIndex.of(shards), given)


BROKEN = {
    "no picture": [("1.txt", b"x")],
    "no caption": [("1.png", picture(1))],
    "caption unreadable": [("1.png", picture(1)), ("1.txt", "été".encode("latin-1"))],
    "picture unreadable": [("1.jpg", picture(1)[:60]), ("1.txt", b"x")],
}


def bomb():
    """A small PNG file that declares 10^10 pixels."""

    def chunk(kind, content):
        crc = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", 10**5, 10**5, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + pixels + chunk(b"IEND", b"")


BOMB = [("1.png", bomb()), ("1.txt", b"x")]
LONG = b'{"caption": "' + b"x" * 2**20 + b'"}'
JSONS = [b"{", b"[1]", b'{"caption": 5}', b'"x"', b"[" * 100_000, b"\xff"]


@pytest.mark.parametrize("cause", BROKEN)
def test_samples__that_are_broken__raise_or_are_counted(tmp_path, cause):
    path = write_tar(tmp_path / "a.tar", [*BROKEN[cause], *sample(2)])
    index = TarIndex.of([path])
    with pytest.raises(SampleFault) as told:
        list(TarPairs(index))
    assert told.value.cause == cause
    with pytest.warns(UserWarning, match=cause):
        pairs = TarPairs(index, on_error="skip")
        dataset = make_image_text_dataset(pairs)
        found = ReadableItems(dataset).__getitems__(range(len(dataset)))
    assert [text for _, text, *_ in found] == ["caption 2"]
    find_corrupt_samples(dataset)  # looks only
    assert pairs.skipped.counts() == {cause: 1}


def test_bombs_and_hostile_texts__are_left_out(tmp_path):
    broken = [[("1.png", picture(1)), ("1.json", raw)] for raw in (*JSONS, LONG)]
    paths = [
        write_tar(tmp_path / f"{n}.tar", entries)
        for n, entries in enumerate([BOMB, *broken])
    ]
    with pytest.warns(UserWarning):
        pairs = TarPairs(TarIndex.of(paths), on_error="skip")
        dataset = make_image_text_dataset(pairs)
        with pytest.raises(CorruptSampleError, match=f"None of the {len(paths)}"):
            ReadableItems(dataset).__getitems__(range(len(paths)))
    assert len(find_corrupt_samples(dataset)) == len(paths)
    counts = {
        "picture too large": 1,
        "caption unreadable": len(JSONS),
        "member too large": 1,
    }
    assert pairs.skipped.counts() == counts


def test_pairs__without_any_sample_left__are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", BROKEN["no picture"])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="None of the 1"):
        TarPairs(TarIndex.of([path]), on_error="skip")


# ----------------------------------------------------------------------------- loaders
class Collate:
    def __call__(self, items):
        return [(item[1], item[2]) for item in items]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader__passes_over_what_is_left_out_with_any_workers(tmp_path, workers):
    shards = write_shards(tmp_path / "set")
    write_tar(shards[1], [*BROKEN["picture unreadable"], *samples(range(6, 10))])
    pairs = TarPairs(open_tar_index(shards), on_error="skip")
    dataset = make_image_text_dataset(pairs, sample_ids=np.arange(100, 120))
    order = TrainingOrder(20, 5, seed=3, experience=0)
    loader = TrainLoader(dataset, order, collate_fn=Collate(), num_workers=workers)
    batches = list(loader)
    assert sorted(len(batch) for batch in batches) == [4, 5, 5, 5]
    found = {text: number for batch in batches for text, number in batch}
    assert found == {f"caption {n}": n + 100 for n in range(20) if n != 5}
    assert pairs.skipped.counts() == {"picture unreadable": 1}
    # Resumed in the middle, the rest is the same.
    loader.plan(0, 2, 2)
    assert list(loader) == batches[2:]


def test_loader__passes_over_texts_too_where_pictures_are_left_out(tmp_path):
    path = write_tar(tmp_path / "a.tar", [*BROKEN["caption unreadable"], *sample(2)])
    pairs = TarPairs(TarIndex.of([path]), on_error="skip")
    data = ReadableItems(without_images(make_image_text_dataset(pairs)))
    with pytest.warns(UserWarning, match="caption unreadable"):
        found = data.__getitems__([0, 1])
    assert [text for _, text, *_ in found] == ["caption 2"]
    assert pairs.skipped.counts() == {"caption unreadable": 1}


def test_loader__raises_where_nothing_is_left_of_a_batch(tmp_path):
    path = write_tar(tmp_path / "a.tar", [*BROKEN["picture unreadable"], *sample(2)])
    pairs = TarPairs(TarIndex.of([path]), on_error="skip")
    order = TrainingOrder(2, 1, seed=0, experience=0)
    loader = TrainLoader(make_image_text_dataset(pairs), order, collate_fn=Collate())
    with pytest.warns(UserWarning), pytest.raises(CorruptSampleError, match="None of"):
        list(loader)


def test_members__as_many_as_a_million_open_in_a_second(tmp_path):
    count = 100_000  # the whole number is in benchmarks/shards.py
    path = write_tar(tmp_path / "set" / "a.tar", sample(1))
    index = open_tar_index(path.parent)
    facts, *_ = tar_index._scanned([path], checksums=True)
    rows = np.arange(1, count + 1)[:, None] * np.array([0, 3, 8])
    names = np.tile(np.frombuffer(b"00000001", np.uint8), count)
    members = np.tile(index.members, (count, 1))
    tar_index._write(path.parent / "tar_index", [path], facts, members, rows, names)
    begin = time.perf_counter()
    index = open_tar_index(path.parent)
    assert time.perf_counter() - begin < 1 and len(index) == count
    assert index.read(count - 1, "txt") == b"caption 1"
    assert isinstance(TarPairs(index)[count - 1][0], Image.Image)


@pytest.mark.slow
def test_counts__of_workers_that_are_spawned__come_back(tmp_path):
    path = write_tar(tmp_path / "a.tar", [*BROKEN["picture unreadable"], *sample(2)])
    pairs = TarPairs(open_tar_index(path.parent), on_error="skip")
    loader = TrainLoader(
        make_image_text_dataset(pairs),
        TrainingOrder(2, 2, seed=0, experience=0),
        collate_fn=Collate(),
        num_workers=1,
        multiprocessing_context="spawn",
    )
    assert [len(batch) for batch in loader] == [1]
    assert pairs.skipped.counts() == {"picture unreadable": 1}
