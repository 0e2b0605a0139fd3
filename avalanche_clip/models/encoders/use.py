"""A trained model at work: naming what pictures show, finding pictures and texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avalanche_clip.common.checks import as_size, as_texts, require_array, require_some
from avalanche_clip.common.pictures import open_picture
from avalanche_clip.common.randomness import evaluating
from avalanche_clip.evaluation.functional.classification import class_vectors
from avalanche_clip.evaluation.functional.ranks import full_products
from avalanche_clip.models.text.prompts import (
    DEFAULT_TEMPLATE,
    checked_names,
    checked_templates,
    fill,
)

_IMAGES_PER_BATCH = 64
_TEXTS_PER_BATCH = 256
_QUERIES_PER_BLOCK = 256
_FILES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Endings by which :func:`search` tells the name of a picture from a text."""
_PICTURES = (
    "give PIL images, paths, uint8 arrays (H, W, 3), uint8 tensors (3, H, W), or a"
    " float tensor (B, 3, H, W) made by model.transform(False)"
)


@torch.no_grad()
def classify(model: Any, images: Any, class_names: Any, templates: Any) -> Tensor:
    """See :meth:`DualEncoder.classify`."""
    names = checked_names(class_names, "class_names")
    given = [DEFAULT_TEMPLATE] if templates is None else templates
    filled = checked_templates(given)
    prompts = [fill(template, name) for name in names for template in filled]
    index = torch.arange(len(names)).repeat_interleave(len(filled))
    pictures = _listed(images, "images")
    with evaluating(model):
        vectors = class_vectors(_encode_texts(model, prompts), index)
        features = _encode_pictures(model, pictures)
    scale = model.logit_scale.float().exp().reshape(())
    return (scale * _cosines(features, vectors)).softmax(1)


@torch.no_grad()
def search(
    model: Any, query: Any, candidates: Any, k: int = 10
) -> tuple[Tensor, Tensor]:
    """See :meth:`DualEncoder.search`."""
    k = as_size(k, "k")
    if isinstance(candidates, str) and not _is_file(candidates):
        as_texts(candidates, "candidates")  # one string is no list of them
    with evaluating(model):
        queries = _encode(model, query, "query")
        found = _encode(model, candidates, "candidates")
    k = min(k, len(found))
    parts = []
    for block in queries.split(_QUERIES_PER_BLOCK):
        # among equal scores the first candidate comes first
        order = _cosines(block, found).sort(dim=1, descending=True, stable=True)
        parts.append((order.values[:, :k], order.indices[:, :k]))
    scores, indices = zip(*parts, strict=True)
    return torch.cat(scores), torch.cat(indices)


def _cosines(images: Tensor, texts: Tensor) -> Tensor:
    """Products of unit features in full precision, ``(N, M)``."""
    for features in (images, texts):
        if not features.isfinite().all():
            raise ValueError(
                "The model gives features that are NaN or infinite; look at its"
                " weights, and at the pictures if they came as a float tensor."
            )
    with torch.autocast(images.device.type, enabled=False), full_products():
        return images @ texts.T


# ------------------------------------------------------------------- encoding
def _encode(model: Any, given: Any, what: str) -> Tensor:
    """Encode texts or pictures, whichever they are."""
    if isinstance(given, str) and not _is_file(given):
        given = [given]
    entries = _listed(given, what)
    is_text = [isinstance(e, str) and not _is_file(e) for e in entries]
    if isinstance(entries, Tensor) or not any(is_text):
        return _encode_pictures(model, entries)
    if not all(is_text):
        place = is_text.index(not is_text[0])
        raise TypeError(
            f"{what} mixes texts with pictures (entry {place} is a"
            f" {type(entries[place]).__name__}); give one kind."
        )
    return _encode_texts(model, entries)


def _is_file(text: str) -> bool:
    return text.lower().endswith(_FILES)


def _encode_texts(model: Any, texts: list[str]) -> Tensor:
    device, size = model.logit_scale.device, _TEXTS_PER_BATCH
    parts = [
        model.encode_text(model.tokenizer(texts[start : start + size]).to(device))
        for start in range(0, len(texts), size)
    ]
    return torch.cat(parts)


def _encode_pictures(model: Any, pictures: list[Any] | Tensor) -> Tensor:
    device = model.logit_scale.device
    parts = (model.encode_image(b.to(device)) for b in _batches(model, pictures))
    return torch.cat(list(parts))


def _batches(model: Any, pictures: list[Any] | Tensor) -> Iterator[Tensor]:
    transform = model.transform(False)
    for start in range(0, len(pictures), _IMAGES_PER_BATCH):
        part = pictures[start : start + _IMAGES_PER_BATCH]
        if isinstance(part, list):
            part = torch.stack([_pixels(picture, transform) for picture in part])
        yield part.float()


def _listed(given: Any, what: str) -> list[Any] | Tensor:
    """Return pictures (or what may be texts) as a list, or a preprocessed batch."""
    if isinstance(given, Tensor) and given.is_floating_point():
        given = given[None] if given.ndim == 3 else given
        require_array(given, what, "* * * *", "float", give=_PICTURES)
        require_some(given, what)
        return given
    single = given.ndim < 4 if isinstance(given, (np.ndarray, Tensor)) else False
    if single or isinstance(given, (Image.Image, str, Path)):
        return [given]
    if isinstance(given, (Mapping, Set, bytes)) or not isinstance(given, Iterable):
        raise TypeError(f"{what} is a {type(given).__name__}; {_PICTURES}.")
    entries = list(given)
    require_some(entries, what)
    return entries


def _pixels(picture: Any, transform: Any) -> Tensor:
    """Preprocess one picture, ``(3, H, W)``; float tensors are left as they are."""
    if isinstance(picture, Tensor) and picture.is_floating_point():
        require_array(picture, "A preprocessed picture", "3 * *", give=_PICTURES)
        return picture.cpu()
    if isinstance(picture, (str, Path)):
        picture = open_picture(picture)
    elif isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    elif not isinstance(picture, (Image.Image, Tensor)):
        raise TypeError(f"A picture is a {type(picture).__name__}; {_PICTURES}.")
    return transform(picture)


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise TypeError(f"A picture is an array of {array.dtype}; {_PICTURES}.")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise ValueError(
            f"A picture is an array of shape {array.shape}; {_PICTURES}. Arrays have"
            " their channels last."
        )
    return Image.fromarray(array)
