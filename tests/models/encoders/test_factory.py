import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from avalanche_clip.models import DualEncoder, create_dual_encoder, save_weights
from avalanche_clip.models.encoders.presets import (
    PRESET_WEIGHTS,
    PRESETS,
    TOKENIZER_FILE,
    preset_weights,
)
from tests.models.conftest import hf_text, open_clip_config, same, write_weights
from tests.refused import refused

DATA = TOKENIZER_FILE.parent
TEXTS = ["red dog", "green cat bird"]


# -------------------------------------------------------------- single files
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
def test_pretrained_file__every_format_gives_the_same_model(suffix, trained, tmp_path):
    path = tmp_path / f"weights{suffix}"
    write_weights(trained, path)
    model = create_dual_encoder(trained.config, pretrained=path)
    assert same(model, trained)
    assert model.pretrained == str(path)


def test_pretrained_file__old_layout_fits_the_custom_text_model(trained, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(trained.clip.state_dict(), path)
    config = trained.config
    config["model_cfg"]["custom_text"] = True
    model = create_dual_encoder(config, pretrained=path)
    text = trained.tokenizer(TEXTS)
    assert torch.equal(model.encode_text(text), trained.encode_text(text))


class Traced(torch.nn.Module):
    def __init__(self, clip, resolution):
        super().__init__()
        for name, module in clip.named_children():
            setattr(self, name, module)
        for name, parameter in clip.named_parameters(recurse=False):
            setattr(self, name, parameter)
        self.register_buffer("input_resolution", torch.tensor(resolution))
        self.register_buffer("context_length", torch.tensor(clip.context_length))
        self.register_buffer("vocab_size", torch.tensor(clip.vocab_size))

    def forward(self, text):
        return self.token_embedding(text)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_pretrained_file__openai_archive_needs_quick_gelu(trained, tmp_path):
    path = tmp_path / "openai.pt"
    script = torch.jit.trace(Traced(trained.clip, 32), torch.zeros(1, 4).long())
    torch.jit.save(script, str(path))
    refused("QuickGELU", create_dual_encoder, trained.config, pretrained=path)
    config = trained.config
    config["model_cfg"]["quick_gelu"] = True
    model = create_dual_encoder(config, pretrained=path)
    assert same(model, trained)
    assert model.transform(False).preprocessing.mean[0] == 0.48145466
    assert "archive" in model.preprocessing_source


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "list"),
        ({"state_dict": {"a": 1}}, "'a' is a int"),
        ({}, "no weights"),
    ],
)
def test_pretrained_file__files_without_tensors_are_refused(
    content, match, trained, tmp_path
):
    path = tmp_path / "model.pt"
    torch.save(content, path)
    refused(match, create_dual_encoder, trained.config, pretrained=path)


def test_pretrained_file__misfits_are_listed(trained, tmp_path):
    state = dict(trained.clip.state_dict())
    state["extra.weight"] = torch.zeros(1)
    del state["ln_final.bias"]
    state["positional_embedding"] = torch.zeros(20, 32)
    path = tmp_path / "weights.pt"
    torch.save(state, path)
    message = refused(r"ln_final\.bias", create_dual_encoder, trained.config, path)
    assert "extra.weight" in message
    assert "(20, 32), the model has (12, 32)" in message


