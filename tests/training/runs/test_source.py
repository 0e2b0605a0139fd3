"""A run begins with a stored step of another one, and on given data."""

import json
from unittest import mock

import numpy as np
import pytest
import torch
from avalanche.benchmarks import benchmark_from_datasets

from avalanche_clip.benchmarks import prepare_benchmark
from avalanche_clip.benchmarks.classic import emoji_dataset
from avalanche_clip.common.state_files import CheckpointError
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.models import attach_lora, create_dual_encoder
from avalanche_clip.training import Sequential, run_stream
from avalanche_clip.training.plugins import ContrastiveEWCPlugin
from avalanche_clip.training.templates import MethodPlugin
from tests.helpers import assert_same_weights, quiet_evaluator, stub_benchmark
from tests.training.small_runs import Interrupted, assert_same_runs, build, go

ALL = {"keep_steps": "all"}


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Plots take longer than the runs."""
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return go(tmp_path_factory.mktemp("source"), "ContrastiveEWC", steps=2, run=ALL)


class Spy(MethodPlugin):
    """Notes what a run begins with."""

    stateless = True

    def before_training_exp(self, strategy, **kwargs):
        self.count = strategy.clock.train_iterations
        self.moments = dict(strategy.optimizer.state)
        own = [p for p in strategy.plugins if isinstance(p, ContrastiveEWCPlugin)]
        self.fisher = own and dict(own[0].fisher)


@pytest.mark.parametrize("step", [None, 1, 0, "before"])
@pytest.mark.parametrize("method", ["ContrastiveLwF", "ContrastiveEWC"])
def test_start_from__takes_the_model_and_nothing_else(step, method, tmp_path, source):
    folder = source[1].out_dir
    given = folder if step is None else (str(folder), step)
    spy = Spy()
    _, found = go(
        tmp_path, method, steps=1, extra=[spy], run={"start_from": given, **ALL}
    )
    rows = np.vstack([source[1].before, source[1].E])
    row = {"before": 0, 0: 1}.get(step, 2)
    np.testing.assert_array_equal(found.before, rows[row][:1])
    assert spy.count == 0 and not spy.moments and not spy.fisher
    stored = json.loads((tmp_path / "results.json").read_text())["start_from"]
    assert stored["step"] == (1 if step is None else step)
    assert stored["method"] == "ContrastiveEWC" and stored["seed"] == 3
    assert stored["folder"] == str(folder)


@pytest.mark.parametrize("stop", [{"train": 7}, {"evaluation": 3}])
def test_start_from__resumes_and_extends_exactly(stop, tmp_path, source):
    run = {"start_from": source[1].out_dir, **ALL}
    whole = go(tmp_path / "whole", run=run)
    with pytest.raises(Interrupted):
        go(tmp_path / "cut", steps=2, stop=stop, run=run)
    go(tmp_path / "cut", steps=2, resume=True, run=run)
    longer = go(tmp_path / "cut", resume="extend", run=run)
    assert_same_weights(longer[0].model, whole[0].model)
    np.testing.assert_array_equal(longer[1].E, whole[1].E)
    np.testing.assert_array_equal(longer[1].before, whole[1].before)


def test_start_from__belongs_to_the_identity(tmp_path, source):
    folder = source[1].out_dir
    with pytest.raises(Interrupted):
        go(tmp_path, stop={"train": 3}, run={"start_from": folder})
    with pytest.raises(ValueError, match="start_from.step is 1 there and 0 here"):
        go(tmp_path, resume=True, run={"start_from": (folder, 0)})
    with pytest.raises(ValueError, match="start_from is .* there and missing here"):
        go(tmp_path, resume=True)


def test_start_from__what_cannot_be_taken(tmp_path, source):
    folder = source[1].out_dir
    with pytest.raises(ValueError, match="step 7; there are before, 0, 1"):
        go(tmp_path / "out", run={"start_from": (folder, 7)})
    with pytest.raises(FileNotFoundError):
        go(tmp_path / "out", run={"start_from": tmp_path / "none"})
    with pytest.raises(ValueError, match="there is none"):
        go(tmp_path / "out", run={"start_from": tmp_path})
    with pytest.raises(ValueError, match="is out_dir itself"):
        go(folder, resume=True, run={"start_from": folder})
    for wrong in (3, (folder,), (folder, 0, 1), ""):
        with pytest.raises(ValueError, match="is not a folder of a run"):
            go(tmp_path / "out", run={"start_from": wrong})
    with pytest.raises(CheckpointError, match="another model than the strategy"):
        go(tmp_path / "out", model={"bias": True}, run={"start_from": folder})
    assert not (tmp_path / "out" / "run_state.json").exists()


# ------------------------------------------------------------------ branches
def emoji_run(folder, attach=None, **options):
    """A run of the transformer preset, one step of four emoji."""
    torch.manual_seed(0)
    model = create_dual_encoder("tiny-emoji-vit", "emoji-2010")
    if attach:
        attach(model)
    data = [emoji_dataset(("noto",), np.arange(8))]
    benchmark = prepare_benchmark(benchmark_from_datasets(train=data, test=data), model)
    evaluator = quiet_evaluator(retrieval_plugin_metrics(ks=(1,)))
    strategy = Sequential(
        model=model, train_mb_size=4, budget_iterations=2, evaluator=evaluator
    )
    settings = {"verbose": 0, **ALL, **options}
    return strategy, run_stream(strategy, benchmark, folder, **settings)


def test_start_from__branches_come_along(tmp_path):
    first, _ = emoji_run(tmp_path / "a", lambda model: attach_lora(model, rank=2))
    updates = {n: p for n, p in first.model.named_parameters() if ".lora." in n}
    # None of the strategy's plugins made them: the model is trained, they stay.
    start = {"start_from": tmp_path / "a"}
    second, found = emoji_run(tmp_path / "b", **start)
    model = second.model
    named = dict(model.named_parameters())
    assert all(torch.equal(named[n], p) for n, p in updates.items())
    assert not any(named[n].requires_grad for n in updates)
    assert named["clip.visual.proj"].requires_grad
    assert not torch.equal(named["clip.visual.proj"], first.model.clip.visual.proj)
    early = create_dual_encoder(tmp_path / "b", step="before")
    assert_same_weights(early, first.model)
    # The strategy has such branches: they are trained on.
    third, _ = emoji_run(
        tmp_path / "c", lambda model: attach_lora(model, rank=2), **start
    )
    assert torch.equal(third.model.clip.visual.proj, first.model.clip.visual.proj)
    assert third.model.lora.num_trainable == first.model.lora.num_trainable
    again, same = emoji_run(tmp_path / "b", resume=True, **start)
    assert_same_weights(again.model, model)
    with pytest.raises(CheckpointError, match="rank=2, these 3"):
        emoji_run(tmp_path / "d", lambda model: attach_lora(model, rank=3), **start)


# ----------------------------------------------------------------- prepare_on
class Prepared(MethodPlugin):
    """Counts what it is prepared on."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def prepare(self, strategy, dataset):
        self.sizes.append(len(dataset))
        assert strategy.clock.train_iterations == 0


