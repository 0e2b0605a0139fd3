"""The lock of a folder: one holder, and none that is dead."""

import errno
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from avalanche_clip.common import lock as _lock
from avalanche_clip.common.lock import FolderLock
from tests.refused import refused

# Runs the file itself: importing the package is not needed.
HOLD = f"""
import os, runpy, sys, time
FolderLock = runpy.run_path({str(Path(_lock.__file__))!r})["FolderLock"]
with FolderLock(sys.argv[1]):
    child = os.fork() if "fork" in sys.argv else 1
    if child == 0 or "fork" not in sys.argv:
        print(os.getpid(), flush=True)  # a child has left the lock by now
    time.sleep(float(sys.argv[2]))
"""


def hold(folder, seconds=60, *more):
    """A process that holds the lock of a folder."""
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process.child = int(process.stdout.readline())
    return process


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.fixture
def holder(tmp_path):
    process = hold(tmp_path / "run")
    yield process
    kill(process)


def test_folder_lock__held_by_another_process_raises(holder, tmp_path):
    folder = tmp_path / "run"
    before = sorted(p.name for p in folder.iterdir()), (folder / ".lock").read_bytes()
    expected = f"run is in use by process {holder.pid} on {platform.node()}. Wait"
    for _ in range(2):
        with pytest.raises(ValueError, match=expected), FolderLock(folder):
            raise AssertionError("entered")
    after = sorted(p.name for p in folder.iterdir()), (folder / ".lock").read_bytes()
    assert before == after
    # Reading the file does not end the lock, nor does a link lead around it.
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(ValueError, match=f"link is in use by process {holder.pid}"):
        FolderLock(tmp_path / "link").acquire()


def test_folder_lock__ends_with_a_killed_process(tmp_path):
    process = hold(tmp_path)
    kill(process)
    assert (tmp_path / ".lock").exists()
    with FolderLock(tmp_path) as lock:
        found = json.loads(lock.path.read_text())
        assert found == {"process": os.getpid(), "host": platform.node()}


def test_folder_lock__is_not_held_by_a_child_that_lives_on(tmp_path):
    process = hold(tmp_path, 60, "fork")
    kill(process)
    try:
        os.kill(process.child, 0)
        with FolderLock(tmp_path):
            pass
    finally:
        os.kill(process.child, signal.SIGKILL)


def test_folder_lock__twice_in_one_process_raises(tmp_path):
    with FolderLock(tmp_path / "new" / "run") as lock:
        with pytest.raises(ValueError, match=f"this process \\({os.getpid()} on"):
            FolderLock(tmp_path / "new" / "run").acquire()
        refused("in use by this process", lock.acquire)
        assert lock.path.exists()
        # Other folders are free.
        with FolderLock(tmp_path / "new"):
            pass
    with FolderLock(tmp_path / "new" / "run"):
        pass


def test_folder_lock__ends_with_an_exception(tmp_path):
    lock = FolderLock(tmp_path)
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert list(tmp_path.iterdir()) == []
    lock.release()
    with lock:
        pass


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"[1]", b"\xff\xfe", b'{"process": 1, "host": "x"}']
)
def test_folder_lock__file_without_an_owner_is_no_obstacle(content, tmp_path):
    (tmp_path / ".lock").write_bytes(content)
    with FolderLock(tmp_path) as lock:
        (tmp_path / ".lock").write_bytes(content)
        refused("in use by (another )?process", FolderLock(tmp_path).acquire)
    assert not lock.path.exists()


def test_folder_lock__of_a_removed_file_is_another_one(tmp_path):
    old = FolderLock(tmp_path)
    old.acquire()
    old.path.unlink()
    with FolderLock(tmp_path) as lock:
        old.release()
        assert lock.path.exists()
        refused("in use", FolderLock(tmp_path).acquire)


def test_folder_lock__many_processes_take_turns(tmp_path):
    """Removing the file at the end lets no two in at once."""
    code = f"""
import os, runpy, sys, time
FolderLock = runpy.run_path({str(Path(_lock.__file__))!r})["FolderLock"]
end = time.monotonic() + 60
for _ in range(20):
    while True:
        try:
            with FolderLock(sys.argv[1]):
                os.close(os.open(sys.argv[1] + "/in", os.O_CREAT | os.O_EXCL))
                os.unlink(sys.argv[1] + "/in")
            break
        except ValueError:
            assert time.monotonic() < end
            time.sleep(0.001)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [p.wait(60) for p in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_folder_lock__where_nothing_can_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be locked for writing"):
        FolderLock(tmp_path / "file" / "run").acquire()
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "fixed").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="fixed cannot be locked for writing"):
        FolderLock(tmp_path / "fixed").acquire()


def test_folder_lock__without_locks_warns(tmp_path, monkeypatch):
    def no_locks(handle):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(_lock, "_lock_file", no_locks)
    with pytest.warns(UserWarning, match="has no locks"), FolderLock(tmp_path):
        pass
