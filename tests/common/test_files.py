import errno
import gzip
import json
import os
from functools import partial

import numpy as np
import pytest
import torch

from avalanche_clip.common.arrays import write_safetensors
from avalanche_clip.common.files import (
    file_limits,
    files_below,
    found_in,
    inside,
    open_bytes,
    read_bytes,
    read_json,
    read_lines,
    read_text,
    replacing,
    replacing_folder,
    write_json,
    write_text,
)
from avalanche_clip.common.space import NoSpaceError
from tests.processes import kill_self, run_killed
from tests.refused import refused

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
PAGE = "\n<!DOCTYPE html><html>not found</html>"


# ----------------------------------------------------------------- writing
def test_replacing__keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "a" / "x.txt"
    write_text(path, "old")
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("ne")
        raise KeyError
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["x.txt"]


def test_replacing_folder__leaves_nothing_of_the_old_one(tmp_path):
    path, linked = tmp_path / "a" / "tokenizer", tmp_path / "elsewhere"
    linked.mkdir()
    (linked / "mine").write_text("mine")
    path.parent.mkdir()
    path.symlink_to(linked)
    for name in ("old.json", "new.json"):
        with replacing_folder(path) as folder:
            (folder / name).write_text(name)
        assert [p.name for p in path.iterdir()] == [name] and not path.is_symlink()
    assert [p.name for p in linked.iterdir()] == ["mine"]
    words = "No space.*tokenizer is as it was before"
    with pytest.raises(NoSpaceError, match=words), replacing_folder(path) as folder:
        (folder / "half.json").write_text("half")
        raise OSError(errno.ENOSPC, "No space left")
    assert [p.name for p in path.iterdir()] == ["new.json"]
    assert [p.name for p in path.parent.iterdir()] == ["tokenizer"]


def test_replacing__refuses_a_folder_in_the_place_of_the_file(tmp_path):
    (tmp_path / "x.json" / "kept").mkdir(parents=True)
    refused(r"x\.json is a folder", write_json, tmp_path / "x.json", {})
    assert os.listdir(tmp_path) == ["x.json"]
    assert os.listdir(tmp_path / "x.json") == ["kept"]


@pytest.mark.parametrize("content", [{}, {"a": [1, 2.5, None, "é"]}, {1: 2, 10: 3}])
def test_json__comes_back_with_its_checksum(tmp_path, content):
    write_json(tmp_path / "x.json", content, checksum=True)
    read = read_json(tmp_path / "x.json", checksum=True)
    assert read == json.loads(json.dumps(content))


def test_json_checksum__sees_every_flipped_bit(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"rows": [0.1, 2], "name": "a b"}, checksum=True)
    whole = path.read_bytes()
    known = json.loads(whole)
    for place in range(len(whole)):
        for bit in range(8):
            path.write_bytes(
                whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
            )
            try:
                assert read_json(path, checksum=True) == {
                    k: v for k, v in known.items() if k != "checksum"
                }  # white space alone
            except ValueError as error:
                assert str(path) in str(error)


def test_json_checksum__sees_changes_that_leave_the_values_alone(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"rate": 1e-5, "name": "\u010a"}, checksum=True)
    text = path.read_text()
    for old, new in (("1e-05", "1E-05"), ("u010a", "u010A"), ("}\n", "}"), ("}", "} ")):
        assert old in text
        path.write_text(text.replace(old, new))
        refused(r"x\.json is damaged or was changed", read_json, path, checksum=True)


def test_json__numbers_of_numpy_are_numbers_and_others_are_refused(tmp_path):
    path = tmp_path / "x.json"
    content = {"a": np.float32(0.5), "b": np.int64(3), "c": [np.bool_(True)]}
    for checksum in (False, True):
        write_json(path, content, checksum=checksum)
        read = read_json(path, checksum=checksum)
        assert read == {"a": 0.5, "b": 3, "c": [True]} and read["c"][0] is True
        for wrong in (np.float32("nan"), np.float64("inf"), float("-inf")):
            with pytest.raises(ValueError, match=r"x\.json cannot hold"):
                write_json(path, {"a": wrong}, checksum=checksum)
        for strange in (np.zeros(2), {1, 2}, object()):
            with pytest.raises(TypeError, match=r"x\.json cannot hold.*not plain"):
                write_json(path, {"a": strange}, checksum=checksum)
        assert read_json(path, checksum=checksum) == read


def test_json__without_checksum_is_refused_where_one_is_needed(tmp_path):
    write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(ValueError, match=r"no checksum.*call save\(\)"):
        read_json(tmp_path / "x.json", checksum=True, rewrite="call save()")
    refused("Out of range", write_json, tmp_path / "y.json", {"a": float("nan")})
    assert not (tmp_path / "y.json").exists()


# ----------------------------------------------------------------- reading
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (POINTER.encode(), "git lfs pull"),
        (PAGE.encode(), "web page"),
        (b"\x1f\x8b\x08", "gzipped"),
        (b"\x80\x02}", "pickle"),
        (b"\0\0\0", "zero bytes"),
        (b"{'a': 1}", "begin with"),
        (b"\xff\xfe{\0", "begin with"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1', "begin with"),
    ],
)
def test_read_json__says_what_it_found(tmp_path, content, words):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_read_json__of_another_type_or_place(tmp_path):
    write_json(tmp_path / "x.json", [1])
    refused("holds a mapping: it holds a list", read_json, tmp_path / "x.json", dict)
    with pytest.raises(FileNotFoundError, match=r"y\.json does not exist"):
        read_json(tmp_path / "y.json")
    refused("is a folder", read_json, tmp_path)
    assert found_in(tmp_path) == "a folder"


