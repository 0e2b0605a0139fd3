"""The growing tokenizer: old ids for ever, snapshots, storage."""

import copy
import json
import pickle

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from avalanche_clip.models.encoders.presets import TOKENIZER_FILE
from avalanche_clip.models.text.growing import GrowingTokenizer
from avalanche_clip.models.text.hf_tokenizers import HFCaptionTokenizer
from avalanche_clip.models.text.learning import LearntVocabulary
from avalanche_clip.models.text.tokenizers import (
    CaptionTokenizer,
    JSONTokenizer,
    OpenCLIPTokenizer,
)
from avalanche_clip.models.text.vocabulary import count_tokens
from tests.models.conftest import unigram
from tests.refused import refused

TEXTS = [
    "A smiling face, with 3 hearts!",
    "Grüße aus   Köln's Straßen &amp; mehr",
    "एक मुस्कुराता हुआ चेहरा",
    "猫が走っている",
    "ไทยแลนด์",
    "\u0130stanbul ΟΔΟΣ e\u0301",
    "",
]
DE = ["rote katze", "rote hunde", "kleine katze", "blaue katze", "rotes haus"] * 3
EL = ["κόκκινη γάτα", "μπλε γάτα", "κόκκινο σπίτι"] * 3
START, END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="module")
def json_source():
    return JSONTokenizer(TOKENIZER_FILE, 32, trim=True)


@pytest.fixture(scope="module")
def clip_source():
    return OpenCLIPTokenizer(77, trim=False)


