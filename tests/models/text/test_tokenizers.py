import copy
import pickle
import warnings
from pathlib import Path

import pytest
import torch

from avalanche_clip.models import JSONTokenizer, OpenCLIPTokenizer, create_dual_encoder
from avalanche_clip.models.text.build import build_tokenizer
from tests.refused import refused

LONG = " ".join(["red", "dog"] * 10)


@pytest.fixture
def tokenizer(tokenizer_file):
    return JSONTokenizer(tokenizer_file, 12, trim=True)


def test_call__rows_start_end_and_are_padded_to_the_longest(tokenizer):
    ids = tokenizer(["Red dog", "blue"])
    assert ids.dtype == torch.long
    assert ids.tolist() == [[38, 1, 4, 39], [38, 3, 39, 0]]


def test_call__without_trim_rows_have_the_context_length(tokenizer_file):
    ids = JSONTokenizer(tokenizer_file, 12, trim=False)(["red"])
    assert ids.shape == (1, 12)
    assert ids[0, 3:].eq(0).all()


def test_call__empty_captions_lists_and_single_strings(tokenizer):
    assert tokenizer([""]).tolist() == [[38, 39]]
    assert tokenizer([]).shape == (0, 2)
    assert tokenizer("red").tolist() == [[38, 1, 39]]
    assert tokenizer(("red",)).tolist() == [[38, 1, 39]]


def test_call__long_captions_keep_the_end_token_and_are_counted(tokenizer):
    with pytest.warns(UserWarning, match="22 tokens") as caught:
        ids = tokenizer([LONG, "red", LONG])
    assert len(caught) == 1
    assert ids.shape == (3, 12)
    assert ids[0, -1] == tokenizer.eot_id
    assert ids[0, :-1].tolist() == [38, *([1, 4] * 5)]
    assert tokenizer.num_truncated == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer([LONG])
    assert tokenizer.num_truncated == 3


def test_call__truncate_off_names_caption_and_length(tokenizer):
    tokenizer.truncate = False
    refused(r"red dog.*22 tokens.*12", tokenizer, ["red", LONG])


@pytest.mark.parametrize("texts", [3, None, ["red", 3], [["red"]], [b"red"]])
def test_call__other_types_are_refused(texts, tokenizer):
    refused("string", tokenizer, texts, error=TypeError)


def test_copies__share_the_vocabulary_but_not_the_counter(tokenizer):
    with pytest.warns(UserWarning):
        tokenizer([LONG])
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert torch.equal(twin(["red dog"]), tokenizer(["red dog"]))
        twin([LONG])
        assert twin.num_truncated == 2
        assert tokenizer.num_truncated == 1


def test_open_clip__rows_equal_open_clips_own():
    import open_clip

    reference = open_clip.SimpleTokenizer()
    texts = ["a photo of a Dog!", "", "naïve café 🙂", "x " * 100]
    full = OpenCLIPTokenizer(77, trim=False)
    with pytest.warns(UserWarning, match="102 tokens"):
        ids = full(texts)
    assert torch.equal(ids, reference(texts))
    trimmed = OpenCLIPTokenizer(77, trim=True)(texts[:2])
    assert torch.equal(trimmed, ids[:2, : trimmed.shape[1]])
    assert ids[:2, trimmed.shape[1] :].eq(0).all()
    assert full.vocab_size == 49408
    assert (full.sot_id, full.eot_id, full.pad_id) == (49406, 49407, 0)


def test_open_clip_hf__rows_equal_open_clips_own(hf_siglip_folder):
    from open_clip.tokenizer import HFTokenizer

    texts = ["red  Dog", "blue", LONG]
    for clean in ("whitespace", "canonicalize"):
        reference = HFTokenizer(str(hf_siglip_folder), context_length=12, clean=clean)
        spec = {
            "type": "open_clip_hf",
            "file": str(hf_siglip_folder),
            "kwargs": {"clean": clean},
        }
        ours = build_tokenizer(spec, 12, trim=False)
        with pytest.warns(UserWarning):
            assert torch.equal(ours(texts), reference(texts))
        assert ours.num_truncated == 1


def test_transformers__rows_equal_transformers_own(hf_clip_folder):
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(hf_clip_folder)
    texts = ["red dog", "blue", LONG]
    expected = reference(
        texts, padding=True, truncation=True, max_length=12, return_tensors="pt"
    ).input_ids
    ours = build_tokenizer({"type": "hf", "file": str(hf_clip_folder)}, 12, trim=True)
    with pytest.warns(UserWarning):
        assert torch.equal(ours(texts), expected)
    assert (ours.sot_id, ours.eot_id, ours.pad_id) == (38, 39, 39)


def test_json__missing_file_and_missing_specials_are_explained(tmp_path):
    from tokenizers import Tokenizer, models

    with pytest.raises(FileNotFoundError, match=r"none\.json"):
        JSONTokenizer(tmp_path / "none.json", 12, trim=True)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "a.json"))
    refused("endoftext", JSONTokenizer, tmp_path / "a.json", 12, trim=True)


def test_json__comes_back_from_a_folder_and_with_a_byte_order_mark(
    tokenizer_file, tmp_path
):
    tokenizer = JSONTokenizer(tokenizer_file, 12, trim=True)
    tokenizer.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    assert path.read_bytes() == Path(tokenizer_file).read_bytes()
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    marked = JSONTokenizer(path, 12, trim=True)
    assert torch.equal(marked(["red dog"]), tokenizer(["red dog"]))


def test_build__unknown_type_and_short_context_are_refused(tokenizer_file):
    refused("'words'", build_tokenizer, {"type": "words"}, 12, trim=True)
    refused("context_length=1", JSONTokenizer, tokenizer_file, 1, trim=True)


def test_model__vocabulary_larger_than_the_table_is_refused(native_cfg):
    native_cfg["text_cfg"]["vocab_size"] = 100
    model = create_dual_encoder(native_cfg)
    with pytest.raises(ValueError, match="49408 ids.*100 rows"):
        _ = model.tokenizer


def test_model__tokenizer_can_be_replaced(tiny_cfg, tokenizer_file):
    model = create_dual_encoder(tiny_cfg)
    other = JSONTokenizer(tokenizer_file, 8, trim=False)
    model.tokenizer = other
    assert model.tokenizer is other
    assert "tokenizer" not in dict(model.named_modules())
