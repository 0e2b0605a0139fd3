"""One way from a picture file to RGB pixels: opening with limits, one rule of modes.

Readers of files and the models' transforms both come here, so that a picture becomes
the same pixels whichever way it takes.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from avalanche_clip.common.files import (
    file_limits,
    found_in,
    found_in_bytes,
    require_file,
    unreadable,
)

_WHITE = (255, 255, 255)
_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")
_PLAIN = ("1", "L", "P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX")
# Where Pillow keeps what says how a camera was held.
_EXIF = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")
# Pillow hands these to a program outside Python.
_REFUSED_FORMATS = ("EPS",)
# Samples of fewer than 8 bits are spread to 0..255, but not the colour key.
_KEY_FACTORS = {"L;2": 85, "L;4": 17}
_header_lock = threading.Lock()


class PictureSizeError(ValueError):
    """Raised when a picture has more pixels than are allowed."""


def read_picture(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Read a picture as RGB, see :func:`open_picture` and :func:`picture_to_rgb`."""
    return picture_to_rgb(open_picture(source, name))


def open_picture(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Open and decode a picture in its own mode; of several frames the first.

    :param source: path of a file, or its content.
    :param name: names the picture in errors; default the path.
    :return: a decoded picture; no file stays open.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is no picture, damaged, or larger than allowed, see
        :func:`require_size`; the message names the file and the cause.
    """
    if isinstance(source, bytes):
        found = found_in_bytes(source[:512])
        return _decode(io.BytesIO(source), name or "A picture", found)
    with open(require_file(source), "rb") as file:
        if name is None:
            return _decode(file, str(source), None)
        return _decode(file, name, found_in(source))


def _decode(file: Any, place: str, found: str | None) -> Image.Image:
    try:
        image = _header(file)
    except Exception as error:  # decoders raise nearly anything
        raise _damaged(place, found, error) from error
    with image:
        require_size(image, place)
        _load(image, place, found)
        require_size(image, place)  # icons hold several sizes
        image.filename = place  # type: ignore[attr-defined]
    return image


def _header(file: Any) -> Image.Image:
    """Open without decoding, also above the size at which Pillow gives up."""
    try:
        return Image.open(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        file.seek(0)
        with _without_pillows_limit():
            return Image.open(file)


@contextmanager
def _without_pillows_limit() -> Iterator[None]:
    with _header_lock:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _damaged(place: str, found: str | None, error: Exception) -> ValueError:
    cause: object = error
    if isinstance(error, Image.UnidentifiedImageError):
        cause = "it has no format that Pillow knows"
    if found is None:
        return unreadable(place, "a whole picture", cause)
    cause = str(cause) or type(error).__name__
    found = f" Found {found}." if found else ""
    return ValueError(f"{place} is not a whole picture: {cause}.{found}")


def require_size(image: Image.Image, place: str = "A picture") -> None:
    """Refuse a picture that would take too much memory, before it is decoded.

    The limit is ``file_limits.picture_pixels``, or where that is None Pillow's
    ``PIL.Image.MAX_IMAGE_PIXELS``, which Pillow itself only warns about.

    :param place: names the picture.
    :raises PictureSizeError: naming place, size and limit.
    """
    limit = file_limits.picture_pixels
    if limit is None:
        limit = Image.MAX_IMAGE_PIXELS
    width, height = image.size
    if limit is not None and width * height > limit:
        raise PictureSizeError(
            f"{place} has {width} x {height} = {width * height} pixels, more than the "
            f"limit of {limit}, so it is refused. Shrink it or, if its size is "
            "meant, set avalanche_clip.file_limits.picture_pixels."
        )


def decoded(image: Image.Image) -> Image.Image:
    """Check the size of a picture and decode it in place, unless it is.

    :raises ValueError: if it is too large or damaged, with the name of its file.
    """
    place = str(getattr(image, "filename", "") or "A picture")
    require_size(image, place)
    _load(image, place, "" if place == "A picture" else None)
    return image


def _load(image: Image.Image, place: str, found: str | None) -> None:
    """Decode, and mend the colour key.

    Pillow gives the key of PNG files as stored, but spreads samples of 2 and 4 bits
    and cuts colours of 16, so that the key would fit no pixel or another one.
    """
    tiles = getattr(image, "tile", None)
    if tiles and image.format in _REFUSED_FORMATS:
        raise ValueError(
            f"{place} is an {image.format} drawing, which another program would have "
            "to run; convert it to PNG."
        )
    key = image.info.get("transparency")
    stored = ""
    if tiles and key is not None and image.format == "PNG":
        stored = next((part for part in tiles[0] if part in _STORED), "")
    try:
        image.load()
    except Exception as error:  # decoders raise nearly anything
        raise _damaged(place, found, error) from error
    if stored in _KEY_FACTORS and isinstance(key, int):
        image.info["transparency"] = key * _KEY_FACTORS[stored]
    elif stored == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)


_STORED = (*_KEY_FACTORS, "RGB;16B")


def picture_to_rgb(image: Image.Image, *, exif_rotation: bool = False) -> Image.Image:
    """Bring a picture of any mode to RGB, always in the same way.

    - What is transparent becomes white, as on paper: alpha (RGBA, LA, PA and the
      premultiplied ones) is laid over white, the transparent colours of a palette
      and the colour key of PNG files (``info["transparency"]``) become white.
    - I;16, I;16B and I are greys of 16 bits: 0 to 65535 become 0 to 255, rounded to
      the nearest.
    - F holds greys from 0 to 1.
    - 1, L, P, CMYK, YCbCr, HSV, LAB and RGBX are converted as Pillow does.

    :param image: of several frames the current one is taken.
    :param exif_rotation: turn the picture as its EXIF orientation says; by default
        its pixels are taken as stored, as open_clip and transformers do. (Pillow
        itself turns TIFF files when it decodes them.)
    :return: a picture in RGB, the given one if there is nothing to do. Its EXIF
        orientation is kept, so that it may be turned later.
    :raises ValueError: for another mode, values outside the range, or no pixels.

    >>> picture_to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if 0 in image.size:
        raise ValueError(f"An image has no pixels: size {image.size}.")
    name = getattr(decoded(image), "filename", "")
    if exif_rotation:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    try:
        plain = _reduced(image)
    except ValueError as error:
        raise ValueError(f"{name}: {error}" if name else str(error)) from error
    plain.info = {k: v for k, v in image.info.items() if k in _EXIF}
    return plain


def _reduced(image: Image.Image) -> Image.Image:
    if image.mode in _WITH_ALPHA or (image.mode == "P" and _has_clear_colours(image)):
        return _over_white(image)
    if image.mode.startswith("I"):
        plain = _from_16_bits(np.asarray(image))
    elif image.mode == "F":
        plain = _from_unit(np.asarray(image))
    elif image.mode == "RGB" or image.mode in _PLAIN:
        plain = image.convert("RGB")
    else:
        raise ValueError(
            f"An image has the mode {image.mode!r}, which has no rule; convert it to "
            "'RGB'."
        )
    key = image.info.get("transparency")
    if key is None or image.mode == "P":
        return plain
    found = np.asarray(image.convert("L") if image.mode == "1" else image) == key
    pixels = np.array(plain)
    pixels[found.all(axis=2) if found.ndim == 3 else found] = 255
    return Image.fromarray(pixels)


def _has_clear_colours(image: Image.Image) -> bool:
    palette = image.palette
    with_alpha = palette is not None and palette.mode.endswith("A")
    return with_alpha or "transparency" in image.info


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "La":
        image = image.convert("LA")
    image = image.convert("RGBA")
    paper = Image.new("RGB", image.size, _WHITE)
    paper.paste(image, mask=image.getchannel("A"))
    return paper


def _from_16_bits(grey: np.ndarray) -> Image.Image:
    low, high = int(grey.min()), int(grey.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"An image of 16-bit greys (mode I) holds values from {low} to {high}; "
            "they must lie in 0..65535."
        )
    levels = (grey.astype(np.int32) + 128) // 257
    return Image.fromarray(levels.astype(np.uint8)).convert("RGB")


def _from_unit(grey: np.ndarray) -> Image.Image:
    low, high = float(grey.min()), float(grey.max())
    if not (low >= 0 and high <= 1):  # written so that NaN is refused
        raise ValueError(
            f"An image of mode F holds values from {low:g} to {high:g}; they must lie "
            "in [0, 1]. Scale them, or convert the image to 'L' or 'RGB'."
        )
    return Image.fromarray((grey * 255 + 0.5).astype(np.uint8)).convert("RGB")