def test_pretrained_file__stored_configuration_is_checked(trained, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(trained, path, precision="fp16")
    assert load_file(path)["token_embedding.weight"].dtype == torch.float16
    model = create_dual_encoder(trained.config, pretrained=path)
    assert model.clip.token_embedding.weight.dtype == torch.float32
    config = trained.config
    config["model_cfg"]["quick_gelu"] = True
    with pytest.raises(ValueError, match="quick_gelu: model True, weights False"):
        create_dual_encoder(config, pretrained=path)
    assert "quick_gelu" not in trained.config["model_cfg"]


# ------------------------------------------------------------------- folders
def test_save__folder_gives_the_same_model_back(trained, tmp_path):
    trained.save(tmp_path / "model")
    loaded = create_dual_encoder(tmp_path / "model")
    assert isinstance(loaded, DualEncoder)
    assert same(loaded, trained)
    assert loaded.pretrained == str(tmp_path / "model")
    assert torch.equal(loaded.tokenizer(TEXTS), trained.tokenizer(TEXTS))
    (tmp_path / "model").rename(tmp_path / "moved")
    moved = create_dual_encoder(str(tmp_path / "moved"))
    assert torch.equal(moved.tokenizer(TEXTS), trained.tokenizer(TEXTS))
    again = create_dual_encoder(moved.config)
    assert not same(again, trained)


@pytest.mark.parametrize(
    "name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
)
def test_folder__open_clip_hub_layout(name, native_cfg, tmp_path):
    trained = create_dual_encoder(native_cfg)
    write_weights(trained, tmp_path / name)
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0]}
    open_clip_config(tmp_path, native_cfg, preprocess_cfg=preprocess)
    for source in (tmp_path, f"local-dir:{tmp_path}"):
        model = create_dual_encoder(source)
        assert same(model, trained)
        assert model.transform(False).preprocessing.mean == (0.1, 0.2, 0.3)
    assert same(create_dual_encoder(native_cfg, pretrained=tmp_path), trained)
    other = {**native_cfg, "quick_gelu": True}
    for weights in (tmp_path, tmp_path / name):
        refused("quick_gelu", create_dual_encoder, other, pretrained=weights)


def test_file__beside_our_own_configuration_of_another_model_is_refused(
    trained, native_cfg, tmp_path
):
    trained.save(tmp_path)
    torch.save(trained.clip.state_dict(), tmp_path / "x.pt")
    other = {**native_cfg, "quick_gelu": True}
    refused("quick_gelu", create_dual_encoder, other, pretrained=tmp_path / "x.pt")
    assert same(create_dual_encoder(native_cfg, pretrained=tmp_path / "x.pt"), trained)


def test_file__beside_a_configuration_of_something_else_is_loaded(
    trained, native_cfg, tmp_path
):
    torch.save(trained.clip.state_dict(), tmp_path / "x.pt")
    for text in ('{"model_type": "bert"}', "[1, 2]", "no json"):
        (tmp_path / "config.json").write_text(text)
        model = create_dual_encoder(native_cfg, pretrained=tmp_path / "x.pt")
        assert same(model, trained)


def test_folder__several_or_no_weights_are_refused(trained, native_cfg, tmp_path):
    refused("holds no model", create_dual_encoder, tmp_path)
    open_clip_config(tmp_path, native_cfg)
    refused("no weights", create_dual_encoder, tmp_path)
    for name in ("a.pt", "b.pt"):
        torch.save(trained.clip.state_dict(), tmp_path / name)
    refused(r"a\.pt, b\.pt", create_dual_encoder, tmp_path)


# --------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("name", "tag", "words"),
    [
        ("vit-b32", None, "Did you mean ViT-B-32"),
        ("tiny_emoji_vit", None, "tiny-emoji-vit"),
        ("RN50", "laion", "yfcc15m, cc12m"),
        ("RN50", "openai", "'RN50-quickgelu'"),
        ("tiny-emoji", "emoji-2011", "'emoji-2010'"),
        ("tiny-emoji", "icon", "'icons'"),
        # not the working folder, which holds a model
        ("", None, "give a name"),
        ("tiny-emoji", "", "give a name"),
    ],
)
def test_names__others_are_refused_with_the_known_ones(
    name, tag, words, tiny_cfg, tmp_path, monkeypatch
):
    create_dual_encoder(tiny_cfg).save(tmp_path)
    monkeypatch.chdir(tmp_path)
    create_dual_encoder(".")
    refused(words, create_dual_encoder, name, tag)


def test_config__incomplete_and_unknown_settings_are_refused(native_cfg, tmp_path):
    for config in ({"width": 3}, {"model_cfg": {"embed_dim": 3}}):
        refused("vision_cfg", create_dual_encoder, config)
    absent = {"hf_model_name": str(tmp_path / "none")}
    for words, change in (
        ("colour", {"colour": "red"}),
        ("no_such_tower", {"vision_cfg": {"timm_model_name": "no_such_tower"}}),
        ("none", {"text_cfg": absent}),
    ):
        refused(words, create_dual_encoder, {**native_cfg, **change})