def toy(tmp_path, merges, **options):
    """A byte-pair tokenizer over a, b, c with the given base merges."""
    tokens = [*"abc", "a</w>", "b</w>", "c</w>", *("".join(m) for m in merges)]
    tokens += [START, END]
    inner = Tokenizer(
        models.BPE(
            {t: i for i, t in enumerate(tokens)},
            merges,
            unk_token=END,
            end_of_word_suffix="</w>",
        )
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    inner.add_special_tokens([START, END])
    inner.save(str(tmp_path / "toy.json"))
    source = JSONTokenizer(tmp_path / "toy.json", 8, trim=True)
    return GrowingTokenizer(source, **options)


def words(tokenizer, text, language=None):
    ids = tokenizer.encode_in(text, language)[1:-1]
    return [tokenizer.vocabulary.tokens[i] for i in ids]


# ------------------------------------------------------------- before growth
@pytest.mark.parametrize("name", ["json_source", "clip_source"])
def test_new__gives_the_ids_of_its_source(name, request):
    source = request.getfixturevalue(name)
    grown = GrowingTokenizer(source)
    for text in TEXTS:
        assert grown.encode(text) == source.encode(text), text
    assert torch.equal(grown(TEXTS), source(TEXTS))
    assert grown.vocab_size == grown.base_vocab_size == source.vocab_size
    assert (grown.sot_id, grown.eot_id, grown.pad_id) == (
        source.sot_id,
        source.eot_id,
        source.pad_id,
    )


def test_open_clip__special_ids_and_names_are_the_papers(clip_source):
    grown = GrowingTokenizer(clip_source)
    assert grown.special_ids == (49406, 49407)
    assert grown.token_to_id(START) == 49406 and grown.token_to_id(END) == 49407
    assert len(grown.vocabulary.merges()) == 48894
    for text in ("a <start_of_text> b", "a <|endoftext|> b", "!<|startoftext|>x"):
        assert grown.encode(text) == clip_source.encode(text), text


# ------------------------------------------------------------------- growing
def test_growth__keeps_old_ids_and_appends(json_source):
    grown = GrowingTokenizer(json_source)
    before = dict(grown.vocabulary.ids)
    learnt = grown.train_language("de", DE, 330)
    facts = grown.add_language("de", learnt)
    after = grown.vocabulary.ids
    assert all(after[token] == number for token, number in before.items())
    new = [t for t in learnt.tokens if t not in before]
    assert new and grown.vocabulary.tokens[len(before) :] == new
    assert facts.old_size == len(before) and facts.num_new_tokens == len(new)
    assert grown.vocab_size == len(before) + len(new)
    assert facts.overlap == len(learnt.tokens) - len(new)
    assert facts.overlap_ratio == 100 * facts.overlap / len(learnt.tokens)
    assert len(after) == len(grown.vocabulary.tokens)
    again = grown.add_language("de", learnt)
    assert again.num_new_tokens == again.num_new_merges == 0
    assert grown.vocab_size == facts.new_size
    assert grown.encode("rote katze")[1:-1] != json_source.encode("rote katze")[1:-1]


def test_train_language__has_clips_layout(clip_source):
    grown = GrowingTokenizer(clip_source)
    learnt = grown.train_language("de", DE, 320)
    assert learnt.tokens[:2] == (START, END)
    assert len(learnt.tokens[2:258]) == len({t for t in learnt.tokens[2:258]}) == 256
    assert all(len(t) == 1 for t in learnt.tokens[2:258])
    assert learnt == grown.train_language("de", DE[::-1], 320)


@pytest.mark.parametrize(
    "specials", [(START, END), ("<start_of_text>", "<end_of_text>")]
)
def test_growth__specials_are_never_added(specials, json_source):
    grown = GrowingTokenizer(json_source)
    size = grown.vocab_size
    grown.add_language("x", LearntVocabulary((*specials, "a", "zzqx</w>")))
    assert grown.vocabulary.tokens[size:] == ["zzqx</w>"]


def test_growth__merges_follow_in_their_own_order(tmp_path):
    grown = toy(tmp_path, [("a", "b")])
    learnt = LearntVocabulary(
        (*"abc", "bc</w>", "ab", "abc</w>"),
        (("b", "c</w>"), ("a", "b"), ("a", "bc</w>")),
    )
    facts = grown.add_language("x", learnt)
    assert grown.vocabulary.merges() == [("a", "b"), ("b", "c</w>"), ("a", "bc</w>")]
    # the old merge runs first, so "abc" never forms, although "bc" does
    assert words(grown, "abc") == ["ab", "c</w>"]
    assert facts.num_new_tokens == 2 and facts.reachable == 1
    assert facts.num_new_merges == 2


def test_new_merges_first__the_language_gets_its_own_words(tmp_path):
    learnt = LearntVocabulary(
        (*"abc", "bc</w>", "abc</w>"), (("b", "c</w>"), ("a", "bc</w>"))
    )
    grown = toy(tmp_path, [("a", "b")], merge_order="new-first", scope="language")
    grown.add_language("old")
    grown.add_language("x", learnt, codes=[7])
    assert grown.encode("abc")[1:-1] == [grown.token_to_id("abc</w>")]
    assert words(grown, "abc", "old") == ["ab", "c</w>"]
    assert words(grown, "abc", 7) == ["abc</w>"]


def test_pruning__leaves_out_dead_tokens_and_changes_no_caption(json_source):
    plain = GrowingTokenizer(json_source)
    pruned = GrowingTokenizer(json_source, prune_unreachable=True)
    for language, captions in (("de", DE), ("el", EL)):
        facts = plain.add_language(language, captions, vocab_size=340)
        less = pruned.add_language(language, captions, vocab_size=340)
        assert less.num_new_tokens == less.reachable
        assert less.num_new_tokens <= facts.num_new_tokens
    for text in [*DE, *EL, *TEXTS]:
        assert words(plain, text) == words(pruned, text)


def test_growth__wrong_vocabularies_raise(json_source):
    grown = GrowingTokenizer(json_source)
    with pytest.raises(ValueError, match="needs the token 'qqqqz'"):
        grown.add_language("x", LearntVocabulary(("a",), (("qqqqz", "a"),)))
    with pytest.raises(ValueError, match="comes with scores"):
        grown.add_language("x", LearntVocabulary(("a",), scores=(0.0,)))
    refused("more than once", grown.add_language, "x", LearntVocabulary(("a", "a")))
    refused("one string", grown.add_language, "x", "some text")
    refused("no captions of 'x'", grown.add_language, "x", [])
    grown.add_language("y", codes=[3])
    refused("Code 3 stands for 'y'", grown.add_language, "z", codes=[3])
    assert grown.vocab_size == json_source.vocab_size


# ----------------------------------------------------------------- snapshots
def test_snapshots__a_language_keeps_its_encodings(json_source):
    grown = GrowingTokenizer(json_source, scope="language", base_languages=("en", 9))
    latest = GrowingTokenizer(json_source)
    first = grown(TEXTS, ["en"] * len(TEXTS))
    grown.add_language("de", DE, codes=[1], vocab_size=340)
    latest.add_language("de", DE, vocab_size=340)
    stored = grown(DE, [1] * len(DE))
    assert torch.equal(stored, latest(DE))
    grown.add_language("x", ["rotekatze kleinekatze"] * 5, codes=[2], vocab_size=340)
    latest.add_language("x", ["rotekatze kleinekatze"] * 5, vocab_size=340)
    assert torch.equal(grown(TEXTS, ["en"] * len(TEXTS)), first)
    assert torch.equal(grown(TEXTS, torch.full((len(TEXTS),), 9)), first)
    assert torch.equal(grown(DE, ["de"] * len(DE)), stored)
    assert torch.equal(grown(DE, [2] * len(DE)), latest(DE))
    mixed = grown([DE[0], DE[0]], ["de", "en"])
    assert torch.equal(mixed[0][: stored.shape[1]], stored[0][: mixed.shape[1]])
    assert grown.snapshots["de"].vocab_size < grown.vocab_size
    # never heard of: the latest
    assert torch.equal(grown(DE, [77] * len(DE)), latest(DE))


def test_toy__later_merges_cut_old_captions_anew_under_the_latest_scope(tmp_path):
    grown = toy(tmp_path, [("a", "b")])
    grown.add_language("old")
    assert words(grown, "abc") == ["ab", "c</w>"]
    more = LearntVocabulary(("ab", "c</w>", "abc</w>"), (("ab", "c</w>"),))
    grown.add_language("new", more)
    assert words(grown, "abc") == ["abc</w>"]
    grown.scope = "language"
    assert words(grown, "abc", "old") == ["ab", "c</w>"]


def test_language_scope__needs_languages_once_there_are_some(json_source):
    grown = GrowingTokenizer(json_source, scope="language")
    assert torch.equal(grown(TEXTS), json_source(TEXTS))
    grown.add_language("de", DE, codes=[1], vocab_size=340)
    refused("needs the language of each", grown, DE)
    grown.default_language = "de"
    assert torch.equal(grown(DE), grown(DE, [1] * len(DE)))
    refused("2 language codes given, 1 are", grown, DE[:1], [1, 1])


# ------------------------------------------------------------------- storage
def test_language_scope__the_default_language_may_be_code_zero(tmp_path):
    grown = toy(tmp_path, [("a", "b")], scope="language")
    grown.add_language("one", codes=[0])
    learnt = LearntVocabulary(("a", "b", "ab", "c</w>", "abc</w>"), (("ab", "c</w>"),))
    grown.add_language("two", learnt, codes=[1])
    grown.default_language = 0
    assert torch.equal(grown(["abc"]), grown(["abc"], [0]))
    assert not torch.equal(grown(["abc"]), grown(["abc"], [1]))


@pytest.mark.parametrize("scope", ["latest", "language"])
def test_storage__every_way_gives_the_same_tokenizer(scope, json_source, tmp_path):
    grown = GrowingTokenizer(json_source, scope=scope)
    for code, (name, captions) in enumerate((("de", DE), ("el", EL))):
        grown.add_language(name, captions, codes=[code], vocab_size=330)
    loaded = GrowingTokenizer(json_source)
    loaded.load_state_dict(json.loads(json.dumps(grown.state_dict())))
    spec = grown.save(tmp_path)
    assert spec == {"type": "growing", "file": "growing_tokenizer.json"}
    twins = [
        loaded,
        GrowingTokenizer.load(tmp_path),
        GrowingTokenizer.load(tmp_path / spec["file"]),
        copy.deepcopy(grown),
        pickle.loads(pickle.dumps(grown)),
    ]
    texts = [*DE, *EL, *TEXTS]
    for codes in ([0] * len(texts), [1] * len(texts)):
        expected = grown(texts, codes)
        for twin in twins:
            assert torch.equal(twin(texts, codes), expected)
            assert twin.vocabulary.tokens == grown.vocabulary.tokens
            assert twin.vocabulary.merges() == grown.vocabulary.merges()
            assert twin.snapshots == grown.snapshots
            assert isinstance(twin, CaptionTokenizer)


def test_load__another_base_raises(json_source, tmp_path):
    state = toy(tmp_path, [("a", "b")]).state_dict()
    with pytest.raises(ValueError, match="build the model that was stored"):
        GrowingTokenizer(json_source).load_state_dict(state)


# ------------------------------------------------------------------- options
def test_marks__keep_words_with_vowel_signs_together(clip_source):
    plain = GrowingTokenizer(clip_source)
    marks = GrowingTokenizer(clip_source, pretokenizer="marks")
    hindi = TEXTS[2]
    splitter = [t.vocabulary.build(0).pre_tokenizer for t in (plain, marks)]
    pieces = [len(s.pre_tokenize_str(hindi)) for s in splitter]
    assert pieces[1] == len(hindi.split()) < pieces[0]
    assert marks.encode(TEXTS[0]) == plain.encode(TEXTS[0])
    copied = GrowingTokenizer.from_state_dict(marks.state_dict())
    assert copied.encode(hindi) == marks.encode(hindi)


@pytest.mark.parametrize(
    "options", [{"scope": "x"}, {"pretokenizer": "x"}, {"merge_order": "x"}], ids=str
)
def test_unknown_options__raise(options, json_source):
    with pytest.raises(ValueError, match=next(iter(options))):
        GrowingTokenizer(json_source, **options)


def test_sources_that_cannot_grow__raise(tokenizer_file):
    source = JSONTokenizer(tokenizer_file, 12, trim=True)
    refused("WordLevel", GrowingTokenizer, source)
    with pytest.raises(ValueError, match="reduction_mask"):
        GrowingTokenizer(OpenCLIPTokenizer(8, trim=True, reduction_mask="simple"))


def test_reserve__new_ids_come_after_the_rows_of_a_larger_table(json_source):
    grown = GrowingTokenizer(json_source)
    grown.reserve(json_source.vocab_size + 5)
    assert torch.equal(grown(TEXTS), json_source(TEXTS))
    facts = grown.add_language("el", EL, vocab_size=330)
    assert facts.old_size == json_source.vocab_size + 5
    refused("before the first growth", grown.reserve, 10**6, error=RuntimeError)


def test_count_tokens__counts_and_checks():
    assert count_tokens([[1, 1], [], [3]], 5).tolist() == [0, 2, 0, 1, 0]
    assert count_tokens([], 2).tolist() == [0, 0]
    refused("0 to 5", count_tokens, [[0, 5]], 5)


# -------------------------------------------------------------------- pieces
def make_pieces(folder):
    """A SentencePiece-like transformers tokenizer with a special id at its end."""
    from transformers import PreTrainedTokenizerFast

    scores = dict.fromkeys(("<s>", "<pad>", "</s>", "<unk>"), 0.0)
    scores |= dict.fromkeys("▁abcdefghijklmnopqrstuvwxyz", -9.0)
    inner = unigram(scores | {"▁the": -3.0, "▁cat": -4.0}, 3, "<s> $A </s>")
    PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
    ).save_pretrained(folder)


