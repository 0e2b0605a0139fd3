"""One run per folder, which knows whose it is and survives damage to its files."""

import json
import os
import re
import signal
import time
from functools import partial
from unittest import mock

import pytest
import torch
from avalanche.core import SupervisedPlugin

from avalanche_clip import distributed
from avalanche_clip.common.files import read_json
from avalanche_clip.common.lock import FolderLock
from avalanche_clip.common.randomness import kept_rng
from avalanche_clip.common.state_files import CheckpointError, read_state, write_state
from avalanche_clip.training import run_stream
from avalanche_clip.training.runs import folder as run_folder
from avalanche_clip.training.runs.checkpoint_plugin import (
    CheckpointPlugin,
    checkpoints,
    latest_checkpoint,
)
from avalanche_clip.training.runs.resume import load_state, save_state
from tests.forks import context
from tests.helpers import Pairs, assert_same_weights
from tests.processes import run_in_processes
from tests.training.runs.test_rollback import assert_unchanged, snapshot
from tests.training.small_runs import (
    Interrupted,
    assert_same_runs,
    build,
    cut,
    go,
    go_quietly,
)


@pytest.fixture(scope="module", autouse=True)
def no_plots():
    """Plots take longer than the runs."""
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return go(tmp_path_factory.mktemp("whole"))


def content(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {p.relative_to(folder): p.read_bytes() for p in files}


# ---------------------------------------------------------------------- lock
class TriesAgain(SupervisedPlugin):
    """Starts a second run in the folder of the first, in an iteration of it."""

    stateless = True

    def __init__(self, folder, resume):
        super().__init__()
        self.folder, self.resume, self.message = folder, resume, ""

    def after_update(self, strategy, **kwargs):
        if strategy.clock.train_iterations == 7:
            before = content(self.folder)
            with pytest.raises(ValueError, match="is in use by") as found, kept_rng():
                go(self.folder, resume=self.resume)
            self.message = str(found.value)
            assert content(self.folder) == before


@pytest.mark.parametrize("resume", [False, True])
def test_run__a_second_one_in_the_process_is_refused(resume, tmp_path, whole):
    plugin = TriesAgain(tmp_path, resume)
    first = go(tmp_path, extra=[plugin])
    assert f"{tmp_path} is in use by this process ({os.getpid()} on" in plugin.message
    assert_same_weights(first[0].model, whole[0].model)
    assert not list(tmp_path.rglob(".lock"))


class Waits(SupervisedPlugin):
    """Waits for a file in the second experience."""

    stateless = True

    def __init__(self, folder):
        super().__init__()
        self.folder = folder

    def after_update(self, strategy, **kwargs):
        if strategy.clock.train_iterations == 8:
            (self.folder / "waits").touch()
            while not (self.folder / "go").exists():
                time.sleep(0.01)


def start_waiting(tmp_path):
    arguments = {"out": str(tmp_path / "run"), "extra": [Waits(tmp_path)]}
    process = context().Process(target=go_quietly, args=(arguments,))
    process.start()
    end = time.monotonic() + 100
    while not (tmp_path / "waits").exists() and time.monotonic() < end:
        time.sleep(0.01)
    return process


def test_run__a_second_process_is_refused_until_the_first_is_killed(tmp_path, whole):
    process = start_waiting(tmp_path)
    before = content(tmp_path / "run")
    for resume in (True, False):
        with pytest.raises(ValueError, match=f"run is in use by process {process.pid}"):
            go(tmp_path / "run", resume=resume)
    assert content(tmp_path / "run") == before
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "run" / ".lock").exists()
    (tmp_path / "go").touch()
    resumed = go(tmp_path / "run", resume=True, extra=[Waits(tmp_path)])
    assert_same_weights(whole[0].model, resumed[0].model)


def test_run__the_folder_of_own_checkpoints_is_locked_too(tmp_path):
    plugin = CheckpointPlugin(tmp_path / "shared")
    with FolderLock(tmp_path / "shared"):
        with pytest.raises(ValueError, match="shared is in use by this process"):
            go(tmp_path / "run", extra=[plugin])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "stop", [{"train": 3}, {"train": 9}, {"evaluation": 2}, None], ids=str
)
def test_run__the_lock_is_released_on_every_exit(stop, tmp_path):
    for number in range(2):
        try:
            go(tmp_path / "run", stop=stop, resume=True)
        except Interrupted:
            assert stop
        with FolderLock(tmp_path / "run"):
            pass
        assert not (tmp_path / "run" / ".lock").exists(), number


# ------------------------------------------------------------------ identity
class Captions(Pairs):
    """Other captions of the same pictures."""

    def __getitem__(self, index):
        image, text = super().__getitem__(index)
        return image, text[::-1] + "z"


