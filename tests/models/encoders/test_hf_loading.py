"""No file can switch on code that lies beside it, and nothing is asked."""

import builtins
import json

import pytest

from avalanche_clip.models import create_dual_encoder
from avalanche_clip.models.encoders.hf_loading import (
    anchor,
    check_text_tower,
    plain_hf_config,
)
from avalanche_clip.models.encoders.sources import read_open_clip
from avalanche_clip.models.text.settings import check_tokenizer_settings
from tests.models.conftest import edited, hf_text, hf_towers, open_clip_config
from tests.refused import refused


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """A path that code in files would create; questions fail the test."""

    def ask(*args):
        raise AssertionError("something was asked on standard input")

    monkeypatch.setattr(builtins, "input", ask)
    path = tmp_path / "was_run"
    yield path
    assert not path.exists()


def plant(folder, marker):
    """Put code into a folder that its configuration files ask for."""
    (folder / "evil.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import PreTrainedTokenizerFast, CLIPConfig\n"
        "class T(PreTrainedTokenizerFast): pass\n"
        "class C(CLIPConfig): model_type = 'clip'\n"
        "class M: pass\n"
    )
    names = {
        "tokenizer_config.json": {"AutoTokenizer": ["evil.T", "evil.T"]},
        "config.json": {"AutoConfig": "evil.C", "AutoModel": "evil.M"},
    }
    for name, auto_map in names.items():
        with edited(folder / name) as stored:
            stored["auto_map"] = auto_map


def test_hf_folder__code_beside_it_is_not_run(hf_clip_folder, marker):
    before = create_dual_encoder(hf_clip_folder).state_fingerprint()
    plant(hf_clip_folder, marker)
    model = create_dual_encoder(f"hf:{hf_clip_folder}")
    assert model.state_fingerprint() == before
    with pytest.raises(ValueError, match="auto_map"):
        _ = model.tokenizer
    with edited(hf_clip_folder / "config.json") as config:
        config["model_type"] = "evil"
    refused("'evil' is not supported", create_dual_encoder, f"hf:{hf_clip_folder}")


def test_hf_folder__kernels_and_quantised_weights_are_not_fetched(hf_clip_folder):
    path = hf_clip_folder / "config.json"
    stored = json.loads(path.read_text())
    for part in (stored, stored["text_config"], stored["vision_config"]):
        part["attn_implementation"] = "somebody/kernel"
        part["_attn_implementation"] = "somebody/kernel"
    path.write_text(json.dumps(stored))
    model = create_dual_encoder(hf_clip_folder)
    assert model.clip.config._attn_implementation in ("sdpa", "eager")
    assert "somebody" not in json.dumps(model.config)
    path.write_text(json.dumps({**stored, "quantization_config": {"bits": 4}}))
    refused("quantised", create_dual_encoder, hf_clip_folder)


def test_text_tower__code_beside_it_is_not_run(native_cfg, text_tower, marker):
    config = hf_text(native_cfg, text_tower)
    plant(text_tower, marker)
    model = create_dual_encoder(config)  # RoBERTa is transformers' own
    with pytest.raises(ValueError, match="auto_map"):
        _ = model.tokenizer
    path = text_tower / "config.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "model_type": "evil"}))
    refused("roberta.*never run", create_dual_encoder, config)
    path.write_text(json.dumps({**stored, "attn_implementation": "a/kernel"}))
    refused("a/kernel", check_text_tower, str(text_tower))
    for content in ("[]", "{", "<html>", "{}"):
        path.write_text(content)
        refused("roberta", create_dual_encoder, config)


SWITCHES = [
    {"trust_remote_code": True},
    {"code_revision": "main"},
    {"tokenizer_type": "bert"},
    {"gguf_file": "x"},
    {"config": {}},
    {"mistral_format": True},
    {"bpe_path": "/etc/passwd"},
    {"tokenizer_file": "/etc/passwd"},
]


@pytest.mark.parametrize("kwargs", SWITCHES, ids=lambda kwargs: next(iter(kwargs)))
def test_switches__are_refused_wherever_they_stand(
    kwargs, native_cfg, hf_clip_folder, tmp_path, marker
):
    (key,) = kwargs
    model = create_dual_encoder(hf_clip_folder)
    model.save(tmp_path / "ours")
    path = tmp_path / "ours" / "dual_encoder.json"
    facts = json.loads(path.read_text())
    facts["config"]["tokenizer"]["kwargs"] = kwargs
    path.write_text(json.dumps(facts))
    assert str(path) in refused(key, create_dual_encoder, tmp_path / "ours")
    facts["config"]["tokenizer"]["kwargs"] = {}
    growth = {"base_rows": 40, "rows": 41, "init": "teir", "std": 0.1, "seed": 0}
    spec = {**facts["config"]["tokenizer"], "kwargs": kwargs}
    path.write_text(json.dumps({**facts, "growth": {**growth, "tokenizer": spec}}))
    refused(key, create_dual_encoder, tmp_path / "ours")
    native_cfg["text_cfg"]["tokenizer_kwargs"] = kwargs
    for hf_name in (None, "somebody/tokenizer"):
        native_cfg["text_cfg"]["hf_tokenizer_name"] = hf_name
        open_clip_config(tmp_path, native_cfg)
        (tmp_path / "open_clip_model.safetensors").touch()
        refused(key, create_dual_encoder, tmp_path)
        refused(key, create_dual_encoder, native_cfg)


