"""Resizing and cropping of pictures and image tensors, with bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# A resized picture may have so many times the pixels that are cropped from it.
_LARGEST_SHARE = 64


def height_width(image: Any) -> tuple[int, int]:
    """Return height and width of a PIL image or a tensor ``(..., H, W)``."""
    if isinstance(image, Tensor):
        return int(image.shape[-2]), int(image.shape[-1])
    return image.height, image.width


def as_pair(size: Any) -> tuple[int, int]:
    """Return height and width of a size, which may be the side of a square."""
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


@dataclass(frozen=True)
class Fit:
    """Bring a picture or tensor to a size, the same each time.

    The options are those of :class:`~avalanche_clip.models.Preprocessing`.

    :param size: height and width of the result.
    :param interpolation: ``"bicubic"`` or ``"bilinear"``.
    :param resize_mode: ``"squash"``: both sides whatever the picture's shape;
        ``"shortest"``: the shorter side, or, for oblong sizes without
        ``resize_to``, so that a box of the size is just covered; ``"longest"``: so
        that the picture fits, padded.
    :param resize_to: length to which sides are resized before the crop.
    :param fill_color: of the padding, 0 to 255.
    """

    size: tuple[int, int]
    interpolation: str
    resize_mode: str = "shortest"
    resize_to: int | None = None
    fill_color: int = 0

    def __call__(self, image: Any) -> Any:
        from torchvision.transforms import InterpolationMode

        mode = InterpolationMode(self.interpolation)
        target = self._target(height_width(image))
        if self.resize_mode == "longest":
            return self._padded(_resized(image, target, mode))
        return resize_and_crop(image, target, self.size, mode)

    def _target(self, lengths: tuple[int, int]) -> Sequence[int]:
        """Height and width to which a picture is resized."""
        side = self.resize_to
        if self.resize_mode == "squash":
            return self.size if side is None else (side, side)
        if side is None and self.size[0] == self.size[1]:
            side = self.size[0]
        if self.resize_mode == "shortest" and side is not None:
            # torchvision's rounding
            return [int(side * length / min(lengths)) for length in lengths]
        pick = max if self.resize_mode == "longest" else min
        ratio = pick(length / size for length, size in zip(lengths, self.size))
        return [max(1, round(length / ratio)) for length in lengths]

    def _padded(self, image: Any) -> Any:
        from torchvision.transforms.functional import center_crop, pad

        lengths = height_width(image)
        rows, columns = (max(s - n, 0) for s, n in zip(self.size, lengths))
        grey = self.fill_color
        fill = grey / 255 if isinstance(image, Tensor) else (grey,) * 3
        border = [columns // 2, rows // 2, (columns + 1) // 2, (rows + 1) // 2]
        return center_crop(pad(image, border, fill=fill), list(self.size))


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
    resample, edges = Image.Resampling[mode.name], (left, upper, right, lower)

    def cut(plane: Image.Image) -> Image.Image:
        return _in_two_passes(plane, kept, resample, edges)

    resized = _planewise(image, cut) if isinstance(image, Tensor) else cut(image)
    return center_crop(resized, list(size))


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
    """Resize a part of an image, whose surroundings enter where the filter is wide.

    Columns are resized, then rows, as Pillow does when it enlarges a whole strip.

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
