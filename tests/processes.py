"""Jobs in several gloo processes at once, and what they return."""

from __future__ import annotations

import os
import signal
import socket
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from avalanche_clip import distributed
from tests.forks import context

Jobs = Mapping[str, Callable[[], Any]]


class Results:
    """Results of all processes, by job.

    :param parts: of each process the results of its jobs, and the error that
        ended it early.
    """

    def __init__(self, parts: list[tuple[dict[str, Any], str]]):
        self.parts = parts

    def __getitem__(self, name: str) -> list[Any]:
        """Return what a job gave, by rank; fail with the tracebacks if it failed."""
        if all(name in found for found, _ in self.parts):
            return [found[name] for found, _ in self.parts]
        errors = [f"rank {rank}: {e}" for rank, (_, e) in enumerate(self.parts) if e]
        raise AssertionError(f"{name!r} did not end\n" + "\n".join(errors))


def free_port() -> int:
    """Return a port of this machine that nothing listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_in_processes(
    jobs: Jobs,
    folder: Path,
    *,
    count: int = 2,
    seconds: float = 150,
    timeout: float | None = None,
) -> Results:
    """Run jobs one after the other in each of some processes.

    :param jobs: by name, functions of a module or a ``partial`` of one.
    :param folder: an empty one, for the results.
    :param count: number of processes, which form one gloo group.
    :param seconds: after this time processes are killed.
    :param timeout: seconds that a process waits for the others; the group is then
        joined as scripts do, else by torch alone.
    """
    port = free_port()
    processes = [
        context().Process(
            target=_work, args=(rank, count, port, dict(jobs), folder, timeout)
        )
        for rank in range(count)
    ]
    for process in processes:
        process.start()
    end = time.monotonic() + seconds
    parts = []
    for rank, process in enumerate(processes):
        process.join(max(0.0, end - time.monotonic()))
        process.kill()
        process.join()
        path = folder / f"{rank}.pt"
        ended = f"no results after {seconds} s, exit code {process.exitcode}"
        parts.append(
            torch.load(path, weights_only=False) if path.exists() else ({}, ended)
        )
    return Results(parts)


def run_killed(job: Callable[[], Any], seconds: float = 120) -> None:
    """Run a job in a process of its own; fail unless it ends by SIGKILL."""
    process = context().Process(target=job)
    process.start()
    process.join(seconds)
    ended = process.exitcode
    process.kill()
    process.join()
    assert ended == -signal.SIGKILL


def kill_self(*args: Any, **options: Any) -> None:
    """Put in the place of a function, end the process there."""
    os.kill(os.getpid(), signal.SIGKILL)


def caught(call: Callable[[], Any]) -> tuple[str, str, float]:
    """Call; return the error's class and text, and the seconds that it took."""
    begin = time.monotonic()
    kind, text = "nothing", ""
    try:
        call()
    except Exception as error:
        kind, text = type(error).__name__, str(error)
    return kind, text, time.monotonic() - begin


def _work(
    rank: int, count: int, port: int, jobs: Jobs, folder: Path, timeout: float | None
) -> None:
    """Join the group as ``torchrun`` would, and run the jobs."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        CUDA_VISIBLE_DEVICES="",
    )
    found: dict[str, Any] = {}
    error = ""
    try:
        if timeout is None:
            dist.init_process_group("gloo", timeout=timedelta(seconds=60))
        else:
            distributed.init_distributed("gloo", timeout=timeout)
        for name, job in jobs.items():
            found[name] = job()
    except Exception:  # the processes are no longer in step
        error = traceback.format_exc()
    torch.save((found, error), folder / f"{rank}.pt")
    dist.destroy_process_group()
