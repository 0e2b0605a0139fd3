"""Steps trained in any order, left out and trained again, resumed anywhere."""

import itertools

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import AGEMPlugin, GDumbPlugin, ReplayPlugin
from avalanche.training.storage_policy import (
    ClassBalancedBuffer,
    ReservoirSamplingBuffer,
)

from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.common.state_files import CheckpointError
from avalanche_clip.training import (
    CumulativeAll,
    Oracle,
    Restart,
    Sequential,
    run_stream,
)
from avalanche_clip.training.plugins import (
    BudgetedReplayPlugin,
    CheckpointPlugin,
    OffDiagonalAlignmentPlugin,
    ReservoirReplayPlugin,
)
from avalanche_clip.training.runs.resume import load_state, save_state
from avalanche_clip.training.templates.order import TrainingOrder
from avalanche_clip.training.templates.visits import (
    Step,
    Visits,
    belongs,
    find_step,
    read_step,
    seed_number,
    step_of,
)
from tests.helpers import (
    At,
    assert_same_weights,
    build,
    stub_benchmark,
    stub_model,
)
from tests.methods.rows import ROWS
from tests.methods.worlds import build as build_row
from tests.training.growing import GrowingEncoder, PlainGrowing
from tests.training.languages import language_strategy, language_stream, tiny_model
from tests.training.small_runs import Interrupted, StopPlugin
from tests.training.small_runs import build as small_run

ORDERS = ([0, 2], [2, 0], [0, 1, 0, 2], [1, 1, 0])
SIZES = (8, 8, 8)


class Look(SupervisedPlugin):
    """Notes the pool of each visit and the sample ids of each batch."""

    stateless = True

    def __init__(self):
        super().__init__()
        self.pools, self.batches = [], []

    def before_training_exp(self, strategy, **kwargs):
        ids = attribute_array(strategy.adapted_dataset, "sample_id")
        self.pools.append(ids.tolist())
        self.batches.append([])

    def before_forward(self, strategy, **kwargs):
        self.batches[-1].append(strategy.mb_x["sample_id"].tolist())


def train(strategy, benchmark, order):
    for index in order:
        strategy.train(benchmark.train_stream[index], eval_streams=[])
    return strategy


def numbers(pool):
    """How many samples of each step of eight are in a pool."""
    return np.histogram(pool, [0, 8, 16, 24])[0].tolist()


# ---------------------------------------------------------------------- identity
def test_step_of__tells_streams_benchmarks_and_data_apart():
    data = stub_benchmark(SIZES)
    steps = [step_of(e) for e in data.train_stream]
    assert [s[:2] for s in steps] == [("train", 0), ("train", 1), ("train", 2)]
    sliced = data.train_stream[1:]
    assert step_of(sliced[0]) == steps[1]
    assert [step_of(e) for e in stub_benchmark(SIZES).train_stream] == steps
    others = [data.streams["valid"][0], data.streams["test"][0]]
    others.append(stub_benchmark((8, 9, 8), targets=True).train_stream[0])
    others.append(stub_benchmark(SIZES, groups=5).train_stream[0])  # other pictures
    assert len({steps[0], *map(step_of, others)}) == 5
    assert read_step(list(steps[2])) == steps[2]


def test_find_step__finds_it_or_says_what_is_missing():
    data = stub_benchmark(SIZES)
    valid = data.streams["valid"][1]
    assert find_step(data, step_of(valid)) is valid
    bare, other = stub_benchmark(SIZES, valid=False), stub_benchmark((9, 8, 8))
    with pytest.raises(ValueError, match="experience 1 of stream 'valid', which the"):
        find_step(bare, step_of(valid))
    first = step_of(data.train_stream[0])
    with pytest.raises(ValueError, match="experience 0 of stream 'train' on other"):
        find_step(other, first)
    assert belongs(first, bare) and not belongs(first, other)
    with pytest.raises(ValueError, match="does not have"):
        find_step(data, first._replace(place=3))