class Pictures(Pairs):
    """Other pictures with the same captions."""

    def __init__(self, groups, seed, captions):
        super().__init__(groups, seed + 100, captions)


class OneCaption(Pairs):
    """One caption is another one, the last of each stream."""

    def __getitem__(self, index):
        image, text = super().__getitem__(index)
        return image, "zz" if index == len(self) - 1 else text


def without_state_file(folder):
    (folder / "run_state.json").unlink()


def with_anothers_state_file(folder):
    """The state file says that the run is the one that is being resumed."""
    content = {"identity": with_anothers_state_file.identity}
    run_folder.write_json(folder / "run_state.json", content, checksum=True)


OTHERS = [
    (Captions, "experiences.train.0 is '[0-9a-f]{16}' there and '[0-9a-f]{16}' here"),
    (Pictures, "experiences.train.0 is '[0-9a-f]{16}' there"),
    (OneCaption, "data is .* experiences.train.2 is '[0-9a-f]{16}' there"),
]


@pytest.mark.parametrize("pairs, message", OTHERS)
@pytest.mark.parametrize("how", [None, without_state_file])
def test_resume__other_data_under_the_same_ids_is_refused(
    how, pairs, message, tmp_path
):
    cut(tmp_path)
    if how:
        how(tmp_path)
    before = content(tmp_path)
    with mock.patch("tests.helpers.Pairs", pairs):
        with pytest.raises(ValueError, match=message):
            go(tmp_path, resume=True)
        strategy, benchmark = build()
        path = checkpoints(tmp_path / "checkpoints")[-1]
        with pytest.raises(CheckpointError, match="holds another run: exp"):
            load_state(strategy, path, benchmark)
    assert content(tmp_path) == before
    assert_same_weights(strategy.model, build()[0].model)
    strategy, benchmark = build()
    assert load_state(strategy, path, benchmark) == 1


def test_load_state__a_stream_that_is_longer_now_is_the_same_data(tmp_path):
    cut(tmp_path)
    path = checkpoints(tmp_path / "checkpoints")[-1]
    state = read_state(path)
    del state["identity"]["experiences"]["train"]["2"]
    write_state(state, path)
    strategy, benchmark = build()
    assert load_state(strategy, path, benchmark) == 1
    state["identity"]["experiences"]["train"]["1"] = "0" * 16
    write_state(state, path)
    with pytest.raises(CheckpointError, match="train.1 is '0000000000000000' there"):
        load_state(strategy, path, benchmark)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"seed": 4}, "seed is 3 there and 4 here"),
        ({"method": "Restart"}, "method is 'Sequential' there and 'Restart' here"),
        ({"train_mb_size": 4}, "settings.train_mb_size is 8 there and 4 here"),
        (
            {"optimizer": lambda g: torch.optim.AdamW(g, lr=0.1)},
            "optimizer.groups.0.lr is 0.0005 there and 0.1 here",
        ),
    ],
    ids=lambda v: str(v)[:20],
)
@pytest.mark.parametrize("how", [without_state_file, with_anothers_state_file])
def test_resume__the_checkpoint_itself_knows_its_run(
    how, options, message, tmp_path, monkeypatch
):
    cut(tmp_path)
    seen = []
    original = run_folder.RunFolder.__init__

    def spy(self, path, strategy, run, *rest):
        with_anothers_state_file.identity = run.identity
        seen.append(run.identity)
        original(self, path, strategy, run, *rest)
        how(tmp_path)

    monkeypatch.setattr(run_folder.RunFolder, "__init__", spy)
    with pytest.raises(ValueError, match=f"_000000009.pt holds .*{message}"):
        go(tmp_path, resume=True, **options)
    assert seen


def test_resume__before_the_first_checkpoint_the_state_file_counts(tmp_path):
    cut(tmp_path)
    for path in checkpoints(tmp_path / "checkpoints"):
        path.unlink()
    with pytest.raises(ValueError, match="holds another run: seed is 3 there and 4"):
        go(tmp_path, resume=True, seed=4)
    assert (tmp_path / "run_state.json").exists()


# ------------------------------------------------------------- damaged files
def bad_state(folder):
    path = folder / "run_state.json"
    path.write_text(path.read_text().replace('"seed": 3', '"seed": 7'))


