"""Grown models come back from their folder as they were."""

import json

import pytest
import torch

from avalanche_clip.models import (
    attach_token_embedding,
    create_dual_encoder,
    find_token_embedding,
    save_weights,
)
from tests.helpers import train_stream
from tests.models.grown import DE, EL, experience
from tests.refused import refused
from tests.training.languages import language_strategy, language_stream, tiny_model

TEXTS = ["red cat", *DE[:3], *EL[:3]]


def grow(model, languages=2, **options):
    """Add languages, count them, and move some rows."""
    table = attach_token_embedding(model, **options)
    for number, (name, texts) in enumerate([("de", DE), ("el", EL)][:languages]):
        model.tokenizer.add_language(name, texts, codes=[number], vocab_size=330)
        table.adaptation(experience(number))
        table.usage[: 10 * (number + 1)] += 1
    with torch.no_grad():
        table.weight[5] += 0.25
    return table


def assert_same(model, loaded, texts=TEXTS, languages=None):
    languages = [0] * len(texts) if languages is None else languages
    ours, theirs = find_token_embedding(model), find_token_embedding(loaded)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.usage, theirs.usage)
    assert ours.base_rows == theirs.base_rows
    assert (ours.init, ours.std, ours.seed) == (theirs.init, theirs.std, theirs.seed)
    assert theirs.tokenizer is loaded.tokenizer
    for name in ("tokens", "scores", "parts", "sizes"):
        assert getattr(model.tokenizer.vocabulary, name) == getattr(
            loaded.tokenizer.vocabulary, name
        )
    assert model.tokenizer.snapshots == loaded.tokenizer.snapshots
    ids = model.tokenizer(texts, languages)
    assert torch.equal(loaded.tokenizer(texts, languages), ids)
    assert torch.equal(loaded.eval().encode_text(ids), model.eval().encode_text(ids))
    assert loaded.state_fingerprint() == model.state_fingerprint()


@pytest.mark.parametrize("languages", [0, 1, 2])
@pytest.mark.parametrize("scope", ["latest", "language"])
def test_grown_model__loads_at_any_size(languages, scope, tmp_path):
    model = tiny_model()
    table = grow(model, languages, scope=scope, init="normal", std=0.03, seed=5)
    assert (table.num_embeddings > 3584) is (languages > 0)
    model.save(tmp_path / "a")
    loaded = create_dual_encoder(tmp_path / "a")
    assert_same(model, loaded)
    # it grows on, and is saved again
    for each in (model, loaded):
        each.train().tokenizer.add_language("fi", ["punainen kissa"] * 3, codes=[7])
        find_token_embedding(each).adaptation(experience(2))
    loaded.save(tmp_path / "b")
    assert_same(model, create_dual_encoder(tmp_path / "b"))


def test_grown_weights__load_into_the_named_architecture(tmp_path):
    model = tiny_model()
    grow(model)
    model.save(tmp_path)
    for weights in (tmp_path, tmp_path / "model.safetensors"):
        assert_same(model, create_dual_encoder(tiny_model().config, weights))
    # without the configuration beside it nothing is known of the vocabulary
    save_weights(model, tmp_path / "alone.safetensors")
    with pytest.raises(ValueError, match="of another shape"):
        create_dual_encoder(tiny_model().config, tmp_path / "alone.safetensors")
    facts = json.loads((tmp_path / "dual_encoder.json").read_text())
    facts["config"]["tokenizer"]["file"] = str(tmp_path / "growing_tokenizer.json")
    base = create_dual_encoder(facts["config"])
    with pytest.raises(ValueError, match=r"the token table\s+3584 rows"):
        base.tokenizer  # noqa: B018


@pytest.mark.parametrize("custom", [False, True])
def test_larger_tables__keep_their_reserved_ids(custom, tiny_cfg, tmp_path):
    tiny_cfg["model_cfg"]["text_cfg"]["vocab_size"] = 3600
    tiny_cfg["tokenizer"] = {"type": "json", "preset": "emoji_bpe.json"}
    tiny_cfg["model_cfg"]["custom_text"] = custom
    model = create_dual_encoder(tiny_cfg)
    grow(model)
    model.save(tmp_path)
    loaded = create_dual_encoder(tmp_path)
    assert loaded.tokenizer.base_vocab_size == 3600
    assert_same(model, loaded)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_transformers__table_and_pieces_come_back(kind, request, tmp_path):
    from tests.models.text.test_growing import make_pieces

    folder = request.getfixturevalue(f"hf_{kind}_folder")
    plain = create_dual_encoder(f"hf:{folder}")
    config = plain.config
    make_pieces(tmp_path / "pieces")
    config["tokenizer"] = {"type": "hf", "file": str(tmp_path / "pieces")}
    model = create_dual_encoder(config)
    table = attach_token_embedding(model, scope="language", base_languages=["en"])
    size, ids = table.num_embeddings, model.tokenizer(["the cat"], ["en"])
    before = model.eval().encode_text(ids)
    german = ["die katze", "die kleine katze", "eine katze"]
    model.tokenizer.add_language("de", german * 4, codes=[1], vocab_size=40)
    table.train().adaptation(experience(0))
    assert table.num_embeddings > size
    assert torch.equal(model.encode_text(ids), before)
    model.save(tmp_path / "saved")
    loaded = create_dual_encoder(tmp_path / "saved")
    assert_same(model, loaded, [*german, "the cat"], [1, 1, 1, 0])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_stored_types__round_the_towers_not_the_table(precision, tmp_path):
    model = tiny_model()
    grow(model)
    model.save(tmp_path)
    loaded = create_dual_encoder(tmp_path, precision=precision)
    table = find_token_embedding(loaded)
    assert torch.equal(table.weight, find_token_embedding(model).weight)
    assert not any(p.requires_grad for p in loaded.parameters())
    ids = model.tokenizer(TEXTS)
    torch.testing.assert_close(
        loaded.eval().encode_text(ids),
        model.eval().encode_text(ids),
        rtol=0,
        atol=0.05,
    )


def test_trained_model__is_saved_between_experiences_only(tmp_path):
    model = tiny_model()
    benchmark = language_stream(model)
    errors = []

    class Try:
        stateless = True

        def after_training_iteration(self, strategy, **kwargs):
            refused("are being trained", model.save, tmp_path)
            errors.append(1)

    strategy = language_strategy(model, plugins=[Try()])
    train_stream(strategy, benchmark, 2)
    assert errors and model.cross_modal is not None
    model.save(tmp_path)
    assert_same(model, create_dual_encoder(tmp_path))
    with pytest.raises(ValueError, match="reinitialize needs the plain"):
        create_dual_encoder(tmp_path).reinitialize(0)
