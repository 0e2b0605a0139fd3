"""Small adapters in a text tower, one set per language, chosen by language code.

Source of the forms: Zhang et al., NeurIPS 2022 (MLA, arXiv 2206.11091) for the
bottleneck after each perceptron, Hu et al., ICLR 2022 (LoRA, arXiv 2106.09685) for
low-rank updates of queries and values; both as baselines of Yang et al., AAAI 2024
(CLL-CLIP, arXiv 2401.17186). Outputs start at zero (our choice for the bottleneck),
so that a new language starts from the base tower exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from avalanche_clip.common.checks import as_finite, as_size, require_choice
from avalanche_clip.models.encoders.blocks import BlockView
from avalanche_clip.models.peft import storage
from avalanche_clip.models.peft.adapter import Bottleneck
from avalanche_clip.models.peft.attached import BranchSet
from avalanche_clip.models.peft.branch import RoutedBranch, chosen_blocks, pairs
from avalanche_clip.models.peft.lora import LoRABranch
from avalanche_clip.models.peft.routes import SKIP, restored

KINDS = ("mla", "lora")
_CHILD, _TABLE = "language_adapter", "languages"
_ROWS = ("language codes were set", "texts")


class LanguageBottleneck(RoutedBranch):
    """A bottleneck per language behind the perceptron of one block.

    With r the input of the perceptron's half and y its output, the block's output
    r + y becomes ``r + y + up(relu(down(norm(r + y))))``, where the norm is the one
    that the block has before its perceptron.

    :param width: channels D.
    :param inner: width of the bottleneck.
    """

    CHILD, TABLE, ROWS = _CHILD, _TABLE, _ROWS

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.width, self.inner = width, inner

    def make(self) -> nn.Module:
        """Return the bottleneck of a new language."""
        return Bottleneck(self.width, self.inner)

    def hook(self) -> None:
        """Hook into the perceptron's half."""
        self.add_at(self.view.mlp_out, self.view.norm2, normed=False)

    def reads(self, kept: Tensor, output: Tensor) -> Tensor:
        """Return the block's output, normed."""
        # Called directly, so that the norm's own hooks do not run again.
        return self.view.norm2.forward(kept + output)


class LanguageLoRA(LoRABranch):
    """Low-rank updates per language of the queries and values of one block."""

    CHILD, TABLE, ROWS = _CHILD, _TABLE, _ROWS


class LanguageAdapterSet(BranchSet):
    """All language adapters of a model; ``model.language_adapters``.

    Languages are integer codes. Texts of a code without adapters pass the base tower.
    Before each training experience, ``adaptation`` adds adapters for its languages
    and freezes all others; the rest of the model trains as it did.
    """

    WHAT = "language adapters"
    RULES: storage.Rules = {
        "config": lambda v: isinstance(v, dict),
        "codes": lambda v: storage.is_ints(v, 0),
    }
    START = SKIP

    def __init__(self, model: Any, facts: dict[str, Any]) -> None:
        super().__init__(model, "language_adapters", facts, freezes=False)
        self._training = None

    @property
    def codes(self) -> tuple[int, ...]:
        """Codes of the languages that have adapters, in order of arrival."""
        return self.keys

    def add_language(self, code: int) -> None:
        """Make adapters for a language; nothing happens if it has some.

        :param code: integer >= 0.
        :raises ValueError: for another code.
        """
        self.add(as_size(code, "The language code", least=0))

    def train_languages(self, codes: Iterable[int]) -> None:
        """Let the adapters of these languages train, and freeze the others."""
        self.train_ids(codes)

    def adaptation(self, experience: Any) -> None:
        """Make and choose adapters for the languages of an experience.

        :param experience: with ``language_code``, or data with the fact ``language``.
        :raises ValueError: if it has neither.
        """
        codes = _codes_of(experience)
        for code in codes:
            self.add_language(code)
        self.train_languages(codes)

    def set_languages(self, codes: int | Tensor | None) -> None:
        """Choose the language of the texts that are encoded from now on.

        :param codes: one code for all, one per text ``(N,)``, or None for the base
            tower. Codes without adapters mean the base tower.
        """
        ids: int | Tensor = SKIP
        if isinstance(codes, Tensor) and codes.ndim:
            known = torch.tensor(self.codes, dtype=codes.dtype, device=codes.device)
            ids = torch.where(torch.isin(codes, known), codes, SKIP)
            if len(ids) and bool((ids == ids[0]).all()):
                ids = int(ids[0])
        elif codes is not None and int(codes) in self.codes:
            ids = int(codes)
        self.set_ids(ids)

    @contextmanager
    def languages(self, codes: int | Tensor | None) -> Iterator[None]:
        """Choose languages inside a ``with`` block, then the ones before."""
        with restored(self._routes):
            self.set_languages(codes)
            yield

    def growth_state(self) -> dict[str, Any]:
        """Return how adapters are made, and which languages have some."""
        return {"config": dict(self.config), "codes": list(self.codes)}

    def load_growth_state(self, state: dict[str, Any]) -> None:
        """Make adapters for the languages of a stored model; values of weights stay.

        :raises ValueError: if the stored adapters were made in another way.
        """
        super().load_growth_state(
            {**super().growth_state(), **state, "ids": state["codes"]}
        )

    @staticmethod
    def keys_of(facts: dict[str, Any]) -> Iterable[int]:
        """Codes of the languages."""
        return facts["codes"]

    def remove(self, model: nn.Module) -> None:
        """Take all adapters out of a model.

        :param model: the one they were attached to.
        """
        self.detach()


def attach_language_adapters(
    model: Any,
    kind: str = "mla",
    *,
    bottleneck: int | None = None,
    rank: int = 8,
    alpha: float = 8.0,
) -> LanguageAdapterSet:
    """Prepare a model's text tower for adapters per language.

    Until a language is added and chosen, the model computes what it did, bit for
    bit, and keeps its parameter names.

    :param model: a :class:`DualEncoder` whose text tower lists its blocks.
    :param kind: ``"mla"``, a bottleneck behind each perceptron, or ``"lora"``,
        low-rank updates of queries and values.
    :param bottleneck: width of the bottleneck; default half the tower's.
    :param rank: of the updates.
    :param alpha: updates are multiplied by ``alpha / rank``.
    :return: the set, also ``model.language_adapters``.
    :raises ValueError: if the model has language adapters, or a value is unknown
        or not positive.
    """
    require_choice("kind", kind, KINDS)
    rank = as_size(rank, "rank")
    if bottleneck is not None:
        bottleneck = as_size(bottleneck, "bottleneck")
    alpha = as_finite(alpha, "alpha", above=0)

    options = {"rank": rank, "scale": alpha / rank}

    def make(view: BlockView) -> RoutedBranch:
        if kind == "lora":
            return LanguageLoRA(view, ("q", "v"), **options)
        return LanguageBottleneck(view.width, bottleneck or max(view.width // 2, 1))

    facts = {"kind": kind, "bottleneck": bottleneck, "rank": rank, "alpha": alpha}
    result = LanguageAdapterSet(model, facts)
    result.connect(pairs(make, chosen_blocks(model, "text", None)[0]))
    return result


def _codes_of(experience: Any) -> list[int]:
    own = getattr(experience, "language_code", None)
    if own is not None:
        return [int(own)]
    column = getattr(getattr(experience, "dataset", None), "language", None)
    if column is None:
        raise ValueError(
            "The experience has no language_code and its data no language; make the "
            "stream with multilingual_benchmark."
        )
    return sorted({int(code) for code in column})