# ------------------------------------------------------------- text from HF
def test_hf_text_tower__loads_and_moves_with_its_folder(
    native_cfg, text_tower, tmp_path
):
    folder = text_tower
    native_cfg = hf_text(native_cfg, folder)
    model = create_dual_encoder(native_cfg).eval()
    text = model.tokenizer(TEXTS)
    assert text.shape == (2, 12)
    assert not model.is_causal_text
    with torch.no_grad():
        expected = model.clip.encode_text(text, normalize=True)
    assert torch.equal(model.encode_text(text), expected)
    refused("text tower", model.blocks, "text")
    model.save(tmp_path / "saved")
    folder.rename(tmp_path / "gone")
    loaded = create_dual_encoder(tmp_path / "saved").eval()
    assert same(loaded, model)
    assert torch.equal(loaded.tokenizer(TEXTS), text)
    loaded.reinitialize(0)


# ------------------------------------------------------------------- presets
@pytest.mark.parametrize(
    ("tag", "script"),
    [("emoji-2010", "train_emoji_2010.py"), ("icons", "train_icons.py")],
)
def test_preset__missing_weights_are_explained(tag, script, monkeypatch, tmp_path):
    from avalanche_clip.models.encoders import presets

    assert (Path(__file__).parents[3] / "tools" / script).is_file()
    monkeypatch.setattr(presets, "DATA_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"emoji-{tag}.*{script}"):
        create_dual_encoder("tiny-emoji", pretrained=tag)
    trained = create_dual_encoder("tiny-emoji")
    save_weights(trained, tmp_path / f"tiny-emoji-{tag}.safetensors")
    model = create_dual_encoder("tiny-emoji", pretrained=tag)
    assert model.pretrained == tag
    assert same(model, trained)


# ----------------------------------------------------------------- downloads
@pytest.fixture
def registered(monkeypatch, native_cfg):
    """A model name and a tag as if open_clip shipped them."""
    import open_clip.factory
    import open_clip.pretrained

    tag = {"mean": [0.1, 0.1, 0.1], "std": [0.2, 0.2, 0.2], "quick_gelu": False}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-Test", native_cfg)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny-Test", {"v1": tag})
    return open_clip.pretrained


def test_tag__weights_come_with_their_preprocessing(registered, tmp_path, monkeypatch):
    trained = create_dual_encoder("Tiny-Test")
    path = tmp_path / "v1.safetensors"
    write_weights(trained, path)
    monkeypatch.setattr(registered, "download_pretrained", lambda *a, **k: str(path))
    model = create_dual_encoder("Tiny/Test", pretrained="v1")
    assert same(model, trained)
    assert model.pretrained == "v1"
    assert model.transform(False).preprocessing.mean == (0.1, 0.1, 0.1)


def test_tag__failed_download_advises_a_local_file(registered, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(registered, "download_pretrained", fail)
    with pytest.raises(RuntimeError, match="no route.*local file"):
        create_dual_encoder("Tiny-Test", pretrained="v1")


def test_hub__repository_equals_its_folder(registered, tmp_path, monkeypatch):
    trained = create_dual_encoder("Tiny-Test")
    write_weights(trained, tmp_path / "open_clip_model.safetensors")
    open_clip_config(tmp_path, trained.config["model_cfg"])

    def download(ident, filename="open_clip_model.safetensors", **kwargs):
        assert ident == "org/repo"
        return str(tmp_path / filename)

    monkeypatch.setattr(registered, "download_pretrained_from_hf", download)
    model = create_dual_encoder("hf-hub:org/repo")
    assert same(model, trained)
    assert model.pretrained == "hf-hub:org/repo"
    with pytest.raises(RuntimeError, match="could not be downloaded"):
        create_dual_encoder("hf-hub:other/repo")


# The files beside the weights say what was trained.
SHIPPED = [
    (name, tag)
    for tag in PRESET_WEIGHTS
    for name in json.loads((DATA / f"{tag}.json").read_text())
]


@pytest.mark.parametrize(("name", "tag"), SHIPPED)
def test_presets__shipped_weights_load_and_are_small(name, tag):
    assert name in PRESETS
    model = create_dual_encoder(name, pretrained=tag)
    assert model.pretrained == tag
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert preset_weights(name, tag).stat().st_size <= 4e6
    assert str(DATA) not in json.dumps(model.config)
    assert len(model.clip.token_embedding.weight) == model.tokenizer.vocab_size