DAMAGES = {
    "state changed": bad_state,
    "state half": lambda f: (f / "run_state.json").write_text('{"identity": {'),
    "state empty": lambda f: (f / "run_state.json").write_bytes(b""),
    "state of another": lambda f: run_folder.write_json(
        f / "run_state.json", {"identity": {"seed": 1}}, checksum=True
    ),
    "rows lost": lambda f: (f / "metrics.csv").unlink(),
    "rows changed": lambda f: (f / "metrics.csv").write_bytes(
        (f / "metrics.csv").read_bytes().replace(b"0.", b"1.")
    ),
    "no rows": lambda f: (f / "metrics.csv").write_bytes(b"\x00" * 99),
    "rows cut": lambda f: os.truncate(f / "metrics.csv", 300),
    "results": lambda f: (f / "results.json").write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_resume__goes_on_with_whole_checkpoints(damage, tmp_path, whole, caplog):
    cut(tmp_path)
    DAMAGES[damage](tmp_path)
    assert_same_runs(whole, go(tmp_path, resume=True))
    assert "written again" in caplog.text or damage == "results"
    assert (
        read_json(tmp_path / "run_state.json", checksum=True)["identity"]["seed"] == 3
    )
    results = read_json(tmp_path / "results.json", checksum=True)
    assert results["seed"] == 3


def test_resume__files_of_another_version_are_not_lost(tmp_path):
    cut(tmp_path)
    files = checkpoints(tmp_path / "checkpoints")
    for path in files:
        torch.save({"format": 1, "experience": 1}, path)
    before = content(tmp_path)
    with pytest.raises(CheckpointError, match="Go on with the version that wrote it"):
        go(tmp_path, resume=True)
    assert content(tmp_path) == before


def test_run__a_folder_with_results_alone_is_not_used(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds a run"):
        go(tmp_path)


def test_run__files_carry_checksums(whole):
    folder = whole[1].out_dir
    for name in ("run_state.json", "results.json"):
        path = folder / name
        assert "checksum" not in read_json(path, checksum=True)
        assert len(json.loads(path.read_text())["checksum"]) == 64
    assert not list(folder.rglob("*.tmp"))


# ------------------------------------------------------ paths and processes
def test_run__paths_below_home_and_what_a_killed_one_left(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run").mkdir()
    left = [
        tmp_path / "run" / f"{n}.77.tmp" for n in ("results.json", "run_state.json")
    ]
    mine = tmp_path / "run" / "mine.tmp"
    for path in (*left, mine):
        path.write_text("half")
    plugin = CheckpointPlugin("~/kept")
    strategy, result = go("~/run", extra=[plugin])
    assert result.out_dir == tmp_path / "run"
    assert mine.exists() and not any(path.exists() for path in left)
    newest = latest_checkpoint("~/kept")
    assert newest.parent == tmp_path / "kept"
    assert save_state(strategy, "~/own.pt") == tmp_path / "own.pt"
    again, benchmark = build()
    assert load_state(again, "~/own.pt", benchmark) == 3
    assert_same_weights(again.model, strategy.model)


def test_failed_run__leaves_no_folder_that_it_made(tmp_path):
    strategy, benchmark = build()
    with FolderLock(tmp_path / "mine"):
        plugin = CheckpointPlugin(tmp_path / "mine")
        strategy.plugins.append(plugin)
        with pytest.raises(ValueError, match="in use"):
            run_stream(strategy, benchmark, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def refused_on_all_ranks(folder):
    """What two processes say of a folder that is in use, and of another run's."""
    torch.set_num_threads(1)
    said: list[str] = []
    main = distributed.is_main_process()
    error = ValueError if main else distributed.RankError
    strategy, benchmark = build(budget_iterations=1)
    lock = FolderLock(folder / "run")
    if main:
        lock.acquire()
    distributed.barrier()
    for options in ({}, {"resume": True}):
        with pytest.raises(error) as found:
            run_stream(strategy, benchmark, folder / "run", **options)
        said.append(str(found.value))
    distributed.barrier()
    lock.release()
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        run_stream(build(budget_iterations=1)[0], benchmark, folder / "run")
    strategy, benchmark = build(budget_iterations=1, seed=4)
    before = snapshot(strategy)
    with pytest.raises(error) as found:
        run_stream(strategy, benchmark, folder / "run", resume=True)
    said.append(str(found.value))
    assert_unchanged(strategy, before)
    return said


def test_run__several_processes_hear_why_the_main_one_stops(tmp_path):
    job = partial(refused_on_all_ranks, tmp_path)
    results = tmp_path / "results"
    results.mkdir()
    first, second = run_in_processes({"job": job}, results)["job"]
    assert all(
        re.match("rank 0 stopped in opening the folder of the run: [A-Z]", b) and a in b
        for a, b in zip(first, second)
    )
    assert all("run is in use by this process" in text for text in first[:2])
    assert "holds another run: seed is 3 there and 4 here" in first[2]
    assert not (tmp_path / "run" / ".lock").exists()
