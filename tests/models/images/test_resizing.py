"""Bounded resizing and cropping against the direct way."""

import time
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from avalanche_clip.models.images.resizing import Fit, resize_and_crop
from avalanche_clip.models.images.transforms import build_transform

MODES = [InterpolationMode.BICUBIC, InterpolationMode.BILINEAR]


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "size", [(9, 40), (40, 9), (31, 64), (7, 7), (100, 23), (1, 5)]
)
@pytest.mark.parametrize("side", [32, 40])
def test_part__equals_resizing_the_whole(size, side, mode):
    image = picture(*size)
    target = [int(side * length / min(size)) for length in size]
    for given in (image, as_tensor(image)):
        whole, part = (
            resize_and_crop(given, target, (32, 32), mode, largest)
            for largest in (np.inf, 0)
        )
        if isinstance(given, torch.Tensor):
            assert torch.allclose(whole, part, atol=1e-5)
        else:
            difference = np.asarray(whole, int) - np.asarray(part, int)
            assert np.abs(difference).max() <= 1
            assert (difference != 0).mean() < 0.05


@pytest.mark.parametrize("size", [(50, 70), (33, 500), (32, 32), (500, 40)])
@pytest.mark.parametrize("crop", [(32, 32), (20, 28)])
@pytest.mark.parametrize("kind", ["squash", "shortest"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", [28, 32, 40])
def test_usual_pictures__are_torchvisions(size, crop, kind, mode, side):
    ours = Fit(crop, mode.value, kind, resize_to=side)
    resize = Resize((side, side) if kind == "squash" else side, mode)
    reference = Compose([resize, CenterCrop(crop)])
    image = picture(*size)
    assert np.array_equal(np.asarray(ours(image)), np.asarray(reference(image)))
    assert torch.equal(ours(as_tensor(image)), reference(as_tensor(image)))


@pytest.mark.parametrize("shape", [(1, 4000), (1, 1), (2, 9000), (10**6, 1)])
@pytest.mark.parametrize("size", [224, (160, 224)])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("kind", ["picture", "tensor", "train"])
def test_strips__take_little_time_and_memory(shape, size, resize_mode, kind):
    image = picture(*shape)
    if kind == "tensor":
        image = as_tensor(image)
    values = {"size": size, "mean": 0.5, "std": 0.5, "resize_mode": resize_mode}
    transform = build_transform(values, kind == "train")
    transform(picture(8, 8))
    tracemalloc.start()
    start = time.process_time()
    result = transform(image)
    taken = time.process_time() - start
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert result.shape[1:] == ((size, size) if isinstance(size, int) else size)
    assert bool(torch.isfinite(result).all())
    assert taken < 1.5 and peak < 2**26


@pytest.mark.parametrize("shape", [(4000, 1), (70, 1), (901, 7), (1, 300)])
@pytest.mark.parametrize("kind", ["squash", "longest"])
def test_strips__of_tensors_and_pictures_are_alike(shape, kind):
    smooth = np.linspace(0, 255, shape[0] * shape[1] * 3).reshape(*shape, 3)
    image = Image.fromarray(smooth.round().astype(np.uint8))
    ours = Fit((16, 16), "bilinear", kind)
    assert torch.allclose(ours(as_tensor(image)), as_tensor(ours(image)), atol=0.01)


def test_strips__show_the_middle():
    pixels = np.zeros((1, 4001, 3), np.uint8)
    pixels[0, 2000:] = 255
    values = {"size": 32, "mean": 0.0, "std": 1.0, "interpolation": "bilinear"}
    transform = build_transform(values, False)
    for given in (Image.fromarray(pixels), as_tensor(pixels)):
        row = transform(given)[0, 16]
        # the middle 32 columns of 128032 lie within the first white pixel
        assert row[-1] == 1 and row[0] > 0.5 and bool((row.diff() >= 0).all())
