"""Training and evaluation on archives that are read as a stream."""

import functools
import itertools
import os
import warnings
from collections import Counter

import pytest
import torch
from avalanche.training.plugins import ReplayPlugin, SupervisedPlugin

from avalanche_clip import BudgetedReplayPlugin, load_state, save_state
from avalanche_clip.benchmarks import (
    SampleFault,
    make_experience,
    make_image_text_dataset,
    make_scenario,
    prepare_benchmark,
)
from avalanche_clip.benchmarks.datasets import ShardStream, TarPairs, open_tar_index
from avalanche_clip.training import (
    Sequential,
)
from avalanche_clip.training.templates.order import TrainingOrder
from avalanche_clip.training.templates.streams import StreamLoader
from tests.helpers import StubDualEncoder
from tests.processes import run_in_processes
from tests.tar_files import samples, write_shards, write_tar
from tests.web_folders import to_pixels

wds = pytest.importorskip("webdataset")


class Jittered:
    """A transform that draws, as augmentations do."""

    def __call__(self, image):
        return to_pixels(image) + torch.rand(()) / 100


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("set") / "2017", count=6, each=5)


def texts_of(items):
    return [text for _, text, _ in items]


def read(stream, part, parts, seeds, count):
    return texts_of(itertools.islice(stream.samples(part, parts, seeds), count))


# ------------------------------------------------------------------------- the stream
def test_stream__one_pass_in_order_is_split_without_loss(shards):
    stream = ShardStream(shards, 30)
    whole = texts_of(stream.samples(0, 1, None))
    assert whole == [f"caption {n}" for n in range(30)]
    for parts in (2, 4, 6, 9):
        found = [texts_of(stream.samples(p, parts, None)) for p in range(parts)]
        assert sorted(sum(found, [])) == sorted(whole)
    ids = [number for _, _, number in stream.samples(0, 1, None)]
    assert len(set(ids)) == 30 and all(0 <= number < 2**63 for number in ids)


@pytest.mark.parametrize("parts", [1, 2, 4, 6])
def test_stream__readers_share_every_pass(shards, parts):
    stream = ShardStream(shards, 30, buffer=1)
    drawn = [read(stream, p, parts, (7, 0, 0), 60) for p in range(parts)]
    # All readers have had as many samples, and these equally often.
    counts = Counter(sum(drawn, []))
    assert len(counts) == 30 and set(counts.values()) == {2 * parts}
    if parts == 1:
        assert len(set(drawn[0][:30])) == 30


def test_stream__order_is_that_of_the_seeds(shards):
    stream = ShardStream(shards, 30, buffer=8)
    first = read(stream, 0, 2, (7, 0, 0), 40)
    assert first == read(ShardStream(shards, 30, buffer=8), 0, 2, (7, 0, 0), 40)
    others = [(8, 0, 0), (7, 1, 0), (7, 0, 1)]
    assert all(first != read(stream, 0, 2, seeds, 40) for seeds in others)


def test_stream__of_too_few_archives_for_its_readers_is_refused(shards):
    with pytest.raises(ValueError, match="6 archives cannot be read by 7 readers"):
        next(ShardStream(shards, 30).samples(0, 7, (0, 0, 0)))


def test_stream__is_webdatasets_pipeline(shards):
    pipeline = ShardStream(shards[:1], 5).pipeline()
    assert isinstance(pipeline, wds.DataPipeline)
    bare = wds.WebDataset([str(shards[0])], shardshuffle=False, empty_check=False)
    for ours, theirs in zip(pipeline, bare, strict=True):
        assert {k: v for k, v in theirs.items() if k in ours} == ours


def test_stream__members_do_not_rename_their_sample(tmp_path):
    hostile = [("00000001.__url__", b"/x/y.tar"), ("00000001.__key__", b"z")]
    write_tar(tmp_path / "a.tar", [*samples([1]), *hostile])
    write_shards(tmp_path / "b", count=1, each=2)
    for folder in (tmp_path, tmp_path / "b"):
        found = list(ShardStream(folder, 1).samples(0, 1, None))
        assert texts_of(found)[-1] == "caption 1"


def test_stream__has_no_positions_and_says_so(shards):
    stream = ShardStream(shards, 30)
    assert len(stream) == 30
    with pytest.raises(TypeError, match="open_tar_index"):
        stream[0]
    with pytest.raises(AttributeError, match="subset.*open_tar_index"):
        stream.subset([0])
    with pytest.raises(ValueError, match="num_samples=0"):
        ShardStream(shards, 0)
    with pytest.raises(ValueError, match="on_error='warn'"):
        ShardStream(shards, 30, on_error="warn")
    with pytest.raises(ValueError, match="more than once"):
        ShardStream([shards[0], shards[0]], 30)


def test_stream__without_webdataset_says_what_to_install(shards, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "webdataset", None)
    with pytest.raises(ImportError, match=r"avalanche-clip\[data\]"):
        ShardStream(shards, 30)


