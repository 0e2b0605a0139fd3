"""From PIL images and image tensors to the model's input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avalanche_clip.common.checks import as_size
from avalanche_clip.common.pictures import picture_to_rgb
from avalanche_clip.models.images.augmentation import TinyAugmentation
from avalanche_clip.models.images.preprocessing import check_preprocess
from avalanche_clip.models.images.resizing import Fit

_LUMA = np.array([0.299, 0.587, 0.114])
_GREY = np.stack([_LUMA] * 3)
_IDENTITY = np.eye(3)
_WHITE = (255, 255, 255)
# Darker greys are ink: compression leaves a faint halo around drawings.
_IS_INK = [255 * (grey < 243) for grey in range(256)]


@dataclass(frozen=True)
class Preprocessing:
    """How a checkpoint wants its images.

    :param size: height and width in pixels.
    :param mean: channel means, of values in [0, 1].
    :param std: channel standard deviations.
    :param interpolation: ``"bicubic"`` or ``"bilinear"``.
    :param resize_mode: ``"shortest"`` (resize the shorter side, centre crop),
        ``"longest"`` (resize the longer side, pad) or ``"squash"``.
    :param fill_color: padding of ``"longest"``, 0 to 255.
    :param resize_to: length of the resized side before the centre crop, where
        it differs from ``size``; with ``"squash"`` both sides get it.
    :param trim: zoom to what is drawn: the square around everything that is
        not white fills the image, whatever canvas the artist left around it.
    :param exif_rotation: turn photographs as their EXIF orientation says; by
        default pixels are taken as stored, as open_clip and transformers do.

    Source: the fields of open_clip's ``PreprocessCfg``; ``resize_to`` is ours,
    for transformers' image processors, ``trim``, for drawings on white, and
    ``exif_rotation``.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0
    resize_to: int | None = None
    trim: bool = False
    # not part of the text that runs and feature stores are compared by, unless set
    exif_rotation: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.size, (tuple, list)) or len(self.size) != 2:
            raise ValueError(f"size={self.size!r} must be a pair, height and width.")
        for side in self.size:
            as_size(side, "size")
        if self.interpolation == "random":  # open_clip's word for a training option
            raise ValueError("interpolation='random' is unknown; use 'bicubic'.")
        check_preprocess(self.to_dict(), "Preprocessing")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """Read a ``preprocess_cfg`` dictionary; unknown keys are left out."""
        known = {f.name for f in fields(cls)}
        chosen = {k: v for k, v in values.items() if k in known and v is not None}
        size = chosen["size"]
        chosen["size"] = (size, size) if isinstance(size, int) else tuple(size)
        if chosen.get("interpolation") == "random":  # open_clip evaluates bicubic
            chosen["interpolation"] = "bicubic"
        for key in ("mean", "std"):
            value = chosen[key]
            is_number = isinstance(value, (int, float))
            chosen[key] = (value,) * 3 if is_number else tuple(value)
        return cls(**chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that ``from_dict`` reads."""
        values = {
            k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()
        }
        if not self.exif_rotation:
            del values["exif_rotation"]
        return values

    def describe(self) -> str:
        """Return all settings that differ from a plain picture's, as text."""
        return f"{self}{', exif_rotation=True' if self.exif_rotation else ''}"


def to_rgb(
    image: Image.Image | Tensor, *, exif_rotation: bool = False
) -> Image.Image | Tensor:
    """Bring any image to three channels.

    Pictures follow :func:`avalanche_clip.common.pictures.picture_to_rgb`, as the
    readers of files do: transparent pixels become white, as on paper. Byte tensors
    become PIL images, so that they take the same path as files.

    :param image: PIL image of any mode, or tensor ``(C, H, W)`` with one,
        three or four channels, uint8 or float in [0, 1].
    :param exif_rotation: turn PIL images as their EXIF orientation says.
    :return: PIL image in RGB, or float tensor ``(3, H, W)``.
    :raises TypeError: for another type.
    :raises ValueError: for another shape, no pixels, or values outside the range.
    """
    if isinstance(image, Image.Image):
        return picture_to_rgb(image, exif_rotation=exif_rotation)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"An image came as {type(image).__name__}; give a PIL image (of a file "
            "Image.open(path), of an array Image.fromarray(array)) or a tensor of "
            "shape (3, H, W)."
        )
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"An image tensor has shape {tuple(image.shape)}; give (C, H, W) with 1, 3"
            " or 4 channels and at least one pixel."
        )
    if image.dtype == torch.uint8:
        array = image.permute(1, 2, 0).cpu().numpy()
        return picture_to_rgb(
            Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
        )
    if not image.is_floating_point():
        raise TypeError(
            f"An image tensor has type {image.dtype}; give uint8, or float in [0, 1]."
        )
    image = image.float()
    low, high = (float(value) for value in image.aminmax())
    if not (low >= 0 and high <= 1):  # written so that NaN is refused
        raise ValueError(
            f"A float image tensor holds values from {low:.9g} to {high:.9g}; they "
            "must lie in [0, 1]. Divide bytes by 255, and leave out a normalisation: "
            "the transform does it."
        )
    if image.shape[0] == 4:
        return image[:3] * image[3:] + (1 - image[3:])
    return image.expand(3, -1, -1)


