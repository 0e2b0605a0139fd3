"""What a tokenizer's files ask for is honoured or refused."""

import json

import pytest
import torch

from avalanche_clip.models import create_dual_encoder
from avalanche_clip.models.text.hf_tokenizers import HFCaptionTokenizer
from tests.models.conftest import edited, save_hf_tokenizer, unigram
from tests.refused import refused

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save_pieces(folder, **config):
    """A SentencePiece-like vocabulary in tokenizer.json, end id 1 as in SigLIP."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = ["▁", "▁red", "▁dog", "▁Red", *LETTERS, *LETTERS.upper(), "!", "."]
    scores = {"<pad>": 0.0, "</s>": 0.0, "<unk>": -9.0} | dict.fromkeys(pieces, -2.0)
    inner = unigram(scores, 2, "$A </s>")
    inner.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return inner


def tokenizer(folder, **options):
    return HFCaptionTokenizer(str(folder), 12, **{"trim": False, **options})


# ------------------------------------------------------------------- SigLIP
SIGLIP = {"tokenizer_class": "SiglipTokenizer", "model_max_length": 64}


@pytest.mark.parametrize("config", [SIGLIP, {**SIGLIP, "do_lower_case": True}, {}])
def test_siglip__from_tokenizer_json_alone(config, hf_siglip_folder, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (hf_siglip_folder / name).unlink()
    inner = save_pieces(hf_siglip_folder, **config)
    with edited(hf_siglip_folder / "config.json") as stored:
        stored["text_config"]["vocab_size"] = inner.get_vocab_size()
    found = tokenizer(hf_siglip_folder)
    assert (found.eot_id, found.pad_id) == (1, 1)
    row = found(["A  Red, dog!"])[0].tolist()
    assert row[:4] == inner.encode("a red dog").ids[:4]
    assert row[-1] == 1 and row.count(1) > 1
    # stored copies do the same
    spec = found.save(tmp_path)
    again = tokenizer(tmp_path / spec["file"])
    assert torch.equal(again(["A  Red, dog!"])[0], found(["A  Red, dog!"])[0])


def test_siglip__case_is_kept_where_the_file_says_so(tmp_path):
    inner = save_pieces(tmp_path, **SIGLIP, do_lower_case=False)
    found = tokenizer(tmp_path)
    assert found(["Red dog."])[0].tolist()[:3] == inner.encode("Red dog").ids
    assert found(["Red"])[0][0] != found(["red"])[0][0]


# ----------------------------------------------------------------- settings
def change_config(folder, **values):
    with edited(folder / "tokenizer_config.json") as stored:
        stored |= values


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"padding_side": "left"}, "padding_side='left'"),
        ({"truncation_side": "left"}, "truncation_side='left'"),
        ({"model_max_length": 8}, "model_max_length=8"),
        ({"auto_map": {"AutoTokenizer": ["x.T", None]}}, "auto_map"),
    ],
)
def test_settings__that_cannot_be_honoured_are_refused(
    values, match, tokenizer_file, tmp_path
):
    save_hf_tokenizer(tokenizer_file, tmp_path)
    tokenizer(tmp_path)
    change_config(tmp_path, **values)
    message = refused(match, tokenizer, tmp_path)
    assert str(tmp_path) in message and "tokenizer_config.json" in message


def test_settings__case_is_compared_with_what_is_done(tmp_path):
    save_pieces(tmp_path, tokenizer_class="PreTrainedTokenizerFast", eos_token="</s>")
    tokenizer(tmp_path)
    change_config(tmp_path, do_lower_case=False)
    tokenizer(tmp_path)
    change_config(tmp_path, do_lower_case=True)
    refused("do_lower_case=True", tokenizer, tmp_path)
    with edited(tmp_path / "tokenizer.json") as stored:
        stored["normalizer"] = {"type": "Lowercase"}
    tokenizer(tmp_path)
    change_config(tmp_path, do_lower_case=False)
    refused("do_lower_case=False", tokenizer, tmp_path)


def test_settings__the_longest_row_is_the_files(tokenizer_file, tmp_path):
    save_hf_tokenizer(tokenizer_file, tmp_path)
    change_config(tmp_path, model_max_length=5)
    found = tokenizer(tmp_path, trim=True)
    with pytest.warns(UserWarning, match="cut to 5"):
        row = found(["red dog cat bird car"])[0].tolist()
    assert len(row) == 5 and row[-1] == found.eot_id
    assert tokenizer(tmp_path, trim=False, open_clip=True).context_length == 12


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"<html></html>", b"version https://git-lfs.github.com/spec/v1"],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("open_clip", [False, True])
def test_files__that_are_damaged_are_named(
    name, content, open_clip, tokenizer_file, tmp_path
):
    save_hf_tokenizer(tokenizer_file, tmp_path)
    (tmp_path / name).write_bytes(content)
    words = "No tokenizer could be loaded"
    assert str(tmp_path) in refused(words, tokenizer, tmp_path, open_clip=open_clip)


# ---------------------------------------------------------------- languages
@pytest.fixture
def nllb(tmp_path):
    """A tokenizer that marks the language, as NLLB's does."""
    from transformers import NllbTokenizer

    names = ["eng_Latn", "deu_Latn", "fra_Latn"]
    words = ["<s>", "<pad>", "</s>", "<unk>", "▁red", "▁dog", *names]
    vocab = {word: number for number, word in enumerate(words)}
    inner = NllbTokenizer(
        vocab=vocab,
        merges=[],
        src_lang="eng_Latn",
        additional_special_tokens=names,
        extra_special_tokens=names,
    )
    inner.save_pretrained(tmp_path / "nllb")
    return tmp_path / "nllb"


