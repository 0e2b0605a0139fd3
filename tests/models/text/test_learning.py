"""Byte-pair training against a slow version and the tokenizers library."""

import json
import random
from collections import Counter
from itertools import pairwise

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from avalanche_clip.models.text.learning import (
    LearntVocabulary,
    apply_merges,
    count_words,
    train_bpe,
    train_pieces,
)
from tests.refused import refused


def pipeline():
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def slow_bpe(words, size, alphabet, suffix):
    """Count everything anew before each merge."""
    spelled = {w: [*w[:-1], w[-1] + suffix] for w in words}
    tokens = sorted(alphabet)
    tokens += sorted({s for word in spelled.values() for s in word} - set(tokens))
    merges = []
    while len(tokens) < size:
        counts = Counter()
        for word, parts in spelled.items():
            for pair in pairwise(parts):
                counts[pair] += words[word]
        if not counts:
            break
        pair = min(counts, key=lambda p: (-counts[p], *map(tokens.index, p)))
        merges.append(pair)
        if "".join(pair) not in tokens:
            tokens.append("".join(pair))
        for parts in spelled.values():
            i = 0
            while i + 1 < len(parts):
                if (parts[i], parts[i + 1]) == pair:
                    parts[i : i + 2] = ["".join(pair)]
                i += 1
    return tuple(tokens), tuple(merges)


@pytest.mark.parametrize("seed", range(6))
def test_train_bpe__equals_the_slow_version(seed):
    rng = random.Random(seed)
    words = {
        "".join(rng.choices("abc", k=rng.randint(1, 7))): rng.randint(1, 9)
        for _ in range(30)
    }
    learnt = train_bpe(words, 40, alphabet="abc", suffix="$")
    assert (learnt.tokens, learnt.merges) == slow_bpe(words, 40, "abc", "$")


def test_train_bpe__learns_the_tokens_of_the_tokenizers_library():
    rng = random.Random(3)
    captions = [
        " ".join("".join(rng.choices("abcdef", [9, 7, 5, 3, 2, 1], k=5)) for _ in "abc")
        for _ in range(300)
    ]
    theirs = pipeline()
    specials = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=60,
        special_tokens=specials,
        initial_alphabet=list("abcdef"),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    theirs.train_from_iterator(captions, trainer=trainer)
    model = json.loads(theirs.to_str())["model"]
    ours = train_bpe(
        count_words(captions, pipeline()),
        60,
        alphabet="abcdef",
        specials=specials,
        suffix="</w>",
    )
    assert ours.tokens[:8] == (*specials, *"abcdef")
    assert set(ours.tokens) == set(model["vocab"])
    assert list(ours.merges) == [tuple(m) for m in model["merges"]]


def test_train_bpe__stops_when_no_pair_is_left():
    assert train_bpe({"ab": 1}, 99, alphabet="ab", suffix="$").tokens[-1] == "ab$"
    assert train_bpe({}, 9, alphabet="ab").tokens == ("a", "b")


def test_train_bpe__too_small_a_size_raises():
    with pytest.raises(ValueError, match="vocab_size=2 must be an integer >= 3"):
        train_bpe({"ab": 1}, 2, alphabet="ab", suffix="$")


def test_count_words__weighs_repeated_captions_and_rejects_others():
    assert count_words(["A b", "a"], pipeline()) == {"a": 2, "b": 1}
    with pytest.raises(TypeError, match="Entry 1 of the captions"):
        count_words(["a", 1], pipeline())


def test_apply_merges__equals_the_library_when_later_merges_rank_first():
    vocab = {t: i for i, t in enumerate(["a", "b", "ab", "aba", "b$", "ab$"])}
    merges = [("ab", "a"), ("a", "b"), ("a", "b$")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="$"))
    ranks = {merge: rank for rank, merge in enumerate(merges)}
    for word in ("abab", "ab", "aab", "ababab", "bab", "abaab"):
        parts = [*word[:-1], word[-1] + "$"]
        assert apply_merges(parts, ranks) == tokenizer.encode(word).tokens, word


def test_learnt_vocabulary__is_of_one_kind():
    with pytest.raises(ValueError, match="either merges"):
        LearntVocabulary(("a", "b", "ab"), (("a", "b"),), (0.0, 0.0, 0.0))
    refused("1 scores", LearntVocabulary, ("a", "b"), scores=(0.0,))


def test_train_pieces__gives_pieces_with_scores_in_any_order_of_captions():
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    captions = ["a small house", "the house is small", "my house"] * 4
    first = train_pieces(captions, tokenizer, 30, specials=["<unk>"], unknown="<unk>")
    again = train_pieces(
        captions[::-1], tokenizer, 30, specials=["<unk>"], unknown="<unk>"
    )
    assert first == again
    assert first.tokens[0] == "<unk>" and "s" in first.tokens
    assert len(first.scores) == len(first.tokens)
