import copy
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

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
NEUTRAL = TinyAugmentation((1, 1), 0, 0, 0, 0, 0, 0)


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


def test_to_rgb__transparent_pixels_become_white():
    tensor = torch.tensor([1.0, 0.0, 0.0, 0.0]).view(4, 1, 1)
    assert to_rgb(tensor).flatten().tolist() == [1.0, 1.0, 1.0]
    bytes_ = (tensor * 255).byte()
    assert to_rgb(bytes_).getpixel((0, 0)) == (255, 255, 255)


def test_to_rgb__grey_tensors_get_three_channels():
    assert to_rgb(torch.rand(1, 4, 5)).shape == (3, 4, 5)
    assert to_rgb(torch.zeros(1, 4, 5, dtype=torch.uint8)).mode == "RGB"


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("a.png", TypeError),
        (np.zeros((4, 4, 3)), TypeError),
        (torch.zeros(3, 4, 4, dtype=torch.long), TypeError),
        (torch.zeros(4, 4), ValueError),
        (torch.zeros(4, 4, 3), ValueError),
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
    if isinstance(value, torch.Tensor) and value.shape == (4, 4, 3):
        value = torch.zeros(5, 4, 3)
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


def tiny(augmentation, **changes):
    return build_transform(OPEN_CLIP | changes, True, augmentation)


def test_tiny__neutral_settings_equal_the_evaluation(square, image):
    for picture in (square, image):
        expected = build_transform(OPEN_CLIP, False)(picture)
        result = tiny(NEUTRAL)(picture)
        assert torch.allclose(result, expected, atol=1e-5)


def test_tiny__depends_on_torchs_generator_only(square):
    transform = tiny(TinyAugmentation(hue=0.1, blur=0.5, grayscale=0.2, shear=5))
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        random.seed(seed + 7)
        np.random.seed(seed + 8)
        results.append(transform(square))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    torch.manual_seed(0)
    tiny(NEUTRAL)(square)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    transform(square)
    assert torch.equal(state, torch.get_rng_state())


def test_tiny__zoom_out_and_shift_fill_with_white():
    black = Image.new("RGB", (32, 32))
    cfg = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    small = tiny(TinyAugmentation((0.5, 0.5), 0, 0, 0, 0, 0, 0), **cfg)(black)
    assert small[:, 0, 0].tolist() == [1, 1, 1]
    assert small[:, 16, 16].tolist() == [0, 0, 0]
    assert small.mean() == pytest.approx(0.75, abs=0.02)
    torch.manual_seed(0)
    shifted = tiny(TinyAugmentation((1, 1), 0.5, 0, 0, 0, 0, 0), **cfg)(black)
    assert 0 < shifted.mean() < 1


def test_tiny__rotation_keeps_the_centre():
    image = Image.new("RGB", (32, 32), (255, 255, 255))
    image.paste((0, 0, 0), (14, 14, 18, 18))
    cfg = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    transform = tiny(TinyAugmentation((1, 1), 0, 180, 30, 0, 0, 0), **cfg)
    for seed in range(5):
        torch.manual_seed(seed)
        dark = 1 - transform(image)[0]
        rows, columns = torch.meshgrid(
            torch.arange(32), torch.arange(32), indexing="ij"
        )
        for axis in (rows, columns):
            assert (dark * axis).sum() / dark.sum() == pytest.approx(15.5, abs=0.2)


