"""Which preprocessing weights were trained with, and what says so.

Order of truth: what lies beside or inside the weights, then what open_clip knows of
the model's name and tag, then the default of the model's family.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from avalanche_clip.common.files import read_json
from avalanche_clip.models.images.augmentation import TinyAugmentation
from avalanche_clip.models.images.resizing import as_pair

OPENAI = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
SIGLIP = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}
KEYS = ("mean", "std", "interpolation", "resize_mode", "fill_color")
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_FILTERS = {2: "bilinear", 3: "bicubic"}
_CHOICES = {
    "resize_mode": ("shortest", "longest", "squash"),
    "interpolation": ("bicubic", "bilinear", "random"),
    "mode": ("RGB",),
}


# --------------------------------------------------------------- open_clip
def of_tag(facts: dict[str, Any]) -> dict[str, Any]:
    """Take the preprocessing out of what open_clip knows of a tag."""
    found = {k: facts[k] for k in KEYS if facts.get(k) is not None}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}


def of_name(name: str) -> tuple[dict[str, Any], str]:
    """Find the preprocessing on which all tags of an open_clip name agree.

    :param name: open_clip model name.
    :return: settings, and where they come from. Without tags, or where tags
        disagree, the settings are empty.
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    tags = list_pretrained_tags_by_model(name)
    found = [of_tag(get_pretrained_cfg(name, tag)) for tag in tags]
    if not found:
        return {}, f"the default, since open_clip knows no weights of {name}"
    if any(other != found[0] for other in found[1:]):
        return {}, f"the default, since the tags of {name} disagree"
    return found[0], f"the tags of {name}, which agree"


def warn_of_default(name: str, source: str) -> None:
    """Say that weights may have been trained with other preprocessing."""
    warnings.warn(
        f"The preprocessing of {name} is {source}. Give the tag of the weights, a "
        "folder with their configuration, or a configuration with 'preprocess_cfg'.",
        UserWarning,
        stacklevel=4,
    )


# ------------------------------------------------------------------- checks
def check_preprocess(values: Any, source: str) -> dict[str, Any]:
    """Make sure that stored preprocessing can be honoured.

    :param values: ``preprocess_cfg`` of a configuration.
    :param source: what holds it, for messages.
    :return: the settings that are given (not None).
    :raises ValueError: naming the setting.
    """
    if not isinstance(values, dict):
        raise _refused(source, "preprocess_cfg", values, "give a mapping")
    values = {k: v for k, v in values.items() if v is not None}
    for key in ("mean", "std"):
        if key in values and not _is_triple(values[key], positive=key == "std"):
            kind = "positive numbers" if key == "std" else "numbers"
            raise _refused(source, key, values[key], f"give three {kind}")
    for key, known in _CHOICES.items():
        if key in values and values[key] not in known:
            raise _refused(source, key, values[key], f"use one of {', '.join(known)}")
    fill = values.get("fill_color", 0)
    if not _is_integer(fill) or not 0 <= fill <= 255:
        raise _refused(source, "fill_color", fill, "give an integer from 0 to 255")
    if "resize_to" in values and not _is_size(values["resize_to"]):
        raise _refused(source, "resize_to", values["resize_to"], "give pixels, above 0")
    for key in ("trim", "exif_rotation"):
        if key in values and not isinstance(values[key], bool):
            raise _refused(source, key, values[key], "give true or false")
    augmentation = values.get("augmentation", {})
    try:
        TinyAugmentation.from_dict(augmentation)
    except (TypeError, ValueError) as error:
        raise _refused(source, "augmentation", augmentation, str(error)) from error
    return values


def _refused(source: str, key: str, value: Any, advice: str) -> ValueError:
    return ValueError(
        f"{source} has the preprocessing {key}={value!r}, which cannot be honoured; "
        f"{advice}."
    )


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_integer(value) and value > 0


def _is_triple(value: Any, *, positive: bool) -> bool:
    values = [value] * 3 if _is_number(value) else value
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        return False
    return all(_is_number(v) and (v > 0 or not positive) for v in values)


# ------------------------------------------------- transformers' processors
def read_image_processor(
    folder: Path, image_size: Any
) -> tuple[dict[str, Any], str | None]:
    """Read preprocessing from the files of a transformers image processor.

    :param folder: holds ``preprocessor_config.json`` or ``processor_config.json``;
        neither gives an empty result.
    :param image_size: pixels that the image tower takes, side or (height, width).
    :return: ``preprocess_cfg`` entries and the name of the file.
    :raises ValueError: for settings that cannot be honoured, naming them.
    """
    values: dict[str, Any] = {}
    source = None
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            read = read_json(folder / name, dict)
            inner = read.get("image_processor", read)
            # a processor may hold a tokenizer's settings only
            if isinstance(inner, dict) and _is_image_processor(inner):
                values.update(inner)
                source = str(folder / name)
    if source is None:
        return {}, None
    return _Processor(values, source).read(as_pair(image_size)), source


_STEPS = ("do_resize", "do_rescale", "do_normalize", "do_center_crop")
# settings of other processors that have no counterpart here
_FURTHER = ("crop_pct", "use_square_size", "rescale_offset", "size_divisor", "pad_size")