def content_square(drawing: Image.Image) -> tuple[float, ...]:
    """Find the square around everything that is not white, and a pixel more.

    :param drawing: RGB image.
    :return: left and upper edge and side of the square, in pixels; it may
        reach beyond the image. A white image gives the whole image.
    """
    found = drawing.convert("L").point(_IS_INK).getbbox()
    left, upper, right, lower = found or (0, 0, *drawing.size)
    side = max(right - left, lower - upper) + (2.0 if found else 0.0)
    return (left + right - side) / 2, (upper + lower - side) / 2, side


class ImageTransform:
    """Resize, crop and normalise as the checkpoint expects.

    :param preprocessing: the checkpoint's settings.
    :param train: random resized crop of 90 to 100 % of the area instead of
        the deterministic resize; never mirrored.

    The result is float32 ``(3, H, W)``. ``deterministic`` is True when the
    same image always gives the same tensor. All randomness comes from torch's
    global generator.

    Source: open_clip's ``image_transform`` (the scale of 0.9 to 1 and the
    missing mirror are its defaults).
    """

    def __init__(self, preprocessing: Preprocessing, train: bool = False) -> None:
        self.preprocessing = preprocessing
        self.deterministic = not train
        self._spatial: Callable[[Any], Any] = _spatial(preprocessing)
        if train:
            from torchvision import transforms as tv

            mode = tv.InterpolationMode.BICUBIC
            size = preprocessing.size
            self._spatial = tv.RandomResizedCrop(size, (0.9, 1.0), interpolation=mode)
        self._mean = torch.tensor(preprocessing.mean).view(3, 1, 1)
        self._std = torch.tensor(preprocessing.std).view(3, 1, 1)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Transform one image."""
        placed = self.place(image)
        if isinstance(placed, Tensor):
            return (placed - self._mean) / self._std
        pixels = torch.from_numpy(_planes(placed)).float()
        return pixels.div_(255).sub_(self._mean).div_(self._std)

    def place(self, image: Image.Image | Tensor) -> Image.Image | Tensor:
        """Bring one image to the model's size, turned and trimmed, in [0, 1] or bytes.

        This is :meth:`__call__` without the normalisation: what another library needs
        that resizes and normalises, but does not trim.
        """
        rotation = self.preprocessing.exif_rotation
        placed = self._spatial(to_rgb(image, exif_rotation=rotation))
        return _trimmed(as_pil(placed)) if self.preprocessing.trim else placed

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.preprocessing.describe()},"
            f" train={not self.deterministic})"
        )


def as_pil(image: Image.Image | Tensor) -> Image.Image:
    """Return a PIL image as it is, a float tensor ``(3, H, W)`` in [0, 1] as one."""
    if isinstance(image, Image.Image):
        return image
    array = (image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0)
    return Image.fromarray(array.cpu().numpy())


def _trimmed(drawing: Image.Image) -> Image.Image:
    x, y, side = content_square(drawing)
    width, height = drawing.size
    return drawing.transform(
        drawing.size,
        Image.Transform.AFFINE,
        (side / width, 0, x, 0, side / height, y),
        resample=Image.Resampling.BILINEAR,
        fillcolor=_WHITE,
    )


def _planes(image: Image.Image) -> np.ndarray:
    """Return the bytes of an RGB image, ``(3, H, W)``."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def _spatial(cfg: Preprocessing) -> Fit:
    resizing = cfg.interpolation, cfg.resize_mode, cfg.resize_to, cfg.fill_color
    return Fit(cfg.size, *resizing)


