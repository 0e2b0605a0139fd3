"""SIGTERM, full disks, dead workers, and other numbers of processes."""

import errno
import multiprocessing
import os
import resource
import signal
import threading
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from avalanche_clip import distributed
from avalanche_clip.common import state_files
from avalanche_clip.common.files import write_text
from avalanche_clip.common.space import NoSpaceError
from avalanche_clip.evaluation.loggers import MetricsCSVLogger
from avalanche_clip.training import run_stream
from avalanche_clip.training.runs.checkpoint_plugin import checkpoints
from avalanche_clip.training.runs.stopping import stopped_by_sigterm
from tests.helpers import At, assert_same_weights, weights
from tests.processes import run_in_processes
from tests.training import small_runs
from tests.training.small_runs import assert_same_runs, build

pytestmark = pytest.mark.filterwarnings("ignore")
slow = pytest.mark.slow
go = partial(small_runs.go, steps=2)


def asked(times=1):
    """Send SIGTERM to this process."""
    for _ in range(times):
        os.kill(os.getpid(), signal.SIGTERM)


def at_step(number, act=asked, hook="after_update"):
    """Do something at a training iteration of the whole run."""

    def now(strategy):
        if strategy.clock.train_iterations == number:
            act()

    return At(hook, now)


def at_batch(number, act=asked):
    """Do something at the first batch of an evaluation after so many iterations."""
    seen = []

    def now(strategy):
        seen.append(strategy.clock.train_iterations)
        if seen.count(number) == 1 and seen[-1] == number:
            act()

    return At("after_eval_iteration", now)