def broken_set(folder):
    paths = write_shards(folder, 5)
    os.truncate(paths[0], 4000)  # one whole sample is left
    paths[1].write_bytes(b"<html>")
    paths[2].unlink()
    write_tar(
        paths[3],
        [*samples([15]), ("1.png", b"no picture"), ("1.txt", b"x"), ("2.txt", b"x")],
    )
    return paths


def test_stream__of_a_broken_set__raises_or_counts(tmp_path):
    paths = broken_set(tmp_path / "set")
    with pytest.raises(SampleFault, match="0.tar is not a tar of samples"):
        list(ShardStream(paths, 25).samples(0, 1, None))
    stream = ShardStream(paths, 25, on_error="skip")
    with pytest.warns(UserWarning, match="left out"):
        found = texts_of(stream.samples(0, 1, None))
    assert found == [f"caption {n}" for n in (0, 15, *range(20, 25))]
    wanted = ("archive missing", "archive cut off", "archive damaged", "no picture")
    assert stream.skipped.counts() == dict.fromkeys((*wanted, "picture unreadable"), 1)


@pytest.mark.parametrize("content", [b"no tar", None])
def test_stream__without_any_sound_sample_ends(tmp_path, content):
    path = tmp_path / "a.tar"
    if content is None:
        write_tar(path, [("1.png", b"x"), ("1.txt", b"x")])
    else:
        path.write_bytes(content)
    stream = ShardStream([path], 3, on_error="skip", buffer=1)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="No sample of"):
        list(stream.samples(0, 1, (0, 0, 0)))


# ------------------------------------------------------------------------- the loader
class Collate:
    def __call__(self, items):
        return [(item[1], float(item[0].sum())) for item in items]


class Plain:
    """Transforms without a model."""

    def __getitem__(self, group):
        return lambda image, text: [Jittered()(image), text]


def loader(shards, workers=0, epoch=0, start=0, count=7, **changes):
    stream = ShardStream(shards, 30, buffer=4, **changes)
    stream.groups = Plain()
    order = TrainingOrder(30, 4, seed=5, experience=2)
    made = StreamLoader(stream, order, collate_fn=Collate(), num_workers=workers)
    made.plan(epoch, start, count)
    return made


@pytest.mark.parametrize("workers, starts", [(0, (1, 2, 5)), (2, (2, 5))])
def test_loader__begins_anywhere(shards, workers, starts):
    whole = list(loader(shards, workers, count=9))
    assert len(whole) == 9 and {len(batch) for batch in whole} == {4}
    torch.manual_seed(99)  # the global generators do not matter
    for start in starts:
        rest = list(loader(shards, workers, start=start, count=9 - start))
        assert rest == whole[start:]
    assert workers or whole != list(loader(shards, epoch=1, count=9))


def test_loader__leaves_the_global_generators_alone(shards):
    torch.manual_seed(3)
    list(loader(shards))
    after = torch.rand(())
    torch.manual_seed(3)
    assert after == torch.rand(())


def test_loader__counts_of_workers_come_back(tmp_path):
    made = loader(broken_set(tmp_path / "set"), workers=2, on_error="skip", count=18)
    assert len(list(made)) == 18  # several passes
    counts = made.part.items.skipped.counts()
    assert counts["archive missing"] > 2 and counts["picture unreadable"] > 2


def test_loader__faults_of_workers_keep_their_kind(tmp_path):
    with pytest.raises(SampleFault):
        list(loader(broken_set(tmp_path / "set"), workers=1))


def test_loader__refuses_what_it_cannot_do(shards):
    stream, order = ShardStream(shards, 30), TrainingOrder(30, 4, seed=5, experience=2)
    with pytest.raises(ValueError, match="persistent_workers"):
        StreamLoader(
            stream, order, collate_fn=Collate(), num_workers=1, persistent_workers=True
        )
    order.repeats = 2
    with pytest.raises(ValueError, match="repeats > 1"):
        StreamLoader(stream, order, collate_fn=Collate())


# -------------------------------------------------------------------------- strategies
def benchmark_of(shards, model):
    steps = [ShardStream(shards[:3], 15, buffer=4), ShardStream(shards[3:], 15)]
    streams = {
        name: [make_experience(step, time_label=str(n)) for n, step in enumerate(steps)]
        for name in ("train", "test")
    }
    bound = {"train_transform": Jittered(), "eval_transform": to_pixels}
    return prepare_benchmark(make_scenario(streams), model, **bound)


def strategy_of(model, **changes):
    return Sequential(model=model, train_mb_size=5, seed=4, **changes)


