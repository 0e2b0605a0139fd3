"""Equal captions and equal pictures: one item with several partners."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor


def merge_equal_pairs(
    owner: Tensor,
    num_images: int,
    *,
    pictures: Sequence[Tensor] | None = None,
    captions: Sequence[Tensor] | None = None,
    languages: Tensor | None = None,
    pad_id: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Find equal captions and equal pictures of a data set, and who owns whom.

    Every picture owns the captions of all samples that show it, and every caption
    belongs to all pictures of the samples that have it. The same caption in two
    languages stays two texts, since a model may encode them differently, but each
    belongs to the pictures of both: neither is an error for the other.

    :param owner: image of each caption, integers ``(M,)``.
    :param num_images: N.
    :param pictures: what tells pictures apart, as ``captions``, ``N`` rows; None:
        all differ.
    :param captions: what tells captions apart: rows of integers in order, in
        blocks ``(m, L)``; None: all differ.
    :param languages: code of each caption's language, integers ``(M,)``.
    :param pad_id: trailing ones of a row of ``captions`` are ignored.
    :return: positions of the first of each distinct picture, ``(V,)``, and of each
        distinct text, ``(U,)``, both in order of first appearance; and the distinct
        (text, picture) pairs, ``(P, 2)``, sorted.
    :raises ValueError: if the numbers of rows do not fit.

    >>> rows = [torch.tensor([[7], [8], [7]])]
    >>> owner = torch.tensor([0, 1, 2])
    >>> images, texts, pairs = merge_equal_pairs(owner, 3, captions=rows)
    >>> images.tolist(), texts.tolist(), pairs.tolist()
    ([0, 1, 2], [0, 1], [[0, 0], [0, 2], [1, 1]])
    """
    owner = owner.long()
    images, picture = equal_rows(pictures, num_images, None)
    texts, caption = equal_rows(captions, len(owner), pad_id)
    owned = torch.unique(torch.stack([caption, picture[owner]], dim=1), dim=0)
    if languages is None:
        return images, texts, owned
    spoken = zip(caption.tolist(), languages.tolist(), strict=True)
    texts, _ = _numbered(spoken)
    # The pictures of each text are those of its caption, whatever the language.
    counts = torch.bincount(owned[:, 0], minlength=int(caption.max()) + 1)
    starts = counts.cumsum(0) - counts
    said = caption[texts]
    text = torch.arange(len(texts)).repeat_interleave(counts[said])
    offset = torch.arange(len(text)) - (counts[said].cumsum(0) - counts[said])[text]
    return images, texts, torch.stack([text, owned[starts[said][text] + offset, 1]], 1)


def equal_rows(
    rows: Sequence[Tensor] | None, size: int, pad_id: int | None
) -> tuple[Tensor, Tensor]:
    """Number the distinct rows of integers in order of first appearance.

    :param rows: blocks ``(m, L)``, ``size`` rows in all; None: all differ.
    :param size: number of rows.
    :param pad_id: trailing ones are ignored; None: none are.
    :return: position of the first of each distinct row, and the number of each row.
    """
    if rows is None:
        return torch.arange(size), torch.arange(size)
    count = sum(len(block) for block in rows)
    if count != size:
        raise ValueError(
            f"{count} rows of marks or token ids given for {size} items; pass one per "
            "item."
        )
    return _numbered(_row_keys(rows, pad_id))


def _numbered(keys: Iterable[Hashable]) -> tuple[Tensor, Tensor]:
    """First position of each distinct key, and the number of each key."""
    numbers: dict[Hashable, int] = {}
    groups = np.array(
        [numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64
    )
    _, first = np.unique(groups, return_index=True)
    return torch.from_numpy(first), torch.from_numpy(groups)


def _row_keys(rows: Sequence[Tensor], pad_id: int | None) -> Iterator[bytes]:
    """Yield the bytes of each row, without the padding at its end."""
    for block in rows:
        ids = block.long().numpy()
        if pad_id is None:
            yield from (row.tobytes() for row in ids)
            continue
        filled = ids != pad_id
        lengths = (filled * range(1, ids.shape[1] + 1)).max(axis=1, initial=0)
        for row, length in zip(ids, lengths, strict=True):
            yield row[:length].tobytes()
