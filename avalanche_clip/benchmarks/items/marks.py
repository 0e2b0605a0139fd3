"""Marks of captions and pictures: equal where, and only where, the content is.

Evaluation merges equal captions and equal pictures. What the model gets does not
tell them: two captions may differ after the cut at the context length only, or in
words that the vocabulary lacks, two pictures outside the crop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from avalanche_clip.common.pictures import decoded

_BYTES = 16
_ORIENTATION = 0x0112


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
    pieces = picture_pieces(image)
    return None if pieces is None else digest_of(pieces)[:_BYTES]


def picture_digests(pictures: Sequence[Any]) -> list[bytes]:
    """Hash all pictures of a sequence, which reads each once.

    :raises TypeError: for what is no picture, naming its place.
    """
    found = [picture_digest(pictures[place]) for place in range(len(pictures))]
    if None in found:
        place = found.index(None)
        raise TypeError(
            f"Picture {place} is {pictures[place]!r:.80}; give PIL images or tensors."
        )
    return [digest or b"" for digest in found]


def digest_of(pieces: Iterable[bytes]) -> bytes:
    """Hash some pieces of bytes, each with its length."""
    digest = hashlib.sha256()  # most processors know it
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.digest()


def picture_pieces(image: Any) -> list[bytes] | None:
    """List the bytes that say what a picture is; None for what is none.

    :param image: PIL image, tensor or array.
    :raises ValueError: for a PIL image that is too large or cannot be decoded.
    """
    if isinstance(image, Image.Image):
        decoded(image)  # here as everywhere: its size is checked, its key mended
        facts = (image.mode, image.size, image.info.get("transparency"))
        turned = image.getexif().get(_ORIENTATION)
        palette = image.palette.mode if image.palette is not None else ""
        colours = bytes(image.getpalette(None) or ())  # with their alpha
        return [f"{facts} {turned} {palette}".encode(), colours, image.tobytes()]
    if isinstance(image, Tensor):
        head = f"tensor {image.dtype} {tuple(image.shape)}".encode()
        # NumPy lacks some of torch's types.
        flat = image.detach().cpu().contiguous().reshape(-1)
        return [head, flat.view(torch.uint8).numpy().tobytes()]
    if isinstance(image, (np.ndarray, np.generic)):
        return [f"array {image.dtype.str} {image.shape}".encode(), image.tobytes()]
    return None


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


def in_evaluation(images: Sequence[Any]) -> bool:
    """Tell whether items come through an evaluation transform, or have no pictures."""
    return all(
        hasattr(image, "picture_digest")
        or (isinstance(image, Tensor) and not image.numel())
        for image in images
    )


def picture_marks(images: Sequence[Any]) -> Tensor | None:
    """Return the marks of transformed pictures, int64 ``(B, 2)``.

    :param images: results of :class:`MarkedPictures`; None if one is not.
    """
    digests = [getattr(image, "picture_digest", None) for image in images]
    return None if None in digests else _rows(digests)


def _rows(digests: Sequence[Any]) -> Tensor:
    whole = np.frombuffer(b"".join(digests), dtype=np.int64)
    return torch.from_numpy(whole.reshape(-1, _BYTES // 8).copy())
