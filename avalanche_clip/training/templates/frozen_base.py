"""Weights that were never trainable, which checkpoints know by their hash."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from avalanche_clip.common.fingerprint import FingerprintCache
from avalanche_clip.models.encoders.dual_encoder import DualEncoder


class FrozenBase:
    """The weights of a strategy that stay as they are.

    What was written to although it is frozen is stored like the rest.

    :param strategy: owns it.
    """

    def __init__(self, strategy: Any):
        self.strategy = strategy
        self._cache = FingerprintCache()
        self._hashes: dict[str, str] | None = None

    def note(self, names: Collection[str] | None = None) -> None:
        """Remember the frozen weights of this moment.

        :param names: look at these only; default all.
        """
        self._cache = FingerprintCache()
        self._hashes = {
            item[0]: self._cache([item])
            for item in self._frozen()
            if names is None or item[0] in names
        }

    def ensure(self) -> None:
        """Remember the frozen weights, unless that was done."""
        if self._hashes is None:
            self.note()

    def _frozen(self) -> list[tuple[str, Tensor]]:
        model, known = self.strategy.model, self.strategy.groups.known
        stored = model.state_dict().keys() - known  # some parts store nothing
        if isinstance(model, DualEncoder):  # what is attached is drawn, not loaded
            stored = {n for n in stored if model.is_plain(n)}
        named = model.named_parameters()
        return [(n, p) for n, p in named if not p.requires_grad and n in stored]

    def unchanged(self) -> dict[str, Any]:
        """Names, common hash and source of the weights that need not be stored."""
        self.ensure()
        hashes = self._hashes or {}
        items = [i for i in self._frozen() if self._cache([i]) == hashes.get(i[0])]
        names = [name for name, _ in items]
        found: dict[str, Any] = {"names": names, "hash": self._cache(items)}
        model = self.strategy.model
        if isinstance(model, DualEncoder) and model.source is not None:
            found["source"] = dict(model.source)
        return found


def without_base(
    weights: dict[str, Any], model: nn.Module, names: Collection[str]
) -> dict[str, Any]:
    """Drop what the weights of a copy have in common with the frozen base.

    :param weights: of the copy.
    :param model: with the base.
    :param names: of the base.
    """
    ours = dict(model.named_parameters())
    return {
        name: value
        for name, value in weights.items()
        if name not in names or not value.equal(ours[name])
    }
