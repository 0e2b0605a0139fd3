"""Lists of ids: as released on disk, and combined by merging."""

import tracemalloc

import numpy as np
import pytest

from avalanche_clip.benchmarks import (
    pair_to_uid,
    read_uid_list,
    uid_to_pair,
    write_uid_list,
)
from avalanche_clip.benchmarks.datasets.web import uids as module
from avalanche_clip.benchmarks.datasets.web.uids import (
    UID_DTYPE,
    as_uids,
    combine_uid_lists,
    find_uids,
)
from tests.refused import refused


def texts(count, seed=0, values=2**63):
    draw = np.random.default_rng(seed)
    halves = draw.integers(0, values, (count, 2)).astype(np.uint64)
    halves[:, 1] *= np.uint64(3)
    return [f"{a:016x}{b:016x}" for a, b in halves.tolist()]


def test_uid__halves_are_those_of_the_release():
    uid = "000102030405060708090a0b0c0d0e0f"
    assert uid_to_pair(uid) == (283686952306183, 579005069656919567)
    assert pair_to_uid(uid_to_pair(uid)) == uid
    for value in ("0" * 32, "f" * 32, "0" * 31 + "1", "8" + "0" * 31):
        assert pair_to_uid(uid_to_pair(value)) == value
        assert uid_to_pair(value) == (int(value[:16], 16), int(value[16:], 16))
    assert all(type(half) is int for half in uid_to_pair(uid))
    assert pair_to_uid(as_uids([uid])[0]) == uid


@pytest.mark.parametrize(
    "wrong",
    ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0x" + "0" * 30, " " + "0" * 31]
    + ["0" * 32 + "\n", "1_" * 16, "٣" * 32, b"0" * 32, 5, None],
)
def test_uid__anything_else_is_refused(wrong):
    refused("32 lower-case", uid_to_pair, wrong)


@pytest.mark.parametrize(
    "wrong",
    [(1,), (1, 2, 3), (-1, 0), (0, 2**64), (1.0, 2), ("1", 2), (True, 2), None, 5],
)
def test_pair__anything_else_is_refused(wrong):
    refused("UID|pair", pair_to_uid, wrong)


def test_list__is_written_as_released(tmp_path):
    path, given = tmp_path / "a.npy", texts(50)
    write_uid_list(path, [*given, *given[:7]])
    assert path.stat().st_size == 128 + 16 * 50
    stored = np.load(path)
    assert stored.dtype == np.dtype("u8,u8") and stored.flags["C_CONTIGUOUS"]
    assert [pair_to_uid(pair) for pair in stored] == sorted(given)
    read = read_uid_list(path)
    assert read.dtype == UID_DTYPE and np.array_equal(read, stored)
    assert not read.flags.writeable
    other = tmp_path / "b.npy"
    for form in (read, np.array(given), [uid_to_pair(u) for u in given], iter(given)):
        write_uid_list(other, form)
        assert other.read_bytes() == path.read_bytes()


def test_list__of_nothing(tmp_path):
    write_uid_list(tmp_path / "a.npy", [])
    assert (tmp_path / "a.npy").stat().st_size == 128
    assert read_uid_list(tmp_path / "a.npy").shape == (0,)
    assert np.load(tmp_path / "a.npy").dtype == UID_DTYPE


def test_list__without_header_and_with_repetitions(tmp_path):
    given = as_uids(sorted(texts(20) + texts(5)))
    (tmp_path / "a.npy").write_bytes(given.tobytes())
    assert np.array_equal(read_uid_list(tmp_path / "a.npy"), given)
    (tmp_path / "d.bin").write_bytes(given[::-1].tobytes())  # as it lies there
    assert np.array_equal(read_uid_list(tmp_path / "d.bin"), given[::-1])
    small = as_uids([(0, 9), (0, 3)])
    (tmp_path / "d.bin").write_bytes(small.tobytes())
    assert np.array_equal(read_uid_list(tmp_path / "d.bin"), small)
    np.save(tmp_path / "b.npy", given)
    assert np.array_equal(read_uid_list(tmp_path / "b.npy"), given)
    np.save(tmp_path / "c.npy", given.astype([("f0", ">u8"), ("f1", ">u8")]))
    assert np.array_equal(read_uid_list(tmp_path / "c.npy"), given)