def stopped(folder, *plugins, **options):
    """Start a run that ends by SystemExit(0); return its checkpoints."""
    with pytest.raises(SystemExit) as found:
        go(folder, extra=plugins, **options)
    assert found.value.code == 0 and not distributed.asked_to_stop()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    return [path.name for path in checkpoints(folder / "checkpoints")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return go(tmp_path_factory.mktemp("whole"))


# ----------------------------------------------------------------------- SIGTERM
def in_the_save(act):
    """Do something while the first checkpoint inside a step is written."""
    save = torch.save
    calls = []

    def now(*arguments):
        calls.append(1)
        if len(calls) == 2:  # the first one is that of the evaluation before
            act()
        save(*arguments)

    return mock.patch.object(torch, "save", now)


@pytest.mark.parametrize(
    "plugin, newest",
    [
        (lambda: at_step(8, partial(asked, 3)), "state_000000009.pt"),
        pytest.param(lambda: at_step(0), "state_000000001.pt", marks=slow),
        # in an evaluation, before which the step was saved; in the first one
        (lambda: at_batch(5), "state_000000005_end.pt"),
        pytest.param(lambda: at_batch(0), None, marks=slow),
    ],
    ids=["step, thrice", "first step", "evaluation", "first evaluation"],
)
def test_sigterm__saves_and_the_run_goes_on_exactly(tmp_path, whole, plugin, newest):
    found = stopped(tmp_path, plugin())
    assert (found[-1] if found else None) == newest
    assert_same_runs(whole, go(tmp_path, resume=True))


@slow
def test_sigterm__in_a_save_lets_it_end(tmp_path, whole, caplog):
    with in_the_save(asked):
        found = stopped(tmp_path)
    assert found == ["state_000000002.pt", "state_000000003.pt"]
    assert "SIGTERM" in caplog.text and "state_000000003.pt; resume=True" in caplog.text
    assert_same_runs(whole, go(tmp_path, resume=True))


@slow
def test_sigterm__in_an_evaluation_of_a_step_waits_for_its_end(tmp_path):
    options = {"eval_every": 1, "train_epochs": 2}
    full = go(tmp_path / "full", **options)
    found = stopped(tmp_path / "cut", at_batch(2), **options)
    # After two of four steps, where the first of two epochs ends.
    assert found[-1] == "state_000000003.pt"
    assert_same_runs(full, go(tmp_path / "cut", resume=True, **options))


@slow
def test_sigterm__after_the_last_evaluation_is_not_forgotten(tmp_path, whole):
    with mock.patch(
        "avalanche_clip.training.runs.stream._Run.finish",
        lambda run: asked(),
    ):
        stopped(tmp_path)
    assert_same_runs(whole, go(tmp_path, resume=True))


def test_sigterm__a_handler_of_the_script_stays():
    own = []
    before = signal.signal(signal.SIGTERM, lambda *_: own.append(1))
    try:
        with stopped_by_sigterm():
            asked()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert own == [1] and not distributed.asked_to_stop()

    def elsewhere():
        with stopped_by_sigterm():
            own.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert own[1] is signal.SIG_DFL


# --------------------------------------------------------------------- full disks
class Limited:
    """Files of at most so many bytes, as the system counts them."""

    def __init__(self, most):
        self.most = most

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.most, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


@pytest.mark.parametrize("most", [0, 300, 5000, 100_000])
def test_write_state__on_a_full_disk_keeps_the_file(tmp_path, most):
    path = tmp_path / "state_1.pt"
    state_files.write_state({"format": state_files.FORMAT, "a": torch.ones(3)}, path)
    large = {"a": torch.rand(300, 300), "b": [torch.ones(9)] * 9}
    with Limited(most), pytest.raises(NoSpaceError) as found:
        state_files.write_state(large, path)
    assert "bytes are free" in str(found.value) and str(path) in str(found.value)
    assert "state_1.pt is as it was before" in str(found.value)
    assert torch.equal(state_files.read_state(path)["a"], torch.ones(3))
    assert os.listdir(tmp_path) == ["state_1.pt"]


def test_files__a_full_disk_is_named(tmp_path):
    log = MetricsCSVLogger(tmp_path / "metrics.csv")
    log.log_single_metric("first", 1.0)
    with Limited(60):
        with pytest.raises(NoSpaceError, match=r"metrics\.csv"):
            log.log_single_metric("second", 2.0)
        with pytest.raises(NoSpaceError, match="t.txt is as it was before"):
            write_text(tmp_path / "t.txt", "x" * 100)
    assert MetricsCSVLogger(tmp_path / "metrics.csv").num_rows == 1
    with pytest.raises(PermissionError), mock.patch("os.replace", forbidden):
        write_text(tmp_path / "t.txt", "x")


def forbidden(*paths):
    raise PermissionError(errno.EACCES, "not allowed")


def test_run__on_a_full_disk_names_the_newest_checkpoint(tmp_path, whole):
    write = state_files._Summed.write

    def full(file, data):
        if "000000009" in file.file.name and len(data) > 1000:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    with (
        mock.patch.object(state_files._Summed, "write", full),
        pytest.raises(NoSpaceError, match="No space left") as found,
    ):
        go(tmp_path)
    assert "state_000000007.pt; resume=True goes on from it" in str(found.value)
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "state_000000007.pt"
    assert_same_runs(whole, go(tmp_path, resume=True))


# ------------------------------------------------------------------------ workers
def to_workers(number):
    """Send a signal to all workers of the data loader."""
    for child in multiprocessing.active_children():
        if "forkserver" not in child.name.lower():
            os.kill(child.pid, number)


@slow
def test_worker__that_dies_ends_the_run_with_its_cause(tmp_path, whole):
    kill = at_step(6, partial(to_workers, signal.SIGKILL))
    with pytest.raises(RuntimeError, match="worker.*(killed by signal|exited|gone)"):
        go(tmp_path, extra=[kill], run={"num_workers": 1})
    assert_same_runs(whole, go(tmp_path, resume=True))


@slow
def test_worker__serves_on_after_sigterm(tmp_path, whole):
    term = at_step(6, partial(to_workers, signal.SIGTERM))
    strategy, _ = go(tmp_path, extra=[term], run={"num_workers": 1})
    assert_same_weights(strategy.model, whole[0].model)


# ---------------------------------------------------------------------- processes
def seen_by(strategy):
    return strategy.mb_x["sample_id"].tolist()


def part_of(folder, asks=None, size=4, resume=False):
    """A run of one of several processes: what it saw, its weights, how it ended."""
    seen, asking = At("before_forward", seen_by), [OnOne(*asks)] if asks else []
    model = {"dropout": 0.0, "noise": 0.1}
    options = {"model": model, "train_mb_size": size, "resume": resume}
    try:
        strategy, result = go(folder, extra=[*asking, seen], **options)
    except SystemExit as stop:
        return {"ended": stop.code}
    return {"weights": weights(strategy.model), "E": result.E, "seen": seen.seen}


class OnOne(At):
    """Be asked to stop on one rank only, in a step or an evaluation after it."""

    def __init__(self, number, hook):
        calls = []

        def now(strategy):
            if distributed.rank() == 1 and strategy.clock.train_iterations == number:
                calls.append(1)
                if len(calls) == 1:
                    asked()

        super().__init__(hook, now)


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pool")
    (folder / "results").mkdir()
    step, batch = (7, "after_update"), (5, "after_eval_iteration")
    jobs = {
        "step": partial(part_of, folder / "step", step),
        "batch": partial(part_of, folder / "batch", batch),
        "again": partial(part_of, folder / "batch", resume=True),
        "whole": partial(part_of, folder / "whole"),
    }
    return folder, run_in_processes(jobs, folder / "results", timeout=120)


def names(folder):
    return [path.name for path in checkpoints(folder / "checkpoints")]


@slow
def test_processes__stop_at_the_same_step_when_one_is_asked(pool):
    folder, found = pool
    first, second = found["step"]
    assert first["ended"] == second["ended"] == 0
    # The step after the signal, which the other one then knew of.
    assert names(folder / "step")[-1] == "state_000000009.pt"
    assert [part["ended"] for part in found["batch"]] == [0, 0]
    for one, other in zip(found["again"], found["whole"], strict=True):
        assert all(
            torch.equal(v, one["weights"][k]) for k, v in other["weights"].items()
        )
        assert np.array_equal(one["E"], other["E"])


@slow
def test_processes__one_goes_on_with_the_data_of_two(pool):
    folder, found = pool
    with pytest.raises(ValueError, match="train_mb_size is 8 there and 4 here .of all"):
        part_of(folder / "step", resume=True)
    rest = part_of(folder / "step", size=8, resume=True)
    both = [found["whole"][rank]["seen"] for rank in (0, 1)]
    # Each of two had the half of a batch, one process has all of it.
    assert rest["seen"] == [a + b for a, b in zip(*both, strict=True)][9:]
    for name, value in found["whole"][0]["weights"].items():
        torch.testing.assert_close(rest["weights"][name], value, rtol=1e-4, atol=1e-5)


@slow
def test_resume__a_batch_may_be_cut_into_other_parts(tmp_path):
    stopped(tmp_path, at_step(3))
    strategy, benchmark = build(accumulation_steps=2, steps=2)
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        run = run_stream(
            strategy,
            benchmark,
            tmp_path,
            resume=True,
            streams=("test", "valid"),
            verbose=0,
        )
    assert Path(run.out_dir, "results.json").exists()