def test_pieces__grow_with_the_same_guarantees(tmp_path):
    make_pieces(tmp_path)
    source = HFCaptionTokenizer(str(tmp_path), 16, trim=False)
    grown = GrowingTokenizer(source, scope="language", base_languages=["en"])
    texts = ["the cat sat", "die katze schläft", "thé cat", ""]
    assert torch.equal(grown(texts, ["en"] * 4), source(texts))
    size = grown.vocab_size
    assert size == source.vocab_size and grown.token_to_id("<mask>") is not None
    german = ["die katze", "die kleine katze", "eine katze"] * 4
    facts = grown.add_language("de", german, codes=[1], vocab_size=40)
    assert facts.num_new_tokens > 0 and facts.num_new_merges == 0
    assert facts.old_size == size and facts.reachable > 0
    assert {0, 1, 2, 3} <= set(grown.special_ids)
    assert not {"<s>", "</s>", "<unk>"} & set(grown.vocabulary.tokens[size:])
    new, old = grown(["die katze"], [1])[0], source(["die katze"])[0]
    assert int(new.max()) >= size
    assert (new != grown.pad_id).sum() < (old != grown.pad_id).sum()
    assert torch.equal(grown(texts, ["en"] * 4), source(texts))
    twin = GrowingTokenizer.from_state_dict(json.loads(json.dumps(grown.state_dict())))
    assert torch.equal(twin(german, [1] * 12), grown(german, [1] * 12))
    refused("merge_order", GrowingTokenizer, source, merge_order="new-first")
    refused("marks", GrowingTokenizer, source, pretokenizer="marks")
    long = grown(["die katze " * 20], [1])[0]
    assert long[-1] == source.eot_id and long[0] == source.sot_id
