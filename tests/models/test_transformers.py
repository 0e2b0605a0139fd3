import json
import shutil
from fnmatch import fnmatch

import pytest
import torch
from safetensors.torch import load_file, save_file

from avalanche_clip.models import create_dual_encoder
from tests.refused import refused

TEXTS = ["red dog", "green cat bird"]


def reference(folder, cls):
    import transformers

    return getattr(transformers, cls).from_pretrained(folder).eval()


def test_clip_folder__equals_transformers(hf_clip_folder):
    clip = reference(hf_clip_folder, "CLIPModel")
    model = create_dual_encoder(f"hf:{hf_clip_folder}").eval()
    image = torch.randn(2, 3, 32, 32)
    short = model.tokenizer(TEXTS)
    full = torch.nn.functional.pad(short, (0, 12 - short.shape[1]), value=39)
    with torch.no_grad():
        expected = clip.get_image_features(pixel_values=image).pooler_output
        assert torch.equal(model.encode_image(image, normalize=False), expected)
        expected = clip.get_text_features(input_ids=full).pooler_output
        assert torch.equal(model.encode_text(full, normalize=False), expected)
        cut = model.encode_text(short, normalize=False)
        assert (cut - expected).abs().max() < 1e-5
        out = model({"image": image, "text": full})
        scores = clip(input_ids=full, pixel_values=image).logits_per_image
    ours = out.logit_scale * out.image_features @ out.text_features.T
    torch.testing.assert_close(ours, scores, rtol=1e-5, atol=1e-5)
    assert model.pretrained == str(hf_clip_folder)
    assert model.is_causal_text
    assert model.embed_dim == 24
    cfg = model.transform(False).preprocessing
    assert cfg.mean == (0.1, 0.2, 0.3)
    assert (cfg.resize_to, cfg.size, cfg.resize_mode) == (40, (32, 32), "shortest")


def test_siglip_folder__equals_transformers(hf_siglip_folder):
    siglip = reference(hf_siglip_folder, "SiglipModel")
    model = create_dual_encoder(f"hf:{hf_siglip_folder}").eval()
    image, text = torch.randn(2, 3, 32, 32), model.tokenizer(TEXTS)
    assert text.shape == (2, 12)
    with torch.no_grad():
        out = model({"image": image, "text": text})
        expected = siglip(input_ids=text, pixel_values=image).logits_per_image
        cut = model.encode_text(text[:, :6])
    ours = out.logit_scale * out.image_features @ out.text_features.T
    ours = ours + out.aux["logit_bias"]
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(cut, out.text_features)
    assert model.max_log_scale is None
    assert out.logit_scale.shape == ()
    assert model.transform(False).preprocessing.resize_mode == "squash"


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("sharded", [False, True])
def test_clip_folder__every_weight_layout(safe, sharded, hf_clip_folder):
    expected = create_dual_encoder(f"hf:{hf_clip_folder}").state_fingerprint()
    file = hf_clip_folder / "model.safetensors"
    state = load_file(file)
    file.unlink()
    stem, suffix = ("model", "safetensors") if safe else ("pytorch_model", "bin")
    names = sorted(state)
    parts = [names[::2], names[1::2]] if sharded else [names]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        name = f"{stem}.{suffix}"
        if sharded:
            name = f"{stem}-{number:05d}-of-00002.{suffix}"
        chosen = {k: state[k] for k in part}
        weight_map |= dict.fromkeys(part, name)
        if safe:
            save_file(chosen, str(hf_clip_folder / name), metadata={"format": "pt"})
        else:
            torch.save(chosen, hf_clip_folder / name)
    if sharded:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        path = hf_clip_folder / f"{stem}.{suffix}.index.json"
        path.write_text(json.dumps(index))
    assert create_dual_encoder(hf_clip_folder).state_fingerprint() == expected
    config = create_dual_encoder(hf_clip_folder).config
    model = create_dual_encoder(config, pretrained=hf_clip_folder)
    assert model.state_fingerprint() == expected


def test_clip_folder__activation_mismatch_and_no_tokenizer_are_refused(hf_clip_folder):
    config = create_dual_encoder(hf_clip_folder).config
    config["hf_config"]["text_config"]["hidden_act"] = "gelu"
    refused("hidden_act", create_dual_encoder, config, pretrained=hf_clip_folder)
    bare = create_dual_encoder(config["hf_config"])
    with pytest.raises(ValueError, match="tokenizer"):
        _ = bare.tokenizer


def test_source__unsupported_types_and_missing_folders_are_refused(tmp_path):
    refused("bert.*clip, siglip", create_dual_encoder, {"model_type": "bert"})
    refused(r"no config\.json", create_dual_encoder, f"hf:{tmp_path}")


@pytest.fixture
def hub(hf_clip_folder, tmp_path, monkeypatch):
    """A repository ``org/repo``: its folder, and the patterns that were asked for."""
    import huggingface_hub

    asked = []

    def download(ident, cache_dir, allow_patterns):
        if ident != "org/repo":
            raise OSError("no route")
        asked.append(allow_patterns)
        snapshot = tmp_path / "snapshot"
        snapshot.mkdir(exist_ok=True)
        for file in hf_clip_folder.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, snapshot)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return hf_clip_folder, asked


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_hub__repository_equals_its_folder(safe, hub, tmp_path):
    folder, asked = hub
    expected = create_dual_encoder(folder)
    state = load_file(folder / "model.safetensors")
    # of another library, which repositories of CLIP models often hold too
    save_file({"x": torch.zeros(1)}, str(folder / "open_clip_model.safetensors"))
    if not safe:
        torch.save(state, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    model = create_dual_encoder("hf:org/repo")
    assert model.state_fingerprint() == expected.state_fingerprint()
    assert model.pretrained == "org/repo"
    assert model.config["tokenizer"] == {"type": "hf", "file": "org/repo"}
    assert model.config["preprocess_cfg"] == expected.config["preprocess_cfg"]
    # neither code nor the same weights twice
    assert len(asked) == (2 if safe else 3)
    assert not any(p.endswith((".py", "*")) for names in asked for p in names)
    assert not (tmp_path / "snapshot" / "open_clip_model.safetensors").exists()
    refused("no route.*reachable hub id", create_dual_encoder, "hf:other/repo")


def test_hub__weights_are_fetched_only_where_they_are_used(hub, tmp_path):
    folder, asked = hub
    weights = tmp_path / "mine.safetensors"
    shutil.copy(folder / "model.safetensors", weights)
    model = create_dual_encoder("hf:org/repo", pretrained=weights)
    expected = create_dual_encoder(folder).state_fingerprint()
    assert model.state_fingerprint() == expected
    (folder / "config.json").write_text('{"model_type": "bert"}')
    refused("bert.*clip, siglip", create_dual_encoder, "hf:org/repo")
    assert not any("model" in pattern for names in asked for pattern in names[3:])
    assert all(len(names) == 3 for names in asked)
