"""Weights are fed as they were trained, whatever says how that was."""

import json
import warnings
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.models import create_dual_encoder, save_weights
from avalanche_clip.models.encoders import factory
from avalanche_clip.models.images.preprocessing import (
    check_preprocess,
    of_name,
    of_tag,
    read_image_processor,
)
from avalanche_clip.models.images.transforms import Preprocessing, build_transform
from tests.models.conftest import edited, open_clip_config, write_weights
from tests.refused import refused

SIGLIP = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}


def picture(width=50, height=37):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3))
    return Image.fromarray(noise.astype(np.uint8))


def settings(config):
    cfg = asdict(Preprocessing.from_dict(config["preprocess_cfg"]))
    keys = ("size", "mean", "std", "interpolation", "resize_mode", "fill_color")
    return {k: cfg[k] for k in keys}


def resolved(name, pretrained=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return factory._resolve(name, pretrained, None)


# --------------------------------------------------------- names and tags
def open_clip_settings(name, facts):
    """What open_clip's own create_model sets, before any weights are loaded."""
    from open_clip.factory import get_model_config
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    merged = merge_preprocess_dict(PreprocessCfg(), facts)
    merged["size"] = get_model_config(name)["vision_cfg"]["image_size"]
    return PreprocessCfg(**merged)


def test_names__every_tag_gives_open_clips_own_pixels(monkeypatch):
    import open_clip.pretrained
    from open_clip.transform import image_transform_v2

    monkeypatch.setattr(
        open_clip.pretrained, "download_pretrained", lambda *a, **k: "x.safetensors"
    )
    seen, count = {}, 0
    for name, tags in open_clip.pretrained._PRETRAINED.items():
        for tag, facts in tags.items():
            cfg = open_clip_settings(name, facts)
            expected = {
                "size": (cfg.size, cfg.size),
                "mean": tuple(cfg.mean),
                "std": tuple(cfg.std),
                "interpolation": cfg.interpolation,
                "resize_mode": cfg.resize_mode,
                "fill_color": cfg.fill_color,
            }
            try:
                request = resolved(name, tag)
            except ValueError as error:
                assert "QuickGELU" in str(error)
                continue
            assert settings(request.config) == expected, (name, tag)
            assert tag in request.source
            seen[json.dumps(expected)] = (request.config["preprocess_cfg"], cfg)
            count += 1
    assert count > 150 and len(seen) > 20
    for ours, theirs in seen.values():
        if ours["size"] > 256:
            continue
        pixels = build_transform(ours, False)(picture())
        expected = image_transform_v2(theirs, is_train=False)(picture())
        torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)


def test_names__without_tag_take_what_all_tags_agree_on():
    import open_clip.pretrained

    disagreeing = []
    for name, tags in open_clip.pretrained._PRETRAINED.items():
        each = [
            of_tag(open_clip.pretrained.get_pretrained_cfg(name, tag)) for tag in tags
        ]
        request = resolved(name)
        assert name in request.source
        if request.guessed:
            disagreeing.append(name)
            assert request.config["preprocess_cfg"]["mean"][0] == 0.48145466
        else:
            found = request.config["preprocess_cfg"]
            assert all(one.items() <= found.items() for one in each), name
    assert disagreeing == ["ViT-L-14", "ViT-H-14", "ViT-H-14-quickgelu"]
    assert of_name("no such name")[0] == {}


@pytest.fixture
def names(monkeypatch, native_cfg):
    """Three small names: agreeing tags, disagreeing tags, no tags."""
    import open_clip.factory
    import open_clip.pretrained as p

    tags = {
        "Tiny-Agree": {"a": p._slpcfg(), "b": p._slpcfg()},
        "Tiny-Disagree": {"a": p._slpcfg(), "b": p._pcfg()},
    }
    for name in (*tags, "Tiny-Untagged"):
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, native_cfg)
    for name, facts in tags.items():
        monkeypatch.setitem(p._PRETRAINED, name, facts)
    return native_cfg


