import copy
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from avalanche_clip.models import (
    ImageTransform,
    Preprocessing,
    TinyAugmentation,
    TinyTransform,
)
from avalanche_clip.models.images.transforms import (
    build_transform,
    content_square,
    to_rgb,
)
from tests.refused import refused

OPEN_CLIP = {
    "size": 32,
    "mean": (0.48, 0.45, 0.40),
    "std": (0.26, 0.26, 0.27),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
OFF = {"scale": (1, 1), "translate": 0, "degrees": 0}
OFF |= {"brightness": 0, "contrast": 0, "saturation": 0}
NEUTRAL = TinyAugmentation(**OFF)


@pytest.fixture
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def square():
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [32, (24, 40)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_eval__equals_open_clip(mode, size, interpolation, image):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    cfg = OPEN_CLIP | {"size": size, "resize_mode": mode}
    if size != (24, 40):  # open_clip ignores the choice for oblong inputs
        cfg["interpolation"] = interpolation
    ours = build_transform(cfg, train=False)
    reference = image_transform_v2(PreprocessCfg(**cfg), is_train=False)
    assert torch.equal(ours(image), reference(image))
    assert ours.deterministic


def test_train__equals_open_clip_and_depends_on_torchs_generator(square):
    from open_clip.transform import PreprocessCfg, image_transform_v2

    ours = build_transform(OPEN_CLIP, train=True)
    reference = image_transform_v2(PreprocessCfg(**OPEN_CLIP), is_train=True)
    results = []
    for seed, transform in ((0, ours), (0, reference), (1, ours)):
        torch.manual_seed(seed)
        results.append(transform(square))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert not ours.deterministic


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("tiny", [False, True])
def test_tensors__bytes_equal_pil_and_floats_are_close(train, tiny, square):
    cfg = dict(OPEN_CLIP)
    if tiny:
        cfg["augmentation"] = {"degrees": 20.0}
    transform = build_transform(cfg, train)
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)
    results = []
    for value in (square, pixels, pixels / 255):
        torch.manual_seed(0)
        results.append(transform(value))
    assert results[0].shape == (3, 32, 32)
    assert results[0].dtype == torch.float32
    assert torch.equal(results[0], results[1])
    assert (results[0] - results[2]).abs().max() < 0.2


def test_to_rgb__transparent_pixels_become_white_and_grey_gets_three_channels():
    tensor = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(4, 1, 1)
    assert to_rgb(tensor).flatten().tolist() == [1.0, 1.0, 1.0]
    assert to_rgb((tensor * 255).byte()).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(torch.rand(1, 4, 5)).shape == (3, 4, 5)
    assert to_rgb(torch.zeros(1, 4, 5, dtype=torch.uint8)).mode == "RGB"


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("a.png", TypeError),
        (np.zeros((4, 4, 3)), TypeError),
        (torch.zeros(3, 4, 4, dtype=torch.long), TypeError),
        (torch.zeros(4, 4), ValueError),
        (torch.zeros(5, 4, 3), ValueError),
        (torch.zeros(1, 3, 4, 4), ValueError),
        (torch.zeros(3, 0, 4), ValueError),
        (Image.new("RGB", (0, 4)), ValueError),
        (np.zeros((4, 4), np.uint8), TypeError),
        (torch.zeros(3, 4, 4, dtype=torch.uint16), TypeError),
        (torch.zeros(3, 4, 4, dtype=torch.bool), TypeError),
        (torch.full((3, 4, 4), 1.01), ValueError),
        (torch.full((1, 4, 4), -0.01), ValueError),
        (torch.full((4, 4, 4), 255.0), ValueError),
        (torch.full((3, 4, 4), float("nan")), ValueError),
        (torch.full((3, 4, 4), 2.0, dtype=torch.float16), ValueError),
    ],
)
def test_to_rgb__other_inputs_are_refused(value, error):
    with pytest.raises(error):
        to_rgb(value)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("augmented", [False, True])
def test_exif__rotation_is_an_option_of_every_transform(train, augmented, image):
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = image.copy()
    photo.info["exif"] = exif.tobytes()
    values = dict(OPEN_CLIP, exif_rotation=True)
    if augmented:
        values["augmentation"] = {"degrees": 20.0}
    results = []
    for given, settings in (
        (photo, values),
        (image.transpose(Image.Transpose.ROTATE_270), values),
        (photo, values | {"exif_rotation": False}),
        (image, values),
    ):
        torch.manual_seed(0)
        results.append(build_transform(settings, train)(given))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[3])
    assert not torch.equal(results[0], results[2])


def test_exif__rotation_is_told_and_stored_where_it_is_set():
    plain, turned = (
        build_transform(OPEN_CLIP | {"exif_rotation": value}, False)
        for value in (False, True)
    )
    with pytest.raises(ValueError, match="exif_rotation='yes'"):
        build_transform(OPEN_CLIP | {"exif_rotation": "yes"}, False)
    assert repr(plain) == repr(build_transform(OPEN_CLIP, False)) != repr(turned)
    assert "exif_rotation" not in repr(plain)
    assert "exif_rotation" not in plain.preprocessing.to_dict()
    again = Preprocessing.from_dict(turned.preprocessing.to_dict())
    assert again == turned.preprocessing


def tiny(augmentation=NEUTRAL, **changes):
    return build_transform(OPEN_CLIP | changes, True, augmentation)


def only(picture, seed=0, **settings):
    """A picture after one kind of change, in plain numbers."""
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    torch.manual_seed(seed)
    return tiny(TinyAugmentation(**OFF | settings), **plain)(picture)


