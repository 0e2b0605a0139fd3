"""Read the captions of a data set without touching its images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.items.flat import raw_text
from avalanche_clip.benchmarks.items.items import attribute_array


def read_captions(
    dataset: AvalancheDataset, positions: Iterable[int] | None = None
) -> Iterator[list[Any]]:
    """Yield all captions of each sample, in order.

    Images are not decoded where the source has a method ``text(index)``, and
    never transformed. Text transforms (the random choice of a caption) are
    left out too, unless they are frozen: every caption that training may draw is
    there.

    :param dataset: image-text data, prepared or not.
    :param positions: of the samples; default all.
    :return: one list per sample, of strings or of token-id tensors.
    """
    for index in range(len(dataset)) if positions is None else positions:
        text = raw_text(dataset, index)
        yield list(text) if isinstance(text, (list, tuple)) else [text]


def language_codes(dataset: AvalancheDataset) -> np.ndarray | None:
    """Return the language code of each sample, or None without the fact."""
    if "language" not in dataset._data_attributes:
        return None
    return attribute_array(dataset, "language")


def language_of(experience: Any) -> tuple[str, tuple[int, ...]]:
    """Name of an experience's language, and the codes of its captions.

    :param experience: with ``language`` where it has one name; else it is named
        by its place in the stream.
    """
    codes = language_codes(experience.dataset)
    own = getattr(experience, "language_code", None)
    found: tuple[int, ...] = () if own is None else (int(own),)
    if codes is not None:
        found = tuple(sorted({int(code) for code in codes}))
    name = getattr(experience, "language", None)
    if name is None:
        name = f"experience {experience.current_experience}"
    return str(name), found
