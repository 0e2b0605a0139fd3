"""Shards of TiC-DataComp: ids, repetitions, levels, and what is left out."""

import json
import pickle

import numpy as np
import pytest

from avalanche_clip.benchmarks import pair_to_uid
from avalanche_clip.benchmarks.datasets.web.tic_shards import TicShards
from avalanche_clip.benchmarks.datasets.web.uids import as_uids, sorted_uids
from tests.refused import refused
from tests.tar_files import write_tar
from tests.tic_files import entries, uid, write_evaluation, write_tree


def names(pairs):
    return [pair_to_uid(u) for u in pairs.uids()]


@pytest.mark.parametrize("stats", ["stats", "sizes", None])
@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
def test_shards__pairs_and_ids_come_back(tmp_path, stats, ending):
    given = write_tree(
        tmp_path / "2017", range(7), 2017, stats=stats, repeats=(3,), ending=ending
    )
    pairs = TicShards(tmp_path / "2017")
    wanted = given[0::2] + given[1:4:2] + [given[3]] + given[5::2]
    assert names(pairs) == wanted and len(pairs) == 8
    assert pairs.counts == {"found": 8, "without json": 0, "used": 8}
    for k, name in enumerate(wanted):
        image, text = pairs[k]
        assert text == f"caption {given.index(name)}" == pairs.text(k)
        assert image.mode == "RGB" and image.size == (8, 8)
    assert [key[-2:] for key in pairs.index.names].count("-1") == 1
    again = pickle.loads(pickle.dumps(pairs))
    assert names(again) == wanted and again[3][1] == pairs[3][1]


def test_shards__one_or_more_levels_down(tmp_path):
    for part in range(3):
        write_tree(tmp_path / "2017" / f"{part}", [part * 2, part * 2 + 1], 2017)
    assert len(TicShards(tmp_path / "2017")) == 6
    write_tree(tmp_path / "2017", [10], 2017, shards=1)
    assert len(TicShards(tmp_path / "2017", index=tmp_path / "index")) == 7


def test_shards__captions_with_line_feeds_are_one(tmp_path):
    write_evaluation(tmp_path / "2016", range(4), 2016, "retrieval")
    pairs = TicShards(tmp_path / "2016")
    assert [pairs.text(k) for k in range(2)] == ["caption 0", "two\nlines"]


def test_shards__captions_from_json_where_there_is_no_text(tmp_path):
    write_tree(tmp_path, range(4), 2016, txt=None)
    assert sorted(TicShards(tmp_path).text(k) for k in range(4)) == [
        f"caption {n}" for n in range(4)
    ]


def test_shards__samples_without_json_are_left_out_and_counted(tmp_path):
    content = entries(f"{uid(2016, 0)}-0", 0) + entries(
        f"{uid(2016, 1)}-0", 1, json=None
    )
    write_tar(tmp_path / "00000000.tar", content)
    pairs = TicShards(tmp_path)
    assert names(pairs) == [uid(2016, 0)]
    assert pairs.counts == {"found": 2, "without json": 1, "used": 1}


def test_shards__lists_and_weights(tmp_path):
    given = write_tree(tmp_path, range(9), 2016, repeats=(2, 4))
    keep = sorted_uids(as_uids([*given[:6], uid(1, 1)]))
    without = sorted_uids(as_uids([given[4], given[8], uid(2, 2)]))
    pairs = TicShards(tmp_path, keep=keep, without=without, weight=3)
    once = TicShards(tmp_path, keep=keep, without=without)
    left = [given[0], given[1], given[2], given[2], given[3], given[5]]
    assert sorted(names(once)) == sorted(left)
    assert sorted(names(pairs)) == sorted(left * 3)
    assert (
        pairs.counts
        == once.counts
        == {
            **{"found": 11, "without json": 0, "not in the list": 3},
            **{"in evaluation sets": 2, "used": 6},
        }
    )
    refused("left", TicShards, tmp_path, keep=as_uids([uid(1, 1)]))
    refused("weight", TicShards, tmp_path, weight=0.5)


@pytest.mark.parametrize("key", ["000000012", "part/{}", "deep/er/{}-1", "{}-0"])
def test_shards__ids_of_other_names(tmp_path, key):
    known = uid(2016, 3)
    facts = json.dumps({"uid": known}).encode()
    write_tar(tmp_path / "0.tar", entries(key.format(known), 3, json=facts))
    assert names(TicShards(tmp_path)) == [known]


