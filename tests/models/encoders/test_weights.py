"""Weight files: which, whose, whole, and under which names."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from avalanche_clip.common.arrays import write_safetensors
from avalanche_clip.models import create_dual_encoder, rewrite_file, save_weights
from avalanche_clip.models.encoders.weights import (
    find_weights,
    portable_config,
)
from tests.models.conftest import edited, open_clip_config, same, write_weights
from tests.refused import refused


# --------------------------------------------------------- verified files
def test_save__weights_out_of_their_folder_can_be_verified(trained, tmp_path):
    trained.save(tmp_path / "model")
    inside, alone = tmp_path / "model" / "model.safetensors", tmp_path / "x.safetensors"
    alone.write_bytes(inside.read_bytes())
    assert same(create_dual_encoder(trained.config, alone), trained)
    data = bytearray(inside.read_bytes())
    data[-5] ^= 1
    for path in (alone, inside):
        assert same(create_dual_encoder(trained.config, path, verify=False), trained)
        path.write_bytes(data)
    for call in (
        {"name": trained.config, "pretrained": alone},
        {"name": trained.config, "pretrained": inside},
        {"name": trained.config, "pretrained": inside.parent},
        {"name": inside.parent},
    ):
        with pytest.raises(ValueError, match=r"safetensors is damaged"):
            create_dual_encoder(**call)


def old_form(trained, folder):
    """Write a folder as earlier versions did."""
    trained.save(folder)
    path = folder / "model.safetensors"
    config = json.dumps(trained.config)
    save_file(load_file(path), str(path), metadata={"format": "pt", "config": config})
    with edited(folder / "dual_encoder.json") as facts:
        del facts["files"]
        facts["format"] = 1
    return path


def test_older_files__are_refused_until_they_are_rewritten(trained, tmp_path):
    path = old_form(trained, tmp_path / "old")
    call = r"rewrite_file\('"
    for pretrained in (path, path.parent):
        refused(call, create_dual_encoder, trained.config, pretrained)
    assert "dual_encoder.json" in refused(call, create_dual_encoder, path.parent)
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(path.read_bytes())
    refused("checksum.*rewrite_file", create_dual_encoder, trained.config, alone)
    for old in (path.parent, alone):
        rewrite_file(old)
        assert same(create_dual_encoder(trained.config, old), trained)
    assert same(create_dual_encoder(path.parent), trained)
    # of a folder of ours, also without our metadata
    save_file(load_file(path), str(path))
    refused("no checksum", create_dual_encoder, path.parent)


def test_former_settings__leave_by_the_file_that_people_edit(trained, tmp_path):
    trained.save(tmp_path)
    path, config = tmp_path / "model.safetensors", trained.config
    config["preprocess_cfg"]["augmentation"] = {"blur": 0.5}
    write_safetensors(path, load_file(path), {"config": json.dumps(config)})
    with edited(tmp_path / "dual_encoder.json") as facts:
        own, facts["config"] = facts["config"], config
    refused(r"dual_encoder\.json.*blur.*leave it out", create_dual_encoder, tmp_path)
    with edited(tmp_path / "dual_encoder.json") as facts:
        facts["config"] = own
    assert same(create_dual_encoder(tmp_path), trained)


def test_other_peoples_files__need_no_checksum(trained, tmp_path):
    path = tmp_path / "theirs.safetensors"
    for metadata in (None, {"format": "pt"}, {"config": "their word"}):
        save_file(trained.clip.state_dict(), str(path), metadata=metadata)
        assert same(create_dual_encoder(trained.config, path), trained)


def test_portable_config__names_no_file_of_this_machine(trained, tmp_path):
    stored = json.dumps(portable_config(trained))
    assert "/" not in stored and "sha256" in stored
    path = tmp_path / "w.safetensors"
    save_weights(trained, path)
    other = trained.config
    other["tokenizer"] = {"type": "json", "preset": "emoji_bpe.json"}
    other["model_cfg"]["text_cfg"]["vocab_size"] = 40
    with pytest.warns(UserWarning, match="another tokenizer"):
        create_dual_encoder(other, path)


def test_metadata__a_tokenizer_elsewhere_is_not_opened(trained, tmp_path):
    from avalanche_clip.common.arrays import write_safetensors

    path = tmp_path / "w.safetensors"
    for name in ("/etc/passwd", str(tmp_path / "x.json"), "../x.json"):
        config = {**trained.config, "tokenizer": {"type": "json", "file": name}}
        metadata = {"config": json.dumps(config)}
        write_safetensors(path, trained.clip.state_dict(), metadata)
        model = create_dual_encoder(trained.config, path)
        assert model.config["tokenizer"] == trained.config["tokenizer"]
        assert same(model, trained)


# ------------------------------------------------------------------ layouts
def nested(key):
    return lambda state: {"epoch": 1, key: state}


def prefixed(prefix):
    return lambda state: {prefix + k: v for k, v in state.items()}


LAYOUTS = {
    "model_state_dict": nested("model_state_dict"),
    "state_dict": nested("state_dict"),
    "model": nested("model"),
    "state_dict in model": lambda s: {"model": {"state_dict": s}},
    "lightning": lambda s: {"state_dict": prefixed("model.")(s), "loops": {}},
    "clip_model.": prefixed("clip_model."),
    "module.model.": prefixed("module.model."),
    "module.clip_model.": prefixed("module.clip_model."),
    "model.clip.": prefixed("model.clip."),
    "_orig_mod.": prefixed("_orig_mod."),
    "inner wrapper": lambda s: {
        k.replace(".", "._orig_mod.", 1): v for k, v in s.items()
    },
    "one element": lambda s: {**s, "logit_scale": s["logit_scale"].reshape(1)},
    "custom text": lambda s: {
        k if k.startswith(("visual", "logit")) else f"text.{k}": v for k, v in s.items()
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts__as_people_wrap_them(layout, trained, tmp_path):
    path = tmp_path / "w.pt"
    torch.save(LAYOUTS[layout](trained.clip.state_dict()), path)
    assert same(create_dual_encoder(trained.config, path), trained)


def test_checkpoint__with_numbers_of_numpy_loads(trained, tmp_path):
    path, state = tmp_path / "w.pt", trained.clip.state_dict()
    torch.save({"epoch": np.int64(3), "state_dict": state}, path)
    assert same(create_dual_encoder(trained.config, path), trained)
    torch.save({**state, "logit_scale": np.float64(3.0)}, path)
    refused("logit_scale.*of NumPy", create_dual_encoder, trained.config, path)


def test_resnet__without_counters_of_batch_norms(native_cfg, tmp_path):
    native_cfg["vision_cfg"] = {"layers": [1, 1, 1, 1], "width": 16, "image_size": 32}
    trained = create_dual_encoder(native_cfg)
    state = {
        k: v
        for k, v in trained.clip.state_dict().items()
        if not k.endswith("num_batches_tracked")
    }
    assert len(state) < len(trained.clip.state_dict())
    torch.save(state, tmp_path / "w.pt")
    assert same(create_dual_encoder(native_cfg, tmp_path / "w.pt"), trained)
    state.pop("visual.bn1.running_mean")
    torch.save(state, tmp_path / "w.pt")
    refused("running_mean", create_dual_encoder, native_cfg, tmp_path / "w.pt")


def test_home__is_expanded_everywhere(trained, tmp_path, monkeypatch, hf_clip_folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    trained.save("~/model")
    save_weights(trained, "~/w.safetensors")
    for name, pretrained in (
        ("~/model", None),
        ("local-dir:~/model", None),
        (trained.config, "~/model"),
        (trained.config, "~/model/model.safetensors"),
        (trained.config, "~/w.safetensors"),
    ):
        assert same(create_dual_encoder(name, pretrained), trained)
    model = create_dual_encoder(f"hf:~/{hf_clip_folder.name}")
    assert len(model.tokenizer("red dog")[0]) == 4


# ------------------------------------------------------------------- folders
def test_folder__of_both_libraries_keeps_them_apart(
    hf_clip_folder, native_cfg, tokenizer_file
):
    folder = hf_clip_folder
    theirs = create_dual_encoder(f"hf:{folder}")
    native_cfg["text_cfg"] |= {"vocab_size": 40, "hf_tokenizer_name": "somebody/x"}
    ours = create_dual_encoder({"model_cfg": native_cfg})
    open_clip_config(folder, native_cfg, preprocess_cfg={"mean": [0.9, 0.9, 0.9]})
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        write_weights(ours, folder / name)
        plain = create_dual_encoder(folder)
        assert same(plain, ours)
        assert plain.transform(False).preprocessing.mean == (0.9, 0.9, 0.9)
        assert len(plain.tokenizer("red dog")[0]) == 4
        assert same(create_dual_encoder(f"hf:{folder}"), theirs)
        assert same(create_dual_encoder(native_cfg, folder), ours)
        assert same(create_dual_encoder(native_cfg, folder / name), ours)
        for source in (folder, folder / "model.safetensors"):
            model = create_dual_encoder(theirs.config, source)
            assert same(model, theirs)
            assert model.transform(False).preprocessing.mean == (0.1, 0.2, 0.3)
        (folder / name).unlink()
    # only transformers' weights are left
    assert same(create_dual_encoder(folder), theirs)
    assert find_weights(folder, "open_clip_config.json") is None
    # whose configuration decides, whatever was left of the other
    (folder / "open_clip_config.json").write_text("{}")
    assert same(create_dual_encoder(folder), theirs)


def test_fine_tuned_folder__whose_end_id_differs(hf_clip_folder, tmp_path):
    tuned = shutil.copytree(hf_clip_folder, tmp_path / "tuned")
    with edited(tuned / "config.json") as stored:
        stored["text_config"]["eos_token_id"] = 2
    model = create_dual_encoder(f"hf:{hf_clip_folder}", tuned)
    assert same(model, create_dual_encoder(tuned))
    assert model.config["hf_config"]["text_config"]["eos_token_id"] == 2


# ------------------------------------------------------------------- indexes
@pytest.fixture
def index(trained, tmp_path):
    state = trained.clip.state_dict()
    names = sorted(state)
    for number, part in enumerate((names[::2], names[1::2])):
        chosen = {k: state[k].clone() for k in part}
        save_file(chosen, str(tmp_path / f"{number}.safetensors"))
    shards = {k: f"{i % 2}.safetensors" for i, k in enumerate(names)}
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": shards}))
    return path


def test_index__shards_are_put_together_and_links_followed(index, trained, tmp_path):
    assert same(create_dual_encoder(trained.config, index), trained)
    cache = tmp_path / "cache"
    cache.mkdir()
    (tmp_path / "0.safetensors").rename(cache / "blob")
    (tmp_path / "0.safetensors").symlink_to(cache / "blob")
    assert same(create_dual_encoder(trained.config, index), trained)


@pytest.mark.parametrize("name", ["../x.safetensors", "{}/0.safetensors", "", 3, "a"])
def test_index__names_outside_are_refused(name, index, trained, tmp_path):
    outside = tmp_path.parent / "x.safetensors"
    outside.write_bytes((tmp_path / "0.safetensors").read_bytes())
    if isinstance(name, str):
        name = name.format(tmp_path.parent)
    with edited(index) as content:
        content["weight_map"]["logit_scale"] = name
    refused(r"index\.json", create_dual_encoder, trained.config, index)


@pytest.mark.parametrize(
    "content",
    ["", "[1]", "{}", '{"weight_map": [1]}', "<html>", "version https://git-lfs.x"],
)
def test_index__damaged_ones_are_told(content, index, trained):
    index.write_text(content)
    refused(r"index\.json", create_dual_encoder, trained.config, index)


def test_index__a_tensor_in_two_shards_is_refused(index, trained, tmp_path):
    state = load_file(tmp_path / "0.safetensors") | load_file(
        tmp_path / "1.safetensors"
    )
    save_file(state, str(tmp_path / "1.safetensors"))
    refused("too", create_dual_encoder, trained.config, index)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ".npz", ".txt"])
@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"<html>not found</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"", "an empty file"),
        (b"\x80\x02}q\x00.", "a pickle"),
    ],
)
def test_foreign_files__are_told_what_they_are(
    suffix, content, match, trained, tmp_path
):
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert str(path) in refused(match, create_dual_encoder, trained.config, path)


def test_folder__of_ours_without_its_weights_is_no_other_model(trained, hf_clip_folder):
    trained.save(hf_clip_folder)
    assert same(create_dual_encoder(hf_clip_folder), trained)
    (hf_clip_folder / "model.safetensors").rename(hf_clip_folder / "x.safetensors")
    refused(r"dual_encoder\.json.*no weights", create_dual_encoder, hf_clip_folder)