@pytest.mark.parametrize(
    "content",
    [
        np.zeros(3, "u8"),
        np.zeros((3, 2), "u8"),
        np.zeros(3, "i8,i8"),
        np.zeros(3, "u8,u8,u8"),
        np.zeros(3, "u4,u8"),
        np.zeros((3, 1), "u8,u8"),
        np.array([{}], object),
        np.zeros(3, {"names": ["a", "b"], "formats": ["u8", "u8"], "itemsize": 24}),
    ],
)
def test_list__of_another_type_is_refused(tmp_path, content):
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    refused("a.npy is not a list of UIDs", read_uid_list, tmp_path / "a.npy")


def test_list__damage_is_refused(tmp_path):
    path = tmp_path / "a.npy"
    write_uid_list(path, texts(1))
    # No checksum: what is changed inside the ids cannot be seen.
    for content in (b"", b"x" * 15, path.read_bytes()[:-1], path.read_bytes() + b"\0"):
        path.write_bytes(content)
        refused("a.npy is not a list of UIDs", read_uid_list, path)
    for content in (
        b"sixteen letters\n" * 3 + b"and another one\n",
        b"<!DOCTYPE html>\n",
    ):
        path.write_bytes(content)
        refused("a.npy is not a list of UIDs", read_uid_list, path)
    with pytest.raises(FileNotFoundError):
        read_uid_list(tmp_path / "b.npy")
    refused("32 lower-case", write_uid_list, path, ["z" * 32])
    refused("is one text", write_uid_list, path, "0" * 32)
    refused("axes", write_uid_list, path, np.zeros(2, "u4,u4"))


def test_list__a_failed_write_leaves_the_old_one(tmp_path):
    write_uid_list(tmp_path / "a.npy", texts(3))
    before = (tmp_path / "a.npy").read_bytes()
    unsorted = as_uids(texts(9))
    given = tmp_path / "a.npy", as_uids(sorted(texts(3))), unsorted, "union"
    refused("do not ascend", combine_uid_lists, *given)
    assert [p.name for p in tmp_path.iterdir()] == ["a.npy"]
    assert (tmp_path / "a.npy").read_bytes() == before


@pytest.mark.parametrize("block", [1, 2, 7, 1000])
@pytest.mark.parametrize("values", [2, 2**62])
def test_combine__equals_sets_of_texts(tmp_path, monkeypatch, block, values):
    monkeypatch.setattr(module, "BLOCK", block)
    for seed, (n, m) in enumerate([(0, 0), (0, 5), (5, 0), (1, 1), (40, 3), (30, 30)]):
        first, second = texts(n, seed, values), texts(m, seed + 9, values)
        second += first[: n // 3]
        ours, theirs = (as_uids(sorted(x)) for x in (first, second))
        np.save(tmp_path / "theirs.npy", theirs)
        wanted = {
            "union": {*first} | {*second},
            "intersection": {*first} & {*second},
            "difference": {*first} - {*second},
        }
        for how, result in wanted.items():
            path = tmp_path / f"{how}.npy"
            found = combine_uid_lists(path, ours, tmp_path / "theirs.npy", how)
            assert [pair_to_uid(u) for u in found] == sorted(result)
            assert path.stat().st_size == 128 + 16 * len(result)
        asked = texts(20, seed + 50, values) + first + second
        found = find_uids(as_uids(asked), ours)
        assert found.tolist() == [u in set(first) for u in asked]
        write_uid_list(path, [*second, *first])
        assert len(read_uid_list(path)) == len({*first} | {*second})
    refused("how='both'", combine_uid_lists, path, ours, theirs, "both")


def test_combine__memory_does_not_grow_with_the_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 250)
    draw = np.random.default_rng(0)
    for name, count in (("a", 50_000), ("b", 75_000)):
        whole = np.zeros(count, UID_DTYPE)
        whole["f0"] = np.sort(draw.integers(0, 100_000, count))
        np.save(tmp_path / f"{name}.npy", whole)
    tracemalloc.start()
    paths = [tmp_path / f"{name}.npy" for name in "cab"]
    found = combine_uid_lists(*paths, "intersection")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    sets = [{*np.load(path)["f0"].tolist()} for path in paths[1:]]
    assert found["f0"].tolist() == sorted(sets[0] & sets[1])
    assert peak < 250_000  # the lists have 2 MB


def test_list__halves_that_repeat_are_told_apart():
    listed = as_uids([f"{1:016x}{k:016x}" for k in range(0, 100, 2)])
    asked = as_uids([f"{1:016x}{k:016x}" for k in range(100)])
    assert find_uids(asked, listed).tolist() == [k % 2 == 0 for k in range(100)]
    assert not find_uids(asked, listed[:0]).any()
    assert find_uids(asked[:0], listed).shape == (0,)