def test_prepare_on__reaches_plugins_once(tmp_path):
    data = build()[1].streams["valid"][1].dataset
    plugin = Prepared()
    with pytest.raises(Interrupted):
        go(tmp_path, stop={"train": 7}, extra=[plugin], run={"prepare_on": data})
    resumed = Prepared()
    go(tmp_path, resume=True, extra=[resumed], run={"prepare_on": data})
    assert resumed.sizes == [6]
    with pytest.raises(ValueError, match="prepare_on is '.*' there and missing here"):
        go(tmp_path, resume=True, extra=[Prepared()])
    plain = Prepared()
    go(tmp_path / "plain", extra=[plain])
    assert plain.sizes == [16]


def test_prepare_on__gives_ewc_importances_of_where_it_begins(tmp_path, source):
    data = build()[1].streams["valid"][0].dataset
    spies = [Spy() for _ in range(3)]
    run = {"start_from": source[1].out_dir, "prepare_on": data}
    prepared = go(tmp_path / "a", "ContrastiveEWC", steps=1, extra=[spies[0]], run=run)
    run.pop("prepare_on")
    plain = go(tmp_path / "b", "ContrastiveEWC", steps=1, extra=[spies[1]], run=run)
    assert spies[0].fisher and not spies[1].fisher
    weights = prepared[0].model.token.weight, plain[0].model.token.weight
    assert not torch.equal(*weights)
    run["prepare_on"] = data
    with pytest.raises(Interrupted):
        go(tmp_path / "c", "ContrastiveEWC", steps=1, stop={"train": 3}, run=run)
    again = go(tmp_path / "c", "ContrastiveEWC", steps=1, resume=True, run=run)
    assert_same_runs(again, prepared)


def test_prepare_on__without_effect_is_refused(tmp_path):
    streams = build()[1].streams
    with pytest.raises(ValueError, match="prepare_on has no effect"):
        go(tmp_path, run={"prepare_on": streams["valid"][0].dataset})
    with pytest.raises(ValueError, match="prepare_on"):
        go(tmp_path, "ContrastiveEWC", run={"prepare_on": streams["valid"]})
    unprepared = stub_benchmark(prepare=False).streams["train"][0].dataset
    with pytest.raises(ValueError, match="not bound to a model"):
        go(tmp_path, "ContrastiveEWC", run={"prepare_on": unprepared})
    assert not list(tmp_path.iterdir())