@pytest.mark.parametrize("open_clip", [False, True])
def test_languages__are_marked_per_caption(nllb, open_clip):
    found = tokenizer(nllb, open_clip=open_clip)
    assert found.marks_language
    texts = ["red dog", "red dog", "red dog"]
    plain = found(texts)
    ids = {n: found._inner.convert_tokens_to_ids(n) for n in ("eng_Latn", "deu_Latn")}
    assert ids["eng_Latn"] in plain[0] and ids["deu_Latn"] not in plain[0]
    names = ["eng_Latn", "deu_Latn", "eng_Latn"]
    marked = found(texts, names)
    assert torch.equal(marked[0], plain[0]) and torch.equal(marked[2], plain[0])
    assert ids["deu_Latn"] in marked[1] and ids["eng_Latn"] not in marked[1]
    # codes need names, and then give the same
    refused("language_names", found, texts, [0, 1, 0])
    found.language_names = {0: "eng_Latn", 1: "deu_Latn"}
    assert torch.equal(found(texts, [0, 1, 0]), marked)
    assert torch.equal(found(texts, torch.tensor([0, 1, 0])), marked)
    assert torch.equal(found(texts), plain)
    refused("does not know the language 'xx'", found, texts, ["xx"] * 3)


def test_languages__of_settings_are_known_or_refused(nllb, tokenizer_file, tmp_path):
    found = tokenizer(nllb, open_clip=True, language="deu_Latn")
    number = found._inner.convert_tokens_to_ids("deu_Latn")
    assert number in found(["red dog"])[0]
    refused("'xx'", tokenizer, nllb, open_clip=True, language="xx")
    save_hf_tokenizer(tokenizer_file, tmp_path / "plain")
    with pytest.raises(ValueError, match="marks none"):
        tokenizer(tmp_path / "plain", open_clip=True, language="deu_Latn")


WRONG = ["ab", b"ab", [True, False], [0.0, 1.0], [None, None], [0], 3]


@pytest.mark.parametrize("languages", WRONG, ids=repr)
def test_languages__misread_forms_are_refused(languages, tokenizer_file, tmp_path):
    from avalanche_clip.models import GrowingTokenizer

    save_hf_tokenizer(tokenizer_file, tmp_path)
    preset = create_dual_encoder("tiny-emoji").tokenizer
    for found in (tokenizer(tmp_path), preset, GrowingTokenizer(preset)):
        expected = found(["red dog", "cat"])
        assert torch.equal(found(["red dog", "cat"], [0, 1]), expected)
        assert torch.equal(found(["red dog", "cat"], torch.tensor([3, 4])), expected)
        refused("language", found, ["red dog", "cat"], languages)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "tokenizer.json"]
)
def test_files__byte_order_marks_are_skipped_and_damage_is_named(
    name, hf_clip_folder, tmp_path
):
    expected = create_dual_encoder(hf_clip_folder).tokenizer(["red dog", "w3"])
    path = hf_clip_folder / name
    content = path.read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + content)
    model = create_dual_encoder(hf_clip_folder)
    assert torch.equal(model.tokenizer(["red dog", "w3"]), expected)
    model.save(tmp_path / "saved")
    again = create_dual_encoder(tmp_path / "saved").tokenizer(["red dog", "w3"])
    assert torch.equal(again, expected)
    path.write_bytes(b"<!DOCTYPE html><html>")
    with pytest.raises(ValueError, match="a web page") as info:
        create_dual_encoder(hf_clip_folder).tokenizer(["red dog"])
    assert str(path) in str(info.value)
