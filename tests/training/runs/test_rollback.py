"""What failed is taken back in place."""

import random
from collections import Counter, OrderedDict, defaultdict, deque
from functools import partial
from unittest import mock

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from avalanche_clip.benchmarks import RandomCaption, prepare_benchmark
from avalanche_clip.common.lock import FolderLock
from avalanche_clip.common.randomness import rng_state
from avalanche_clip.common.rollback import undone_on_error
from avalanche_clip.training import run_stream
from avalanche_clip.training.plugins import (
    ContrastiveLwFPlugin,
    MoEAdaptersPlugin,
    VocabularyReplayPlugin,
)
from avalanche_clip.training.runs.checkpoint_plugin import checkpoints
from avalanche_clip.training.runs.resume import load_state
from avalanche_clip.training.templates import ClassNameTemplate
from tests.helpers import assert_same_weights, stub_benchmark, stub_model, weights
from tests.training import moe_runs
from tests.training.languages import language_strategy, language_stream, tiny_model
from tests.training.small_runs import SIZES, Interrupted, build, cut

STREAMS = {"streams": ("test", "valid")}


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Plots take longer than the runs."""
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        yield


class Thing:
    """Holds one of each."""

    def __init__(self):
        self.numbers = [1, 2, {"deep": [3]}]
        self.table = defaultdict(list, a=[1], b=[2])
        self.order = OrderedDict(x=1, y=2)
        self.members = {1, 2}
        self.queue = deque([1, 2], maxlen=2)
        self.pair = ([1], torch.ones(2))
        self.array = np.arange(3.0)
        self.tensor = torch.arange(4.0)
        self.generator = torch.Generator().manual_seed(3)
        self.counter = Counter("aab")
        self.random = random.Random(1)
        self.draws = np.random.default_rng(1)
        self.legacy = np.random.RandomState(1)
        self.count, self.name = 1, "one"
        self.itself = self

    def drawn(self):
        return self.random.random(), self.draws.random(), self.legacy.rand()

    def mutate(self):
        self.numbers[2]["deep"].append(4)
        self.numbers.reverse()
        self.table["c"].append(1)
        self.table["a"].append(1)
        self.order.move_to_end("x")
        self.members.add(3)
        self.queue.append(3)
        self.pair[0].append(2)
        self.pair[1].zero_()
        self.array += 1
        self.tensor.mul_(2)
        torch.rand(3, generator=self.generator)
        self.counter["c"] += 1
        self.drawn()
        self.count, self.name = 2, "two"
        self.more = []
        del self.itself


def test_undone_on_error__puts_every_kind_back_in_place():
    thing = Thing()
    held = {k: v for k, v in vars(thing).items() if k not in ("count", "name")}
    drawn = torch.rand(3, generator=thing.generator)
    thing.generator.manual_seed(3)
    with pytest.raises(KeyError), undone_on_error(thing):
        thing.mutate()
        raise KeyError
    assert all(vars(thing)[k] is v for k, v in held.items())
    assert [*vars(thing)] == [*vars(Thing())]
    assert thing.numbers == [1, 2, {"deep": [3]}]
    assert thing.table == {"a": [1], "b": [2]} and thing.table["new"] == []
    assert [*thing.order] == ["x", "y"] and thing.members == {1, 2}
    assert [*thing.queue] == [1, 2] and thing.queue.maxlen == 2
    assert thing.pair[0] == [1] and thing.pair[1].tolist() == [1, 1]
    assert thing.array.tolist() == [0, 1, 2] and thing.tensor.tolist() == [0, 1, 2, 3]
    assert torch.equal(torch.rand(3, generator=thing.generator), drawn)
    assert thing.counter == Counter("aab") and thing.drawn() == Thing().drawn()
    assert (thing.count, thing.name) == (1, "one")


def test_undone_on_error__leaves_what_succeeded():
    thing = Thing()
    with undone_on_error(thing):
        thing.mutate()
    assert thing.count == 2 and thing.array.tolist() == [1, 2, 3]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_undone_on_error__model_optimiser_and_generators(error):
    model = nn.Sequential(stub_model(), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    holder = {"model": model, "optimizer": optimizer}
    before, parameters = weights(model), dict(model.named_parameters())
    model[0].eval()
    torch.manual_seed(5)
    with pytest.raises(error), undone_on_error(holder):
        model.train()
        torch.rand(3)
        np.random.rand(3)
        loss = sum((p**2).sum() for p in model.parameters())
        loss.backward()
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 9.0
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        model[1](torch.rand(3, 4))
        model[0].token = nn.Embedding(50, 8)  # it grows
        model[0].text_proj.bias.data = torch.zeros(99)
        model[0].image_proj.requires_grad_(False)
        model[0].register_forward_hook(lambda *a: None)
        model.add_module("adapter", nn.Linear(1, 1))
        raise error
    assert_same_weights(model, before)
    now = dict(model.named_parameters())
    assert now.keys() == parameters.keys()
    assert all(now[k] is parameters[k] and now[k].requires_grad for k in now)
    assert all(p.grad is None for p in now.values())
    assert len(optimizer.param_groups) == 1 and not optimizer.state
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert model.training and not model[0].training and not model[0].dropout.training
    assert not model[0]._forward_hooks
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))


def test_undone_on_error__leaves_data_alone():
    class Data:
        def __init__(self):
            self.reads = 0
            self.images = torch.zeros(2)

        def __len__(self):
            return 2

        def __getitem__(self, index):
            self.reads += 1
            return self.images[index]

    data = Data()
    with pytest.raises(ValueError), undone_on_error({"data": data}):
        data[0]
        raise ValueError
    assert data.reads == 1


def test_undone_on_error__read_only_arrays_are_left(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(4.0))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    holder = {"array": array, "fixed": np.arange(2)}
    holder["fixed"].flags.writeable = False
    with pytest.raises(ValueError), undone_on_error(holder):
        raise ValueError
    assert array.tolist() == [0, 1, 2, 3]


def adapters():
    model = moe_runs.vit()
    settings = {
        "selector": moe_runs.selector(),
        "reference_images": moe_runs.reference(),
        "balance_weight": 0.5,
    }
    plugin = MoEAdaptersPlugin(moe_runs.ADAPTERS, **settings)
    options = {**moe_runs.options(seed=3), "schedule": "constant"}
    strategy = ClassNameTemplate(model=model, plugins=[plugin], **options)
    return strategy, moe_runs.domains(model, noise=0.1)


def growing_words():
    model = tiny_model()
    return language_strategy(model), language_stream(model)


MAKERS = {
    "adapters with selector": adapters,
    "growing vocabulary": growing_words,
    **{
        name: partial(build, name)
        for name in ("CumulativeExp", "Patching", "ContrastiveLwF", "ContrastiveEWC")
    },
    "Oracle": partial(build, "Oracle"),
    "Restart": partial(build, "Restart", reset_optimizer_state=False),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_undone_on_error__a_strategy_trains_as_if_it_had_never_been(kind):
    def train(strategy, benchmark):
        for experience in list(benchmark.train_stream)[:2]:
            strategy.train(experience, eval_streams=[])
            strategy.eval(benchmark.test_stream)

    expected, benchmark = MAKERS[kind]()
    train(expected, benchmark)
    strategy, benchmark = MAKERS[kind]()
    model, before = strategy.model, weights(strategy.model)
    with pytest.raises(Interrupted), undone_on_error(strategy):
        train(strategy, benchmark)
        raise Interrupted
    assert strategy.model is model
    assert_same_weights(strategy.model, before)
    assert strategy.clock.train_iterations == 0 and not strategy.optimizer.state
    train(strategy, benchmark)
    assert_same_weights(strategy.model, expected.model)
    assert strategy.compute.state_dict() == expected.compute.state_dict()
    # As text: there are NaN among them.
    found = [str(s.evaluator.get_last_metrics()) for s in (strategy, expected)]
    assert found[0] == found[1]


# ------------------------------------------------------------- a failed run
class Fails(SupervisedPlugin):
    """Fails in a hook, from some moment of the run on."""

    stateless = True

    def __init__(self, hook, error=KeyboardInterrupt):
        super().__init__()
        self.error = error
        setattr(self, hook, self.hook)

    def hook(self, strategy, **kwargs):
        if strategy.clock.train_iterations >= 5:
            raise self.error


def snapshot(strategy):
    """All that a failed run must leave as it is."""
    evaluator = strategy.evaluator
    return {
        "weights": weights(strategy.model),
        "ids": [id(p) for p in strategy.model.parameters()],
        "modes": [m.training for m in strategy.model.modules()],
        "plugins": [*strategy.plugins],
        "states": [
            str(p.state_dict()) for p in strategy.plugins if hasattr(p, "state_dict")
        ],
        "loggers": [*evaluator.loggers],
        "last": dict(evaluator.last_metric_results),
        "curves": dict(evaluator.all_metric_results),
        "run": strategy.run,
        "clock": dict(vars(strategy.clock)),
        "groups": str(strategy.optimizer.param_groups),
        "moments": len(strategy.optimizer.state),
        "flags": [strategy.is_training, strategy.in_training, strategy.step_phase],
        "compute": str(strategy.compute.state_dict()),
        "teachers": [*strategy.teachers.teachers],
        "rng": str(rng_state(strategy.device)),
    }


def assert_unchanged(strategy, before):
    after = snapshot(strategy)
    assert_same_weights(before.pop("weights"), after.pop("weights"))
    for name, value in before.items():
        assert after[name] == value, name


def bad_data(strategy, benchmark, folder):
    run_stream(strategy, stub_benchmark(SIZES, prepare=False), folder)


def no_such_stream(strategy, benchmark, folder):
    run_stream(strategy, benchmark, folder, streams=("test", "none"))


def locked(strategy, benchmark, folder):
    with FolderLock(folder):
        run_stream(strategy, benchmark, folder, resume=True, **STREAMS)


def no_resume(strategy, benchmark, folder):
    run_stream(strategy, benchmark, folder, **STREAMS)


def other_transforms(strategy, benchmark, folder):
    other = prepare_benchmark(
        benchmark, strategy.model, train_text_transform=RandomCaption(0.5)
    )
    run_stream(strategy, other, folder, resume=True, **STREAMS)


def broken_restore(strategy, benchmark, folder):
    """The checkpoint fits until its last part is restored."""
    with mock.patch(
        "avalanche_clip.training.runs.plugin_state.restore_data", side_effect=ValueError
    ):
        run_stream(strategy, benchmark, folder, resume=True, **STREAMS)


def own_files(strategy, benchmark, folder):
    (folder / "metrics.csv").write_text("my own\n")
    (folder / "run_state.json").unlink()
    for path in checkpoints(folder / "checkpoints"):
        path.unlink()
    run_stream(strategy, benchmark, folder, **STREAMS)


EARLY = [
    *(bad_data, no_such_stream, locked, no_resume, other_transforms),
    *(broken_restore, own_files),
]


def with_state(*more):
    """A strategy that has lived: it was trained, with a teacher and replay."""
    replay = VocabularyReplayPlugin(text_length=2, num_texts=4)
    return build(extra=[ContrastiveLwFPlugin(), replay, *more])


@pytest.mark.parametrize("fail", EARLY)
def test_failed_run__before_training_leaves_the_strategy_as_it_was(fail, tmp_path):
    first, benchmark = with_state(Fails("after_update", Interrupted))
    with pytest.raises(Interrupted):
        run_stream(first, benchmark, tmp_path, checkpoint_iterations=2, **STREAMS)
    strategy, benchmark = with_state()
    strategy.train(benchmark.train_stream[0], eval_streams=[])
    before = snapshot(strategy)
    with pytest.raises(ValueError):
        fail(strategy, benchmark, tmp_path)
    assert_unchanged(strategy, before)


LATE = [
    *("before_training_exp", "after_update", "after_training_exp"),
    *("before_eval", "after_eval_iteration", "experience_completed"),
]


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    strategy, benchmark = with_state()
    return strategy, run_stream(
        strategy, benchmark, tmp_path_factory.mktemp("lived"), **STREAMS
    )


@pytest.mark.parametrize("hook", LATE)
def test_failed_run__in_training_or_evaluation_is_taken_back(hook, tmp_path, lived):
    plugin = Fails(hook)
    strategy, benchmark = with_state(plugin)
    before = snapshot(strategy)
    with pytest.raises(KeyboardInterrupt):
        run_stream(strategy, benchmark, tmp_path, checkpoint_iterations=2, **STREAMS)
    assert_unchanged(strategy, before)
    # The same object goes on from what was written.
    delattr(plugin, hook)
    resumed = run_stream(
        strategy, benchmark, tmp_path, resume=True, checkpoint_iterations=2, **STREAMS
    )
    assert_same_weights(strategy.model, lived[0].model)
    np.testing.assert_array_equal(resumed.E, lived[1].E)


def test_failed_load_state__leaves_the_strategy_as_it_was(tmp_path):
    cut(tmp_path)
    path = checkpoints(tmp_path / "checkpoints")[-1]
    strategy, benchmark = build()
    before = snapshot(strategy)
    with mock.patch(
        "avalanche_clip.training.runs.plugin_state.restore_data", side_effect=ValueError
    ):
        with pytest.raises(ValueError):
            load_state(strategy, path, benchmark)
    assert_unchanged(strategy, before)
