"""Processes forked from one that has imported everything and run nothing."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import threading
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from unittest import mock

LIBRARIES = ("avalanche.training", "open_clip", "transformers")
"""Importing these takes longest."""

_spawn = util.spawnv_passfds


def start() -> None:
    """Fork the process that later ones are forked from, before a test has run.

    A server of the standard library is a fresh interpreter, which imports all
    libraries again. Where not all are imported, it stays with that.
    """
    if sys.platform != "linux" or any(name not in sys.modules for name in LIBRARIES):
        return
    resource_tracker.ensure_running()
    with mock.patch("multiprocessing.util.spawnv_passfds", _fork_server):
        forkserver.ensure_running()


def context() -> multiprocessing.context.ForkServerContext:
    """Start processes quickly, and as if nothing had run in this one."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.preload"])
    return found


def run_script(path: str | Path, folder: Path, *words: object) -> tuple[int, str, str]:
    """Run a file as ``python path words`` in a folder, in a process with all imports.

    :return: its exit code, and what it printed and complained of.
    """
    output = [folder.parent / f"{folder.name}.{name}" for name in ("out", "err")]
    given = (str(path), folder, [str(word) for word in words], output)
    process = context().Process(target=_run, args=given)
    process.start()
    try:
        process.join()
    finally:  # the time of the test is over
        process.kill()
        process.join()
    printed, complaints = (file.read_text("utf-8") for file in output)
    return process.exitcode, printed, complaints


def _run(path: str, folder: Path, words: list[str], output: Sequence[Path]) -> None:
    """Do what the interpreter does with a script."""
    for number, file in enumerate(output, 1):
        with open(file, "wb") as opened:
            os.dup2(opened.fileno(), number)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False)
    os.chdir(folder)
    sys.argv = [path, *words]
    sys.path.insert(0, str((folder / path).parent))
    runpy.run_path(path, run_name="__main__")


def _fork_server(path: object, args: object, passed: Sequence[int]) -> int:
    """Be the server in a fork of this process, whose files stay its own."""
    if len(passed) != 2:  # the server of another Python takes more
        return _spawn(path, args, passed)
    pid = os.fork()
    if pid:
        return pid
    try:
        util.spawnv_passfds = _spawn
        nothing = os.open(os.devnull, os.O_RDWR)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in (nothing, *passed):
                _replace(nothing, int(name))
        forkserver._forkserver._lock = threading.Lock()  # it is held where we fork
        resource_tracker._resource_tracker._pid = None  # not a child of this one
        forkserver.main(*passed, None)
    finally:
        os._exit(0)


def _replace(nothing: int, number: int) -> None:
    """Let a descriptor stand for nothing; the one of the listing is gone already."""
    try:
        os.fstat(number)
    except OSError:
        return
    os.dup2(nothing, number)
