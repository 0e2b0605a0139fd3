"""Vocabularies, usage counts and growing tokenizers: whole or refused."""

import json
import math
import os
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from avalanche_clip.common.arrays import read_safetensors, write_tensors
from avalanche_clip.common.files import read_json, write_json
from avalanche_clip.models import (
    GrowingTokenizer,
    create_dual_encoder,
    find_token_embedding,
    load_vocabulary,
    save_vocabulary,
)
from avalanche_clip.models.text import vocabulary_storage as storage
from tests.damage import not_refused
from tests.models.grown import grown_model
from tests.refused import refused
from tests.training.languages import tiny_model


@pytest.fixture(scope="module")
def model():
    return grown_model()[0]


@pytest.fixture
def path(model, tmp_path):
    return save_vocabulary(model, tmp_path / "vocabulary.pt")


# ------------------------------------------------------------------- vocabulary
@pytest.mark.parametrize("name", ["vocabulary.pt", "v.safetensors", "noname"])
def test_vocabulary__comes_back_under_any_name(model, tmp_path, name):
    path = save_vocabulary(model, str(tmp_path / name))
    assert [p.name for p in tmp_path.iterdir()] == [name]
    for verify in (True, False):
        other = tiny_model(1)
        table = load_vocabulary(other, path, verify=verify)
        known = find_token_embedding(model)
        assert torch.equal(table.weight, known.weight)
        assert torch.equal(table.usage, known.usage) and table.usage[5] == 3
        assert other.tokenizer.state_dict() == model.tokenizer.state_dict()


def test_vocabulary__no_damage_is_read(path):
    read = lambda: storage.read(path)  # noqa: E731
    assert not_refused(path, read, count=150) == []


def test_vocabulary__verify_false_skips_a_large_table_only(tmp_path):
    table = torch.arange(3e5).reshape(1000, 300)  # 1.2 MB
    state = {
        "rows": 1000,
        "base_rows": 900,
        "usage": torch.zeros(1000, dtype=torch.int32),
        "tokenizer": None,
        "table": table,
    }
    path = tmp_path / "v"
    storage.write(state, path)
    damaged = bytearray(path.read_bytes())
    damaged[damaged.index(table.numpy().tobytes()) + 400_000] ^= 2
    path.write_bytes(damaged)
    refused("/v ", storage.read, path)
    storage.read(path, verify=False)
    damaged[-1] ^= 2
    path.write_bytes(damaged)
    refused("/v ", storage.read, path, verify=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rows": 0}, "counts 0 rows"),
        ({"rows": 3593.0}, r"counts 3593\.0 rows"),
        ({"rows": True}, "counts True rows"),
        ({"base_rows": 10**6}, "1000000 of them at first"),
        ({"table": torch.zeros(3, 4)}, r"float32 of shape \(3, 4\)"),
        ({"table": torch.zeros(7, dtype=torch.int64)}, "of floats are needed"),
        ({"usage": torch.zeros(3, dtype=torch.int32)}, r"int32 of shape \(3,\)"),
        ({"tokenizer": [1]}, "its tokenizer is no mapping"),
    ],
)
def test_vocabulary__impossible_content_is_refused(path, change, words):
    state = storage.read(path)
    storage.write({**state, **change}, path)
    with pytest.raises(ValueError, match=rf"vocabulary\.pt does not hold .*{words}"):
        load_vocabulary(tiny_model(), path)


