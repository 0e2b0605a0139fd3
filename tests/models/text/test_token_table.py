"""The growing token table: nothing changes but what shall."""

import copy
import pickle

import pytest
import torch
from torch import nn

from avalanche_clip.models import (
    ExpandableTokenEmbedding,
    GrowingTokenizer,
    attach_token_embedding,
    create_dual_encoder,
    find_token_embedding,
    load_vocabulary,
    save_vocabulary,
    train_tokens_only,
)
from avalanche_clip.models.text.teir import table_moments
from avalanche_clip.models.text.token_table import seeded
from tests.models.conftest import VOCAB, hf_text
from tests.models.grown import EL, experience, grown_model
from tests.refused import refused
from tests.training.languages import tiny_model

TEXTS = ["red cat", "a smiling face", "blue dog and old car"]


def table_of(rows=6, width=4, **options):
    torch.manual_seed(0)
    return ExpandableTokenEmbedding(nn.Embedding(rows, width), **options)


# ------------------------------------------------------------------- the module
def test_attach__changes_neither_keys_nor_features():
    model = tiny_model()
    ids = model.tokenizer(TEXTS)
    keys, before = list(model.state_dict()), model.encode_text(ids)
    parameter = model.clip.token_embedding.weight
    table = attach_token_embedding(model)
    assert table is model.clip.token_embedding is find_token_embedding(model)
    assert table.weight is parameter and isinstance(model.tokenizer, GrowingTokenizer)
    assert table.tokenizer is model.tokenizer
    assert list(model.state_dict()) == keys
    assert torch.equal(model.tokenizer(TEXTS), ids)
    assert torch.equal(model.encode_text(ids), before)
    model.load_state_dict(tiny_model(1).state_dict())
    refused("already", attach_token_embedding, model)


def test_expand__old_rows_and_features_are_bit_identical():
    model, table = grown_model()
    base = tiny_model()
    ids = base.tokenizer(TEXTS)
    assert table.num_embeddings == model.tokenizer.vocab_size > 3584
    assert torch.equal(table.weight[:3584], base.clip.token_embedding.weight)
    assert torch.equal(model.encode_text(ids), base.encode_text(ids))
    new = table.weight[3584:]
    mean, std = table_moments(base.clip.token_embedding.weight)
    assert abs(new.mean().item() - mean) < 5 * std / new.numel() ** 0.5
    assert abs(new.std().item() - std) < 5 * std / (2 * new.numel()) ** 0.5


def test_pooling__ids_above_the_end_token_do_not_matter():
    model, _ = grown_model()
    ids = model.tokenizer(EL[:1])
    assert int(ids.max()) > model.tokenizer.eot_id
    end = int((ids[0] == model.tokenizer.eot_id).nonzero()[0])
    argmax = int(ids[0].argmax())
    assert argmax < end
    hidden = {}

    def note(module, args, output):
        hidden["after"] = output

    handle = model.clip.ln_final.register_forward_hook(note)
    feature = model.encode_text(ids, normalize=False)
    handle.remove()
    projection = model.clip.text_projection
    torch.testing.assert_close(feature, hidden["after"][:, end] @ projection)
    assert not torch.allclose(feature, hidden["after"][:, argmax] @ projection)


@pytest.mark.parametrize("pad", [0, 5, 3583])
def test_padding__neither_features_nor_gradients_see_it(pad):
    model, table = grown_model()
    rows = [model.tokenizer(text)[0] for text in (TEXTS[0], EL[0])]
    full = torch.full((2, 12), pad)
    for number, row in enumerate(rows):
        full[number, : len(row)] = row
    together = model.encode_text(full)
    for number, row in enumerate(rows):
        alone = model.encode_text(row[None])
        torch.testing.assert_close(together[number], alone[0], rtol=0, atol=1e-5)
    model.zero_grad()
    together.sum().backward()
    used = {int(i) for row in rows for i in row}
    gradient = table.weight.grad
    assert all(gradient[k].abs().sum() > 0 for k in used)
    others = [k for k in range(len(gradient)) if k not in used]
    assert not gradient[others].any()


def test_adaptation__grows_in_training_only_and_by_its_own_seed():
    tables = []
    for number, seed in ((0, 0), (0, 0), (1, 0), (0, 1)):
        model = tiny_model()
        table = attach_token_embedding(model, seed=seed)
        model.tokenizer.add_language("el", EL, vocab_size=340)
        model.eval()
        table.adaptation(experience(number))
        assert table.num_embeddings == 3584
        model.train()
        torch.manual_seed(len(tables))
        table.adaptation(experience(number))
        tables.append(table.weight.detach())
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert not torch.equal(tables[0], tables[3])


def test_normal_init__has_the_baselines_spread():
    table = table_of(10, 64, init="normal")
    table.expand(2010, seeded(0, 0))
    new = table.weight[10:]
    assert new.std().item() == pytest.approx(0.02, rel=0.02)


def test_unsupported_embeddings__raise():
    refused("max_norm", ExpandableTokenEmbedding, nn.Embedding(3, 2, max_norm=1.0))
    refused("init='x'", table_of, init="x")
    with pytest.raises(ValueError, match="LayerNorm.*an nn.Embedding"):
        attach_token_embedding(tiny_model(), name="clip.ln_final")
    refused("no growing token table", save_vocabulary, tiny_model(), "nowhere")


