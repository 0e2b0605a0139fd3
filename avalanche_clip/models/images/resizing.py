"""Resizing and cropping of pictures and image tensors, with bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# A resized picture may have so many times the pixels that are cropped from it.
_LARGEST_SHARE = 64


def spatial_transform(
    size: tuple[int, int],
    interpolation: str,
    resize_mode: str = "shortest",
    *,
    resize_to: int | None = None,
    fill_color: int = 0,
) -> Callable[[Any], Any]:
    """Make what brings a picture or tensor to a size, the same each time.

    The options are those of :class:`~avalanche_clip.models.Preprocessing`.
    """
    from torchvision import transforms as tv

    mode = tv.InterpolationMode(interpolation)
    if resize_mode == "squash":
        return _SquashCrop(size, mode, resize_to)
    if resize_mode == "longest":
        return _ResizePad(size, mode, fill_color)
    if resize_to is not None or size[0] == size[1]:
        return _ShortestCrop(size, mode, resize_to or size[0])
    return _CoverCrop(size, mode)


def height_width(image: Any) -> tuple[int, int]:
    """Return height and width of a PIL image or a tensor ``(..., H, W)``."""
    if isinstance(image, Tensor):
        return int(image.shape[-2]), int(image.shape[-1])
    return image.height, image.width


class _SquashCrop:
    """Resize both sides whatever the picture's shape, and crop the centre."""

    def __init__(self, size: tuple[int, int], mode: Any, side: int | None) -> None:
        self.size, self.mode = size, mode
        self.target = size if side is None else (side, side)

    def __call__(self, image: Any) -> Any:
        return resize_and_crop(image, self.target, self.size, self.mode)


class _ShortestCrop:
    """Resize the shorter side to a length, and crop the centre."""

    def __init__(self, size: tuple[int, int], mode: Any, side: int) -> None:
        self.size, self.mode, self.side = size, mode, side

    def __call__(self, image: Any) -> Any:
        height, width = height_width(image)
        short = min(height, width)
        # torchvision's rounding
        target = [int(self.side * length / short) for length in (height, width)]
        return resize_and_crop(image, target, self.size, self.mode)


class _CoverCrop:
    """Resize so that a box of the given size is just covered, and crop."""

    def __init__(self, size: tuple[int, int], mode: Any) -> None:
        self.size, self.mode = size, mode

    def __call__(self, image: Any) -> Any:
        target = _scaled(image, self.size, min)
        return resize_and_crop(image, target, self.size, self.mode)


class _ResizePad:
    """Resize so that the image fits into the given size, and pad the rest."""

    def __init__(self, size: tuple[int, int], mode: Any, fill: int) -> None:
        self.size, self.mode, self.fill = size, mode, fill

    def __call__(self, image: Any) -> Any:
        from torchvision.transforms.functional import center_crop, pad

        image = _resized(image, _scaled(image, self.size, max), self.mode)
        height, width = height_width(image)
        missing = (max(self.size[0] - height, 0), max(self.size[1] - width, 0))
        fill = self.fill / 255 if isinstance(image, Tensor) else (self.fill,) * 3
        border = [
            missing[1] // 2,
            missing[0] // 2,
            (missing[1] + 1) // 2,
            (missing[0] + 1) // 2,
        ]
        return center_crop(pad(image, border, fill=fill), list(self.size))


def _scaled(image: Any, size: tuple[int, int], pick: Any) -> list[int]:
    """Height and width after scaling by one of the two ratios to a size."""
    lengths = height_width(image)
    ratio = pick(length / side for length, side in zip(lengths, size))
    return [max(1, round(length / ratio)) for length in lengths]


def resize_and_crop(
    image: Any,
    target: Sequence[int],
    size: Sequence[int],
    mode: Any,
    largest: float = _LARGEST_SHARE,
) -> Any:
    """Resize a picture or tensor and crop its centre, never through a huge one.

    Of a long strip only the part that is cropped is resized: in exact arithmetic
    these are the same pixels.

    :param image: PIL image in RGB, or float tensor ``(C, H, W)``.
    :param target: height and width after resizing.
    :param size: height and width of the crop; what is missing is black.
    :param mode: torchvision's ``InterpolationMode``.
    :param largest: how many times the pixels of the crop a resized picture may
        have.
    """
    from torchvision.transforms.functional import center_crop

    if target[0] * target[1] <= largest * size[0] * size[1]:
        return center_crop(_resized(image, target, mode), list(size))
    kept = [min(*pair) for pair in zip(target, size)]
    box = []
    for length, whole, part in zip(height_width(image), target, kept):
        start = int(round((whole - part) / 2))  # torchvision's rounding
        box.append((start * length / whole, (start + part) * length / whole))
    (upper, lower), (left, right) = box
    part = _resize_box(image, kept, mode, (left, upper, right, lower))
    return center_crop(part, list(size))


def _resize_box(
    image: Any, size: list[int], mode: Any, box: tuple[float, float, float, float]
) -> Any:
    """Resize a part of an image, whose surroundings enter where the filter is wide."""
    resample = Image.Resampling[mode.name]
    if not isinstance(image, Tensor):
        return _in_two_passes(image, size, resample, box)
    return _planewise(image, lambda plane: _in_two_passes(plane, size, resample, box))


def _resized(image: Any, size: Sequence[int], mode: Any) -> Any:
    """Resize the whole of a picture or tensor."""
    from torchvision.transforms.functional import resize

    height = height_width(image)[0]
    if isinstance(image, Tensor) and (
        size[1] == 1 or height > _LARGEST_SHARE * size[0]
    ):
        # torch 2.15 mixes the channels up where one column is left, and widens all
        # rows of a strip first
        resample = Image.Resampling[mode.name]
        return _planewise(
            image, lambda plane: plane.resize((size[1], size[0]), resample)
        )
    return resize(image, list(size), mode)


def _planewise(image: Tensor, resize: Callable[[Image.Image], Image.Image]) -> Tensor:
    """Let Pillow resize each channel: it resizes floats as torch does."""
    planes = image.float().cpu().numpy()
    done = [np.array(resize(Image.fromarray(plane))) for plane in planes]
    return torch.from_numpy(np.stack(done)).to(image.device)


def _in_two_passes(
    image: Image.Image, size: list[int], resample: Any, box: tuple[float, ...]
) -> Image.Image:
    """Resize columns, then rows, as Pillow does when it enlarges a whole strip.

    Left to itself it may turn the order round for a part, and it clips between.
    """
    left, upper, right, lower = box
    # rows that a filter of four rows can see
    reach = 2 * math.ceil(max(1, (lower - upper) / size[0])) + 1
    first = max(0, math.floor(upper) - reach)
    last = min(image.height, math.ceil(lower) + reach)
    rows = image.crop((0, first, image.width, last))
    columns = rows.resize(
        (size[1], last - first), resample, (left, 0, right, last - first)
    )
    part = (0, upper - first, size[1], lower - first)
    return columns.resize((size[1], size[0]), resample, part)
