"""A run that was stopped anywhere ends as if it had never been."""

import io
import signal

import pytest
import torch
from avalanche.evaluation.metrics import loss_metrics

from avalanche_clip.common.state_files import CheckpointError
from avalanche_clip.training.plugins import ContrastiveLwFPlugin, ProgressPlugin
from avalanche_clip.training.runs.checkpoint_plugin import (
    CheckpointPlugin,
    checkpoints,
    latest_checkpoint,
)
from avalanche_clip.training.runs.resume import load_state
from tests.helpers import assert_same_weights, train_stream
from tests.training.small_runs import (
    Interrupted,
    assert_same_runs,
    build,
    evaluator,
    go,
    kill,
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Uninterrupted runs, each made once."""
    made = {}

    def get(method, **options):
        key = (method, repr(sorted(options.items())))
        if key not in made:
            made[key] = go(tmp_path_factory.mktemp(method), method, **options)
        return made[key]

    return get


def killed(process):
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("iteration", [5, 11])
def test_resume__run_killed_at_an_iteration_ends_the_same(
    iteration, tmp_path, reference
):
    killed(kill(tmp_path, {"train": iteration}, method="ContrastiveLwF"))
    assert not (tmp_path / "results.json").exists()
    resumed = go(tmp_path, "ContrastiveLwF", resume=True)
    assert_same_runs(reference("ContrastiveLwF"), resumed)


@pytest.mark.parametrize(
    "stop",
    [{"evaluation": 2}, {"evaluation": 17}, {"writing": 1}, {"writing": 5}],
    ids=str,
)
def test_resume__killed_in_evaluation_or_while_writing(stop, tmp_path, reference):
    killed(kill(tmp_path, stop, method="CumulativeExp"))
    left = list((tmp_path / "checkpoints").glob("*.tmp"))
    assert bool(left) == ("writing" in stop)
    resumed = go(tmp_path, "CumulativeExp", resume=True)
    assert_same_runs(reference("CumulativeExp"), resumed)
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))


@pytest.mark.parametrize(
    "options",
    [
        {"train_epochs": 3},
        {"train_epochs": 2, "budget_iterations": 5},
        {"budget_samples": 44, "budget_iterations": None},
        pytest.param(
            {"budget_macs": 44 * 1636.0, "budget_iterations": None},
            marks=pytest.mark.slow,
        ),
        {"accumulation_steps": 2, "clip_grad_norm": 0.5},
        {"reset_optimizer_state": False, "warmup_iterations": 2},
    ],
    ids=str,
)
def test_resume__other_ways_to_train(options, tmp_path, reference):
    with pytest.raises(Interrupted):
        go(tmp_path, "CumulativeExp", {"train": 10}, **options)
    resumed = go(tmp_path, "CumulativeExp", resume=True, **options)
    assert_same_runs(reference("CumulativeExp", **options), resumed)


def test_resume__data_workers(tmp_path, reference):
    # Batches do not depend on the number of workers: compare with none.
    run = {"num_workers": 2, "multiprocessing_context": "fork", "streams": ("test",)}
    with pytest.raises(Interrupted):
        go(tmp_path, stop={"train": 8}, run=run)
    strategy, _ = go(tmp_path, resume=True, run=run)
    expected, _ = reference("Sequential")
    assert_same_weights(expected.model, strategy.model)


def test_resume__twice(tmp_path, reference):
    for stop in ({"train": 4}, {"train": 9}, {"evaluation": 3}):
        with pytest.raises(Interrupted):
            go(tmp_path, "ContrastiveLwF", stop, resume=True)
    resumed = go(tmp_path, "ContrastiveLwF", resume=True)
    assert_same_runs(reference("ContrastiveLwF"), resumed)


def test_resume__the_bar_counts_from_where_the_run_goes_on(tmp_path):
    bars = io.StringIO()
    extra = [ProgressPlugin(file=bars)]
    with pytest.raises(Interrupted):
        go(tmp_path, stop={"train": 9}, extra=[ProgressPlugin(file=io.StringIO())])
    go(tmp_path, resume=True, extra=extra)
    resumed = bars.getvalue().split("\r")
    assert "4/5" in resumed[1] and any("5/5" in text for text in resumed)


def test_resume__goes_back_when_the_newest_file_is_damaged(tmp_path, reference, caplog):
    with pytest.raises(Interrupted):
        go(tmp_path, "ContrastiveLwF", {"train": 9})
    newest = checkpoints(tmp_path / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes() + b"more")
    assert latest_checkpoint(tmp_path / "checkpoints") != newest
    resumed = go(tmp_path, "ContrastiveLwF", resume=True)
    assert "is damaged" in caplog.text
    assert_same_runs(reference("ContrastiveLwF"), resumed)


def test_resume__starts_anew_when_no_file_can_be_read(tmp_path, reference, caplog):
    with pytest.raises(Interrupted):
        go(tmp_path, stop={"train": 3})
    for path in checkpoints(tmp_path / "checkpoints"):
        path.write_bytes(b"nothing")
    assert_same_runs(reference("Sequential"), go(tmp_path, resume=True))
    assert "starts anew" in caplog.text


def test_resume__running_means_inside_an_epoch_go_on(tmp_path):
    def losses(strategy):
        found = strategy.evaluator.get_all_metrics()
        return {k: v for k, v in found.items() if k.startswith("Loss_Epoch")}

    def metrics():
        return evaluator(loss_metrics(epoch_running=True, minibatch=True))

    options = {"train_epochs": 2, "train_mb_size": 4}
    full, benchmark = build(evaluator=metrics(), **options)
    train_stream(full, benchmark)
    folder = CheckpointPlugin(tmp_path, every_iterations=3)
    part, benchmark = build(evaluator=metrics(), extra=[folder], **options)
    train_stream(part, benchmark, 1)
    later, benchmark = build(evaluator=metrics(), **options)
    # Written after 3 of the 4 iterations of the first epoch.
    assert load_state(later, tmp_path / "state_000000006.pt", benchmark) == 0
    train_stream(later, benchmark)
    assert losses(full) == losses(later)
    assert_same_weights(full.model, later.model)


def saved(tmp_path):
    plugin = CheckpointPlugin(tmp_path, every_iterations=3, keep=9)
    strategy, benchmark = build(extra=[plugin])
    train_stream(strategy, benchmark, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "Restart"}, "strategy is 'Sequential' there and 'Restart' here"),
        ({"model": {"dim": 4}}, "another model"),
        ({"optimizer": torch.optim.SGD}, "AdamW"),
        ({"evaluator": evaluator(loss_metrics(epoch=True))}, "metrics"),
        ({"extra": [ContrastiveLwFPlugin()]}, "ContrastiveLwFPlugin is missing there"),
    ],
    ids=["method", "model", "optimizer", "metrics", "plugins"],
)
def test_load_state__another_run_raises(options, message, tmp_path):
    saved(tmp_path)
    strategy, benchmark = build(**options)
    with pytest.raises(CheckpointError, match=message):
        load_state(strategy, tmp_path / "state_000000005_end.pt", benchmark)


def test_load_state__another_experience_or_plan_raises(tmp_path):
    saved(tmp_path)
    strategy, benchmark = build()
    assert load_state(strategy, tmp_path / "state_000000003.pt", benchmark) == 0
    with pytest.raises(CheckpointError, match="inside experience 0"):
        strategy.train(benchmark.train_stream[1], eval_streams=[])
    strategy, benchmark = build(budget_iterations=7)
    with pytest.raises(CheckpointError, match="budget.iterations is 5 there and 7"):
        load_state(strategy, tmp_path / "state_000000003.pt", benchmark)