@pytest.mark.parametrize(
    ("kind", "kwargs", "match"),
    [
        ("open_clip", {"clean": "upper"}, "clean='upper'"),
        ("open_clip", {"additional_special_tokens": [1]}, "additional"),
        ("open_clip_hf", {"strip_sep_token": "yes"}, "strip_sep_token"),
        ("hf", {"pad_token": {"content": "x"}}, "pad_token"),
        ("hf", {"padding_side": "left"}, "padding_side"),
        ("json", {"trim": False}, "trim"),
        ("json", ["truncate"], "mapping"),
    ],
)
def test_settings__have_a_list_and_types(kind, kwargs, match):
    refused(match, check_tokenizer_settings, kind, kwargs, "here")
    assert check_tokenizer_settings("hf", {"legacy": False, "eos_token": None}, "") == {
        "legacy": False
    }


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../../x", "", None, "absent.json", "a\\..\\..\\x"],
)
def test_names_in_files__stay_in_the_folder(name, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json"):
        anchor(name, tmp_path, tmp_path / "config.json", hub=False)
    # links on disk are people's own
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "t.json").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "t.json").symlink_to(tmp_path / "elsewhere" / "t.json")
    found = anchor("t.json", tmp_path / "folder", "x", hub=False)
    assert found == str(tmp_path / "folder" / "t.json")
    assert anchor("org/name", tmp_path, "x", hub=True) == "org/name"


@pytest.mark.parametrize("where", ["tokenizer", "text", "open_clip"])
@pytest.mark.parametrize("name", ["../outside", "{}/outside"])
def test_configuration__names_outside_the_folder_are_refused(
    where, name, native_cfg, text_tower, tmp_path
):
    outside = tmp_path / "outside"
    text_tower.rename(outside)
    name = name.format(tmp_path)
    folder = tmp_path / "folder"
    create_dual_encoder(hf_text(native_cfg, outside)).save(folder)
    path = folder / "dual_encoder.json"
    with edited(path) as facts:
        if where == "tokenizer":
            facts["config"]["tokenizer"]["file"] = name
        else:
            facts["config"]["model_cfg"]["text_cfg"]["hf_model_name"] = name
    if where == "open_clip":
        path.unlink()
        path = folder / "open_clip_config.json"
        open_clip_config(folder, hf_text(native_cfg, name))
    assert str(path) in refused("outside", create_dual_encoder, folder)


@pytest.mark.parametrize("name", ["/etc", "../x", "a/../../b"])
@pytest.mark.parametrize("key", ["hf_model_name", "hf_tokenizer_name"])
def test_configuration__of_the_hub_names_no_paths(key, name, native_cfg, tmp_path):
    native_cfg["text_cfg"][key] = name
    open_clip_config(tmp_path, native_cfg)
    path = tmp_path / "open_clip_config.json"
    assert str(path) in refused(key, read_open_clip, path, None)


@pytest.mark.parametrize(
    "change",
    [
        {"text_config": {"hidden_size": "32"}},
        {"text_config": {"hidden_size": 0}},
        {"vision_config": {"num_hidden_layers": True}},
        {"vision_config": {"num_attention_heads": 3}},
        {"text_config": [1]},
        {"projection_dim": -1},
    ],
)
def test_hf_config__impossible_values_are_refused(change, hf_clip_folder):
    values = {"model_type": "clip", "projection_dim": 24, **hf_towers()}
    for key, value in change.items():
        both = isinstance(value, dict)
        values[key] = {**values[key], **value} if both else value
    with pytest.raises(ValueError):
        create_dual_encoder(values)
    path = hf_clip_folder / "config.json"
    path.write_text(json.dumps(values))
    assert str(path) in refused(r"config\.json", create_dual_encoder, hf_clip_folder)


def test_hf_config__holds_only_what_a_model_depends_on():
    plain = plain_hf_config({"model_type": "clip", "top_k": 5, "auto_map": {}})
    assert plain["text_config"]["hidden_act"] == "quick_gelu"
    assert not {"top_k", "auto_map", "dtype"} & plain.keys()
    assert plain_hf_config(plain) == plain