def test_tiny__colour_maps_do_what_they_say(square):
    cfg = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    plain = tiny(NEUTRAL, **cfg)(square)
    grey = tiny(TinyAugmentation((1, 1), 0, 0, 0, 0, 0, 0, grayscale=1), **cfg)(square)
    luma = (plain * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(0)
    assert torch.allclose(grey, luma.expand(3, -1, -1), atol=1e-5)
    torch.manual_seed(0)
    bright = tiny(TinyAugmentation((1, 1), 0, 0, 0, 0.9, 0, 0), **cfg)(square)
    torch.manual_seed(0)
    factor = 1 + 0.9 * (2 * torch.rand(12)[5] - 1)
    assert torch.allclose(bright, (plain * factor).clamp(0, 1), atol=1e-5)
    torch.manual_seed(0)
    flat = tiny(TinyAugmentation((1, 1), 0, 0, 0, 0, 1.0, 0), **cfg)(square)
    torch.manual_seed(0)
    factor = 1 + (2 * torch.rand(12)[6] - 1)
    expected = (plain * factor + (1 - factor) * luma.mean()).clamp(0, 1)
    assert torch.allclose(flat, expected, atol=1e-5)
    turned = tiny(TinyAugmentation((1, 1), 0, 0, 0, 0, 0, 0, hue=0.3), **cfg)(square)
    assert not torch.allclose(turned, plain, atol=0.05)
    blurred = tiny(TinyAugmentation((1, 1), 0, 0, 0, 0, 0, 0, blur=1), **cfg)(square)
    assert blurred.var() < plain.var()


WRONG = {"scale": (1.2, 1.0), "translate": 1.5, "hue": 0.6, "blur": 2, "shear": 90}
WRONG |= {"grayscale": -0.1, "degrees": -1, "interpolation": "nearest"}


@pytest.mark.parametrize(
    "values", [{"scale": (0, 1)}, *({key: value} for key, value in WRONG.items())]
)
def test_augmentation__ranges_are_checked(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        TinyAugmentation(**values)


def test_preprocessing__settings_are_checked():
    for key in ("interpolation", "resize_mode"):
        refused(key, Preprocessing.from_dict, OPEN_CLIP | {key: "magic"})
    refused("train=True", build_transform, OPEN_CLIP, False, TinyAugmentation())
    refused("square", tiny, NEUTRAL, size=(24, 40))
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


def test_eval__resizes_before_the_crop_where_the_checkpoint_says_so(image):
    from torchvision.transforms.functional import center_crop, resize, to_tensor

    cfg = OPEN_CLIP | {"mean": 0.0, "std": 1.0, "resize_to": 40}
    resized = resize(image, 40, interpolation=Image.Resampling.BICUBIC)
    expected = to_tensor(center_crop(resized, [32, 32]))
    assert torch.equal(build_transform(cfg, False)(image), expected)


def _drawing(box, size=48):
    image = Image.new("RGB", (size, size), (255, 255, 255))
    image.paste((200, 30, 30), box)
    return image


def test_content_square__surrounds_what_is_not_white():
    x, y, side = content_square(_drawing((10, 20, 30, 28)))
    assert (x, y, side) == (9.0, 13.0, 22.0)


def test_content_square__white_image_is_kept_whole():
    assert content_square(Image.new("RGB", (48, 48), (255, 255, 255))) == (0, 0, 48)


def test_trim__canvas_around_a_drawing_does_not_matter():
    cfg = Preprocessing((48, 48), (0.5,) * 3, (0.5,) * 3, trim=True)
    transform = ImageTransform(cfg)
    small = transform(_drawing((4, 6, 24, 26)))
    moved = transform(_drawing((26, 20, 46, 40)))
    assert torch.allclose(small, moved, atol=0.02)
    assert float(small[1, 24, 24]) < 0  # red fills the middle
    plain = ImageTransform(replace(cfg, trim=False))
    assert not torch.allclose(plain(_drawing((4, 6, 24, 26))), small, atol=0.5)


def test_trim__neutral_augmentation_equals_the_evaluation_transform():
    cfg = Preprocessing((48, 48), (0.5,) * 3, (0.5,) * 3, trim=True)
    drawing = _drawing((7, 9, 33, 21))
    expected = ImageTransform(cfg)(drawing)
    assert torch.allclose(TinyTransform(cfg, NEUTRAL)(drawing), expected, atol=0.02)


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("thin", ImageFilter.MaxFilter),
        ("flatten", ImageFilter.MedianFilter),
        ("thicken", ImageFilter.MinFilter),
    ],
)
def test_tiny__restyling_is_the_named_filter(field, kind):
    cfg = Preprocessing((48, 48), (0.5,) * 3, (0.5,) * 3)
    drawing = _drawing((7, 9, 33, 21))
    drawing.paste((0, 0, 0), (10, 10, 11, 40))  # a thin line
    styled = TinyTransform(cfg, replace(NEUTRAL, **{field: 1.0}))(drawing)
    expected = ImageTransform(cfg)(drawing.filter(kind(3)))
    assert torch.allclose(styled, expected, atol=0.02)


def test_augmentation__restyling_probabilities_sum_to_at_most_one():
    refused("exceeds 1", replace, NEUTRAL, thin=0.6, thicken=0.6)


@pytest.mark.parametrize("size", [32, None, (32,), (32, 32, 3), "ab"])
def test_preprocessing__size_is_a_pair(size):
    refused("size=", Preprocessing, size, (0.5,) * 3, (0.5,) * 3)
