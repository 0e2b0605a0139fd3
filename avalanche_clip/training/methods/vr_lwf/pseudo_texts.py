"""Parts of VR-LwF: settings, pseudo texts of random tokens, seeds, encoding.

Source: Ding et al., arXiv 2207.09248 (replayed vocabulary); the layout of a
sentence is that of the re-implementation of Zheng et al., ICCV 2023 (ZSCL).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor


class SpecialTokens(NamedTuple):
    """What frames a text: ids of start, end and padding, and the table's size."""

    sot_id: int
    eot_id: int
    pad_id: int
    vocab_size: int


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """Read the special ids of a tokenizer and check that its rows use them.

    Random tokens go past the tokenizer, straight into the text tower. So the
    tower must expect rows of the form start, tokens, end, padding, which is
    seen in how the tokenizer itself writes an empty text.

    :param tokenizer: callable ``(texts) -> LongTensor (N, L)`` with ``sot_id``,
        ``eot_id``, ``pad_id`` and ``vocab_size``.
    :return: the ids.
    :raises ValueError: if one is missing, or rows have another form (SigLIP's
        have no start token; some tokenizers put the end token last).
    """
    advice = (
        "Random pseudo texts need rows of the form start, tokens, end, padding. Pass "
        "texts=[...] (sentences), which the tokenizer brings into its own form."
    )
    kind = type(tokenizer).__name__
    found = {name: getattr(tokenizer, name, None) for name in SpecialTokens._fields}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise ValueError(f"{kind} has no {', '.join(missing)}. {advice}")
    tokens = SpecialTokens(**{name: int(value) for name, value in found.items()})  # type: ignore[arg-type]
    row = [int(i) for i in tokenizer([""])[0]]
    end = row.index(tokens.eot_id) if tokens.eot_id in row else 0
    framed = row[:1] == [tokens.sot_id] and tokens.sot_id != tokens.eot_id
    if not framed or not end or any(i != tokens.pad_id for i in row[end + 1 :]):
        raise ValueError(
            f"{kind} writes an empty text as {row[:6]}, with start "
            f"{tokens.sot_id}, end {tokens.eot_id} and padding {tokens.pad_id}. "
            f"{advice}"
        )
    return tokens


def draw_token_ids(
    num_texts: int,
    text_length: int,
    tokens: SpecialTokens,
    *,
    width: int,
    generator: torch.Generator,
    excluded: Collection[int] = (),
) -> Tensor:
    """Draw sentences of independent, uniformly distributed tokens.

    :param num_texts: rows ``M``.
    :param text_length: drawn tokens per row ``l``.
    :param tokens: special ids and size of the vocabulary.
    :param width: length of a row, at least ``l + 2``.
    :param generator: on the CPU; the only source of randomness.
    :param excluded: ids that are never drawn.
    :return: int64, ``(M, width)``; every row is start, ``l`` ids, end, padding.
    :raises ValueError: if rows are too short, or no id is left to draw.

    >>> ids = SpecialTokens(sot_id=8, eot_id=9, pad_id=0, vocab_size=10)
    >>> g = torch.Generator().manual_seed(0)
    >>> rows = draw_token_ids(2, 3, ids, width=6, generator=g, excluded={8, 9})
    >>> rows.shape, rows[:, 0].tolist(), rows[:, 4:].tolist()
    (torch.Size([2, 6]), [8, 8], [[9, 0], [9, 0]])
    """
    if width < text_length + 2:
        raise ValueError(
            f"text_length={text_length} and two special tokens exceed the context of "
            f"{width} tokens; choose text_length <= {width - 2}."
        )
    allowed = torch.ones(tokens.vocab_size, dtype=torch.bool)
    allowed[[i for i in excluded if 0 <= i < tokens.vocab_size]] = False
    ids = allowed.nonzero().squeeze(1)
    if not len(ids):
        raise ValueError(
            f"The vocabulary of {tokens.vocab_size} tokens holds special ones only; "
            "use the tokenizer that belongs to the model."
        )
    drawn = torch.randint(len(ids), (num_texts, text_length), generator=generator)
    rows = torch.full((num_texts, width), tokens.pad_id, dtype=torch.int64)
    rows[:, 0] = tokens.sot_id
    rows[:, 1 : text_length + 1] = ids[drawn]
    rows[:, text_length + 1] = tokens.eot_id
    return rows
