"""Vocabularies that only grow at their end, and the models that use them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avalanche_clip.common.checks import (
    require_choice,
    require_distinct,
    require_indices,
)
from avalanche_clip.models.text.learning import LearntVocabulary, Pair, apply_merges

MERGE_ORDERS = ("append", "new-first")
_UNLIKELY = -1e4  # log probability of ids that stand for nothing


@dataclass(frozen=True)
class VocabularyGrowth:
    """What adding a language has changed.

    :param language: its name.
    :param old_size: number of ids before.
    :param new_size: number of ids now; new ids are ``old_size`` and up.
    :param num_new_merges: merges (byte pairs) added.
    :param overlap: tokens of the language's vocabulary that were there before.
    :param overlap_ratio: ``overlap`` in percent of that vocabulary.
    :param reachable: new tokens that the grown tokenizer can ever produce; the
        others are cut up by older merges before they can form.
    """

    language: str
    old_size: int
    new_size: int
    num_new_merges: int
    overlap: int
    overlap_ratio: float
    reachable: int

    @property
    def num_new_tokens(self) -> int:
        """Number of new ids."""
        return self.new_size - self.old_size


@dataclass(frozen=True)
class Snapshot:
    """How far the vocabulary had grown when a language was added.

    :param language: name.
    :param codes: codes of its captions in batches.
    :param vocab_size: ids that its tokenizer knows.
    :param num_merges: merges that its tokenizer uses.
    :param level: number of additions up to then.
    """

    language: str
    codes: tuple[int, ...]
    vocab_size: int
    num_merges: int
    level: int


class Vocabulary:
    """Token strings by id, with the merges or scores that form them.

    Immutable: :meth:`grown` returns another one. Level ``k`` is the vocabulary
    after ``k`` additions; each level can be rebuilt, since ids are appended and
    the merges of each addition are kept apart.

    :param pipeline: content of a ``tokenizer.json`` whose model has neither
        ``vocab`` nor ``merges``; its type is ``BPE`` or ``Unigram``.
    :param tokens: token of each id.
    :param merges: byte-pair merges (BPE).
    :param scores: log probability of each token (Unigram).
    :param merge_order: ``"append"``: older merges come first; ``"new-first"``:
        those of the latest language come first.
    """

    def __init__(
        self,
        pipeline: dict[str, Any],
        tokens: Sequence[str],
        *,
        merges: Sequence[Pair] = (),
        scores: Sequence[float] = (),
        merge_order: str = "append",
    ) -> None:
        require_choice("merge_order", merge_order, MERGE_ORDERS)
        self.pipeline = pipeline
        self.merge_order = merge_order
        self.tokens = list(tokens)
        self.scores = list(scores)
        #: merges of each level
        self.parts: list[list[Pair]] = [[(a, b) for a, b in merges]]
        #: ids known at each level
        self.sizes = [len(self.tokens)]
        self._ids: dict[str, int] | None = None

    @property
    def kind(self) -> str:
        """``"bpe"`` or ``"unigram"``."""
        return "bpe" if self.pipeline["model"]["type"] == "BPE" else "unigram"

    @property
    def level(self) -> int:
        """Number of additions so far."""
        return len(self.sizes) - 1

    @property
    def ids(self) -> dict[str, int]:
        """Id of each token."""
        if self._ids is None:
            self._ids = {token: number for number, token in enumerate(self.tokens)}
        return self._ids

    def merges(self, level: int | None = None) -> list[Pair]:
        """Return the merges of a level in the order of their use."""
        level = self.level if level is None else level
        parts = self.parts[: level + 1]
        if self.merge_order == "new-first":
            parts = parts[::-1]
        return [merge for part in parts for merge in part]

    def build(self, level: int) -> Any:
        """Make the ``tokenizers.Tokenizer`` of a level."""
        from tokenizers import Tokenizer

        tokens = self.tokens[: self.sizes[level]]
        model = dict(self.pipeline["model"])
        if self.kind == "bpe":
            model["vocab"] = {token: number for number, token in enumerate(tokens)}
            model["merges"] = self.merges(level)
        else:
            model["vocab"] = list(zip(tokens, self.scores, strict=False))
        built = Tokenizer.from_str(json.dumps({**self.pipeline, "model": model}))
        built.no_truncation()
        built.no_padding()
        return built

    def padded(self, size: int) -> Vocabulary:
        """Return this base vocabulary with unused ids up to ``size``.

        Token tables may have more rows than the tokenizer has ids; new ids must
        come after them.
        """
        missing = [f"<unused_{number}>" for number in range(len(self.tokens), size)]
        return Vocabulary(
            self.pipeline,
            [*self.tokens, *missing],
            merges=self.parts[0],
            scores=[*self.scores, *[_UNLIKELY] * len(missing)] if self.scores else (),
            merge_order=self.merge_order,
        )

    # ---------------------------------------------------------------- growing
    def grown(
        self, learnt: LearntVocabulary, *, ignored: Sequence[str], prune: bool
    ) -> Vocabulary:
        """Append what is new in a language's vocabulary.

        Known token strings keep their ids; each other string gets the next id,
        in the order of the new vocabulary. Merges that are not known yet follow
        (or precede, see ``merge_order``) the known ones in their own order.

        :param learnt: of the same kind as this one.
        :param ignored: special tokens, under all their names; never added.
        :param prune: leave out tokens that could never be produced.
        """
        self._check_kind(learnt)
        skipped = set(ignored)
        known = self.ids
        added = [
            (token, position)
            for position, token in enumerate(learnt.tokens)
            if token not in known and token not in skipped
        ]
        have = {merge for part in self.parts for merge in part}
        merges = [
            m for m in learnt.merges if m not in have and "".join(m) not in skipped
        ]
        twin = self._with(added, merges, learnt)
        if prune:
            useful = set(twin.reachable(len(self.tokens)))
            added = [entry for entry in added if entry[0] in useful]
            kept = {token for token, _ in added}
            merges = [
                merge
                for merge in merges
                if all(t in known or t in kept for t in (*merge, "".join(merge)))
            ]
            twin = self._with(added, merges, learnt)
        return twin

    def _check_kind(self, learnt: LearntVocabulary) -> None:
        given = "scores" if learnt.scores else "merges"
        if (given == "scores") is not (self.kind == "unigram"):
            raise ValueError(
                f"The vocabulary comes with {given}, but this tokenizer is of the kind "
                f"{self.kind!r}; train it with train_language of this tokenizer."
            )
        require_distinct(learnt.tokens, "tokens of the vocabulary")

    def _with(
        self, added: list[tuple[str, int]], merges: list[Pair], learnt: LearntVocabulary
    ) -> Vocabulary:
        """Return this vocabulary with one level more."""
        twin = copy.copy(self)
        twin._ids = None
        twin.tokens = [*self.tokens, *(token for token, _ in added)]
        if self.scores:
            twin.scores = [*self.scores, *(learnt.scores[place] for _, place in added)]
        for merge in merges:
            lost = [t for t in (*merge, "".join(merge)) if t not in twin.ids]
            if lost:
                raise ValueError(
                    f"The merge {merge} needs the token {lost[0]!r}, which is in "
                    "neither vocabulary; give all tokens of the merges."
                )
        twin.parts = [*self.parts, merges]
        twin.sizes = [*self.sizes, len(twin.tokens)]
        return twin

    def reachable(self, first: int) -> list[str]:
        """Tokens from an id on that text can ever be cut into.

        A token can form only if its own symbols, taken alone, end as this token.

        :param first: first id that is looked at.
        """
        fresh = self.tokens[first:]
        if self.kind == "unigram":
            model = self.build(self.level).model
            return [t for t in fresh if len(model.tokenize(t)) == 1]
        suffix = self.pipeline["model"].get("end_of_word_suffix") or ""
        ranks = {merge: rank for rank, merge in enumerate(self.merges())}
        return [t for t in fresh if len(apply_merges(symbols(t, suffix), ranks)) == 1]

    # ---------------------------------------------------------------- storage
    def state_dict(self) -> dict[str, Any]:
        """Return plain data; long lists as JSON text."""
        return {
            "pipeline": json.dumps(self.pipeline),
            "tokens": json.dumps(self.tokens),
            "merges": json.dumps(self.parts),
            "scores": json.dumps(self.scores),
            "sizes": list(self.sizes),
            "merge_order": self.merge_order,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Vocabulary:
        """Rebuild a vocabulary from :meth:`state_dict`.

        :raises ValueError: if its parts do not fit each other.
        """
        twin = cls(
            json.loads(state["pipeline"]), (), merge_order=str(state["merge_order"])
        )
        twin.tokens = json.loads(state["tokens"])
        twin.scores = json.loads(state["scores"])
        parts = json.loads(state["merges"])
        twin.parts = [[(a, b) for a, b in part] for part in parts]
        twin.sizes = [int(n) for n in state["sizes"]]
        twin._check()
        return twin

    def _check(self) -> None:
        """Raise ValueError if the parts do not fit each other."""
        count, sizes, scores = len(self.tokens), self.sizes, self.scores
        merged = [token for part in self.parts for merge in part for token in merge]
        if not _are_texts(self.tokens) or len(set(self.tokens)) != count:
            fault = "its tokens are no distinct texts"
        elif sizes != sorted(sizes) or sizes[-1:] != [count] or sizes[0] < 1:
            fault = f"sizes {sizes} do not lead to {count} tokens"
        elif len(self.parts) != len(sizes) or not _are_texts(merged):
            fault = f"its merges are no pairs of texts in {len(sizes)} parts"
        elif scores and (len(scores) != count or not all(map(_is_finite, scores))):
            fault = f"its scores are no {count} finite numbers"
        elif not isinstance(self.pipeline, dict) or "model" not in self.pipeline:
            fault = "its pipeline has no model"
        else:
            return
        raise ValueError(f"The stored vocabulary is damaged: {fault}.")


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def read_snapshots(
    state: dict[str, Any], vocabulary: Vocabulary
) -> tuple[dict[str, Snapshot], dict[int, str]]:
    """Read what a stored tokenizer says of its languages.

    :param state: with ``"snapshots"`` and ``"codes"``.
    :param vocabulary: the one stored with them.
    :return: snapshots by language, and languages by code.
    :raises ValueError: if they do not fit the vocabulary.
    """
    snapshots = {
        s["language"]: Snapshot(**{**s, "codes": tuple(s["codes"])})
        for s in state["snapshots"]
    }
    codes = {int(code): name for code, name in state["codes"]}
    for name, snapshot in snapshots.items():
        level = snapshot.level
        known = type(level) is int and 0 <= level <= vocabulary.level
        if not known or not 0 < snapshot.vocab_size <= vocabulary.sizes[level]:
            raise ValueError(
                f"The snapshot of {name!r} is damaged: level {level!r} with "
                f"{snapshot.vocab_size!r} ids, among sizes {vocabulary.sizes}."
            )
    strange = sorted(set(codes.values()) - snapshots.keys())
    if strange:
        raise ValueError(f"Codes stand for {strange[0]!r}, which was never added.")
    return snapshots, codes


def symbols(token: str, suffix: str) -> list[str]:
    """Split a byte-pair token into the symbols it is merged from.

    >>> symbols("ab</w>", "</w>")
    ['a', 'b</w>']
    """
    if suffix and token.endswith(suffix) and len(token) > len(suffix):
        body = token[: -len(suffix)]
        return [*body[:-1], body[-1] + suffix]
    return list(token)


def count_tokens(rows: Iterable[Sequence[int]], vocab_size: int) -> Tensor:
    """Count how often each id occurs.

    :param rows: ids of captions.
    :param vocab_size: number of ids.
    :return: int64, ``(vocab_size,)``.
    :raises ValueError: if an id is outside the vocabulary.

    >>> count_tokens([[0, 2], [2]], 4)
    tensor([1, 0, 2, 0])
    """
    flat = torch.tensor([i for row in rows for i in row], dtype=torch.int64)
    require_indices(flat, vocab_size, "The list of ids (of another tokenizer?)")
    return torch.bincount(flat, minlength=vocab_size)
