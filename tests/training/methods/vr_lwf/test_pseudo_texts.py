"""Settings and pure parts of VR-LwF."""

import math

import pytest
import torch

from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training.methods.vr_lwf.pseudo_texts import (
    SpecialTokens,
    draw_token_ids,
    special_tokens,
)
from avalanche_clip.training.plugins import VocabularyReplayPlugin
from avalanche_clip.training.supervised import Sequential
from tests.helpers import StubTokenizer, build, stub_benchmark, stub_model
from tests.models.conftest import (  # noqa: F401
    hf_clip_folder,
    hf_siglip_folder,
    tokenizer_file,
)

CLIP = SpecialTokens(sot_id=49406, eot_id=49407, pad_id=0, vocab_size=49408)
SMALL = {"num_texts": 20, "text_length": 3}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_token_matrix__has_the_published_form():
    draw = dict(width=77, excluded={CLIP.sot_id, CLIP.eot_id})
    rows = draw_token_ids(1000, 10, CLIP, generator=generator(), **draw)
    assert rows.shape == (1000, 77) and rows.dtype == torch.int64
    assert (rows[:, 0] == 49406).all() and (rows[:, 11] == 49407).all()
    assert (rows[:, 12:] == 0).all()
    inside = rows[:, 1:11]
    assert inside.min() >= 0 and inside.max() < 49406
    assert (rows.argmax(dim=1) == 11).all()
    assert abs(inside.double().mean() - 49405 / 2) < 5 * 49406 / math.sqrt(12e4)
    again = draw_token_ids(1000, 10, CLIP, generator=generator(), **draw)
    other = draw_token_ids(1000, 10, CLIP, generator=generator(1), **draw)
    assert torch.equal(rows, again) and not torch.equal(rows, other)


def test_token_matrix__every_allowed_id_is_drawn_equally_often():
    tokens = SpecialTokens(sot_id=1, eot_id=4, pad_id=0, vocab_size=6)
    rows = draw_token_ids(
        500, 8, tokens, width=12, generator=generator(), excluded={0, 1, 4}
    )
    counts = torch.bincount(rows[:, 1:9].flatten(), minlength=6)
    assert counts[[0, 1, 4]].tolist() == [0, 0, 0]
    # 4000 draws of three ids: standard deviation 30
    assert (counts[[2, 3, 5]] - 4000 / 3).abs().max() < 150
    rows = draw_token_ids(500, 8, tokens, width=12, generator=generator())
    assert torch.bincount(rows[:, 1:9].flatten(), minlength=6).min() > 500


@pytest.mark.parametrize("length, fits", [(4, True), (5, False)])
def test_token_matrix__must_fit_the_context(length, fits):
    if fits:
        assert draw_token_ids(2, 4, CLIP, width=6, generator=generator()).shape[1] == 6
        return
    with pytest.raises(ValueError, match="text_length=5.*text_length <= 4"):
        draw_token_ids(2, length, CLIP, width=6, generator=generator())
    with pytest.raises(ValueError, match="text_length=10.*context of 6 tokens"):
        build(Sequential, plugins=[VocabularyReplayPlugin()])


def test_special_tokens__come_from_the_tokenizer(hf_clip_folder, tmp_path):  # noqa: F811
    from avalanche_clip.models.text.tokenizers import OpenCLIPTokenizer

    assert special_tokens(OpenCLIPTokenizer(77, trim=True)) == CLIP
    assert special_tokens(StubTokenizer()) == (1, 2, 0, 32)
    emoji = create_dual_encoder("tiny-emoji").tokenizer
    assert special_tokens(emoji) == (3582, 3583, 0, 3584)
    model = create_dual_encoder(f"hf:{hf_clip_folder}")
    # This tokenizer pads with the end token; pooling takes the first one.
    assert special_tokens(model.tokenizer) == (38, 39, 39, 40)
    plugin = VocabularyReplayPlugin(num_texts=6, text_length=4)
    strategy = build(Sequential, model, plugins=[plugin])
    strategy.teachers.start_experience()
    strategy.teachers.get("previous")
    strategy.experience = stub_benchmark().train_stream[0]
    ids = plugin.draw_texts(strategy)
    assert ids.shape == (6, 6) and (ids[:, 1:5] < 38).all()
    # The teacher's features of cut rows are those of full ones.
    full = torch.nn.functional.pad(ids, (0, 6), value=39)
    with torch.no_grad():
        model.eval()
        short = model.encode_text(ids)
        assert (short - model.encode_text(full)).abs().max() < 1e-5


def test_siglip__rows_are_full_and_sentences_need_no_start_token(
    hf_siglip_folder,  # noqa: F811
):
    model = create_dual_encoder(f"hf:{hf_siglip_folder}").eval()
    plugin = VocabularyReplayPlugin(num_texts=6, text_length=4)
    strategy = build(Sequential, model, plugins=[plugin])
    strategy.teachers.start_experience()
    strategy.teachers.get("previous")
    strategy.experience = stub_benchmark().train_stream[0]
    # The tower is not causal and pools the last position: nothing is cut.
    assert plugin.draw_texts(strategy).shape == (6, 12)
    model.tokenizer.sot_id = None
    with pytest.raises(ValueError, match="HFCaptionTokenizer has no sot_id.*texts="):
        plugin.check_compatible(strategy)
    plugin.texts = ("red dog", "blue car", "sun")
    plugin.check_compatible(strategy)
    ids = plugin.draw_texts(strategy)
    assert torch.equal(ids, model.tokenizer(list(plugin.texts)))
    with torch.no_grad():
        expected = model.encode_text(ids)
    assert torch.equal(plugin._teacher_texts(strategy, ids), expected)


class OddTokenizer(StubTokenizer):
    """A tokenizer whose empty text is the given row."""

    def __init__(self, row, **ids):
        self.row = row
        vars(self).update(ids)

    def __call__(self, texts, languages=None):
        return torch.tensor([self.row] * len(texts))


@pytest.mark.parametrize(
    "tokenizer, message",
    [
        (OddTokenizer([2, 0, 0], sot_id=None), "no sot_id.*texts="),
        (OddTokenizer([2, 0, 0, 0]), "writes an empty text as.*texts="),
        (OddTokenizer([1, 0, 0, 2, 5]), "start 1, end 2 and padding 0"),
        (OddTokenizer([1, 0, 0, 0]), "empty text"),
        (OddTokenizer([2, 2, 0, 0], sot_id=2), "empty text"),
    ],
)
def test_special_tokens__unknown_form_is_refused(tokenizer, message):
    with pytest.raises(ValueError, match=message):
        special_tokens(tokenizer)
    model = stub_model()
    model.tokenizer = tokenizer
    with pytest.raises(ValueError, match=message):
        build(Sequential, model, plugins=[VocabularyReplayPlugin(**SMALL)])
    # Sentences, or weights of 0, need no knowledge of the form.
    build(Sequential, model, plugins=[VocabularyReplayPlugin(texts=["a", "b"])])
    idle = VocabularyReplayPlugin(image_weight=0, text_weight=0)
    build(Sequential, model, plugins=[idle])