def test_visits__count_distinct_steps_in_order_of_the_last_visit():
    data = stub_benchmark(SIZES)
    steps = [step_of(e) for e in data.train_stream]
    visits, seen = Visits(), []
    for index in (0, 1, 0, 2):
        visits.begin(data.train_stream[index])
        seen.append((visits.earlier_visits, [s.place for s in visits.others]))
        visits.end()
    assert seen == [(0, []), (0, [0]), (1, [1]), (0, [1, 0])]
    assert visits.next_index == 3 and Visits().next_index == 0
    other = Step("valid", 0, "x")
    assert [visits.number_of(s) for s in (steps[0], other)] == [0, 1]
    again = Visits()
    again.load_state_dict(visits.state_dict())
    assert again.finished == [steps[k] for k in (0, 1, 0, 2)]


def test_seed_number__is_the_index_first_and_no_small_number_again():
    assert [seed_number(k, 0) for k in range(5)] == list(range(5))
    later = {seed_number(k, v) for k in range(50) for v in range(1, 50)}
    assert len(later) == 50 * 49 and min(later) >= 2**62 and max(later) < 2**63


# ------------------------------------------------------------------------ drawing
@pytest.mark.parametrize("options", [{}, {"budget_iterations": None}], ids=str)
def test_second_visit__draws_other_batches(options):
    look, model = Look(), stub_model(noise=0.1)
    strategy = build(Sequential, model, plugins=[look], **options)
    train(strategy, stub_benchmark((16, 16), model=model), [1, 1, 0, 1])
    first, again, _, third = look.batches
    assert len({str(b) for b in (first, again, third)}) == 3
    alone = Look()
    other = build(Sequential, stub_model(noise=0.1), plugins=[alone], **options)
    train(other, stub_benchmark((16, 16)), [1])
    assert alone.batches == [first]


def test_first_visit__is_what_it_is_without_visits():
    look = Look()
    train(build(Sequential, plugins=[look]), stub_benchmark((16, 16)), [0, 1])
    for index, batches in enumerate(look.batches):
        order = TrainingOrder(16, 4, seed=0, experience=index, continuous=True)
        rows = [b.tolist() for b in order.batches(0, 0, 5)]
        assert batches == [[16 * index + i for i in row] for row in rows]


# ------------------------------------------------------------------------- replay
EXPECTED = {
    # kind -> numbers per step in the pool of each visit, for each order
    "all": (
        [[8, 0, 0], [8, 0, 8]],
        [[0, 0, 8], [8, 0, 8]],
        [[8, 0, 0], [8, 8, 0], [8, 8, 0], [8, 8, 8]],
        [[0, 8, 0], [0, 8, 0], [8, 8, 0]],
    ),
    "exp": (
        [[8, 0, 0], [8, 0, 8]],
        [[0, 0, 8], [8, 0, 8]],
        [[8, 0, 0], [8, 8, 0], [8, 8, 0], [4, 4, 8]],
        [[0, 8, 0], [0, 8, 0], [8, 8, 0]],
    ),
    "equal": (
        [[8, 0, 0], [5, 0, 8]],
        [[0, 0, 8], [8, 0, 5]],
        [[8, 0, 0], [5, 8, 0], [8, 5, 0], [3, 2, 8]],
        [[0, 8, 0], [0, 8, 0], [8, 5, 0]],
    ),
}
BUFFERS = {"all": None, "exp": 8, "equal": 5}


@pytest.mark.parametrize("kind", EXPECTED)
@pytest.mark.parametrize("number", range(len(ORDERS)))
def test_budgeted_replay__holds_the_other_steps_in_any_order(kind, number):
    look, order = Look(), ORDERS[number]
    plugin = BudgetedReplayPlugin(kind, BUFFERS[kind])
    train(build(Sequential, plugins=[plugin, look]), stub_benchmark(SIZES), order)
    assert [numbers(pool) for pool in look.pools] == EXPECTED[kind][number]
    for pool in look.pools:
        assert len(set(pool)) == len(pool)
    for batch in itertools.chain(*look.batches):
        assert len(set(batch)) == len(batch)
    last = list(dict.fromkeys(reversed(order)))[::-1]
    assert [step.place for step in plugin.steps] == last


def test_budgeted_replay__quota_of_a_step_grows_again_when_it_comes_again():
    look, plugin = Look(), BudgetedReplayPlugin("equal", 4)
    strategy = build(Sequential, plugins=[plugin, look])
    train(strategy, stub_benchmark(SIZES), [0, 1, 2, 0, 1])
    assert [numbers(p) for p in look.pools][2:] == [[2, 2, 8], [8, 2, 2], [2, 8, 2]]
    # Oldest visit first: step 2, then 0, then the newest.
    assert plugin.stored == [2, 2, 8] and [s.place for s in plugin.steps] == [2, 0, 1]