class TinyTransform:
    """Fast augmentation of small drawings: one affine map, one colour matrix.

    Images of another size are first brought to the model's size. Everything
    that is linear in colour (brightness, contrast, saturation) is one 3x3 matrix,
    applied with the normalisation.

    :param preprocessing: the model's settings; its size is square.
    :param augmentation: ranges of the random maps.

    The result is float32 ``(3, S, S)``; randomness comes from one call of
    ``torch.rand``, whatever the settings.
    """

    deterministic = False

    def __init__(
        self, preprocessing: Preprocessing, augmentation: TinyAugmentation
    ) -> None:
        if preprocessing.size[0] != preprocessing.size[1]:
            raise ValueError(
                f"size={preprocessing.size} is not square; TinyTransform needs a"
                " square input."
            )
        self.preprocessing = preprocessing
        self.augmentation = augmentation
        self._fit = _spatial(preprocessing)
        self._mean = np.asarray(preprocessing.mean).reshape(3, 1)
        self._std = np.asarray(preprocessing.std).reshape(3, 1)
        self._low = ((0 - self._mean) / self._std).astype(np.float32)
        self._high = ((1 - self._mean) / self._std).astype(np.float32)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """Transform one image."""
        rotation = self.preprocessing.exif_rotation
        drawing = as_pil(to_rgb(image, exif_rotation=rotation))
        side = self.preprocessing.size[0]
        if drawing.size != (side, side):
            drawing = self._fit(drawing)
        # more than are used, so that a seed places drawings as it always did
        draws = torch.rand(13).tolist()
        drawing = drawing.transform(
            (side, side),
            Image.Transform.AFFINE,
            self._placed(self._affine(draws[:5], side), drawing),
            resample=Image.Resampling.BILINEAR,
            fillcolor=_WHITE,
        )
        return torch.from_numpy(self._colour(_planes(drawing), draws[5:8]))

    def _placed(
        self, affine: tuple[float, ...], drawing: Image.Image
    ) -> tuple[float, ...]:
        """Let the map end in the square around the drawing, if asked for."""
        if not self.preprocessing.trim:
            return affine
        left, upper, side = content_square(drawing)
        ratio = side / drawing.size[0]
        a, b, c, d, e, f = (ratio * value for value in affine)
        return (a, b, c + left, d, e, f + upper)

    def _affine(self, draws: list[float], side: int) -> tuple[float, ...]:
        """Return the map from output to input pixel coordinates."""
        aug = self.augmentation
        zoom = aug.scale[0] + (aug.scale[1] - aug.scale[0]) * draws[0]
        angle = math.radians(aug.degrees * (2 * draws[1] - 1))
        shift = [aug.translate * side * (2 * d - 1) for d in draws[3:5]]
        cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
        centre = side / 2  # PIL evaluates the map at pixel centres, x + 0.5
        x, y = centre + shift[0], centre + shift[1]
        left, upper = centre - cos * x - sin * y, centre + sin * x - cos * y
        return (cos, sin, left, -sin, cos, upper)

    def _colour(self, planes: np.ndarray, draws: list[float]) -> np.ndarray:
        """Change colours and normalise, bytes ``(3, H, W)`` to float32."""
        aug = self.augmentation
        bright = 1 + aug.brightness * (2 * draws[0] - 1)
        contrast = 1 + aug.contrast * (2 * draws[1] - 1)
        colourful = 1 + aug.saturation * (2 * draws[2] - 1)
        matrix = colourful * _IDENTITY + (1 - colourful) * _GREY
        pixels = planes.reshape(3, -1).astype(np.float32)
        grey = 0.0
        if aug.contrast:
            ones = np.ones(pixels.shape[1], dtype=np.float32)
            grey = float(_LUMA @ (pixels @ ones)) / pixels.shape[1] / 255
        # normalisation is linear too, so it joins the matrix and the bounds
        matrix = (bright * contrast / 255) * matrix / self._std
        offset = (bright * (1 - contrast) * grey - self._mean) / self._std
        mixed = matrix.astype(np.float32) @ pixels
        mixed += offset.astype(np.float32)
        np.maximum(mixed, self._low, out=mixed)
        np.minimum(mixed, self._high, out=mixed)
        return mixed.reshape(planes.shape)

    def __repr__(self) -> str:
        settings = self.preprocessing.describe()
        return f"{type(self).__name__}({settings}, {self.augmentation})"


def build_transform(
    values: dict[str, Any],
    train: bool,
    augmentation: TinyAugmentation | None = None,
) -> ImageTransform | TinyTransform:
    """Build the transform that a model configuration describes.

    :param values: ``preprocess_cfg`` dictionary; its optional key
        ``augmentation`` holds the fields of :class:`TinyAugmentation`.
    :param train: random (True) or deterministic.
    :param augmentation: replaces the configured one; only for ``train``.
    :return: the transform.
    """
    cfg = Preprocessing.from_dict(values)
    if augmentation is not None and not train:
        raise ValueError(
            "An augmentation was given for the evaluation transform; pass train=True."
        )
    if train and augmentation is None and values.get("augmentation") is not None:
        augmentation = TinyAugmentation.from_dict(values["augmentation"])
    if train and augmentation is not None:
        return TinyTransform(cfg, augmentation)
    return ImageTransform(cfg, train)