def test_vocabulary__other_files_and_earlier_versions_are_told_apart(path, tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a")
    with pytest.raises(ValueError, match="/a was not written by save_vocabulary"):
        load_vocabulary(tiny_model(), tmp_path / "a")
    write_tensors(tmp_path / "b", {"a": torch.ones(2)}, {})
    with pytest.raises(ValueError, match="/b was not written by save_vocabulary"):
        load_vocabulary(tiny_model(), tmp_path / "b")
    torch.save({"format": 1, "vocabulary": {}}, tmp_path / "c")
    with pytest.raises(ValueError, match="/c is a zip archive.*rewrite_file"):
        load_vocabulary(tiny_model(), tmp_path / "c")
    tensors, metadata = read_safetensors(path)
    save_file(tensors, tmp_path / "d", metadata)
    with pytest.raises(ValueError, match="/d has no checksum.*rewrite_file"):
        load_vocabulary(tiny_model(), tmp_path / "d")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_vocabulary(tiny_model(), tmp_path / "nowhere")


@pytest.mark.parametrize("fault", ["write", "replace"])
def test_writers__leave_the_old_file_when_they_are_stopped(model, tmp_path, fault):
    usage, tokenizer = find_token_embedding(model).usage, model.tokenizer
    writers = {
        "vocabulary.pt": lambda: save_vocabulary(model, tmp_path / "vocabulary.pt"),
        "u.safetensors": lambda: storage.write_usage(usage, tmp_path / "u.safetensors"),
        "growing_tokenizer.json": lambda: tokenizer.save(tmp_path),
    }
    for write in writers.values():
        write()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert before.keys() == writers.keys()
    name = {"write": "fsync", "replace": "replace"}[fault]
    for write in writers.values():
        with mock.patch.object(os, name, side_effect=KeyboardInterrupt):
            with pytest.raises(KeyboardInterrupt):
                write()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# ------------------------------------------------------------------------ usage
def test_usage__is_verified_and_fits_its_table(tmp_path):
    path = tmp_path / "token_usage.safetensors"
    usage = torch.arange(40, dtype=torch.int32)
    storage.write_usage(usage, path)
    assert torch.equal(storage.read_usage(path, 40), usage)
    assert torch.equal(load_file(path)["usage"], usage)
    assert not_refused(path, lambda: storage.read_usage(path, 40), count=150) == []
    refused(r"token_usage\.safetensors.*41 counts", storage.read_usage, path, 41)
    for wrong in (usage.long(), usage.reshape(8, 5), -usage):
        storage.write_usage(wrong, path)
        refused(r"token_usage\.safetensors.*counts", storage.read_usage, path, 40)
    save_file({"usage": usage}, path)
    refused("no checksum.*rewrite_file", storage.read_usage, path, 40)
    write_tensors(path, {"usage": usage, "table": torch.ones(40, 2)}, {})
    refused(r"token_usage\.safetensors.*'table'", storage.read_usage, path, 40)


def test_usage__of_a_model_folder_is_verified(model, tmp_path):
    model.save(tmp_path / "m")
    path = tmp_path / "m" / "token_usage.safetensors"
    loaded = create_dual_encoder(str(tmp_path / "m"))
    assert find_token_embedding(loaded).usage[5] == 3
    whole = path.read_bytes()
    path.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(ValueError, match=r"m/token_usage\.safetensors is damaged"):
        create_dual_encoder(str(tmp_path / "m"))


# -------------------------------------------------------------------- tokenizer
@pytest.mark.parametrize("scope", ["latest", "language"])
def test_tokenizer__no_damage_is_read(tmp_path, scope):
    tokenizer = grown_model(scope=scope)[0].tokenizer
    tokenizer.save(tmp_path)
    path = tmp_path / "growing_tokenizer.json"
    read = lambda: GrowingTokenizer.load(path)  # noqa: E731
    assert not_refused(path, read, words=(str(tmp_path),)) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(scope="world"), "scope='world'"),
        (lambda s: s.update(pretokenizer="?"), "pretokenizer"),
        (lambda s: s.pop("codes"), "codes"),
        (lambda s: s["snapshots"][0].update(level=7), "level 7"),
        (lambda s: s["snapshots"][0].update(vocab_size=10**7), "10000000 ids"),
        (lambda s: s.update(codes=[[2, "xx"]]), "'xx', which was never added"),
        (lambda s: s["dress"].update(colour=1), "colour"),
        (lambda s: s["vocabulary"].update(sizes=[5, 9]), r"sizes \[5, 9\] do not"),
        (lambda s: s["vocabulary"].update(merges="[]"), "merges"),
        (lambda s: s["vocabulary"].update(tokens='["a", "a"]'), "distinct"),
        (lambda s: s["vocabulary"].update(tokens="["), "Expecting"),
        (lambda s: s["vocabulary"].update(scores="[1.0]"), "finite numbers"),
        (lambda s: s["vocabulary"].update(merge_order="any"), "merge_order='any'"),
        (lambda s: s["vocabulary"].update(pipeline="{}"), "pipeline has no model"),
    ],
)
def test_tokenizer__impossible_content_is_refused(model, tmp_path, change, words):
    model.tokenizer.save(tmp_path)
    path = tmp_path / "growing_tokenizer.json"
    state = read_json(path, checksum=True)
    change(state)
    write_json(path, state, checksum=True)
    refused(rf"growing_tokenizer\.json does.*{words}", GrowingTokenizer.load, tmp_path)


def test_tokenizer__a_stored_state_that_is_refused_changes_nothing(model):
    state = json.loads(json.dumps(model.tokenizer.state_dict()))
    state["snapshots"][0]["level"] = 3
    tokenizer = grown_model()[0].tokenizer
    before = tokenizer.state_dict()
    refused("level 3", tokenizer.load_state_dict, state)
    assert tokenizer.state_dict() == before


def test_tokenizer__without_checksum_is_refused_and_numbers_are_plain(model, tmp_path):
    path = tmp_path / "growing_tokenizer.json"
    path.write_text(json.dumps(model.tokenizer.state_dict()))
    refused("no checksum.*rewrite_file", GrowingTokenizer.load, path)
    tokenizer = grown_model()[0].tokenizer
    tokenizer.default_language = np.int64(2)
    tokenizer.save(tmp_path)
    assert GrowingTokenizer.load(path).default_language == 2
    tokenizer.default_language = math.nan
    refused("cannot hold", tokenizer.save, tmp_path)
    assert GrowingTokenizer.load(path).default_language == 2