@pytest.mark.parametrize("target", ["teacher", "student"])
def test_reservoir__draws_no_step_that_comes_again_and_holds_samples_once(target):
    look, plugin = Look(), ReservoirReplayPlugin(50, target=target)
    strategy = build(Sequential, plugins=[plugin, look])
    train(strategy, stub_benchmark(SIZES), [0, 2, 0, 2, 1])
    for batches, step in zip(look.batches, (0, 2, 0, 2, 1), strict=True):
        assert all({i // 8 for i in batch[:4]} == {step} for batch in batches)
    for batches, step in zip(look.batches[2:4], (0, 2), strict=True):
        for batch in batches:
            assert step not in {i // 8 for i in batch[4:]}
            assert len(set(batch)) == len(batch)
    assert [len(b[0]) for b in look.batches] == [4, 8, 8, 8, 8]
    rows = [tuple(row) for row in plugin.stored.tolist()]
    assert len(set(rows)) == len(rows) == plugin.seen == 24


STOCK = {
    "experiences": lambda: ReplayPlugin(mem_size=6, batch_size_mem=2),
    "reservoir": lambda: ReplayPlugin(
        mem_size=6, batch_size_mem=2, storage_policy=ReservoirSamplingBuffer(6)
    ),
    "classes": lambda: ReplayPlugin(
        mem_size=20, batch_size_mem=2, storage_policy=ClassBalancedBuffer(20)
    ),
    "gdumb": lambda: GDumbPlugin(mem_size=20),
    "agem": lambda: AGEMPlugin(patterns_per_experience=4, sample_size=4),
}


@pytest.mark.parametrize("kind", STOCK)
@pytest.mark.filterwarnings("ignore")
def test_stock_memory__holds_no_sample_of_the_step_that_comes_again(kind, tmp_path):
    def run(order, path=None, start=0, *plugins):
        model = stub_model()
        data = stub_benchmark(SIZES, model=model, targets=True, groups=2)
        memory = STOCK[kind]()
        strategy = build(Sequential, model, plugins=[memory, *plugins], train_epochs=2)
        if path is not None:
            assert load_state(strategy, path, data) == order[start - 1] + 1
        return train(strategy, data, order[start:]), memory

    class Held(Look):
        def before_training_epoch(self, strategy, **kwargs):
            memory = strategy.plugins[0]
            policy = getattr(memory, "storage_policy", None)
            parts = [policy.buffer] if policy else memory.buffers
            ids = [attribute_array(p, "sample_id") for p in parts if len(p)]
            self.pools.append(np.concatenate([*ids, []]).tolist())

    look, order = Held(), [0, 1, 0, 2]
    whole, memory = run(order, None, 0, look)
    for batch in itertools.chain(*look.batches):
        assert len(set(batch)) == len(batch)
    # One pool from Look and two epochs of each visit: the memory in the third.
    held = look.pools[7]
    assert held and all(len(pool) == len(set(pool)) for pool in look.pools)
    own = {i for i in held if i < 8}
    assert bool(own) == (kind == "gdumb")  # which trains on its memory alone
    if kind == "experiences":
        assert list(memory.storage_policy.buffer_groups) == [0, 1, 2]
        assert memory.storage_policy._num_exps == 3
    if kind == "agem":
        assert len(memory.buffers) == 3
    for stop in range(1, 4):
        part, _ = run(order[:stop])
        path = save_state(part, tmp_path / f"{stop}.pt")
        again, _ = run(order, path, stop)
        assert_same_weights(whole.model, again.model)


# --------------------------------------------------------- resuming in any order
@pytest.mark.parametrize("teacher", [None, "previous", "ema"])
@pytest.mark.parametrize("plain", [True, False])
def test_growth__is_gone_through_by_the_steps_that_were_trained(
    plain, teacher, tmp_path
):
    seen, order = [], [2, 0, 2]

    class Noting(PlainGrowing):
        def adaptation(self, experience):
            seen.append(experience.current_experience)
            super().adaptation(experience)

    def make_one(*plugins):
        own = [OffDiagonalAlignmentPlugin(teacher=teacher)] if teacher else []
        model = GrowingEncoder(dropout=0.1)
        if plain:
            model.table = Noting()
        strategy = build(Sequential, model, plugins=[*own, *plugins])
        return strategy, stub_benchmark(SIZES, model=model)

    writer = CheckpointPlugin(tmp_path, every_iterations=2, keep=99)
    whole = train(*make_one(writer), order)
    assert len(whole.model.table.rows) == 4
    for visit, name, grown in (
        (1, "state_000000005_end", [2]),
        (2, "state_000000010_end", [2, 0]),
        (2, "state_000000012", [2, 0, 2]),
    ):
        again, data = make_one()
        seen.clear()
        load_state(again, tmp_path / f"{name}.pt", data)
        assert teacher or seen == (grown if plain else [])
        assert plain or again.model.table.grown == 0  # its rows come from the file
        train(again, data, order[visit:])
        assert_same_weights(whole.model, again.model)


# --------------------------------------------------- other streams and benchmarks
def test_step_of_another_stream__is_another_step_also_after_a_resume(tmp_path):
    def make_one():
        look = Look()
        strategy = build(CumulativeAll, plugins=[look])
        return strategy, stub_benchmark(SIZES), look

    def go(strategy, data, start):
        chosen = [data.streams["valid"][0], data.train_stream[0], data.train_stream[0]]
        for experience in chosen[start:]:
            strategy.train(experience, eval_streams=[])

    strategy, data, look = make_one()
    go(strategy, data, 0)
    assert [len(pool) for pool in look.pools] == [6, 14, 14]
    for stop in (1, 2):
        part, data, _ = make_one()
        for experience in [data.streams["valid"][0], data.train_stream[0]][:stop]:
            part.train(experience, eval_streams=[])
        path = save_state(part, tmp_path / f"{stop}.pt")
        again, data, _ = make_one()
        assert load_state(again, path, data) == 1
        go(again, data, stop)
        assert_same_weights(strategy.model, again.model)
    bare, _, _ = make_one()
    with pytest.raises(CheckpointError, match="experience 0 of stream 'valid'"):
        load_state(bare, path, stub_benchmark(SIZES, valid=False))


def test_step_of_a_stream_that_is_gone__is_missed_only_where_it_is_needed(tmp_path):
    def make_one(grows):
        model = GrowingEncoder()
        if grows:
            model.table = PlainGrowing()
        return build(Sequential, model)

    data = stub_benchmark(SIZES)
    for grows in (False, True):
        strategy = make_one(grows)
        strategy.train(data.streams["valid"][1], eval_streams=[])
        path = save_state(strategy, tmp_path / f"{grows}.pt")
        other, bare = make_one(grows), stub_benchmark(SIZES, valid=False)
        if grows:
            with pytest.raises(CheckpointError, match="of stream 'valid', which the"):
                load_state(other, path, bare)
        else:
            assert load_state(other, path, bare) == 2
            assert_same_weights(strategy.model, other.model)


def test_step_of_another_benchmark__is_another_step_and_refused_on_resume(tmp_path):
    first, second = stub_benchmark(SIZES), stub_benchmark((10, 8, 8))
    look = Look()
    strategy = build(CumulativeAll, plugins=[look])
    for data in (first, second, first):
        train(strategy, data, [0])
    assert [len(pool) for pool in look.pools] == [8, 18, 18]
    path = save_state(strategy, tmp_path / "state.pt")
    for data in (first, second):
        with pytest.raises(CheckpointError, match="on other samples"):
            load_state(build(CumulativeAll), path, data)


def test_interrupted_step__must_be_the_one_that_goes_on(tmp_path):
    data = stub_benchmark(SIZES)
    writer = CheckpointPlugin(tmp_path, every_iterations=2, keep=9)
    train(build(Sequential, plugins=[writer]), data, [2])
    for wrong, message in (
        (data.train_stream[0], "inside experience 2 .* experience 0 of"),
        (data.streams["valid"][2], "inside experience 2 .*'train'.*'valid'"),
        (stub_benchmark((9, 8, 8)).train_stream[2], "the same with other data"),
    ):
        strategy = build(Sequential)
        assert load_state(strategy, tmp_path / "state_000000002.pt", data) == 2
        with pytest.raises(CheckpointError, match=message):
            strategy.train(wrong, eval_streams=[])


def test_router__is_the_steps_own_also_between_streams_of_the_same_classes(tmp_path):
    def make_one():
        strategy, data = build_row(ROWS["MoEAdapters"])
        first, valid = data.train_stream[0], data.streams["valid"][0]
        return strategy, data, [first, valid, first]

    strategy, data, order = make_one()
    for experience in order[:2]:
        strategy.train(experience, eval_streams=[])
    path = save_state(strategy, tmp_path / "state.pt")
    again, data, order = make_one()
    load_state(again, path, data)
    for one in (strategy, again):
        one.train(order[2], eval_streams=[])
        assert one.moe.routers == {"classes 0,1,2": 0, "classes 0,1,2 (2)": 1}
        assert (
            one.model.moe_adapters.active_router == 0
            and one.moe.auto_selector.num_tasks == 2
        )
    one.moe.router_for_eval, one.moe.auto_selector = "own", None
    one.experience = data.test_stream[0]
    assert one.moe._own(one, 7) == 0


def test_unnamed_languages__of_two_streams_are_two_languages():
    model = tiny_model()
    strategy, growth = language_strategy(model), []
    for words in (("en", "de"), ("el", "de")):
        data = language_stream(model, words)
        experience = data.train_stream[0]
        experience.language = None
        strategy.train(experience, eval_streams=[])
        growth = [g.language for g in strategy.expansion.growth]
    assert growth == ["experience 0", "experience 0 (2)"]


def test_oracle__pays_for_the_distinct_steps_in_the_pool():
    strategy = train(build(Oracle), stub_benchmark(SIZES), [2, 0, 2, 2, 1])
    assert strategy.compute.report()["steps"] == [5, 10, 10, 10, 15]


def test_fresh_weights__differ_between_visits():
    start = At("before_training_epoch", lambda s: s.model.text_proj.weight.clone())
    train(build(Restart, plugins=[start]), stub_benchmark(SIZES), [0, 1, 1, 1])
    pairs = itertools.combinations(start.seen, 2)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_token_usage__earlier_tasks_count_once_and_never_the_running_one(monkeypatch):
    from avalanche_clip.training.methods.cll_clip import expansion as module

    model, given, usage = tiny_model(), [], []
    kernel = module.teir_scale

    def noting(occurs, original, earlier, special):
        given.append(earlier.clone())
        return kernel(occurs, original, earlier, special)

    monkeypatch.setattr(module, "teir_scale", noting)
    strategy = language_strategy(model)
    data = language_stream(model, ("en", "de", "el"))
    table = strategy.expansion._table(strategy)
    for index in (0, 1, 0, 0, 2):
        train(strategy, data, [index])
        usage.append(table.usage.double())
    first = torch.nn.functional.pad(usage[0], (0, len(usage[1]) - len(usage[0])))
    assert torch.equal(given[1], first) and usage[0].any()
    # In the second visit of the first step only the other one is an earlier task.
    wide = torch.nn.functional.pad(usage[1], (0, len(usage[4]) - len(usage[1])))
    assert torch.equal(given[4], wide)
    for earlier in given[2:4]:
        assert torch.equal(earlier, usage[1] - first)
    assert torch.equal(usage[3], usage[1] + 2 * first)  # which counts visits


def test_run_stream__of_a_strategy_trained_before_starts_at_the_first_step(tmp_path):
    def go(out, stop, resume=False):
        strategy, data = small_run(stop=stop, schedule="constant")
        if not resume:
            train(strategy, data, [2])
        options = {"resume": resume, "checkpoint_iterations": 2}
        return strategy, run_stream(strategy, data, out, **options)

    whole, expected = go(tmp_path / "whole", StopPlugin())
    for iteration in (6, 8, 12):  # before the first checkpoint inside, after it, later
        out = tmp_path / str(iteration)
        with pytest.raises(Interrupted):
            go(out, StopPlugin(train=iteration))
        again, found = go(out, StopPlugin(), resume=True)
        assert_same_weights(whole.model, again.model)
        np.testing.assert_array_equal(expected.E, found.E)
