"""Learn the vocabulary of one language, the same in every process.

The trainers of the ``tokenizers`` library number symbols in the order of a hash
map (checked: 0.23), and these numbers decide ties, so two processes may learn
different merges. The byte-pair trainer here has the same rule and no such
freedom.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from avalanche_clip.common.checks import as_size, as_texts, require_length
from avalanche_clip.common.progress import bar, progress

Pair = tuple[str, str]


@dataclass(frozen=True)
class LearntVocabulary:
    """What a language's own tokenizer consists of.

    :param tokens: token strings in ascending order of id.
    :param merges: byte-pair merges in their order; empty for pieces.
    :param scores: one log probability per token for pieces (unigram models);
        empty for byte pairs.
    """

    tokens: tuple[str, ...]
    merges: tuple[Pair, ...] = ()
    scores: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.merges and self.scores:
            raise ValueError(
                "A vocabulary has either merges (byte pairs) or scores (pieces); got "
                f"{len(self.merges)} merges and {len(self.scores)} scores."
            )
        if self.scores:
            require_length(self.scores, len(self.tokens), "scores", "token")


def count_words(captions: Iterable[str], tokenizer: Any) -> Counter[str]:
    """Count the words that a tokenizer cuts captions into before merging.

    :param captions: plain strings.
    :param tokenizer: ``tokenizers.Tokenizer``, whose normaliser and
        pre-tokeniser are used.
    :return: words as the pre-tokeniser spells them (byte symbols for byte-level
        ones), with their counts.
    :raises TypeError: if a caption is not a string.
    """
    repeated = Counter(as_texts(captions, "the captions", least=0))
    normalizer, splitter = tokenizer.normalizer, tokenizer.pre_tokenizer
    words: Counter[str] = Counter()
    for caption, count in progress(repeated.items(), "words", unit="caption"):
        clean = caption if normalizer is None else normalizer.normalize_str(caption)
        for word, _ in splitter.pre_tokenize_str(clean):
            words[word] += count
    return words


def train_bpe(
    words: Mapping[str, int],
    vocab_size: int,
    *,
    alphabet: Sequence[str],
    specials: Sequence[str] = (),
    suffix: str = "",
) -> LearntVocabulary:
    """Learn byte-pair merges from word counts.

    The most frequent pair of neighbouring symbols is merged until the
    vocabulary is full or no pair is left. Among equally frequent pairs the one
    of smaller ids comes first.

    :param words: non-empty words and how often they occur.
    :param vocab_size: size of the whole vocabulary: specials, alphabet, end
        symbols that occur, and merges. Fewer if the words give no more.
    :param alphabet: symbols that are always in the vocabulary.
    :param specials: tokens that come first and are never merged.
    :param suffix: appended to the last symbol of each word, ``"</w>"`` in CLIP.
    :return: tokens and merges.
    :raises ValueError: if ``vocab_size`` has no room for specials and symbols.

    Source: Sennrich et al., ACL 2016 (arXiv 1508.07909); sizes and order of ids
    as in ``tokenizers.trainers.BpeTrainer``, except that end symbols are numbered
    in sorted order.

    >>> learnt = train_bpe({"aab": 3, "ab": 2}, 6, alphabet="ab", suffix="$")
    >>> learnt.tokens, learnt.merges
    (('a', 'b', 'b$', 'ab$', 'aab$'), (('a', 'b$'), ('a', 'ab$')))
    """
    vocab_size = as_size(vocab_size, "vocab_size")
    spelled = [[*w[:-1], w[-1] + suffix] for w in sorted(words) if w]
    seen = {symbol for word in spelled for symbol in word}
    start = [*specials, *sorted({*alphabet, *(s for s in seen if len(s) == 1)})]
    start += sorted(seen.difference(start))
    hint = "special tokens and symbols are always in the vocabulary"
    as_size(vocab_size, "vocab_size", least=len(start), hint=hint)
    learner = _Learner(start, spelled, [words[w] for w in sorted(words) if w])
    return learner.run(vocab_size)


class _Learner:
    """Words as lists of ids, with the counts of all neighbouring pairs."""

    def __init__(
        self, tokens: list[str], words: list[list[str]], counts: list[int]
    ) -> None:
        self.tokens = tokens
        self.ids = {token: number for number, token in enumerate(tokens)}
        self.words = [[self.ids[s] for s in word] for word in words]
        self.counts = counts
        self.pairs: dict[tuple[int, int], int] = defaultdict(int)
        self.where: dict[tuple[int, int], set[int]] = defaultdict(set)
        for index in range(len(words)):
            self._book(index, 1)
        self.heap = [(-count, pair) for pair, count in self.pairs.items()]
        heapq.heapify(self.heap)

    def _book(self, index: int, sign: int) -> None:
        """Add or remove the pairs of a word."""
        count = sign * self.counts[index]
        for pair in pairwise(self.words[index]):
            self.pairs[pair] += count
            if sign > 0:
                self.where[pair].add(index)

    def run(self, vocab_size: int) -> LearntVocabulary:
        merges: list[Pair] = []
        begun = len(self.tokens)
        with bar("tokens", vocab_size, unit="token", initial=begun) as shown:
            while len(self.tokens) < vocab_size and self.heap:
                negative, pair = heapq.heappop(self.heap)
                if self.pairs.get(pair) != -negative:
                    continue  # an outdated entry; the true one is in the heap as well
                left, right = (self.tokens[i] for i in pair)
                merges.append((left, right))
                self._merge(pair, self._id(left + right))
                shown.update(len(self.tokens) - shown.n)
        return LearntVocabulary(tuple(self.tokens), tuple(merges))

    def _id(self, token: str) -> int:
        if token not in self.ids:
            self.ids[token] = len(self.tokens)
            self.tokens.append(token)
        return self.ids[token]

    def _merge(self, pair: tuple[int, int], new: int) -> None:
        changed: set[tuple[int, int]] = set()
        for index in self.where.pop(pair):
            changed.update(pairwise(self.words[index]))
            self._book(index, -1)
            self.words[index] = _merged(self.words[index], pair, new)
            self._book(index, 1)
            changed.update(pairwise(self.words[index]))
        for other in changed:
            count = self.pairs[other]
            if count > 0:
                heapq.heappush(self.heap, (-count, other))
            else:
                del self.pairs[other]
                self.where.pop(other, None)


def _merged(word: list[int], pair: tuple[int, int], new: int) -> list[int]:
    """Join every occurrence of a pair, from left to right."""
    out: list[int] = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] = new
        else:
            out.append(symbol)
    return out


def apply_merges(symbols: Sequence[str], ranks: Mapping[Pair, int]) -> list[str]:
    """Merge symbols as a byte-pair model does.

    At each step the pair of lowest rank is joined, the leftmost one of several.

    :param symbols: of one word.
    :param ranks: merge -> rank.
    :return: tokens.

    >>> apply_merges("abc", {("b", "c"): 0, ("a", "bc"): 1})
    ['abc']
    """
    word = list(symbols)
    while len(word) > 1:
        found = [
            (ranks[pair], i) for i, pair in enumerate(pairwise(word)) if pair in ranks
        ]
        if not found:
            break
        _, i = min(found)
        word[i : i + 2] = [word[i] + word[i + 1]]
    return word


def train_pieces(
    captions: Iterable[str],
    tokenizer: Any,
    vocab_size: int,
    *,
    specials: Sequence[str] = (),
    unknown: str | None = None,
) -> LearntVocabulary:
    """Learn the pieces of a unigram (SentencePiece) model.

    :param captions: plain strings.
    :param tokenizer: ``tokenizers.Tokenizer``; its normaliser and pre-tokeniser
        are used, its model is left alone.
    :param vocab_size: pieces, special ones included; fewer if the captions give
        no more.
    :param specials: special pieces.
    :param unknown: the one for unknown text.
    :return: pieces with their log probabilities.
    """
    from tokenizers import Tokenizer, models, trainers

    vocab_size = as_size(vocab_size, "vocab_size")
    own = Tokenizer(models.Unigram())
    own.normalizer, own.pre_tokenizer = tokenizer.normalizer, tokenizer.pre_tokenizer
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        unk_token=unknown,
        show_progress=False,
    )
    # sorted: sums of counts then run in one order in every process
    own.train_from_iterator(sorted(captions), trainer=trainer)
    stored = [
        (str(p), float(score))
        for p, score in json.loads(own.to_str())["model"]["vocab"]
    ]
    first = len(specials)
    # equally likely pieces come in the order of a hash map
    stored[first:] = sorted(stored[first:], key=lambda item: (-item[1], item[0]))
    return LearntVocabulary(
        tuple(piece for piece, _ in stored), scores=tuple(s for _, s in stored)
    )
