"""Marks of captions and pictures: equal where, and only where, the content is.

Evaluation merges equal captions and equal pictures. What the model gets does not
tell them: two captions may differ after the cut at the context length only, or in
words that the vocabulary lacks, two pictures outside the crop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_BYTES = 16


def caption_marks(captions: Sequence[str | Tensor], pad_id: int = 0) -> Tensor:
    """Mark captions by their whole content.

    :param captions: strings, or token ids ``(L,)`` of which all count but trailing
        ``pad_id``.
    :return: int64 ``(M, 2)``: 128 bits of a hash, so that only equal captions have
        equal rows.
    """
    return _rows([_caption_digest(caption, pad_id) for caption in captions])


def _caption_digest(caption: str | Tensor, pad_id: int) -> bytes:
    if isinstance(caption, str):
        content, kind = caption.encode("utf-8", "surrogatepass"), b"text"
    else:
        ids = caption.detach().cpu().to(torch.int64).numpy()
        used = np.flatnonzero(ids != pad_id)
        content, kind = ids[: used[-1] + 1 if used.size else 0].tobytes(), b"ids"
    return hashlib.blake2b(content, digest_size=_BYTES, person=kind).digest()


def picture_digest(image: Any) -> bytes | None:
    """Hash the pixels of a picture as they are, before any transform.

    :param image: PIL image, tensor or array.
    :return: 16 bytes; None for another type.
    """
    if isinstance(image, Image.Image):
        key = image.info.get("transparency")
        parts = [image.tobytes()]
        head = f"{image.mode} {image.size} {key!r}"
        if image.palette is not None:
            head += f" {image.palette.mode}"
            parts.append(bytes(image.getpalette(None) or ()))
    elif isinstance(image, Tensor):
        plain = image.detach().cpu().contiguous().view(-1)
        head = f"{image.dtype} {tuple(image.shape)}"
        parts = [plain.view(torch.uint8).numpy().tobytes()]
    elif isinstance(image, np.ndarray):
        head, parts = f"{image.dtype} {image.shape}", [image.tobytes()]
    else:
        return None
    digest = hashlib.sha256(head.encode())  # most processors know it
    for part in parts:
        digest.update(part)
    return digest.digest()[:_BYTES]


class MarkedPictures:
    """An image transform whose results know which picture they come from.

    It is as deterministic as the transform inside and describes itself as that.

    :param transform: from a picture to a tensor.
    """

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    @property
    def deterministic(self) -> bool:
        """Whether the same picture always gives the same tensor."""
        return bool(getattr(self.transform, "deterministic", False))

    def __call__(self, image: Any) -> Any:
        digest = picture_digest(image)
        result = self.transform(image)
        if isinstance(result, Tensor):
            result = result.view_as(result)  # the picture's own tensor stays unmarked
            result.picture_digest = digest  # type: ignore[attr-defined]
        return result

    def __repr__(self) -> str:
        return repr(self.transform)


def picture_marks(images: Sequence[Any]) -> Tensor | None:
    """Return the marks of transformed pictures, int64 ``(B, 2)``.

    :param images: results of :class:`MarkedPictures`; None if one is not.
    """
    digests = [getattr(image, "picture_digest", None) for image in images]
    return None if None in digests else _rows(digests)


def _rows(digests: Sequence[Any]) -> Tensor:
    whole = np.frombuffer(b"".join(digests), dtype=np.int64)
    return torch.from_numpy(whole.reshape(-1, _BYTES // 8).copy())


__all__ = [
    "MarkedPictures",
    "caption_marks",
    "picture_digest",
    "picture_marks",
]