@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
def test_texts__skip_a_byte_order_mark(tmp_path, name):
    path = tmp_path / name
    content = "\ufeffa\r\nb\rc\n\u2028d".encode()
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read_text(path) == "a\r\nb\rc\n\u2028d"
    assert list(read_lines(path)) == [(1, "a"), (2, "b\rc"), (3, "\u2028d")]


def test_read_lines__names_the_line_that_is_no_utf8(tmp_path):
    (tmp_path / "x").write_bytes(b"a\n\xff\n")
    lines = read_lines(tmp_path / "x")
    assert next(lines) == (1, "a")
    refused("x, line 2 is no UTF-8", next, lines)


@pytest.mark.parametrize("cut", [5, 30, -9, -1])
def test_gzip__damaged_is_told(tmp_path, cut):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(os.urandom(400))[:cut])
    refused(r"x\.gz is not a gzipped file", read_bytes, path)


def test_gzip__bomb_is_refused_early(tmp_path, monkeypatch):
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"a\n" * 2**22))
    assert len(read_bytes(path)) == 2**23  # below the size that is looked at
    monkeypatch.setattr(file_limits, "gzip_bytes", 2**20)
    read = 0
    with open_bytes(path) as file, pytest.raises(ValueError, match="gzip_ratio"):
        while block := file.read(1000):
            read += len(block)
    assert read <= 2**20 + 2**18
    monkeypatch.setattr(file_limits, "gzip_ratio", 1e5)
    assert len(read_bytes(path)) == 2**23


def test_gzip__large_text_of_an_ordinary_ratio_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(file_limits, "gzip_bytes", 1000)
    content = os.urandom(50_000).hex().encode()
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    assert read_bytes(tmp_path / "x.gz") == content


@pytest.mark.parametrize(("size", "fits"), [(2**20, True), (2**20 + 1, False)])
def test_gzip__long_line_is_refused(tmp_path, size, fits):
    content = b"x\n" + b"y" * size + b"\nz"
    (tmp_path / "x.gz").write_bytes(gzip.compress(content))
    if fits:
        assert [len(text) for _, text in read_lines(tmp_path / "x.gz")] == [1, size, 1]
    else:
        refused("line 2 is longer than 1048576", list, read_lines(tmp_path / "x.gz"))
    (tmp_path / "x").write_bytes(content)
    assert len(list(read_lines(tmp_path / "x"))) == 3


# ------------------------------------------------------------------- names
@pytest.mark.parametrize("name", ["a.txt", "b/../a.txt", "./b//c", "..a", "a..", "~"])
def test_inside__gives_names_in_the_folder(tmp_path, name):
    assert inside(tmp_path, name, "index.json") == tmp_path / os.path.normpath(name)


def test_inside__takes_absolute_names_that_stay_and_follows_links(tmp_path):
    assert inside(tmp_path, str(tmp_path / "a"), "i") == tmp_path / "a"
    other = tmp_path / "other"
    other.mkdir()
    (other / "x").write_text("1")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(other / "x")
    assert inside(folder, "link", "i").read_text() == "1"


@pytest.mark.parametrize(
    "name",
    ["../a", "b/../../a", "/etc/passwd", "..", ".", "", " ", "a\0b", "..\\a", None, 3],
)
def test_inside__refuses_names_that_leave_or_are_none(tmp_path, name):
    refused(r"index\.json names the file", inside, tmp_path / "f", name, "index.json")


def test_inside__refuses_a_sibling_with_the_same_beginning(tmp_path):
    with pytest.raises(ValueError, match="lies outside"):
        inside(tmp_path / "f", str(tmp_path / "f2" / "x"), "index.json")


# ------------------------------------------------------------- killed writers
def write_until_killed(path, point):
    setattr(os, point, kill_self)
    if path.suffix == ".json":
        write_json(path, {"new": 1}, checksum=True)
    elif path.suffix == ".txt":
        write_text(path, "new")
    else:
        write_safetensors(path, {"new": torch.ones(3)}, {})


@pytest.mark.parametrize(
    ("name", "point"),
    [
        ("a.json", "fsync"),
        ("a.json", "replace"),
        ("a.txt", "replace"),
        ("a.safetensors", "replace"),
    ],
)
def test_writers__killed_before_the_end_leave_the_old_file(tmp_path, name, point):
    path = tmp_path / name
    path.write_bytes(b"old")
    run_killed(partial(write_until_killed, path, point))
    assert path.read_bytes() == b"old"
    assert sum(p.name == name for p in tmp_path.iterdir()) == 1


# ------------------------------------------------------------------ files below
def test_files_below__links_at_any_depth_and_each_file_once(tmp_path):
    one, far = tmp_path / "one", tmp_path / "far"
    for path in (one / "a" / "b" / "1.tar", far / "deep" / "2.tar", far / "3.tar"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (one / "a" / "note.txt").touch()
    (one / "a" / "b" / "disk").symlink_to(far)
    (one / "0").symlink_to(one / "a")  # earlier in order, but not its own place
    (far / "deep" / "back").symlink_to(one)
    found = ["a/b/1.tar", "a/b/disk/3.tar", "a/b/disk/deep/2.tar"]
    assert files_below(one, "*.tar") == [one / name for name in found]
    assert files_below(tmp_path / "none", "*") == []


def test_files_below__a_folder_that_cannot_be_opened_is_told(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    real = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="closed"):
        files_below(tmp_path, "*.tar")
