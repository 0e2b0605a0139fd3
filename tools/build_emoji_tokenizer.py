"""Train the tokenizer of the tiny emoji presets: CLIP's pipeline, small vocabulary.

A byte-level BPE with CLIP's text cleaning, split pattern, end-of-word suffix,
special tokens and id layout (256 bytes, 256 bytes with suffix, merges, start,
end), trained on the English names and keywords of all embedded emoji and saved
in the format of Hugging Face ``tokenizers``.

The merges are learnt here rather than by ``tokenizers.trainers.BpeTrainer``:
that trainer (checked: 0.23) numbers the suffixed bytes in the order of a hash
map, which decides ties and so may give other merges in another run.

Run::

    pip install -e .
    python tools/build_emoji_tokenizer.py
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import RobertaProcessing

from avalanche_clip.benchmarks.datasets.emoji import load_emoji_table

SUFFIX = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
# Contractions, runs of letters, single digits, runs of anything else.
SPLIT_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
VOCABULARY_SIZE = 3584
DEFAULT_OUTPUT = (
    Path(__file__).resolve().parent.parent
    / "avalanche_clip"
    / "models"
    / "data"
    / "emoji_bpe.json"
)

Pair = tuple[str, str]


def byte_symbols() -> list[str]:
    """List the printable stand-ins of the 256 bytes in CLIP's id order.

    Printable Latin-1 characters stand for themselves and come first; the other
    bytes take the code points from 256 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = 256 - len(printable)
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(rest)]


def clip_pipeline(vocabulary: dict[str, int], merges: list[Pair]) -> Tokenizer:
    """Wrap a vocabulary in CLIP's cleaning, splitting and start/end template."""
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token=END, end_of_word_suffix=SUFFIX
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFC(),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if vocabulary:
        tokenizer.post_processor = RobertaProcessing(
            (END, vocabulary[END]),
            (START, vocabulary[START]),
            trim_offsets=False,
            add_prefix_space=False,
        )
        tokenizer.add_special_tokens([START, END])
    return tokenizer


def count_words(texts: Iterable[str]) -> Counter[tuple[str, ...]]:
    """Count words as tuples of byte symbols, the last one with the suffix."""
    pipeline = clip_pipeline({}, [])
    counts: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        clean = pipeline.normalizer.normalize_str(text)
        for word, _ in pipeline.pre_tokenizer.pre_tokenize_str(clean):
            counts[(*word[:-1], word[-1] + SUFFIX)] += 1
    return counts


def merge_pair(word: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    """Join every occurrence of a pair in a word, from left to right."""
    merged: list[str] = []
    i = 0
    while i < len(word):
        if word[i : i + 2] == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


def learn_merges(counts: Counter[tuple[str, ...]], number: int) -> list[Pair]:
    """Learn up to ``number`` merges; equal counts go to the smaller pair.

    Stops early when no pair occurs twice. Words are visited in sorted order
    and ties are broken by the pair itself, so the result is a function of the
    counts alone.
    """
    words = [list(item) for item in sorted(counts.items())]
    frequency: Counter[Pair] = Counter()
    where: defaultdict[Pair, set[int]] = defaultdict(set)
    for i, (word, count) in enumerate(words):
        for pair in pairwise(word):
            frequency[pair] += count
            where[pair].add(i)
    merges: list[Pair] = []
    while len(merges) < number and frequency:
        best = min(frequency, key=lambda pair: (-frequency[pair], pair))
        if frequency[best] < 2:
            break
        merges.append(best)
        for i in where.pop(best):
            word, count = words[i]
            for pair in pairwise(word):
                frequency[pair] -= count
            words[i][0] = merge_pair(word, best)
            for pair in pairwise(words[i][0]):
                frequency[pair] += count
                where[pair].add(i)
        frequency = +frequency  # drop the pairs that are gone
    return merges


def build_tokenizer(texts: Iterable[str], size: int) -> Tokenizer:
    """Train a tokenizer of at most ``size`` tokens.

    :raises ValueError: if ``size`` leaves no room for bytes and specials.
    """
    symbols = byte_symbols()
    base = [*symbols, *(s + SUFFIX for s in symbols)]
    if size < len(base) + 2:
        raise ValueError(f"size={size} is too small; use at least {len(base) + 2}.")
    merges = learn_merges(count_words(texts), size - len(base) - 2)
    tokens = list(dict.fromkeys([*base, *(a + b for a, b in merges), START, END]))
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return clip_pipeline(vocabulary, merges)


def main() -> None:
    """Train, save and report the lengths of the captions."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--size", type=int, default=VOCABULARY_SIZE)
    arguments = parser.parse_args()
    table = load_emoji_table()
    keywords = [word for words in table.keywords("en") for word in words]
    tokenizer = build_tokenizer([*table.names, *keywords], arguments.size)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(arguments.output), pretty=False)
    print(f"{tokenizer.get_vocab_size()} tokens")
    for kind, texts in (("name", table.names), ("keyword", keywords)):
        lengths = [len(e.ids) for e in tokenizer.encode_batch(list(texts))]
        mean = sum(lengths) / len(lengths)
        print(f"{kind}: mean {mean:.2f}, longest {max(lengths)} tokens with specials")


if __name__ == "__main__":
    main()