def _is_image_processor(values: dict[str, Any]) -> bool:
    keys = {
        *("image_processor_type", "feature_extractor_type", "image_mean", "image_std"),
        *("size", "crop_size", "resample", "rescale_factor", *_FURTHER),
    }
    steps = any(key.startswith("do_") and key != "do_lower_case" for key in values)
    return steps or not keys.isdisjoint(values)


class _Processor:
    """The settings of one image processor, read as CLIP's and SigLIP's classes do."""

    def __init__(self, values: dict[str, Any], source: str) -> None:
        self.values, self.source = values, source
        named = values.get("image_processor_type")
        kind = str(named or values.get("feature_extractor_type", "CLIPImageProcessor"))
        self.is_siglip = kind.startswith("Siglip") and not kind.startswith("Siglip2")
        if not self.is_siglip and not kind.startswith("CLIP"):
            needed = {"size", "resample", "image_mean", "image_std"}
            if not needed <= values.keys() or "auto_map" in values:
                raise self.refused(
                    "image_processor_type", "state size, resample, mean and std in full"
                )
            self.is_siglip = "crop_size" not in values

    def refused(self, key: str, advice: str) -> ValueError:
        return _refused(self.source, key, self.values.get(key), advice)

    def read(self, wanted: tuple[int, int]) -> dict[str, Any]:
        """Return ``preprocess_cfg`` entries for an input of the wanted size."""
        self.check_steps()
        found: dict[str, Any] = dict(SIGLIP if self.is_siglip else OPENAI)
        if self.values.get("resample") is not None:
            resample = self.values["resample"]
            if not _is_integer(resample) or resample not in _FILTERS:
                raise self.refused(
                    "resample", "the filters 2 (bilinear) and 3 (bicubic) can be used"
                )
            found["interpolation"] = _FILTERS[resample]
        if self.values.get("do_normalize", True):
            for key in ("mean", "std"):
                if self.values.get(f"image_{key}") is not None:
                    found[key] = self.values[f"image_{key}"]
        else:
            found["mean"], found["std"] = [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]
        found.update(self.resizing(wanted))
        return check_preprocess(found, self.source)

    def check_steps(self) -> None:
        """Refuse steps that are switched off, or further ones that are on."""
        for key, value in self.values.items():
            if key in _STEPS and value not in (True, False, None):
                raise self.refused(key, "give true or false")
            plain = key in (*_STEPS, "do_convert_rgb") or not key.startswith("do_")
            if value and not plain:
                raise self.refused(key, "such a step does not exist here")
        if not self.values.get("do_resize", True):
            raise self.refused("do_resize", "pictures are always resized")
        factor = self.values.get("rescale_factor")
        scaled = factor is None or (_is_number(factor) and abs(factor * 255 - 1) < 1e-4)
        if not self.values.get("do_rescale", True) or not scaled:
            key = "rescale_factor" if not scaled else "do_rescale"
            raise self.refused(key, "pixels are always divided by 255")
        for key in _FURTHER:
            if self.values.get(key):
                raise self.refused(key, "state size and crop in pixels, and no more")

    def resizing(self, wanted: tuple[int, int]) -> dict[str, Any]:
        """Return how pictures get their size."""
        crops = self.values.get("do_center_crop")
        crops = not self.is_siglip if crops is None else crops
        height, width = wanted
        size = self.values.get("size")
        if size is None and self.is_siglip:
            size = {"height": height, "width": width}
        elif size is None:
            size = min(height, width)
        if _is_size(size):
            size = {"shortest_edge": size}
        if not isinstance(size, dict) or not all(map(_is_size, size.values())):
            raise self.refused("size", "give pixels, above 0")
        crop = self.crop(wanted) if crops else None
        if set(size) == {"shortest_edge"}:
            if crop is None:
                advice = "the shorter side is resized, so towers need a crop"
                raise self.refused("do_center_crop", advice)
            return {"resize_mode": "shortest", "resize_to": size["shortest_edge"]}
        if set(size) != {"height", "width"}:
            raise self.refused("size", "give shortest_edge, or height and width")
        whole = (size["height"], size["width"])
        if crop is None or crop == whole:
            self.fits("size", whole, wanted)
            return {"resize_mode": "squash"}
        if whole[0] != whole[1]:
            raise self.refused("size", "a crop can follow a square only")
        return {"resize_mode": "squash", "resize_to": whole[0]}

    def crop(self, wanted: tuple[int, int]) -> tuple[int, int]:
        """Return the size of the centre crop, which must be the tower's."""
        given = self.values.get("crop_size")
        if given is None:
            given = {"height": wanted[0], "width": wanted[1]}
        if _is_size(given):
            given = {"height": given, "width": given}
        pair = isinstance(given, dict) and set(given) == {"height", "width"}
        if not pair or not all(map(_is_size, given.values())):
            raise self.refused("crop_size", "give height and width in pixels")
        crop = (given["height"], given["width"])
        self.fits("crop_size", crop, wanted)
        return crop

    def fits(self, key: str, size: tuple[int, int], wanted: tuple[int, int]) -> None:
        """Make sure that pictures come out at the tower's size."""
        if size != wanted:
            advice = f"the image tower takes {wanted[0]} x {wanted[1]} pixels"
            raise self.refused(key, advice)
