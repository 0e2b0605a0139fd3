"""Parts of VR-LwF: settings, pseudo texts of random tokens, seeds, encoding.

Source: Ding et al., arXiv 2207.09248 (replayed vocabulary); the layout of a
sentence is that of the re-implementation of Zheng et al., ICCV 2023 (ZSCL).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from avalanche_clip import distributed
from avalanche_clip.benchmarks.streams.quotas import mix64
from avalanche_clip.common.checks import as_finite, as_size, require_choice

CHOICES = {
    "distill_batch": ("same", "separate"),
    "redraw": ("experience", "iteration"),
    "variant": ("zscl", "wildclip"),
}
"""Allowed values of the settings that are words."""


@dataclass(eq=False, kw_only=True)
class VocabularyReplaySettings:
    """Settings of :class:`VocabularyReplayPlugin`, described there."""

    num_texts: int = 1000
    text_length: int = 10
    image_weight: float = 1.0
    text_weight: float = 1.0
    temperature: float = 2.0
    distill_batch: str = "same"
    distill_batch_size: int | None = None
    student_text: bool = False
    allow_special: bool = False
    redraw: str = "experience"
    texts: Sequence[str] | None = None
    variant: str = "zscl"
    teach_first_experience: bool | None = None
    freeze_logit_scale: bool = True
    replay_seed: int | None = None

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            require_choice(name, getattr(self, name), allowed)
        for name in ("num_texts", "text_length", "distill_batch_size"):
            value = getattr(self, name)
            if name != "distill_batch_size" or value is not None:
                as_size(value, name)
        for name in ("image_weight", "text_weight"):
            as_finite(getattr(self, name), name, low=0)
        as_finite(self.temperature, "temperature", above=0)
        if self.variant == "wildclip" and self.temperature != 1:
            raise ValueError(
                f"temperature={self.temperature}: variant='wildclip' has temperature "
                "1; pass temperature=1.0."
            )
        if self.distill_batch == "same" and self.distill_batch_size is not None:
            raise ValueError(
                f"distill_batch_size={self.distill_batch_size} is for a second batch; "
                "pass distill_batch='separate', or leave it out."
            )
        self._check_texts()

    def _check_texts(self) -> None:
        if self.texts is None:
            return
        if isinstance(self.texts, str) or not self.texts:
            raise ValueError(f"texts={self.texts!r}; pass a list of sentences.")
        self.texts = tuple(self.texts)
        wrong = [t for t in self.texts if not isinstance(t, str)]
        if wrong:
            raise TypeError(f"texts holds {wrong[0]!r}; all must be strings.")
        if self.allow_special:
            raise ValueError(
                "allow_special=True is for random tokens, but texts are given; leave "
                "one of them out."
            )
        if self.redraw == "iteration" and len(self.texts) <= self.num_texts:
            raise ValueError(
                f"redraw='iteration' draws num_texts={self.num_texts} of the "
                f"{len(self.texts)} texts, which are always all of them; choose a "
                "smaller num_texts, or redraw='experience'."
            )


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
    found = {name: getattr(tokenizer, name, None) for name in SpecialTokens._fields}
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise ValueError(f"{_name(tokenizer)} has no {', '.join(missing)}. {advice}")
    tokens = SpecialTokens(**{name: int(value) for name, value in found.items()})  # type: ignore[arg-type]
    row = [int(i) for i in tokenizer([""])[0]]
    end = row.index(tokens.eot_id) if tokens.eot_id in row else 0
    framed = row[:1] == [tokens.sot_id] and tokens.sot_id != tokens.eot_id
    if not framed or not end or any(i != tokens.pad_id for i in row[end + 1 :]):
        raise ValueError(
            f"{_name(tokenizer)} writes an empty text as {row[:6]}, with start "
            f"{tokens.sot_id}, end {tokens.eot_id} and padding {tokens.pad_id}. "
            f"{advice}"
        )
    return tokens


def _name(tokenizer: Any) -> str:
    return type(tokenizer).__name__


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


def named_seed(seed: int, *parts: int) -> int:
    """Scramble a seed and further integers into one number in ``[0, 2**63)``.

    :param seed: of the run, any integer.
    :param parts: non-negative integers; their order matters.
    """
    state = mix64(np.uint64(seed & (2**64 - 1)))
    for part in parts:
        state = mix64(state ^ np.uint64(part))
    return int(state >> np.uint64(1))


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch for a while; the global generators stay where they were.

    :param seed: of the CPU's generator and, on a GPU, of the device's.
    :param device: where the random numbers may be drawn.
    """
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def encode_in_parts(
    encode: Callable[[Tensor], Tensor], rows: Tensor, parts: int
) -> Tensor:
    """Encode rows with gradients, keeping the activations of one part at a time.

    With several parts each is encoded again in the backward pass, with the same
    random numbers.

    :param encode: features of some rows.
    :param rows: ``(N, ...)``.
    :param parts: number of nearly equal parts; 1 encodes all at once.
    :return: features ``(N, D)``.
    """
    if parts == 1:
        return encode(rows)
    return torch.cat(
        [checkpoint(encode, part, use_reentrant=False) for part in rows.chunk(parts)]
    )


def stack_images(items: list[Any]) -> Tensor:
    """Collate the images of image-text items, leaving their texts alone.

    :param items: tuples that begin with an image tensor ``(C, H, W)``.
    :return: float tensor ``(B, C, H, W)``.
    """
    return torch.stack([item[0] for item in items])


def own_share(rows: Tensor) -> Tensor:
    """Return this process's part of rows that all processes have.

    :param rows: ``(N, ...)``, the same everywhere.
    :return: ``ceil(N / world_size)`` rows; the last part is filled up from the
        front, so that gathering all and keeping ``N`` rows gives ``rows``.
    """
    world = distributed.world_size()
    count = -(-len(rows) // world)
    start = distributed.rank() * count
    return rows[torch.arange(start, start + count) % len(rows)]
