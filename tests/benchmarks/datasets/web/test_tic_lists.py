"""Lists of ids in the forms in which TiC-CLIP released them."""

import json
import pickle
import tarfile

import numpy as np
import pytest

from avalanche_clip.benchmarks import write_uid_list
from avalanche_clip.benchmarks.datasets.web.tic_lists import (
    TIC_DATACOMP_MONTHS,
    all_uids,
    read_evaluation_uids,
    read_uid_lists,
)
from avalanche_clip.benchmarks.datasets.web.uids import as_uids
from tests.benchmarks.datasets.web.test_uids import texts
from tests.damage import PAGE, POINTER, not_refused
from tests.refused import refused


def test_months__are_those_of_the_release():
    assert len(TIC_DATACOMP_MONTHS) == len(set(TIC_DATACOMP_MONTHS)) == 102
    assert list(TIC_DATACOMP_MONTHS) == sorted(TIC_DATACOMP_MONTHS)
    counts = [
        sum(m[:4] == str(y) for m in TIC_DATACOMP_MONTHS) for y in range(2014, 2024)
    ]
    assert counts == [8, 10, 9, 12, 12, 12, 12, 12, 9, 6]
    assert {"201403", "201508", "201602", "202201"} <= {*TIC_DATACOMP_MONTHS}
    assert not {"201405", "201509", "201603", "202202"} & {*TIC_DATACOMP_MONTHS}


def write_lists(folder):
    """Months as files, in a folder, and in an archive; -> label -> texts."""
    wanted = {m: texts(k + 1, k) for k, m in enumerate(("201403", "201504", "201601"))}
    (folder / "2015").mkdir()
    write_uid_list(folder / "201403.npy", wanted["201403"])
    write_uid_list(folder / "2015" / "201504.npy", wanted["201504"])
    raw = folder / "201602.npy"
    for label in ("201601", "201602"):
        write_uid_list(folder / f"{label}.npy", texts(5, 9) + wanted["201601"])
    raw.write_bytes(raw.read_bytes()[128:])  # a list without header
    wanted["201601"] += texts(5, 9)
    wanted["201602"] = wanted["201601"]
    with tarfile.open(folder / "2016.tar", "w") as tar:
        for label in ("201602", "201601"):
            tar.add(folder / f"{label}.npy", f"2016/{label}.npy")
            (folder / f"{label}.npy").unlink()
    sizes = {label: len(uids) for label, uids in wanted.items()}
    (folder / "sizes.json").write_text(json.dumps({**sizes, "202206": 5}))
    return wanted


def test_lists__are_found_as_files_and_in_archives(tmp_path):
    wanted = write_lists(tmp_path)
    found = read_uid_lists(tmp_path)
    assert list(found) == sorted(wanted)
    for label, uids in wanted.items():
        assert np.array_equal(found[label], as_uids(sorted(uids)))
        assert not found[label].flags.writeable


def test_lists__sizes_and_repetitions_are_refused(tmp_path):
    write_lists(tmp_path)
    sizes = tmp_path / "sizes.json"
    sizes.write_text(json.dumps({"201403": 2}))
    assert "(1, 2)" in refused("sizes.json", read_uid_lists, tmp_path)
    sizes.unlink()
    write_uid_list(tmp_path / "201601.npy", texts(1))
    refused("2016.tar holds the list 201601 a second", read_uid_lists, tmp_path)
    packed = tmp_path / "2016.tar"
    whole = packed.read_bytes()
    (tmp_path / "201601.npy").unlink()
    assert len(read_uid_lists(tmp_path)) == 4
    # The header of the second list, damaged, and an archive cut behind the first.
    second = whole.index(b"2016/201601.npy")
    for damaged in (
        whole[: second + 20] + b"\1" + whole[second + 21 :],
        whole[:second],
        b"x" * 700,
    ):
        packed.write_bytes(damaged)
        refused("2016.tar", read_uid_lists, tmp_path)
    with pytest.raises(FileNotFoundError, match="no lists"):
        (tmp_path / "empty").mkdir()
        read_uid_lists(tmp_path / "empty")


