"""Text features of frozen models, computed once for each state of the weights."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from avalanche_clip import distributed
from avalanche_clip.common.feature_table import FeatureTable
from avalanche_clip.common.progress import progress

TEXTS_PER_PASS = 256
"""Texts that a frozen model encodes at once."""


class FrozenTexts:
    """Tables of the features of fixed lists of texts, by the weights and the texts.

    A list is encoded once for each state of a text tower, whichever plugin or
    teacher asks: two teachers with the same weights share the features. When an
    experience begins, features of weights that no teacher has any more are
    dropped, and those that no one has asked for in the experience before.
    The cost is booked as ``"teacher"`` when it arises, not again by a resumed
    run that encodes anew what the stored run had encoded.
    """

    def __init__(self) -> None:
        self.features: dict[str, FeatureTable] = {}
        self.booked: set[str] = set()
        self.used: set[str] = set()

    def __call__(self, strategy: Any, model: Any, print_: str, texts: Any) -> Tensor:
        """Return the features of all texts.

        :param strategy: gives device, autocast and the budget.
        :param model: a frozen dual encoder with its tokenizer.
        :param print_: :func:`tower_fingerprint` of the model.
        :param texts: what to encode, such as :class:`ReferenceTexts`.
        :return: float32, normalised, ``(N, D)``, the same on each process.
        """
        key = f"{print_}:{texts.fingerprint()}:{strategy.precision}"
        self.used.add(key)
        if key not in self.features:
            self.features[key] = FeatureTable(len(texts))
            rows = encode_texts(strategy, model, texts)
            self.features[key].put(range(len(texts)), rows)
            if key not in self.booked:
                strategy.compute.spend("teacher", images=0, texts=len(texts))
                self.booked.add(key)
        return self.features[key].all()

    def start_experience(self, prints: Collection[str]) -> None:
        """Drop what is of no more use.

        :param prints: :func:`tower_fingerprint` of all teachers.
        """
        keep = {key for key in self.used if key.split(":")[0] in prints}
        self.features = {k: v for k, v in self.features.items() if k in keep}
        self.booked &= keep
        self.used = set()

    def state_dict(self) -> dict[str, Any]:
        """Return which features have been paid for, as plain data."""
        return {"booked": sorted(self.booked), "used": sorted(self.used)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned; features are made anew."""
        self.features = {}
        self.booked, self.used = set(state["booked"]), set(state["used"])


@torch.no_grad()
def encode_texts(strategy: Any, model: Any, texts: Any) -> Tensor:
    """Encode all texts, a share per process.

    :param strategy: gives device and autocast.
    :param model: a frozen dual encoder with its tokenizer.
    :param texts: what to encode.
    :return: float32 features ``(N, D)``, the same on each process.
    """
    count, world = len(texts), distributed.world_size()
    share = -(-count // world)
    low = min(share * distributed.rank(), count)
    high = min(low + share, count)
    rows = torch.zeros(share, model.embed_dim, device=strategy.device)
    for start in progress(range(low, high, TEXTS_PER_PASS), "teacher's texts"):
        end = min(start + TEXTS_PER_PASS, high)
        tokens = texts.tokens(slice(start, end), model.tokenizer)
        with strategy.autocast():
            found = model.encode_text(tokens.to(strategy.device))
        rows[start - low : end - low] = found.float()
    return distributed.gather_rows(rows)[:count]
