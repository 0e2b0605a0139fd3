"""Equal captions: one text that belongs to several images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


def merge_equal_texts(
    texts: Tensor, owner: Tensor, tokens: Sequence[Tensor], pad_id: int = 0
) -> tuple[Tensor, Tensor]:
    """Merge texts with equal token ids into one text with several owners.

    :param texts: features, ``(M, D)``.
    :param owner: image of each text, integers ``(M,)``.
    :param tokens: token ids of the texts in order, in blocks ``(m, L)`` whose L
        may differ; trailing ``pad_id`` are ignored.
    :param pad_id: id that fills short rows at the end.
    :return: features of the first text of each group, in order of first
        appearance, ``(U, D)``; and (text, image) pairs, ``(M, 2)``.
    :raises ValueError: if there is not one row of token ids per text.

    >>> tokens = [torch.tensor([[5, 6]]), torch.tensor([[5, 6, 0], [7, 0, 0]])]
    >>> texts, pairs = merge_equal_texts(torch.eye(3), torch.arange(3), tokens)
    >>> pairs.tolist()
    [[0, 0], [0, 1], [1, 2]]
    """
    rows = sum(len(block) for block in tokens)
    if rows != len(texts) or rows != len(owner):
        raise ValueError(
            f"{rows} rows of token ids given for texts of shape {tuple(texts.shape)} "
            f"and owner of shape {tuple(owner.shape)}; pass one row per text."
        )
    numbers: dict[bytes, int] = {}
    groups: list[int] = []
    first: list[int] = []
    for key in _row_keys(tokens, pad_id):
        if key not in numbers:
            numbers[key] = len(numbers)
            first.append(len(groups))
        groups.append(numbers[key])
    pairs = torch.stack([torch.tensor(groups), owner], dim=1)
    return texts[torch.tensor(first)], pairs


def _row_keys(tokens: Sequence[Tensor], pad_id: int) -> Iterator[bytes]:
    """Yield the bytes of each row without the padding at its end."""
    for block in tokens:
        ids = block.numpy()
        filled = ids != pad_id
        lengths = (filled * range(1, ids.shape[1] + 1)).max(axis=1, initial=0)
        for row, length in zip(ids, lengths, strict=True):
            yield row[:length].tobytes()


__all__ = ["merge_equal_texts"]
