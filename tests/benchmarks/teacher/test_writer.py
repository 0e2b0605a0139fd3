"""Feature stores on disk: one writer, whole or refused, continued after a kill."""

import errno
import json
import os
import resource
import shutil
import sys
from functools import partial
from unittest import mock

import numpy as np
import pytest

from avalanche_clip.benchmarks.teacher import writer
from avalanche_clip.benchmarks.teacher.files import ARRAYS, FORMAT, HEADER
from avalanche_clip.benchmarks.teacher.store import (
    TeacherFeatureStore,
    data_fingerprint,
)
from avalanche_clip.benchmarks.teacher.writer import FeatureWriter
from avalanche_clip.common.files import read_json, write_json
from avalanche_clip.common.lock import FolderLock
from tests.damage import damages, not_refused
from tests.forks import context
from tests.processes import kill_self, run_killed
from tests.refused import refused

IDS = {"image": np.array([3, 5, 9]), "text": np.arange(5)}
MARKS = {kind: (ids + 1).astype(np.uint64) for kind, ids in IDS.items()}


def header(dtype="float32", **changes):
    return {
        "format": FORMAT,
        "model": {"image": "a" * 32, "text": "b" * 32},
        "data": data_fingerprint(IDS, MARKS),
        "dim": 4,
        "dtype": dtype,
        "rows": {kind: len(ids) for kind, ids in IDS.items()},
        **changes,
    }


def rows(kind, start=0, stop=None):
    whole = np.random.default_rng(kind == "text").normal(size=(len(IDS[kind]), 4))
    return whole[start:stop].astype(np.float32)


def write(path, *, until=None, dtype="float32", writer_of=FeatureWriter, **changes):
    """Write a store row by row, or as far as to a number of rows."""
    with writer_of(path, header(dtype, **changes), IDS, MARKS) as writer:
        for kind in ("text", "image"):
            while writer.done[kind] < len(IDS[kind]):
                if until is not None and sum(writer.done.values()) >= until:
                    return
                at = writer.done[kind]
                writer.append(kind, rows(kind, at, at + 1).astype(dtype))
                writer.note(kind)
        writer.finish()


@pytest.fixture
def store(tmp_path):
    write(tmp_path / "store")
    return tmp_path / "store"


# ------------------------------------------------------------------- whole files
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_store__comes_back_and_is_made_of_ordinary_arrays(tmp_path, dtype):
    write(tmp_path / "s", dtype=dtype)
    assert {p.name for p in (tmp_path / "s").iterdir()} == {*ARRAYS, HEADER}
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    opened = TeacherFeatureStore.open(tmp_path / "s")
    for kind, ids in IDS.items():
        expected = rows(kind).astype(dtype)
        assert np.array_equal(opened.features[kind], expected)
        assert np.array_equal(opened.ids[kind], ids)
        assert np.array_equal(opened.marks[kind], MARKS[kind])
        assert np.array_equal(np.load(tmp_path / f"s/{kind}_features.npy"), expected)
    assert np.array_equal(opened.images([9, 3]), rows("image")[[2, 0]].astype(dtype))


@pytest.mark.parametrize("name", [HEADER, *ARRAYS])
def test_store__no_damage_is_read(store, name):
    read = lambda: TeacherFeatureStore.open(store)  # noqa: E731
    assert not_refused(store / name, read, words=(str(store),)) == []


def test_store__verify_false_skips_the_features_only(store):
    for name in (HEADER, "image_ids.npy", "text_marks.npy"):
        read = lambda: TeacherFeatureStore.open(store, verify=False)  # noqa: E731
        assert not_refused(store / name, read) == []
    path = store / "text_features.npy"
    whole = path.read_bytes()
    for place in (128, 128 + 5 * 4 * 4 - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        TeacherFeatureStore.open(store, verify=False)
    path.write_bytes(bytes([whole[0] ^ 4]) + whole[1:])
    refused(r"text_features\.npy", TeacherFeatureStore.open, store, verify=False)


@pytest.mark.parametrize("name", ARRAYS)
def test_store__file_of_another_store_is_refused(store, name):
    other = store.with_name("other")
    write(other, data="0" * 32)
    shutil.copy(other / name, store / name)
    with pytest.raises(ValueError, match=rf"{name} does not have .*another store"):
        TeacherFeatureStore.open(store, verify=False)
    (store / name).unlink()
    refused(rf"{name} is nothing, not \d+ bytes", TeacherFeatureStore.open, store)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dim": 5}, r"image_features\.npy holds float32 of shape \(3, 4\)"),
        ({"dim": 0}, "'dim' is missing or wrong"),
        ({"dtype": "float64"}, "'dtype' is missing or wrong"),
        ({"rows": {"image": 3}}, "'rows' is missing or wrong"),
        ({"files": {}}, "'files' is missing or wrong"),
        ({"model": None}, "'model' is missing or wrong"),
    ],
)
def test_store__impossible_headers_are_refused(store, change, words):
    content = {**read_json(store / HEADER, checksum=True), **change}
    write_json(store / HEADER, content, checksum=True)
    refused(words, TeacherFeatureStore.open, store)


