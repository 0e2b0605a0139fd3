"""A configuration edited by hand is right, or refused with its key."""

import json
import re

import pytest
import torch

from avalanche_clip.models import create_dual_encoder
from avalanche_clip.models.encoders.config_schema import Schema
from tests.models.conftest import edited
from tests.refused import refused


@pytest.fixture
def folder(tiny_cfg, tmp_path):
    torch.manual_seed(1)
    create_dual_encoder(tiny_cfg).save(tmp_path / "model")
    return tmp_path / "model"


def edit(folder, key, value):
    """Set one key, named with dots; DELETE removes it."""
    path, (*parents, last) = folder / "dual_encoder.json", key.split("|")
    with edited(path) as inner:
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
        if value == "DELETE":
            del inner[last]
    return path


CONFIG = "config|model_cfg"


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("format", 3, "format=3"),
        ("format", True, "format=True"),
        ("formats", 2, "'formats' is unknown.* Did you mean 'format'"),
        ("files", "DELETE", "files=None"),
        ("files", {"tokenizer.json": "abc"}, "64 hex"),
        ("files", {}, "no hash of the file"),
        ("config", [1], r"config\.library"),
        ("config|library", "openclip", "library='openclip'"),
        ("config|hf_config", {}, "'config.hf_config' is unknown"),
        ("config|model_cfg", "DELETE", r"model_cfg=None"),
        ("config|preprocess_cfg", "DELETE", r"preprocess_cfg=None"),
        (f"{CONFIG}|embed_dims", 24, "embed_dims.*Did you mean 'embed_dim'"),
        (f"{CONFIG}|embed_dim", "24", "embed_dim='24'"),
        (f"{CONFIG}|embed_dim", True, "embed_dim=True"),
        (f"{CONFIG}|embed_dim", 0, "embed_dim=0"),
        (f"{CONFIG}|embed_dim", 24.0, "embed_dim=24.0"),
        (f"{CONFIG}|quick_gelu", 1, "quick_gelu=1"),
        (f"{CONFIG}|vision_cfg", [], "vision_cfg"),
        (f"{CONFIG}|vision_cfg|patchsize", 8, "Did you mean 'patch_size'"),
        (f"{CONFIG}|vision_cfg|patch_size", -8, "patch_size=-8"),
        (f"{CONFIG}|vision_cfg|layers", [1, 0], "layers"),
        (f"{CONFIG}|vision_cfg|patch_dropout", 1.5, "patch_dropout"),
        (f"{CONFIG}|vision_cfg|mlp_ratio", "4", "mlp_ratio"),
        (f"{CONFIG}|vision_cfg|image_size", 0, "image_size"),
        (f"{CONFIG}|text_cfg|heads", 3, "heads=3.*divide width=32"),
        (f"{CONFIG}|text_cfg|no_causal_mask", "no", "no_causal_mask"),
        (f"{CONFIG}|text_cfg|context_length", None, "context_length"),
        (f"{CONFIG}|text_cfg|norm_kwargs", {"eps": "small"}, r"norm_kwargs\.eps"),
        (f"{CONFIG}|vision_cfg|norm_kwargs", {"eps": 0}, "eps=0"),
        (f"{CONFIG}|vision_cfg|timm_model_name", "local-dir:/etc", "outside"),
        ("config|preprocess_cfg|std", [0, 1, 1], "std"),
        ("config|preprocess_cfg|sized", 3, "Did you mean 'size'"),
        ("config|preprocess_cfg|augmentation", {"scales": 1}, "Did you mean 'scale'"),
        ("config|preprocess_cfg|augmentation", {"hue": 3}, "hue is no setting"),
        ("config|preprocess_cfg|augmentation", {"scale": "x"}, "augmentation"),
        (f"{CONFIG}|text_cfg|vocab_size", 10**12, "vocab_size"),
        ("config|tokenizer|type", "bpe", "type='bpe'"),
        ("config|tokenizer|file", 3, "file=3"),
        ("config|tokenizer|file", "../t.json", "outside"),
        ("config|tokenizer|file", "absent.json", "no such file|no hash"),
        ("config|tokenizer|kwarg", {}, "Did you mean 'kwargs'"),
        ("growth", {"rows": 3}, r"growth\.base_rows"),
        ("growth", 3, "growth=3"),
    ],
)
def test_model_file__wrong_entries_are_named(key, value, match, folder):
    path = edit(folder, key, value)
    both = (ValueError, FileNotFoundError)
    assert str(path) in refused(match, create_dual_encoder, folder, error=both)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '"text"', "<html>", "version https://git-lfs.x", "\0\0"]
)
@pytest.mark.parametrize("name", ["dual_encoder.json", "open_clip_config.json"])
def test_configuration__that_is_no_json_is_told(name, content, folder, tiny_cfg):
    (folder / "dual_encoder.json").unlink()
    (folder / "open_clip_model.safetensors").touch()
    (folder / name).write_text(content)
    for call in (
        {"name": folder},
        {"name": tiny_cfg, "pretrained": folder},
        {"name": tiny_cfg, "pretrained": folder / "model.safetensors"},
    ):
        assert str(folder / name) in refused(name, create_dual_encoder, **call)


def test_model_file__a_byte_order_mark_is_no_error(folder):
    path = folder / "dual_encoder.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    create_dual_encoder(folder)


@pytest.mark.parametrize("change", ["cut", "flip", "gone"])
def test_tokenizer_file__is_compared_with_its_hash(change, folder):
    path = folder / "tokenizer.json"
    data = bytearray(path.read_bytes())
    if change == "gone":
        path.unlink()
    else:
        data[40] ^= 1
        path.write_bytes(data if change == "flip" else data[:-9])
    with pytest.raises((ValueError, FileNotFoundError), match=r"tokenizer\.json"):
        create_dual_encoder(folder)


def test_hf_folder__tokenizer_files_that_are_read_are_listed(hf_clip_folder, tmp_path):
    folder = tmp_path / "saved"
    create_dual_encoder(hf_clip_folder).save(folder)
    (folder / "tokenizer" / "README.md").write_text("mine")
    create_dual_encoder(folder / ".." / "saved")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        path = folder / "tokenizer" / name
        content = path.read_text()
        path.write_text(content + " ")
        refused(re.escape(name), create_dual_encoder, folder)
        path.write_text(content)
    planted = folder / "tokenizer" / "special_tokens_map.json"
    planted.write_text(json.dumps({"eos_token": "w1"}))
    message = refused("lists no hash of the file", create_dual_encoder, folder)
    assert str(planted) in message


def test_schema__takes_every_open_clip_model():
    import open_clip

    for name in open_clip.list_models():
        Schema(name, strict=True).model_cfg(open_clip.get_model_config(name))


@pytest.mark.parametrize(
    "value", [{"width": True}, {"width": 0}, {"layers": "2"}, {"width": 32.0}]
)
def test_dictionaries__have_sizes_too(value, native_cfg):
    native_cfg["vision_cfg"] |= value
    refused(f"vision_cfg.{next(iter(value))}", create_dual_encoder, native_cfg)
