import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from avalanche_clip.common.arrays import (
    KEY,
    npy_head,
    npy_seal,
    read_npy,
    read_safetensors,
    seal_npy,
    write_safetensors,
)
from tests.damage import not_refused
from tests.refused import refused

TENSORS = {
    "weight": torch.arange(6.0).reshape(2, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
    "brain": torch.tensor([[0.5]], dtype=torch.bfloat16),
    "count": torch.tensor(7),
    "flags": torch.tensor([True, False]),
    "none": torch.zeros(0, 4),
    "turned": torch.arange(4.0).reshape(2, 2).T,
}
METADATA = {"config": json.dumps({"a": [1, 2]}), "name": "é"}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, TENSORS, METADATA)
    return path


def test_safetensors__come_back_and_are_ordinary_files(path):
    tensors, metadata = read_safetensors(path)
    assert metadata == {"format": "pt", **METADATA}
    assert tensors.keys() == TENSORS.keys() == load_file(path).keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])


def test_safetensors__damage_of_any_kind_is_refused_by_name(path):
    assert not_refused(path, lambda: read_safetensors(path), count=150) == []


@pytest.mark.parametrize("change", ["name", "value", "shape", "type", "metadata"])
def test_safetensors__changed_and_saved_by_others_is_refused(path, change):
    tensors = load_file(path)
    with safe_open(str(path), "pt") as file:
        metadata = dict(file.metadata())
    assert KEY in metadata
    if change == "name":
        tensors["weights"] = tensors.pop("weight")
    elif change == "value":
        tensors["weight"][1, 2] = 5.5
    elif change == "shape":
        tensors["weight"] = tensors["weight"].reshape(3, 2)
    elif change == "type":
        tensors["half"] = tensors["half"].view(torch.bfloat16)
    else:
        metadata["config"] = "{}"
    save_file(tensors, path, metadata)
    refused("is damaged", read_safetensors, path)


def test_safetensors__without_checksum_only_where_allowed(tmp_path):
    path = tmp_path / "y.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"y\.safetensors has no checksum.*call f"):
        read_safetensors(path, rewrite="call f")
    assert read_safetensors(path, required=False)[1] == {}


def test_safetensors__verify_false_skips_large_tensors_only(tmp_path):
    path = tmp_path / "x.safetensors"
    large, small = torch.zeros(2**18 + 1), torch.zeros(3)
    write_safetensors(path, {"large": large, "small": small}, {})
    whole = path.read_bytes()
    for name, found in (("large", False), ("small", True)):
        where = whole.index(b"\0" * 12) + (0 if name == "large" else large.nbytes)
        path.write_bytes(whole[:where] + b"\1" + whole[where + 1 :])
        refused(f"tensor '{name}'", read_safetensors, path)
        if found:
            refused("tensor 'small'", read_safetensors, path, verify=False)
        else:
            assert (
                read_safetensors(path, verify=False)[0]["large"].view(torch.int32).any()
            )


def test_safetensors__bad_arguments(tmp_path):
    with pytest.raises(ValueError, match=r"must end with \.safetensors"):
        write_safetensors(tmp_path / "x.bin", {}, {})
    with pytest.raises(ValueError, match="must be texts"):
        write_safetensors(tmp_path / "x.safetensors", {}, {"a": 1})
    with pytest.raises(FileNotFoundError):
        read_safetensors(tmp_path / "x.safetensors")


# --------------------------------------------------------------------- npy
@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    "array", [np.arange(6).reshape(2, 3), np.zeros((0, 4), "f2"), np.array(3.0)]
)
def test_npy__comes_back(tmp_path, array, mmap):
    np.save(tmp_path / "x.npy", array)
    read = read_npy(tmp_path / "x.npy", mmap=mmap)
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)


def test_npy__declared_size_is_compared_before_memory_is_taken(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((3, 4)))
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"(3, 4), }         ", b"(3999999999, 4), }"))
    assert path.read_bytes() != whole
    refused(r"x\.npy is not a NumPy array.*but has", read_npy, path)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("cut", [0, 3, 10, 60, -1])
def test_npy__cut_is_refused(tmp_path, cut, mmap):
    np.save(tmp_path / "x.npy", np.arange(5))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:cut])
    refused(r"x\.npy is not a NumPy array", read_npy, tmp_path / "x.npy", mmap=mmap)


def test_npy__never_unpickles(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    refused("holds Python objects", read_npy, path)


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.arange(12, dtype=np.float32).reshape(3, 4))
    seal_npy(path, {"kind": "text"})
    return path


@pytest.mark.parametrize("mmap", [False, True])
def test_seal__is_verified_and_others_read_the_array(sealed, mmap):
    expected = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(read_npy(sealed, mmap=mmap, sealed=True), expected)
    assert np.array_equal(np.load(sealed), expected)
    assert np.array_equal(np.load(sealed, mmap_mode="r"), expected)
    assert npy_seal(sealed)["facts"] == {"kind": "text"}
    whole = sealed.read_bytes()
    assert seal_npy(sealed, {"kind": "text"}) == npy_seal(sealed)["all"]
    assert sealed.read_bytes() == whole


def test_seal__no_flipped_bit_loads(sealed):
    whole = sealed.read_bytes()
    head = npy_head(sealed)
    for place in range(len(whole)):
        flipped = bytes([whole[place] ^ 1 << place % 8])
        sealed.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        for mmap in (False, True):
            refused(r"x\.npy", read_npy, sealed, mmap=mmap, sealed=True)
        if head.start <= place < head.end:
            read_npy(sealed, sealed=True, verify=False)
        else:
            refused(r"x\.npy", read_npy, sealed, sealed=True, verify=False)


def test_seal__cut_lengthened_or_absent_is_refused(sealed):
    whole = sealed.read_bytes()
    end = npy_head(sealed).end
    for content in (
        whole[:-1],
        whole[:end],
        whole[: end - 1],
        whole[:end] + b"\0" * 40,
        whole + b"\n",
        whole + b"\0" * 5000,
        whole + whole[end:],
    ):
        sealed.write_bytes(content)
        refused(r"x\.npy is not a NumPy array: ", read_npy, sealed, sealed=True)
    sealed.write_bytes(whole[:end])
    assert read_npy(sealed).shape == (3, 4)
    refused(r"x\.npy is not a sealed", npy_seal, sealed)