def test_name__file_without_a_word_takes_the_name(names, tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(create_dual_encoder(names).clip.state_dict(), path)
    for pretrained in (None, path):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = create_dual_encoder("Tiny-Agree", pretrained)
        cfg = model.transform(False).preprocessing
        assert (cfg.mean, cfg.resize_mode) == ((0.5, 0.5, 0.5), "squash")
        assert "Tiny-Agree" in model.preprocessing_source
        with pytest.warns(UserWarning, match="tags of Tiny-Disagree disagree"):
            model = create_dual_encoder("Tiny-Disagree", pretrained)
        assert model.transform(False).preprocessing.mean[0] == 0.48145466
    with pytest.warns(UserWarning, match="no weights of Tiny-Untagged"):
        create_dual_encoder("Tiny-Untagged", path)


def test_order__what_lies_beside_counts_before_the_name(names, tmp_path, caplog):
    write_weights(create_dual_encoder(names), tmp_path / "open_clip_model.safetensors")
    stated = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "fill_color": 9}
    stated |= {"interpolation": "bilinear", "resize_mode": "longest"}
    open_clip_config(tmp_path, names, preprocess_cfg=stated)
    file = tmp_path / "open_clip_model.safetensors"
    caplog.set_level("INFO")
    for name in ("Tiny-Agree", "Tiny-Disagree", names):
        for pretrained in (tmp_path, file):
            model = create_dual_encoder(name, pretrained)
            cfg = model.transform(False).preprocessing
            assert cfg == Preprocessing.from_dict({**stated, "size": 32})
            assert "open_clip_config.json" in model.preprocessing_source
            assert model.preprocessing_source in caplog.messages[-1]
    # partly stated: the rest is the name's own
    open_clip_config(tmp_path, names, preprocess_cfg={"mean": [0.1, 0.2, 0.3]})
    cfg = create_dual_encoder("Tiny-Agree", tmp_path).transform(False).preprocessing
    assert (cfg.mean[0], cfg.std[0], cfg.resize_mode) == (0.1, 0.5, "squash")


def test_order__what_lies_inside_and_our_own_folder(names, tmp_path):
    source = {"model_cfg": names, "preprocess_cfg": {**SIGLIP, "fill_color": 7}}
    trained = create_dual_encoder(source)
    save_weights(trained, tmp_path / "alone.safetensors")
    trained.save(tmp_path / "folder")
    model = create_dual_encoder("Tiny-Disagree", tmp_path / "alone.safetensors")
    assert settings(model.config) == settings(trained.config)
    assert "alone.safetensors" in model.preprocessing_source
    path = tmp_path / "folder" / "dual_encoder.json"
    with edited(path) as facts:
        facts["config"]["preprocess_cfg"]["mean"] = [0.7, 0.7, 0.7]
    for call in (
        {"name": tmp_path / "folder"},
        {"name": "Tiny-Agree", "pretrained": tmp_path / "folder"},
        {"name": names, "pretrained": tmp_path / "folder" / "model.safetensors"},
    ):
        model = create_dual_encoder(**call)
        assert model.transform(False).preprocessing.mean == (0.7, 0.7, 0.7)
        assert model.preprocessing_source == str(path)
    # round trip
    model.save(tmp_path / "again")
    again = create_dual_encoder(tmp_path / "again")
    assert settings(again.config) == settings(model.config)


# --------------------------------------------------------------- processors
def write_processor(folder, **values):
    folder.mkdir(exist_ok=True)
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder


CROP = {"size": {"shortest_edge": 40}, "crop_size": {"height": 32, "width": 32}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (CROP, ("shortest", 40, "bicubic", 0.48145466)),
        ({"size": 40, "crop_size": 32}, ("shortest", 40, "bicubic", 0.48145466)),
        ({**CROP, "resample": 2}, ("shortest", 40, "bilinear", 0.48145466)),
        ({**CROP, "do_normalize": False}, ("shortest", 40, "bicubic", 0.0)),
        (
            {"size": {"height": 40, "width": 40}, "crop_size": 32},
            ("squash", 40, "bicubic", 0.48145466),
        ),
        (
            {"size": {"height": 32, "width": 32}, "do_center_crop": False},
            ("squash", None, "bicubic", 0.48145466),
        ),
        (
            {
                "size": {"height": 32, "width": 32},
                "image_processor_type": "SiglipImageProcessor",
            },
            ("squash", None, "bicubic", 0.5),
        ),
    ],
)
def test_processor__equals_transformers(values, expected, tmp_path):
    import transformers

    read, source = read_image_processor(write_processor(tmp_path, **values), 32)
    found = (read["resize_mode"], read.get("resize_to"), read["interpolation"])
    assert (*found, read["mean"][0]) == expected
    assert source.endswith("preprocessor_config.json")
    kind = values.get("image_processor_type", "CLIPImageProcessor")
    processor = getattr(transformers, kind).from_pretrained(tmp_path)
    # not smaller than what is wanted, where filling differs by a pixel's place
    for image in (picture(80, 64), picture(64, 100)):
        theirs = processor(image, return_tensors="pt").pixel_values[0]
        ours = build_transform({**read, "size": 32}, False)(image)
        # bytes are resized by Pillow here, by torchvision there
        assert (ours - theirs).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({**CROP, "resample": 0}, "resample=0"),
        ({**CROP, "resample": 1}, "resample=1"),
        ({**CROP, "do_resize": False}, "do_resize"),
        ({**CROP, "do_rescale": False}, "do_rescale"),
        ({**CROP, "rescale_factor": 1.0}, "rescale_factor"),
        ({**CROP, "do_pad": True}, "do_pad"),
        ({**CROP, "crop_pct": 0.9}, "crop_pct"),
        ({**CROP, "use_square_size": True}, "use_square_size"),
        ({**CROP, "image_std": [0.5, 0.0, 0.5]}, "std="),
        ({**CROP, "image_mean": [0.5, 0.5]}, "mean="),
        ({"size": {"shortest_edge": 40}, "do_center_crop": False}, "do_center_crop"),
        ({"size": {"shortest_edge": 40, "longest_edge": 50}}, "size="),
        ({"size": {"shortest_edge": 0}}, "size="),
        ({"size": True}, "size="),
        ({**CROP, "crop_size": 24}, "takes 32 x 32"),
        ({"size": {"height": 24, "width": 24}, "do_center_crop": False}, "takes 32"),
        ({**CROP, "image_processor_type": "ConvNextImageProcessor"}, "state size"),
        # alone in the file, without any setting of CLIP's
        ({"rescale_factor": 1 / 127.5}, "rescale_factor"),
        ({"do_thumbnail": True}, "do_thumbnail"),
        ({"rescale_offset": True}, "rescale_offset"),
        ({"image_std": [0, 0, 0]}, "std="),
        ({"resample": 0}, "resample=0"),
        ({"size": {"longest_edge": 32}}, "size="),
    ],
)
def test_processor__what_cannot_be_honoured_is_refused(values, match, tmp_path):
    folder = write_processor(tmp_path, **values)
    message = refused(match, read_image_processor, folder, 32)
    assert str(tmp_path / "preprocessor_config.json") in message


def test_processor__without_a_crop_takes_the_towers_size(tmp_path):
    folder = write_processor(tmp_path, image_mean=[0.5] * 3)
    found, _ = read_image_processor(folder, 32)
    assert found["mean"] == [0.5] * 3 and found["resize_mode"] == "shortest"


def test_processor__of_a_folder_reaches_the_transform(hf_clip_folder):
    write_processor(hf_clip_folder, **CROP, do_normalize=False)
    model = create_dual_encoder(f"hf:{hf_clip_folder}")
    pixels = model.transform(False)(picture())
    assert pixels.min() >= 0 and pixels.max() <= 1
    write_processor(hf_clip_folder, **CROP, do_resize=False)
    refused("do_resize", create_dual_encoder, hf_clip_folder)


@pytest.mark.parametrize(
    "values",
    [
        {"mean": [0.5, float("nan"), 0.5]},
        {"std": 0},
        {"std": [True, 1, 1]},
        {"resize_mode": "crop"},
        {"interpolation": "nearest"},
        {"fill_color": 256},
        {"fill_color": True},
        {"resize_to": True},
        {"resize_to": 0},
        {"trim": 1},
        {"mode": "L"},
    ],
)
def test_preprocess_cfg__impossible_values_are_refused(values, names):
    (key,) = values
    refused(key, check_preprocess, values, "here")
    if key != "mode":
        plain = {"size": (8, 8), "mean": (0.5,) * 3, "std": (0.5,) * 3}
        with pytest.raises(ValueError, match=key):
            Preprocessing(**{**plain, **values})
    refused(key, create_dual_encoder, {"model_cfg": names, "preprocess_cfg": values})


def test_order__what_the_weights_leave_open_stays(names, tmp_path):
    write_weights(create_dual_encoder(names), tmp_path / "open_clip_model.safetensors")
    open_clip_config(tmp_path, names, preprocess_cfg={"mean": [0.1, 0.2, 0.3]})
    own = {"exif_rotation": True, "resize_to": 40, "trim": True}
    given = {"model_cfg": names, "preprocess_cfg": own}
    cfg = create_dual_encoder(given, tmp_path).transform(False).preprocessing
    assert (cfg.mean[0], cfg.resize_to) == (0.1, 40)
    assert cfg.exif_rotation and cfg.trim
    stated = {"resize_mode": "squash", "mode": "RGB", "size": 99}
    open_clip_config(tmp_path, names, preprocess_cfg=stated)
    cfg = create_dual_encoder(given, tmp_path).transform(False).preprocessing
    assert (cfg.resize_mode, cfg.resize_to, cfg.size) == ("squash", None, (32, 32))