def test_store__of_an_earlier_version_is_refused_with_the_remedy(store):
    content = json.loads((store / HEADER).read_text())
    (store / HEADER).write_text(json.dumps({**content, "format": 1}))
    refused("format 1.*precompute_teacher_features", TeacherFeatureStore.open, store)
    del content["checksum"]
    (store / HEADER).write_text(json.dumps(content))
    refused("no checksum.*precompute_teacher_features", TeacherFeatureStore.open, store)


# ------------------------------------------------------------------ continuing
def test_unfinished__is_no_store(tmp_path):
    write(tmp_path / "s", until=3)
    assert not (tmp_path / "s").exists()
    refused(
        r"s\.partial is unfinished", TeacherFeatureStore.open, tmp_path / "s.partial"
    )


def write_until_killed(path, after):
    """Write a store; die in call ``after`` of what writes."""
    calls = 0

    def counted(function):
        def call(*args, **options):
            nonlocal calls
            calls += 1
            if calls == after:
                kill_self()
            return function(*args, **options)

        return call

    for name in ("write_json", "seal_npy", "_allocate"):
        setattr(writer, name, counted(getattr(writer, name)))
    os.replace = counted(os.replace)
    FeatureWriter.append = counted(FeatureWriter.append)
    write(path)


@pytest.mark.parametrize("after", [1, 2, 4, 8, 12, 20, 31, 33, 34, 36, 37])
def test_unfinished__killed_anywhere_continues_to_the_same_bytes(tmp_path, after):
    path = tmp_path / "s"
    run_killed(partial(write_until_killed, path, after))
    assert not path.exists()
    write(path)
    write(tmp_path / "whole")
    assert {p.name for p in path.iterdir()} == {*ARRAYS, HEADER}
    for name in (HEADER, *ARRAYS):
        assert (path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("name", [HEADER, "progress.json", "text_ids.npy"])
def test_unfinished__damaged_state_is_refused(tmp_path, name):
    path = tmp_path / "s"
    partial = tmp_path / "s.partial"
    write(path, until=6)

    def read():
        write(path, until=6)

    whole = (partial / name).read_bytes()
    for label, content in damages(whole, 40):
        (partial / name).write_bytes(content)
        with pytest.raises(ValueError) as caught:
            read()
        assert name in str(caught.value) and "s.partial" in str(caught.value), label
    (partial / name).write_bytes(whole)
    read()


def test_unfinished__features_are_checked_as_far_as_they_are_counted(tmp_path):
    path, partial = tmp_path / "s", tmp_path / "s.partial"
    write(path, until=6)  # 5 texts and 1 picture
    for kind, counted in (("text", 5), ("image", 1)):
        file = partial / f"{kind}_features.npy"
        whole = file.read_bytes()
        for place in (0, 100, 128, 128 + counted * 16 - 1):
            changed = bytearray(whole)
            changed[place] ^= 1
            file.write_bytes(changed)
            refused(rf"cannot be continued.*{kind}_feat", write, path)
        for content in (whole[:-1], whole[:150], b"", whole + bytes(2**23)):
            file.write_bytes(content)
            refused(rf"cannot be continued.*{kind}_feat", write, path)
        file.write_bytes(whole)
    write(path)
    assert np.array_equal(
        TeacherFeatureStore.open(path).features["image"], rows("image")
    )


@pytest.mark.parametrize(
    "count", [-1, 6, 2.0, "3", True, None], ids=lambda count: repr(count)
)
def test_unfinished__impossible_counts_are_refused(tmp_path, count):
    path, partial = tmp_path / "s", tmp_path / "s.partial"
    write(path, until=3)
    noted = read_json(partial / "progress.json", checksum=True)
    write_json(partial / "progress.json", {**noted, "text": count}, checksum=True)
    refused(r"s\.partial cannot be continued.*counts", write, path)


def test_unfinished__of_other_data_or_model_is_refused(tmp_path):
    path = tmp_path / "s"
    write(path, until=3)
    refused(r"s\.partial holds features with data", write, path, data="0" * 32)
    refused(r"s\.partial holds features with dtype", write, path, dtype="float16")
    other = {kind: ids + 1 for kind, ids in IDS.items()}
    with pytest.raises(ValueError, match="does not hold the ids"):
        FeatureWriter(path, header(), other, MARKS).__enter__()


# ------------------------------------------------------------------- one writer
def test_writer__a_second_one_is_refused_and_changes_nothing(tmp_path):
    path, partial = tmp_path / "s", tmp_path / "s.partial"
    with FeatureWriter(path, header(), IDS, MARKS) as writer:
        before = {p.name: p.read_bytes() for p in partial.iterdir()}
        refused(rf"s\.partial is in use.*{os.getpid()}", write, path)
        assert {p.name: p.read_bytes() for p in partial.iterdir()} == before
        writer.append("text", rows("text"))
    write(path)
    TeacherFeatureStore.open(path)
    assert not partial.exists()


def test_writer__finds_a_store_that_another_made_meanwhile(tmp_path):
    path = tmp_path / "s"
    acquire = FolderLock.acquire

    def later(lock):
        if not path.exists():
            with mock.patch.object(FolderLock, "acquire", acquire):
                write(path)
        acquire(lock)

    with mock.patch.object(FolderLock, "acquire", later):
        with FeatureWriter(path, header(), IDS, MARKS) as writer:
            assert writer.finished
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    TeacherFeatureStore.open(path)


def test_writer__leaves_files_of_others_alone(tmp_path):
    path, partial = tmp_path / "s", tmp_path / "s.partial"
    partial.mkdir()
    (partial / "thesis.tex").write_text("mine")
    refused(r"s\.partial holds 'thesis\.tex'", write, path)
    assert (partial / "thesis.tex").read_text() == "mine"
    assert [p.name for p in partial.iterdir()] == ["thesis.tex"]
    for taken in (tmp_path / "folder", tmp_path / "file"):
        if taken.name == "folder":
            taken.mkdir()
            (taken / "a").write_text("mine")
        else:
            taken.write_text("mine")
        refused(f"{taken.name} exists and is no feature", write, taken)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    TeacherFeatureStore.open(tmp_path / "empty")


# ------------------------------------------------------------------ a full disk
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk__is_an_error_in_words_before_anything_is_computed(tmp_path, number):
    path = tmp_path / "s"

    def full(*args):
        raise OSError(number, os.strerror(number))

    with mock.patch.object(os, "posix_fallocate", full):
        with pytest.raises(
            OSError, match=r"needs 256 bytes.* are free; make room"
        ) as e:
            write(path)
    assert e.value.errno == number and "s.partial" in str(e.value)
    assert list(tmp_path.iterdir()) == []
    write(path)
    TeacherFeatureStore.open(path)


def write_beyond_the_limit_of_files(path):
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
    ids = {kind: np.arange(1000) for kind in IDS}
    marks = {kind: own.astype(np.uint64) for kind, own in ids.items()}
    with mock.patch.multiple(sys.modules[__name__], IDS=ids, MARKS=marks):
        refused("the feature store needs 64,000 bytes", write, path, error=OSError)


def test_full_disk__of_the_system_is_no_signal(tmp_path):
    process = context().Process(
        target=write_beyond_the_limit_of_files, args=(tmp_path / "s",)
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    assert list(tmp_path.iterdir()) == []


def test_full_disk__while_writing_keeps_what_is_written(tmp_path):
    path = tmp_path / "s"

    class Full(FeatureWriter):
        def note(self, kind):
            if self.done[kind] == 3:
                with mock.patch.object(
                    os, "fsync", side_effect=OSError(28, "No space")
                ):
                    super().note(kind)
            super().note(kind)

    refused("make room", write, path, writer_of=Full, error=OSError)
    write(path)
    assert np.array_equal(TeacherFeatureStore.open(path).features["text"], rows("text"))


def test_space__is_taken_before_anything_is_computed(tmp_path):
    path = tmp_path / "s"
    large = {kind: np.arange(20_000) for kind in IDS}
    marks = {kind: ids.astype(np.uint64) for kind, ids in large.items()}
    counts = {kind: len(ids) for kind, ids in large.items()}
    with FeatureWriter(path, header(rows=counts, dim=16), large, marks) as writer:
        for kind in IDS:
            found = (writer.partial / f"{kind}_features.npy").stat()
            assert found.st_size == 128 + 20_000 * 64
            assert found.st_blocks * 512 >= found.st_size
    # a file system that cannot reserve: the space is taken by writing
    for number in (errno.EOPNOTSUPP, errno.EINVAL):
        refused = OSError(number, "not supported")
        with mock.patch.object(os, "posix_fallocate", side_effect=refused):
            write(tmp_path / str(number))
        TeacherFeatureStore.open(tmp_path / str(number))