def evaluation_files(folder):
    retrieval = {2014: texts(3, 1), 2015: texts(4, 2)}
    net = {
        year: {"n01440764": np.array(texts(2, 3)), "n01443537": np.array(texts(3, 4))}
        for year in ("2014", "2015")
    }
    plain = {y: {c: u.tolist() for c, u in own.items()} for y, own in net.items()}
    (folder / "retrieval.json").write_text(json.dumps(retrieval))
    (folder / "net.json").write_text(json.dumps(plain))
    return retrieval, net


@pytest.mark.parametrize("protocol", range(6))
def test_evaluation__pickles_and_json_are_read(tmp_path, protocol):
    retrieval, net = evaluation_files(tmp_path)
    for name, content in (("retrieval", retrieval), ("net", net)):
        whole = tmp_path / f"{name}.pkl"
        whole.write_bytes(pickle.dumps(content, protocol=protocol))
        for path in (whole, whole.with_suffix(".json")):
            found = read_evaluation_uids(path)
            assert list(found) == ["2014", "2015"]
            for year, uids in content.items():
                parts = found[str(year)]
                if name == "retrieval":
                    parts, uids = {"": parts}, {"": uids}
                assert list(parts) == list(uids)
                for key, own in uids.items():
                    assert np.array_equal(parts[key], as_uids(own))
            every = {
                pair for part in _leaves(content) for pair in as_uids(part).tolist()
            }
            assert all_uids(path).tolist() == sorted(every)
    encoded = {2016: np.array(texts(3)).astype("S")}
    whole.write_bytes(pickle.dumps(encoded, protocol=protocol))
    assert np.array_equal(read_evaluation_uids(whole)["2016"], as_uids(texts(3)))
    year = {np.int64(2016): texts(1)}
    whole.write_bytes(pickle.dumps(year, protocol=protocol))
    assert list(read_evaluation_uids(whole)) == ["2016"]


def _leaves(content):
    if isinstance(content, dict):
        return [leaf for own in content.values() for leaf in _leaves(own)]
    return [content]


class Call:
    def __reduce__(self):
        return print, ("ran",)


class Declared:
    """A text type of 2 GB, for which a number without data asks."""

    def __reduce__(self):
        scalar = np.float32(1).__reduce__()[0]
        return scalar, (np.dtype("U500000000"),)


@pytest.mark.parametrize(
    "content",
    [
        PAGE,
        POINTER,
        b"",
        *(
            pickle.dumps(x)
            for x in (
                {},
                [1],
                {2014: 3},
                {2014: "0" * 32},
                {2014: ["0" * 31]},
                {2014: {1: ["0" * 32]}},
                {2014: {"n1": {"n2": []}}},
                {"May": []},
                {2014: [], "2014": ["0" * 32]},
                {2014: np.array([b"\xff" * 32])},
                {True: []},
                {2014: Call()},
                {2014: [Declared()]},
                {2014: np.array([None])},
                {2014: np.array(["x"])},
                {2014: np.zeros(2)},
            )
        ),
    ],
)
def test_evaluation__anything_else_is_refused(tmp_path, content, capsys):
    path = tmp_path / "e.pkl"
    path.write_bytes(content)
    refused("e.pkl", read_evaluation_uids, path)
    assert capsys.readouterr().out == ""


def test_evaluation__damage_is_refused_or_names_other_ids(tmp_path):
    path = tmp_path / "e.pkl"
    path.write_bytes(pickle.dumps({2014: np.array(texts(2))}))
    wrong = not_refused(path, lambda: read_evaluation_uids(path), folder=False)
    # No checksum: a changed digit is another id, a changed mark may mean the same.
    assert [line for line in wrong if not line.startswith("bit")] == []


def test_all_uids__of_several_forms(tmp_path):
    retrieval, net = evaluation_files(tmp_path)
    (tmp_path / "eval").mkdir()
    write_uid_list(tmp_path / "eval" / "2014.npy", texts(2, 7))
    mixed = [tmp_path / "net.json", str(tmp_path / "eval"), retrieval, texts(1, 8)]
    wanted = {*texts(2, 3), *texts(3, 4), *texts(2, 7), *texts(1, 8)}
    wanted |= {*retrieval[2014], *retrieval[2015]}
    assert np.array_equal(all_uids(mixed), as_uids(sorted(wanted)))
    assert np.array_equal(all_uids(texts(2, 7)), all_uids(tmp_path / "eval"))
    assert len(all_uids([])) == len(all_uids(())) == 0
    with pytest.raises(FileNotFoundError):
        all_uids(tmp_path / "absent.pkl")