@pytest.mark.parametrize(
    "content", [b"{}", b'{"uid": 5}', b"[]", b"{", b'{"uid": "0"}']
)
@pytest.mark.parametrize("key", ["000000012", "0" * 31, "0" * 33, "A" * 32])
def test_shards__samples_without_an_id_are_refused(tmp_path, content, key):
    write_tar(tmp_path / "0.tar", entries(key, 3, json=content))
    pairs = TicShards(tmp_path)
    refused("0.tar", pairs.uids)
    refused("0.tar", TicShards, tmp_path, without=as_uids([uid(1, 1)]))


def test_shards__sizes_beside_them_are_compared(tmp_path):
    write_tree(tmp_path / "a", range(4), 2016)
    stats = tmp_path / "a" / "00000001_stats.json"
    stats.write_text('{"successes": 3}')
    text = refused("00000001.tar", TicShards, tmp_path / "a")
    assert "2 samples" in text and "00000001_stats.json says 3" in text
    with pytest.warns(UserWarning, match="00000001.tar"):
        pairs = TicShards(tmp_path / "a", on_error="skip")
    assert len(pairs) == 4 and pairs.skipped.counts() == {"archive damaged": 1}
    write_evaluation(tmp_path / "b", range(4), 2016, "retrieval")
    (tmp_path / "b" / "0.json").write_text('{"successes": 5}')
    refused("0.json says 5", TicShards, tmp_path / "b")


def test_shards__those_that_are_missing_are_told(tmp_path):
    write_tree(tmp_path / "a", range(4), 2016, stats="sizes")
    (tmp_path / "a" / "00000000.tar").unlink()
    refused("00000000.tar is missing", TicShards, tmp_path / "a")
    write_evaluation(tmp_path / "b", range(4), 2016, "retrieval")
    (tmp_path / "b" / "nshards.txt").write_text("3\n")
    refused("1.tar is missing", TicShards, tmp_path / "b")
    with pytest.warns(UserWarning, match="1.tar is missing"):
        pairs = TicShards(tmp_path / "b", on_error="skip")
    assert len(pairs) == 4 and pairs.skipped.counts() == {"archive missing": 2}
    for wrong in ("", "-1", "x", "9" * 12):
        (tmp_path / "b" / "nshards.txt").write_text(wrong)
        refused("nshards.txt", TicShards, tmp_path / "b")


def test_shards__damage_is_told_or_counted(tmp_path):
    write_tree(tmp_path, range(6), 2016, stats=None)
    path = tmp_path / "00000001.tar"
    path.write_bytes(path.read_bytes()[:4000])
    refused("00000001.tar", TicShards, tmp_path)
    with pytest.warns(UserWarning):
        pairs = TicShards(tmp_path, on_error="skip")
    assert pairs.skipped.total >= 1 and 3 <= len(pairs) < 6
    with pytest.raises(FileNotFoundError):
        TicShards(tmp_path / "absent")


def test_shards__many_ids_at_once(tmp_path, monkeypatch):
    given = write_tree(tmp_path, range(23), 2016, shards=1)
    monkeypatch.setattr("avalanche_clip.benchmarks.datasets.web.tic_shards.BLOCK", 5)
    without = sorted_uids(as_uids(given[::3]))
    pairs = TicShards(tmp_path, without=without)
    assert names(pairs) == [u for k, u in enumerate(given) if k % 3]
    assert np.array_equal(pairs.uids(), as_uids(names(pairs)))


def test_shards__samples_without_an_id_are_counted(tmp_path):
    write_tar(
        tmp_path / "0.tar",
        [
            *entries("1", 3, json=json.dumps({"uid": uid(2016, 3)}).encode()),
            *entries("2", 4, json=b"{}"),
            *entries("3", 5, json=b"{"),
            *entries(f"{uid(2016, 6)}-0", 6),
        ],
    )
    with pytest.warns(UserWarning, match="holds no 'uid'"):
        pairs = TicShards(tmp_path, without=as_uids([uid(1, 1)]), on_error="skip")
    assert names(pairs) == [uid(2016, 3), uid(2016, 6)]
    assert pairs.counts["without id"] == 2
    assert pairs.skipped.counts() == {"other": 1, "row unreadable": 1}


def test_shards__in_folders_that_are_links(tmp_path):
    write_tree(tmp_path / "a", range(2), 2016)
    write_tree(tmp_path / "b", range(2, 4), 2016)
    (tmp_path / "a" / "0").symlink_to(tmp_path / "b")
    assert len(TicShards(tmp_path / "a")) == 4
