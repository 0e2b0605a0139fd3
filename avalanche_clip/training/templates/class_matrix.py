"""Class vectors from prompts: built in batches, kept while nothing changes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.checks import as_size
from avalanche_clip.common.progress import progress
from avalanche_clip.evaluation.functional import class_vectors
from avalanche_clip.models.text.prompts import fill

ClassKey = tuple[str, tuple[str, ...]]
"""Name and templates of a class: what its vector depends on beside the model."""


def prompt_key(name: str, templates: Sequence[str]) -> ClassKey:
    """Key under which the vector of a class is kept."""
    return name, tuple(templates)


@dataclass
class _Variant:
    fingerprint: str
    groups: dict[tuple[ClassKey, ...], Tensor] = field(default_factory=dict)
    places: dict[ClassKey, tuple[tuple[ClassKey, ...], int]] = field(
        default_factory=dict
    )


class ClassMatrices:
    """Class vectors of one model, for any number of variants of its text tower.

    A vector is the mean of the normalised features of all prompts of a class,
    normalised again. Vectors of a variant are kept, group by group, until its
    fingerprint changes.

    Memory: ``(classes, D)`` float32 per variant, classes counted once for each
    different group that was asked for.

    :param batch_size: prompts per call of the text tower, at least 1.
    """

    def __init__(self, batch_size: int = 256):
        self.batch_size = as_size(batch_size, "batch_size")
        self._variants: dict[Hashable, _Variant] = {}

    def forget(self) -> None:
        """Drop all vectors."""
        self._variants = {}

    def get(
        self,
        groups: Sequence[Sequence[ClassKey]],
        encode: Callable[[list[str]], Tensor],
        *,
        variant: Hashable = None,
        fingerprint: str = "",
        reuse: bool = False,
    ) -> Tensor:
        """Return the vectors of classes, encoding those that are missing.

        Classes are encoded group by group, never across groups, and a group
        (without keys of groups before it) always as a whole and in one order:
        batches, and so the last bits of the vectors, do not depend on what was
        kept.

        :param groups: keys of the classes, as they arrived; a key may occur
            more than once.
        :param encode: prompts to features ``(P, D)``.
        :param variant: which form of the text tower encodes.
        :param fingerprint: of all that its features depend on.
        :param reuse: take known classes from any group and encode only the
            others; their last bits then do depend on what was kept.
        :return: vectors ``(C, D)`` of all keys in the order of the groups.
        """
        entry = self._variants.get(variant)
        if entry is None or entry.fingerprint != fingerprint:
            entry = self._variants[variant] = _Variant(fingerprint)
        chosen: dict[ClassKey, Tensor] = {}
        for group in groups:
            keys = tuple(sorted(set(group) - chosen.keys()))
            if reuse:
                for key in keys:
                    if key in entry.places:
                        place, row = entry.places[key]
                        chosen[key] = entry.groups[place][row]
                keys = tuple(key for key in keys if key not in chosen)
            if keys and keys not in entry.groups:
                self._add(entry, keys, encode)
            for row, key in enumerate(keys):
                chosen[key] = entry.groups[keys][row]
        if not chosen:
            raise ValueError("There are no classes; give at least one.")
        return torch.stack([chosen[key] for group in groups for key in group])

    def _add(
        self,
        entry: _Variant,
        keys: tuple[ClassKey, ...],
        encode: Callable[[list[str]], Tensor],
    ) -> None:
        texts, owners = [], []
        for row, (name, templates) in enumerate(keys):
            texts += [fill(template, name) for template in templates]
            owners += [row] * len(templates)
        starts = range(0, len(texts), self.batch_size)
        parts = [
            encode(texts[start : start + self.batch_size]).float()
            for start in progress(starts, "class vectors")
        ]
        features = torch.cat(parts)
        index = torch.tensor(owners, device=features.device)
        entry.groups[keys] = class_vectors(features, index)
        for row, key in enumerate(keys):
            entry.places.setdefault(key, (keys, row))


def distinct_rows(keys: Sequence[Any]) -> tuple[list[int], list[int]] | None:
    """Find classes that share one key.

    :param keys: one per class.
    :return: position of the first class of each key, and for each class the
        place of its key among these; None if all keys differ.

    >>> distinct_rows(["a", "b", "a"])
    ([0, 1], [0, 1, 0])
    """
    places: dict[Any, int] = {}
    inverse = [places.setdefault(key, len(places)) for key in keys]
    if len(places) == len(keys):
        return None
    first = {key: row for row, key in reversed(list(enumerate(keys)))}
    return [first[key] for key in places], inverse