def test_training__on_streams_goes_on_exactly_inside_a_step(shards, tmp_path):
    def run(stop=None):
        model = StubDualEncoder()
        strategy = strategy_of(model, budget_iterations=6)
        benchmark = benchmark_of(shards, model)
        if stop is not None:
            strategy.plugins.append(stop)
        return strategy, benchmark, model

    strategy, benchmark, model = run()
    for step in benchmark.train_stream:
        strategy.train(step)
    found = strategy.eval(benchmark.test_stream)
    assert any("R@1" in name for name in found)

    class Stopping(SupervisedPlugin):
        stateless = True

        def after_training_iteration(self, strategy, **kwargs):
            if strategy.clock.train_iterations == 8:
                save_state(strategy, tmp_path / "state")
                raise KeyboardInterrupt

    other, again, _ = run(Stopping())
    other.train(again.train_stream[0])
    with pytest.raises(KeyboardInterrupt):
        other.train(again.train_stream[1])
    resumed, once_more, third = run()
    start = load_state(resumed, tmp_path / "state", once_more)
    resumed.train(once_more.train_stream[start])
    for name, value in model.state_dict().items():
        assert torch.equal(value, third.state_dict()[name]), name


def test_training__by_epochs__sees_each_sample_once_per_epoch(shards):
    model = StubDualEncoder()
    strategy = strategy_of(model, train_epochs=2)
    seen = []

    class Looking(SupervisedPlugin):
        stateless = True

        def before_forward(self, strategy, **kwargs):
            seen.extend(strategy.mb_x["sample_id"].tolist())

    strategy.plugins.append(Looking())
    strategy.train(benchmark_of(shards, model).train_stream[0])
    assert Counter(Counter(seen).values()) == {2: 15}


@pytest.mark.parametrize(
    "plugin",
    [
        lambda: BudgetedReplayPlugin("equal", buffer_size=5),
        lambda: ReplayPlugin(5),
    ],
)
def test_replay__on_a_stream_is_refused_with_advice(shards, plugin):
    model = StubDualEncoder()
    strategy = strategy_of(model, plugins=[plugin()], budget_iterations=2)
    with pytest.raises((ValueError, AttributeError, TypeError)) as told:
        for step in benchmark_of(shards, model).train_stream:
            strategy.train(step)
    assert "open_tar_index" in str(told.value)


def test_training__by_an_index_is_the_native_way(shards):
    model = StubDualEncoder()
    pairs = TarPairs(open_tar_index(shards[:3]))
    step = make_experience(make_image_text_dataset(pairs), time_label="0")
    benchmark = prepare_benchmark(
        make_scenario({"train": [step], "test": [step]}),
        model,
        train_transform=Jittered(),
        eval_transform=to_pixels,
    )
    strategy = strategy_of(model)
    strategy.train(benchmark.train_stream, num_workers=1)
    assert strategy.clock.train_iterations == 3


# --------------------------------------------------------------------------- processes
def seen_of(strategy, experience):
    """Train, and return the samples of each step of this process."""
    seen = []

    class Looking(SupervisedPlugin, supports_distributed=True):
        stateless = True

        def before_forward(self, strategy, **kwargs):
            seen.append(strategy.mb_x["sample_id"].tolist())

    strategy.plugins.append(Looking())
    strategy.train(experience)
    weights = [p.detach().clone() for p in strategy.model.parameters()]
    return seen, weights


def one_step(data, size, processes):
    model = StubDualEncoder()
    steps = make_scenario({"train": [make_experience(data, time_label="0")]})
    transforms = {"train_transform": Jittered(), "eval_transform": to_pixels}
    benchmark = prepare_benchmark(steps, model, **transforms)
    strategy = Sequential(
        model=model, train_mb_size=size // processes, seed=4, budget_iterations=6
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return seen_of(strategy, benchmark.train_stream[0])


def by_index(folder, processes):
    pairs = TarPairs(open_tar_index(folder), on_error="skip")
    return one_step(make_image_text_dataset(pairs), 6, processes)


def by_stream(paths, processes):
    # One of the two ranks has many more samples than the other.
    return one_step(ShardStream(paths, 22, buffer=2, on_error="skip"), 6, processes)


@pytest.mark.slow
def test_processes__share_samples_and_end_together(tmp_path):
    folder = tmp_path / "set"
    paths = [
        write_tar(folder / "0.tar", samples(range(2))),
        write_tar(
            folder / "1.tar",
            [*samples(range(2, 21)), ("1.png", b"no picture"), ("1.txt", b"x")],
        ),
        write_tar(folder / "2.tar", samples([21])),
    ]
    jobs = {
        "index": functools.partial(by_index, folder, 2),
        "stream": functools.partial(by_stream, paths, 2),
    }
    (tmp_path / "results").mkdir()
    found = run_in_processes(jobs, tmp_path / "results")
    (left, weights), (right, others) = found["index"]
    alone, wanted = by_index(folder, 1)
    assert [a + b for a, b in zip(left, right, strict=True)] == alone
    assert sum(len(step) for step in alone) < 36  # some batches had fewer
    for parameter, other, one in zip(weights, others, wanted, strict=True):
        assert torch.equal(parameter, other)
        assert torch.allclose(parameter, one, atol=1e-5)
    (left, weights), (right, others) = found["stream"]
    assert [len(s) for s in left] == [len(s) for s in right] == [3] * 6
    assert not {*left[0]} & {*right[0]}
    assert all(torch.equal(*pair) for pair in zip(weights, others, strict=True))
