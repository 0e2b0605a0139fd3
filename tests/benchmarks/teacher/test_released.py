"""Released feature files: read, or refused in words, and never run."""

import pickle

import numpy as np
import pytest

from avalanche_clip.benchmarks.teacher.released import (
    read_feature_pickle,
    read_line_rows,
)
from avalanche_clip.benchmarks.teacher.store import TeacherFeatureStore
from avalanche_clip.common.arrays import seal_npy
from tests.damage import PAGE, POINTER
from tests.refused import refused


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "float16", ">f4", "int32"])
def test_pickle__every_protocol_and_type_is_read(tmp_path, protocol, dtype):
    path = tmp_path / "f.pkl"
    rows = np.arange(6).reshape(3, 2).astype(dtype)
    content = {f"{k}.jpg": row for k, row in enumerate(rows)}
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    names, read = read_feature_pickle(path)
    assert names == list(content) and read.dtype == np.float32
    assert read.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_pickle__frames_are_averaged_and_pictures_chosen(tmp_path):
    path = tmp_path / "f.pkl"
    features = {"a.jpg": np.array([[1.0, 1.0], [3.0, 5.0]]), "b.jpg": np.ones((1, 2))}
    path.write_bytes(pickle.dumps(features))
    assert read_feature_pickle(path)[1].tolist() == [[2, 3], [1, 1]]
    assert read_feature_pickle(path, ["b.jpg"])[1].tolist() == [[1, 1]]
    refused("x.jpg", read_feature_pickle, path, ["x.jpg"])


class Large:
    """Asks for an array of values that the file does not have."""

    def __reduce__(self):
        return np.ndarray, ((10**6,),)


class Rebuilt:
    def __reduce__(self):
        function = np.ones(1).__reduce__()[0]
        return function, (np.ndarray, (10**6,), b"b")


class Call:
    def __reduce__(self):
        return print, ("ran",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ends too early.*empty file"),
        (POINTER, "git lfs pull"),
        (PAGE, "web page"),
        (b"\0" * 40, "zero bytes"),
        (pickle.dumps({"a": np.ones(2)})[:-3], "not a pickle of features"),
        (pickle.dumps({"a": np.ones(2)}) + b"x", "something follows"),
        (pickle.dumps({"a": Large()}), "without values"),
        (pickle.dumps({"a": Rebuilt()}), "without values"),
        (pickle.dumps({"a": Call()}), r"builtins\.print"),
        (b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"a", "not a pickle"),
        (pickle.dumps({"a": np.array(["1.5"])}), "features are numbers"),
        (pickle.dumps({"a": np.array([None])}), "features are numbers"),
        (pickle.dumps({"a": "1.5"}), "no array of numbers but str"),
        (pickle.dumps([1]), "no dict of features"),
        (pickle.dumps({}), "no dict of features"),
        (pickle.dumps({"a": np.ones(2), "b": np.ones(3)}), "shapes"),
    ],
)
def test_pickle__anything_else_is_refused(tmp_path, content, words, capsys):
    path = tmp_path / "f.pkl"
    path.write_bytes(content)
    refused(rf"(?s)f\.pkl.*{words}", read_feature_pickle, path)
    assert capsys.readouterr().out == ""


def test_pickle__damage_is_read_or_refused_in_words(tmp_path):
    path = tmp_path / "f.pkl"
    content = {f"{k}.jpg": np.full(4, k, np.float32) for k in range(3)}
    whole = pickle.dumps(content)
    for place in range(len(whole)):
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :]
        )
        try:
            read_feature_pickle(path)
        except ValueError as error:
            assert "f.pkl" in str(error)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_feature_pickle(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1]", "JSON"),
        ("{", "not a JSON text"),
        ('{"a": 1}', "no line number"),
        ('{"-1": 1}', "no line number"),
        ('{"1_0": 1}', "no line number"),
        ('{"1": 1.5}', "1.5 is no row"),
        ('{"1": true}', "True is no row"),
        ('{"1": -1}', "-1 is no row"),
        ('{"1": null}', "None is no row"),
        ('{"1": 0, "01": 2}', "names a line twice"),
        ('{"1": 0, "99999999999": 2}', "give lines="),
    ],
)
def test_line_rows__other_content_is_refused(tmp_path, text, words):
    path = tmp_path / "line2idx.json"
    path.write_text(text)
    refused(rf"line2idx\.json.*{words}", read_line_rows, path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (POINTER, "git lfs pull"),
        (PAGE, "web page"),
        ("cut", r"declares float32 of shape \(2, 3\)"),
        ("longer", "is not a NumPy array"),
        ("declared", "99999999999"),
        ("objects", "Python objects"),
        ("vector", r"a matrix \(N, D\)"),
        ("double", "float64"),
    ],
)
def test_arrays__damaged_or_foreign_are_refused(tmp_path, content, words):
    path = tmp_path / "t.npy"
    np.save(path, np.ones((2, 3), np.float32))
    whole = path.read_bytes()
    made = {
        "cut": whole[:-1],
        "longer": whole + b"abc",
        "declared": whole.replace(b"(2, 3), }         ", b"(99999999999, 3), }"),
    }
    if content in ("objects", "vector", "double"):
        array = {"objects": np.array([{}]), "vector": np.ones(3, np.float32)}
        np.save(path, array.get(content, np.ones((2, 3))), allow_pickle=True)
    else:
        path.write_bytes(made.get(content, content))
    refused(rf"t\.npy.*{words}", TeacherFeatureStore.from_released, path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        TeacherFeatureStore.from_released(tmp_path / "nowhere.npy")


def test_arrays__of_a_store_are_verified_where_they_are_read_alone(tmp_path):
    path = tmp_path / "t.npy"
    np.save(path, np.ones((2, 3), np.float32))
    seal_npy(path, {})
    assert TeacherFeatureStore.from_released(path).texts([1]).tolist() == [[1, 1, 1]]
    whole = path.read_bytes()
    path.write_bytes(whole[:130] + b"\7" + whole[131:])
    refused(r"t\.npy is damaged", TeacherFeatureStore.from_released, path)
