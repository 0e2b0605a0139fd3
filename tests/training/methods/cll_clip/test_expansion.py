"""TEIR's rules of training: exact values, frozen rows, active rows as dense."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from avalanche_clip.models import (
    attach_token_embedding,
    find_token_embedding,
    teir_scale,
)
from avalanche_clip.training.plugins import (
    BudgetedReplayPlugin,
    ContrastiveEWCPlugin,
    ReservoirReplayPlugin,
    TokenEmbeddingExpansionPlugin,
)
from tests.helpers import At, train_stream
from tests.training.languages import (
    adamw,
    language_strategy,
    language_stream,
    tiny_model,
)


# ------------------------------------------------------------- one row, by hand
class Words:
    special_ids, pad_id, vocab_size, snapshots = (), 0, 4, {}


def by_hand(regularize, gradients, *, scale_target="gradient", decay=0.5, lr=0.1, **kw):
    """Train four rows of one number with s = 0, 1, 1/2, 1/3."""
    model = nn.Module()
    model.table = nn.Embedding(4, 1).double()
    nn.init.ones_(model.table.weight)
    model.tokenizer = Words()
    table = attach_token_embedding(model, name="table", tokenizer=Words())
    model.tokenizer = table.tokenizer
    optimizer = torch.optim.AdamW([{"params": [table.weight], "lr": lr}], eps=1e-6)
    plugin = TokenEmbeddingExpansionPlugin(
        regularize=regularize, scale_target=scale_target, weight_decay=decay, **kw
    )
    strategy = SimpleNamespace(model=model, optimizer=optimizer)
    own = plugin.param_groups(strategy)
    assert own[0]["names"] == ["table.weight"]
    optimizer.param_groups[0]["weight_decay"] = own[0]["weight_decay"]
    scale = torch.tensor([0, 1, 0.5, 1 / 3], dtype=torch.float64)
    plugin.watch(optimizer, table, scale)
    for value in gradients:
        table.weight.grad = torch.full((4, 1), value, dtype=torch.float64)
        optimizer.step()
    return table.weight.detach().flatten().tolist()


PAPER = {
    "gd": [1, 0.5798250045911528, 0.6422887035004806, 0.6640263150655062],
    "g": [0.857375, 0.5798250045911528, 0.5800171299157001, 0.5802089618444123],
    "d": [
        0.7078868845088252,
        0.5798250045911528,
        0.6420902571124265,
        0.6636254616288048,
    ],
}
STEPS = [1e-3, 2e-3, 3e-3]


@pytest.mark.parametrize("regularize", PAPER)
def test_optimizer__gives_the_values_of_the_paper(regularize):
    found = by_hand(regularize, STEPS)
    assert found == pytest.approx(PAPER[regularize], abs=1e-12)


def test_optimizer__none_is_plain_adamw():
    weight = nn.Parameter(torch.ones(4, 1, dtype=torch.float64))
    plain = torch.optim.AdamW([weight], lr=0.1, eps=1e-6, weight_decay=0.5)
    for value in STEPS:
        weight.grad = torch.full((4, 1), value, dtype=torch.float64)
        plain.step()
    assert by_hand(None, STEPS) == weight.detach().flatten().tolist()
    # rows with s = 1 are plain AdamW under every rule
    assert by_hand("gd", STEPS)[1] == pytest.approx(weight[1].item(), abs=1e-15)


def test_adam_cancels_the_factor__unless_gradients_are_tiny():
    large = [1 - v for v in by_hand("gd", STEPS, decay=0.0)]
    assert large == pytest.approx([0, 0.29211, 0.29191, 0.29170], abs=6e-6)
    tiny = [1 - v for v in by_hand("gd", [1e-6, 2e-6, 3e-6], decay=0.0)]
    assert tiny == pytest.approx([0, 0.17462, 0.12570, 0.09843], abs=6e-6)


@pytest.mark.parametrize("regularize", ["g", "gd"])
def test_update_target__scales_the_step_itself(regularize):
    found = by_hand(regularize, STEPS, scale_target="update")
    for value, s in zip(found, [0, 1, 0.5, 1 / 3], strict=True):
        w, m, v = 1.0, 0.0, 0.0
        for i, g in enumerate(STEPS, 1):
            w *= 1 - 0.1 * 0.5 * (s if "d" in regularize else 1)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            step = 0.1 * m / (1 - 0.9**i) / ((v / (1 - 0.999**i)) ** 0.5 + 1e-6)
            w -= s * step
        assert value == pytest.approx(w, abs=1e-12)


# --------------------------------------------------------------- whole strategies
class Watch:
    """Keep what the table looked like when each experience began."""

    stateless = True

    def __init__(self):
        self.tables, self.actives, self.moments, self.groups = [], [], [], []

    def before_training_exp(self, strategy, **kwargs):
        table = find_token_embedding(strategy.model)
        self.tables.append(table.table())
        self.actives.append(table.active_rows)
        self.groups.append(
            [
                (tuple(g["params"][0].shape), g["weight_decay"])
                for g in strategy.optimizer.param_groups
                if g["params"]
            ]
        )

    def after_update(self, strategy, **kwargs):
        state = strategy.optimizer.state
        self.moments.append(sum(v["exp_avg"].numel() for v in state.values()))


def run(steps=3, *, dtype=torch.float32, seed=0, **options):
    model = tiny_model()
    benchmark = language_stream(model)
    watch = Watch()
    strategy = language_strategy(model, plugins=[watch], seed=seed, **options)
    model.to(dtype)
    train_stream(strategy, benchmark, steps)
    return strategy, watch, benchmark


def used_ids(model, dataset):
    """Ids of the captions of a data set, uncut, under the latest vocabulary."""
    rows = [model.tokenizer.encode(dataset[k][1]) for k in range(len(dataset))]
    return {i for row in rows for i in row} - set(model.tokenizer.special_ids)


@pytest.mark.parametrize("active", [True, False])
def test_rows_outside_the_task__are_bit_identical_after_it(active):
    strategy, watch, benchmark = run(
        plugin_options={"active_rows": active}, weight_decay=0.3
    )
    tables = [*watch.tables[1:], find_token_embedding(strategy.model).table()]
    for number, (start, end) in enumerate(zip(watch.tables, tables, strict=True)):
        data = benchmark.train_stream[number].dataset
        # the tokenizer has grown since, but these words are those of their language
        same = (start == end[: len(start)]).all(1)
        moved = set((~same).nonzero().flatten().tolist())
        assert moved and not moved & {3582, 3583}
        if number == len(tables) - 1:
            assert moved == used_ids(strategy.model, data)


def test_table__grows_with_the_tokenizer_and_keeps_counts():
    strategy, watch, _ = run()
    table = find_token_embedding(strategy.model)
    sizes = [len(t) for t in watch.tables]
    assert sizes == sorted(sizes) and sizes[-1] == table.num_embeddings
    assert sizes[-1] == strategy.model.tokenizer.vocab_size > sizes[0]
    assert [g.language for g in strategy.expansion.growth] == ["en", "de", "el"]
    assert table.usage.max() <= 3 and not table.usage[[3582, 3583]].any()
    assert table.active is None and table.weight.requires_grad
    assert not strategy.optimizer._optimizer_step_pre_hooks


@pytest.mark.parametrize("regularize", ["gd", "d", "g", None])
@pytest.mark.parametrize("clip", [None, 1e-3])
def test_active_rows__give_the_table_of_dense_training(regularize, clip):
    options = {
        "dtype": torch.float64,
        "regularize": regularize,
        "weight_decay": 0.3,
        "clip_grad_norm": clip,
    }
    dense, seen, _ = run(plugin_options={"active_rows": False}, **options)
    sparse, watch, _ = run(plugin_options={"active_rows": True}, **options)
    assert seen.actives == [None] * 3
    assert all(len(rows) < 60 for rows in watch.actives)
    one, two = (find_token_embedding(s.model).weight for s in (dense, sparse))
    assert one.dtype == torch.float64 and one.shape == two.shape
    # Norms of gradients, and decay in one product, are rounded in another order.
    torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-13)
    if clip is None and regularize in ("gd", "d"):
        assert torch.equal(one, two)
    assert max(watch.moments) < 0.1 * min(seen.moments)


def test_fused_adamw__gives_the_same_table():
    def fused(groups):
        return torch.optim.AdamW(groups, lr=1e-2, eps=1e-6, fused=True)

    tables = []
    for active, optimizer in ((True, fused), (False, fused), (True, adamw)):
        strategy, _, _ = run(
            2,
            dtype=torch.float64,
            optimizer=optimizer,
            plugin_options={"active_rows": active},
        )
        tables.append(find_token_embedding(strategy.model).table())
    assert torch.equal(tables[0], tables[1])
    torch.testing.assert_close(tables[0], tables[2], rtol=1e-11, atol=1e-13)


def test_decay_of_unused_rows__is_the_product_of_the_steps():
    strategy, watch, _ = run(
        1, dtype=torch.float64, regularize=None, weight_decay=0.3, warmup_fraction=0.0
    )
    start, end = watch.tables[0], find_token_embedding(strategy.model).table()
    unused = torch.ones(len(start), dtype=torch.bool)
    unused[watch.actives[0]] = False
    torch.testing.assert_close(
        end[unused], start[unused] * (1 - 1e-2 * 0.3) ** 4, rtol=1e-13, atol=0
    )


def test_groups__the_table_has_its_own_without_decay():
    _, watch, _ = run(2)
    width = 16
    for rows, groups in zip(watch.actives, watch.groups, strict=True):
        assert ((len(rows), width), 0.0) in groups
        assert ((), 0.0) in groups  # the temperature
        assert len(groups) == 2
    _, watch, _ = run(1, regularize=None, weight_decay=0.3)
    assert watch.groups[0][-1][1] == 0.3


@pytest.mark.parametrize(
    "options, word",
    [
        ({"plugins": [ContrastiveEWCPlugin()]}, "ContrastiveEWCPlugin"),
        ({"reset_optimizer_state": False}, "reset_optimizer_state"),
        ({"optimizer": lambda g: torch.optim.Adadelta(g)}, "Adadelta"),
        (
            {
                "optimizer": lambda g: torch.optim.SGD(g, lr=0.1),
                "regularize": None,
            },
            "through the gradient",
        ),
    ],
    ids=lambda o: o if isinstance(o, str) else "",
)
def test_active_rows__are_refused_where_they_are_not_exact(options, word):
    with pytest.raises(ValueError, match=word):
        language_strategy(tiny_model(), plugin_options={"active_rows": True}, **options)
    strategy = language_strategy(tiny_model(), **options)
    assert word in strategy.expansion._inexact(strategy)


def test_clip_after_mask__frozen_rows_leave_the_norm():
    norms = {}
    for masked in (False, True):
        strategy, _, _ = run(0, plugin_options={"clip_after_mask": masked})
        norm = At(
            "before_update",
            lambda s: find_token_embedding(s.model).trained.grad.norm(),
        )
        strategy.plugins.append(norm)
        train_stream(strategy, language_stream(strategy.model), 1)
        norms[masked] = norm.seen[0].item()
    assert 0 < norms[True] < norms[False]


@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize(
    "replay",
    [lambda: BudgetedReplayPlugin("all"), lambda: ReservoirReplayPlugin(50)],
    ids=["pooled", "reservoir"],
)
def test_replay__moves_old_rows_on_request_without_counting_them(replay, count):
    model = tiny_model()
    benchmark = language_stream(model)
    strategy = language_strategy(
        model,
        plugins=[replay()],
        plugin_options={"count_replay": count, "active_rows": True},
    )
    train_stream(strategy, benchmark, 2)
    usage = find_token_embedding(model).usage.clone()
    before = find_token_embedding(model).table()
    strategy.train(benchmark.train_stream[2], eval_streams=[])
    table = find_token_embedding(model)
    moved = (table.weight[: len(before)] != before).any(1)
    # tokens that only English and German captions hold
    greek = used_ids(model, benchmark.train_stream[2].dataset)
    old = [k for k in usage.nonzero().flatten().tolist() if k not in greek]
    assert bool(moved[old].any()) is count
    assert torch.equal(table.usage[old], usage[old])


def test_oracle_vocabulary__is_added_once():
    captions = ["rote katze", "red cat", "κόκκινη γάτα"] * 4
    strategy, watch, _ = run(
        vocab_size=330, plugin_options={"oracle_vocabulary": captions}
    )
    assert len({len(t) for t in watch.tables}) == 1
    assert [g.num_new_tokens > 0 for g in strategy.expansion.growth] == [1, 0, 0]
    assert strategy.model.tokenizer.languages == ("en", "de", "el")


def test_repeated_language__does_not_grow_again():
    model = tiny_model()
    benchmark = language_stream(model)
    strategy = language_strategy(model)
    for index in (0, 1, 1):
        strategy.train(benchmark.train_stream[index], eval_streams=[])
    assert len(strategy.expansion.growth) == 2
    table = find_token_embedding(model)
    assert table.usage.max() >= 2


@pytest.mark.parametrize("scope", ["latest", "language"])
def test_english__is_safe_with_its_own_tokenizer(scope):
    model = tiny_model()
    attach_token_embedding(model, scope=scope, base_languages=["en"])
    benchmark = language_stream(model, ("en", "el"))
    strategy = language_strategy(model, plugin_options={"grow": True})
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    texts = ["red cat", "blue dog"]
    before = model.eval().encode_text(model.tokenizer(texts, ["en", "en"]))
    model.train()
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    after = model.eval().encode_text(model.tokenizer(texts, ["en", "en"]))
    assert torch.equal(before, after)


def test_factors__are_those_of_the_kernel():
    model = tiny_model()
    benchmark = language_stream(model)
    strategy = language_strategy(model)
    train_stream(strategy, benchmark, 1)

    def facts(strategy):
        plugin, table = strategy.expansion, find_token_embedding(strategy.model)
        return plugin._scale.flatten(), table.active_rows, table.usage.clone()

    look = At("before_training_iteration", facts)
    strategy.plugins.append(look)
    strategy.train(benchmark.train_stream[1], eval_streams=[])
    scale, rows, usage = look.seen[-1]
    used = used_ids(model, benchmark.train_stream[1].dataset)
    count = model.tokenizer.vocab_size
    expected = teir_scale(
        torch.tensor([k in used for k in range(count)]),
        torch.arange(count) < 3584,
        usage,
        torch.tensor([k in (3582, 3583) for k in range(count)]),
    )
    torch.testing.assert_close(scale, expected[rows])


def test_data_of_another_models_tokenizer__raise():
    model = tiny_model()
    other = tiny_model()
    attach_token_embedding(other)
    strategy = language_strategy(model)
    with pytest.raises(ValueError, match="tokenizer of another model"):
        train_stream(strategy, language_stream(other), 1)