def test_tiny__neutral_settings_equal_the_evaluation(square, image):
    for picture in (square, image):
        expected = build_transform(OPEN_CLIP, False)(picture)
        result = tiny()(picture)
        assert torch.allclose(result, expected, atol=1e-5)


def test_tiny__depends_on_torchs_generator_only(square):
    transform = tiny(TinyAugmentation())
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        random.seed(seed + 7)
        np.random.seed(seed + 8)
        results.append(transform(square))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    torch.manual_seed(0)
    tiny()(square)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    transform(square)
    assert torch.equal(state, torch.get_rng_state())


def test_tiny__zoom_out_and_shift_fill_with_white():
    black = Image.new("RGB", (32, 32))
    small = only(black, scale=(0.5, 0.5))
    assert small[:, 0, 0].tolist() == [1, 1, 1]
    assert small[:, 16, 16].tolist() == [0, 0, 0]
    assert small.mean() == pytest.approx(0.75, abs=0.02)
    assert 0 < only(black, translate=0.5).mean() < 1


@pytest.mark.parametrize("seed", range(5))
def test_tiny__rotation_keeps_the_centre(seed):
    image = Image.new("RGB", (32, 32), (255, 255, 255))
    image.paste((0, 0, 0), (14, 14, 18, 18))
    dark = 1 - only(image, seed, degrees=180)[0]
    for weights in (dark.sum(0), dark.sum(1)):
        centre = (weights * torch.arange(32)).sum() / weights.sum()
        assert centre == pytest.approx(15.5, abs=0.2)


def test_tiny__colour_maps_do_what_they_say(square):
    plain = only(square)
    luma = (plain * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    torch.manual_seed(0)
    bright, contrast, colour = (2 * torch.rand(13)[5:8] - 1).tolist()
    for setting, factor, grey in (
        ("brightness", 1 + 0.9 * bright, 0 * luma),
        ("contrast", 1 + 0.9 * contrast, luma.mean()),
        ("saturation", 1 + 0.9 * colour, luma),
    ):
        expected = (plain * factor + (1 - factor) * grey).clamp(0, 1)
        assert torch.allclose(only(square, **{setting: 0.9}), expected, atol=1e-5)


@pytest.mark.parametrize(
    "values",
    [{"scale": (0, 1)}, {"scale": (1.2, 1)}, {"translate": 2}, {"degrees": -1}],
)
def test_augmentation__ranges_are_checked(values):
    refused(next(iter(values)), TinyAugmentation, **values)


def test_augmentation__former_settings_of_files_are_off_or_refused():
    assert TinyAugmentation.from_dict({"hue": 0.0, "degrees": 1}).degrees == 1
    # shear was the fourth: what follows it must not mean something else by place
    with pytest.raises(TypeError, match="positional"):
        TinyAugmentation((0.9, 1.1), 0.1, 5.0, 0.0, 0.2)
    for values in ({"hue": 0.1}, {"interpolation": "bicubic"}):
        refused("no setting any more", TinyAugmentation.from_dict, values)
        refused("no setting", build_transform, OPEN_CLIP | {"augmentation": values}, 1)


def test_preprocessing__settings_are_checked():
    refused("train=True", build_transform, OPEN_CLIP, False, TinyAugmentation())
    refused("square", tiny, size=(24, 40))
    cfg = Preprocessing.from_dict(OPEN_CLIP)
    assert Preprocessing.from_dict(cfg.to_dict()) == cfg


def test_transforms__survive_pickle_and_deepcopy(square):
    for transform in (
        ImageTransform(Preprocessing.from_dict(OPEN_CLIP)),
        TinyTransform(Preprocessing.from_dict(OPEN_CLIP), NEUTRAL),
        build_transform(OPEN_CLIP | {"resize_mode": "longest"}, False),
    ):
        for twin in (pickle.loads(pickle.dumps(transform)), copy.deepcopy(transform)):
            assert torch.equal(twin(square), transform(square))
            assert twin.deterministic == transform.deterministic


def _drawing(box, size=48):
    image = Image.new("RGB", (size, size), (255, 255, 255))
    image.paste((200, 30, 30), box)
    return image


def test_content_square__surrounds_what_is_not_white():
    x, y, side = content_square(_drawing((10, 20, 30, 28)))
    assert (x, y, side) == (9.0, 13.0, 22.0)
    assert content_square(_drawing((0, 0, 0, 0))) == (0, 0, 48)


def test_trim__canvas_around_a_drawing_does_not_matter():
    cfg = Preprocessing((48, 48), (0.5,) * 3, (0.5,) * 3, trim=True)
    transform = ImageTransform(cfg)
    small = transform(_drawing((4, 6, 24, 26)))
    moved = transform(_drawing((26, 20, 46, 40)))
    assert torch.allclose(small, moved, atol=0.02)
    neutral = TinyTransform(cfg, NEUTRAL)(_drawing((4, 6, 24, 26)))
    assert torch.allclose(neutral, small, atol=0.02)
    assert float(small[1, 24, 24]) < 0  # red fills the middle
    plain = ImageTransform(replace(cfg, trim=False))
    assert not torch.allclose(plain(_drawing((4, 6, 24, 26))), small, atol=0.5)


@pytest.mark.parametrize("size", [32, None, (32,), (32, 32, 3), "ab"])
def test_preprocessing__size_is_a_pair(size):
    refused("size=", Preprocessing, size, (0.5,) * 3, (0.5,) * 3)