# ----------------------------------------------------------------- active rows
def test_active__lookups_and_gradients_are_those_of_the_whole_table():
    dense, sparse = table_of(), table_of()
    sparse.activate(torch.tensor([4, 1, 2]))
    assert sparse.active_rows.tolist() == [1, 2, 4] and sparse.trained is sparse.active
    ids = torch.tensor([[1, 4, 1], [0, 2, 5]])
    weights = torch.randn(2, 3, 4)
    assert torch.equal(dense(ids), sparse(ids))
    (dense(ids) * weights).sum().backward()
    (sparse(ids) * weights).sum().backward()
    assert torch.equal(dense.weight.grad[[1, 2, 4]], sparse.active.grad)
    assert sparse.weight.grad is None
    with torch.no_grad():
        sparse.active.add_(1.0)
    moved = sparse(ids)
    full = sparse.table()
    sparse.settle()
    assert torch.equal(sparse(ids), moved) and torch.equal(sparse.weight, full)
    assert torch.equal(sparse.weight[[0, 3, 5]], dense.weight[[0, 3, 5]])
    assert sparse.active is None and sparse.weight.requires_grad


def test_active__waiting_decay_is_seen_at_once():
    table = table_of()
    before = table.weight.detach().clone()
    table.activate(torch.tensor([1]))
    table.factor = 0.5
    expected = before * 0.5
    expected[1] = before[1]
    assert torch.equal(table(torch.arange(6)), expected)
    assert torch.equal(table.table(), expected)
    table.settle()
    assert torch.equal(table.weight, expected) and table.factor == 1.0


def test_active__padding_row_gets_no_gradient():
    dense = ExpandableTokenEmbedding(nn.Embedding(6, 4, padding_idx=2))
    dense.activate(torch.tensor([1, 2]))
    dense(torch.tensor([1, 2, 2])).sum().backward()
    assert dense.active.grad[0].all() and not dense.active.grad[1].any()


@pytest.mark.parametrize("rows", [[], [6], [-1]])
def test_active__impossible_rows_raise(rows):
    refused("active rows", table_of().activate, torch.tensor(rows, dtype=torch.int64))


def test_active__follows_the_module_to_another_type_and_into_copies():
    table = table_of()
    table.activate(torch.tensor([1, 3]))
    for twin in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert torch.equal(twin(torch.arange(6)), table(torch.arange(6)))
        assert twin.active is not table.active
    assert table.double()(torch.arange(6)).dtype == torch.float64
    assert table.active_rows.dtype == torch.int64


# --------------------------------------------------------------------- storage
def test_save__loads_into_a_model_of_the_base_size(tmp_path):
    model, table = grown_model(scope="language")
    table.activate(torch.tensor([7, 3590]))
    with torch.no_grad():
        table.active.add_(0.5)
    path = save_vocabulary(model, tmp_path / "vocabulary.pt")
    other = tiny_model()
    loaded = load_vocabulary(other, path)
    assert torch.equal(loaded.weight, table.table())
    assert torch.equal(loaded.usage, table.usage)
    ids = model.tokenizer([*TEXTS, *EL], [0] * 3 + [2] * 9)
    assert torch.equal(other.tokenizer([*TEXTS, *EL], [0] * 3 + [2] * 9), ids)
    assert torch.equal(other.encode_text(ids), model.encode_text(ids))
    refused(
        "width of the table was 16.*is 32", load_vocabulary, tiny_model(width=32), path
    )


def test_state_dict__resizes_the_table_in_both_directions():
    model, table = grown_model()
    other = tiny_model(1)
    attach_token_embedding(other)
    base = {k: v.clone() for k, v in other.state_dict().items()}
    other.load_state_dict(model.state_dict())
    assert torch.equal(find_token_embedding(other).weight, table.weight)
    with pytest.raises(RuntimeError, match="loaded without its vocabulary"):
        find_token_embedding(other).adaptation(experience(0))
    other.load_state_dict(base)
    assert find_token_embedding(other).num_embeddings == 3584


def test_growth_state__another_base_raises():
    state = table_of(6).growth_state()
    refused("was 6 when it was stored, is 7", table_of(7).load_growth_state, state)


def test_deepcopy__tokenizer_and_table_stay_together():
    model, table = grown_model()
    twin = copy.deepcopy(model)
    assert find_token_embedding(twin).tokenizer is twin.tokenizer
    assert twin.tokenizer is not model.tokenizer
    model.tokenizer.add_language("xx", ["zzz qqq vvv"] * 5, vocab_size=340)
    table.adaptation(experience(1))
    assert find_token_embedding(twin).num_embeddings < table.num_embeddings
    find_token_embedding(twin).adaptation(experience(1))


def test_train_tokens_only__freezes_the_rest():
    model, table = grown_model()
    train_tokens_only(model)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert names == ["clip.token_embedding.weight"]
    train_tokens_only(model, also=("clip.ln_final",))
    assert sum(p.requires_grad for p in model.parameters()) == 3
    assert table.weight.dtype == torch.float32


# ----------------------------------------------------------------- other towers
def test_hf_text_tower_inside_open_clip__is_found(native_cfg, text_tower):
    from avalanche_clip.models.text.token_table import _table_name

    model = create_dual_encoder({"model_cfg": hf_text(native_cfg, text_tower)})
    assert _table_name(model) == "clip.text.transformer.embeddings.word_embeddings"
    table = ExpandableTokenEmbedding(model.get_submodule(_table_name(model)))
    assert table.padding_idx == VOCAB - 1


@pytest.mark.parametrize("value", [True, 1.5, "1", None, float("nan")])
def test_sizes_and_seeds__are_integers(value):
    refused("seed", attach_token_embedding, tiny_model(), seed=value)
    table = attach_token_embedding(tiny_model())
    for rows in (value, 0, -1):
        refused("rows", table.expand, rows)
