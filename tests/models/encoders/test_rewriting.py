"""Files of earlier versions get their checksum, and others are left alone."""

import json

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from avalanche_clip.common.arrays import read_safetensors
from avalanche_clip.models import (
    GrowingTokenizer,
    attach_moe_adapters,
    find_token_embedding,
    load_moe_adapters,
    load_vocabulary,
    rewrite_file,
)
from avalanche_clip.models.text import vocabulary_storage as storage
from tests.models.grown import grown_model
from tests.models.moe.test_storage import OPTIONS, build
from tests.refused import refused
from tests.training.languages import tiny_model


def without_checksum(path):
    """Write a safetensors file as earlier versions did."""
    tensors, metadata = read_safetensors(path)
    save_file(tensors, path, metadata)


def test_rewriting__adapters(tiny_cfg, tmp_path):
    path = tmp_path / "a.safetensors"
    moe = attach_moe_adapters(build(tiny_cfg), **OPTIONS)
    moe.save(path)
    whole = path.read_bytes()
    without_checksum(path)
    refused("rewrite_file", load_moe_adapters, build(tiny_cfg), path)
    assert rewrite_file(str(path)) == path
    loaded = load_moe_adapters(build(tiny_cfg), path)
    for name, tensor in moe.adapter_state_dict()["tensors"].items():
        assert torch.equal(loaded.adapter_state_dict()["tensors"][name], tensor)
    assert path.stat().st_size == len(whole)


def test_rewriting__vocabulary(tmp_path):
    model = grown_model()[0]
    table = find_token_embedding(model)
    path = tmp_path / "v.pt"
    state = {**table.growth_state(), "active": None, "factor": 1.0}
    state["table"] = table.table()
    torch.save({"format": 1, "vocabulary": state}, path)
    rewrite_file(path)
    other = tiny_model(1)
    loaded = load_vocabulary(other, path)
    assert torch.equal(loaded.weight, table.weight)
    assert torch.equal(loaded.usage, table.usage)
    assert other.tokenizer.state_dict() == model.tokenizer.state_dict()
    new = path.read_bytes()
    rewrite_file(path)
    assert path.read_bytes() == new


def test_rewriting__usage_and_tokenizer(tmp_path):
    model = grown_model()[0]
    usage = find_token_embedding(model).usage
    path = tmp_path / "token_usage.safetensors"
    save_file({"usage": usage}, path)
    rewrite_file(path)
    assert torch.equal(storage.read_usage(path, len(usage)), usage)
    file = tmp_path / "growing_tokenizer.json"
    file.write_text(json.dumps(model.tokenizer.state_dict()))
    rewrite_file(file)
    whole = file.read_bytes()
    assert GrowingTokenizer.load(file).state_dict() == model.tokenizer.state_dict()
    rewrite_file(file)
    model.tokenizer.save(tmp_path)
    assert file.read_bytes() == whole


def test_rewriting__keeps_the_metadata_of_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(2)}, path, {"config": "{}", "format": "pt"})
    rewrite_file(path)
    assert read_safetensors(path)[1] == {"config": "{}", "format": "pt"}
    with safe_open(str(path), "pt") as file:
        assert file.metadata()["config"] == "{}"


def test_rewriting__other_and_damaged_files_are_left_alone(tmp_path):
    cases = {"a.json": b"{}", "b.json": b"[", "c.safetensors": b"", "d": b"PK\3\4abc"}
    torch.save({"format": 7}, tmp_path / "e.pt")
    cases["e.pt"] = (tmp_path / "e.pt").read_bytes()
    storage.write_usage(torch.ones(9, dtype=torch.int32), tmp_path / "f.safetensors")
    content = bytearray((tmp_path / "f.safetensors").read_bytes())
    content[-1] ^= 1
    cases["f.safetensors"] = bytes(content)
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        refused(name, rewrite_file, tmp_path / name)
        assert (tmp_path / name).read_bytes() == content
    refused("nowhere", rewrite_file, tmp_path / "nowhere", error=FileNotFoundError)
