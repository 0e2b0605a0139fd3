"""Break runs of two processes at random, start them again, and compare the results.

    python experiments/random_faults.py --out faults
    python experiments/random_faults.py --out faults --faults 20 --seed 1

Two gloo processes with a data worker each train a tiny model on two steps of emoji,
from tar archives: as a stream or by an index, in turn. Each fault comes from outside,
at a random moment of the run (of its training, evaluations and writing): SIGKILL of one
process or of both, SIGTERM to one or both (or to all with their workers, as launchers
do), SIGKILL of a data worker, a limit on the size of files (as a full disk or a quota
has it), a damaged archive, or SIGKILL and then damage to one or all checkpoints. Then
the run is started again, with whole archives and room on the disk, and must end with
the weights, E and ``metrics.csv`` (without its times) of an undisturbed run, bit for
bit. It is a hang if processes are still there after ``--patience`` seconds; a fault is
named if a log of the run says what happened. Of processes that are killed all together
only the exit status can say so. Tar archives hold no checksums: that bytes inside a
member of a stream are others cannot be seen, so that only archives with an index have
such damage.

Goes on where it stopped: ``--out`` holds a line per fault. Ends with status 1 if there
is a wrong result, a hang, or a fault without a name.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import socket
import sys
import tarfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from avalanche.training.plugins import EvaluationPlugin
from kill_and_resume import same

from avalanche_clip import distributed
from avalanche_clip.benchmarks import (
    make_experience,
    make_image_text_dataset,
    make_scenario,
    prepare_benchmark,
)
from avalanche_clip.benchmarks.classic.tic_emoji import emoji_dataset
from avalanche_clip.benchmarks.datasets import ShardStream, TarPairs, open_tar_index
from avalanche_clip.evaluation.metrics import retrieval_plugin_metrics
from avalanche_clip.models import create_dual_encoder
from avalanche_clip.training import MethodPlugin, Sequential, run_stream

WORLD = 2
PRELOAD = "kill_and_resume", "webdataset", "open_clip", "tensorboard", "pandas"
"""What processes start with."""
STEPS, ARCHIVES, EACH = 2, 4, 8
ITERATIONS, EVERY, BATCH = 5, 2, 6
WAYS = ("stream", "index")
KINDS = (
    *("kill one", "kill all", "stop one", "stop all", "stop all and workers"),
    *("kill worker", "full disk", "archive", "checkpoint", "all checkpoints"),
)
WORDS = {
    "kill one": r"RankError: rank \d of 2 has lost another rank",
    "stop": r"The run stops, as SIGTERM asks for",
    "kill worker": r"DataLoader worker.*(killed by signal|exited|gone)",
    "full disk": r"File too large",
    "archive": r"0000000\d\.tar|holds another run|shards",
    "checkpoint": r"state_\d+\w*\.pt (is damaged|is no checkpoint|cannot be read)",
}
"""What a log must say of a fault."""


# ------------------------------------------------------------------------ one run
class Ticks(MethodPlugin, supports_distributed=True):
    """Counts the moments of a run where others can see it."""

    stateless = True

    def __init__(self, count: Any):
        super().__init__()
        self.count = count

    def _tick(self, strategy: Any, **kwargs: Any) -> None:
        self.count.value += 1

    before_training_exp = before_forward = after_backward = after_update = _tick
    after_training_exp = before_eval_exp = after_eval_iteration = after_eval = _tick


def write_shards(folder: Path) -> None:
    """Emoji in tar archives, a folder of them per step."""
    data = emoji_dataset(["noto"], list(range(STEPS * ARCHIVES * EACH)), captions="all")
    for number in range(STEPS * ARCHIVES):
        step, place = divmod(number, ARCHIVES)
        path = folder / str(step) / f"{place:08d}.tar"
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for key in range(number * EACH, (number + 1) * EACH):
                image, text = data[key][:2]
                picture = io.BytesIO()
                image.save(picture, "PNG")
                text = text if isinstance(text, str) else text[0]
                parts = {"png": picture.getvalue(), "txt": text.encode()}
                for ending, content in parts.items():
                    member = tarfile.TarInfo(f"{key:08d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


def build(way: str, shards: Path, ticks: Any) -> tuple[Any, Any]:
    """A strategy, and its benchmark on the archives."""
    model = create_dual_encoder("tiny-emoji")
    model.reinitialize(0)
    train = []
    for step in range(STEPS):
        folder = shards / str(step)
        data: Any = ShardStream(folder, ARCHIVES * EACH, buffer=8)
        if way == "index":
            ids = np.arange(ARCHIVES * EACH) + step * ARCHIVES * EACH
            pairs = TarPairs(open_tar_index(folder))
            data = make_image_text_dataset(pairs, sample_ids=ids)
        train.append(make_experience(data, time_label=str(step)))
    rows = [list(range(32 * step, 32 * step + 12)) for step in range(STEPS)]
    test = [
        make_experience(emoji_dataset(["twemoji"], chosen), time_label=str(step))
        for step, chosen in enumerate(rows)
    ]
    benchmark = make_scenario({"train": train, "test": test})
    metrics = retrieval_plugin_metrics(summary=("mean_R@1",))
    strategy = Sequential(
        model=model,
        plugins=[Ticks(ticks)],
        optimizer=partial(torch.optim.AdamW, lr=1e-3),
        budget_iterations=ITERATIONS,
        train_mb_size=BATCH,
        evaluator=EvaluationPlugin(metrics, loggers=[]),
    )
    return strategy, prepare_benchmark(benchmark, model)


def work(
    rank: int, port: int, way: str, shards: Path, out: Path, ticks: Any, told: Any
) -> None:
    """One of the processes of a run; all that it says goes to a pipe."""
    os.dup2(told.fileno(), 1)
    os.dup2(told.fileno(), 2)
    told.close()
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(WORLD), **place}
    os.environ |= {"LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    distributed.init_distributed("gloo", timeout=300)
    strategy, benchmark = build(way, shards, ticks)
    options = {"checkpoint_iterations": EVERY, "verbose": 0, "num_workers": 1}
    # This process would give its workers the way that it was started itself.
    options["multiprocessing_context"] = "fork"
    # What the report draws takes longer than all else, and is not compared.
    with mock.patch("avalanche_clip.training.runs.stream.write_report"):
        run_stream(strategy, benchmark, out, resume=True, **options)
    if distributed.is_main_process():
        torch.save(strategy.model.state_dict(), out / "weights.pt")


class Run:
    """The processes of a run that has been started.

    :param way: how it reads the archives.
    :param out: its folder; logs lie beside it.
    """

    def __init__(self, way: str, shards: Path, out: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        context, self.way = multiprocessing.get_context("forkserver"), way
        context.set_forkserver_preload([*PRELOAD])
        self.out, self.ticks, self.processes = out, [], []
        self.listeners = []
        for rank in range(WORLD):
            # Without a lock, which a killed process might hold.
            ticks, (ears, told) = context.RawValue("i", 0), context.Pipe(duplex=False)
            place = (rank, port, way, shards, out, ticks, told)
            process = context.Process(target=work, args=place)
            process.start()
            told.close()
            listener = threading.Thread(target=self.listen, args=(ears,), daemon=True)
            listener.start()
            self.ticks.append(ticks)
            self.processes.append(process)
            self.listeners.append(listener)

    def listen(self, ears: Any) -> None:
        """Write down what a process says; its own files may be limited."""
        with open(f"{self.out}.log", "ab", buffering=0) as log:
            while said := os.read(ears.fileno(), 1 << 16):
                log.write(said)
        ears.close()

    def alive(self) -> bool:
        """Whether one of its processes is there."""
        return any(process.is_alive() for process in self.processes)

    def wait_for(self, tick: int, rank: int, until: float) -> bool:
        """Wait for a moment of a process; False if it did not come to it."""
        while self.ticks[rank].value < tick:
            if not self.processes[rank].is_alive() or time.monotonic() > until:
                return False
            time.sleep(0.001)
        return True

    def end(self, patience: float) -> list[int | None]:
        """Exit status of each process; None for those that had to be ended."""
        until = time.monotonic() + patience
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        found = [process.exitcode for process in self.processes]
        for process in self.processes:
            process.kill()
            process.join()
        for listener in self.listeners:
            listener.join(10)  # workers end a little later
        return found

    def workers(self, rank: int) -> list[int]:
        """Process ids of the data workers of a process."""
        pid = self.processes[rank].pid
        try:
            found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return []
        return [int(child) for child in found]

    def send(self, number: int, ranks: list[int], workers: bool = False) -> None:
        """Send a signal to processes, and to their workers."""
        for rank in ranks:
            pids = [self.processes[rank].pid, *(self.workers(rank) if workers else [])]
            for pid in pids:
                send(pid, number)

    def said(self) -> str:
        """What the processes have said, of all starts."""
        return Path(f"{self.out}.log").read_text(errors="replace")


def send(pid: int | None, number: int) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(pid or 0, number) if pid else None
    except ProcessLookupError:
        pass


# ------------------------------------------------------------------------- faults
def damage(path: Path, draw: random.Random, sums: bool = True) -> str:
    """Damage a file in one of several ways; return which.

    :param sums: whether checksums of its bytes are known.
    """
    content = path.read_bytes()
    how = draw.choice(["cut", "emptied", "replaced", *(["zeros"] if sums else [])])
    if how == "cut":
        content = content[: draw.randrange(1, len(content) - 600)]
    elif how == "zeros":
        start = draw.randrange(len(content) // 2)
        content = content[:start] + bytes(len(content) - start)
    else:
        content = b"" if how == "emptied" else b"<html>gone</html>"
    path.write_bytes(content)
    return how


def strike(kind: str, run: Run, shards: Path, draw: random.Random) -> str:
    """Do what a fault does to a run that goes on; return the details."""
    rank = draw.randrange(WORLD)
    both = list(range(WORLD))
    if kind == "kill one":
        run.send(signal.SIGKILL, [rank])
    elif kind in ("kill all", "checkpoint", "all checkpoints"):
        run.send(signal.SIGKILL, both)
    elif kind.startswith("stop"):
        times = draw.choice([1, 1, 2])
        for _ in range(times):
            run.send(signal.SIGTERM, [rank] if "one" in kind else both, "work" in kind)
        return f"rank {rank}, {times} times"
    elif kind == "kill worker":
        until = time.monotonic() + 2
        while not (pids := run.workers(rank)) and run.alive():
            if time.monotonic() > until:
                break
            time.sleep(0.001)
        for pid in pids[:1]:
            send(pid, signal.SIGKILL)
        return f"rank {rank}, {len(pids[:1])} worker"
    elif kind == "full disk":
        limit = draw.choice([0, 1000, 100_000, 1_000_000])
        try:
            pid = run.processes[0].pid or 0
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit, limit))
        except (ProcessLookupError, PermissionError):
            return "it was over"
        return f"files of {limit} bytes"
    else:
        path = draw.choice(sorted(shards.rglob("*.tar")))
        return (
            f"{path.parent.name}/{path.name} {damage(path, draw, run.way == 'index')}"
        )
    return f"rank {rank}"


def after(kind: str, out: Path, draw: random.Random) -> str:
    """Damage checkpoints of a run that was killed."""
    if "checkpoint" not in kind:
        return ""
    found = sorted((out / "checkpoints").glob("state_*.pt"))
    chosen = found if kind.startswith("all") else found[-1:]
    return ", ".join(f"{path.name} {damage(path, draw)}" for path in chosen)


def named(
    kind: str, run: Run, ended: list[int | None], broken: str, over: bool
) -> bool | None:
    """Whether a log names a fault; None where nothing was broken by it.

    :param broken: checkpoints that were damaged.
    :param over: whether the run ended before the fault could stop it.
    """
    if kind == "kill all":
        return all(status == -signal.SIGKILL for status in ended) or None
    if not broken if "checkpoint" in kind else over:
        return None
    words = next(words for key, words in WORDS.items() if key in kind)
    return re.search(words, run.said()) is not None


def one(number: int, folder: Path, seed: int, patience: float, ticks: int) -> dict:
    """One fault: what was done, what was said, and whether the result is the same."""
    draw = random.Random(f"{seed} {number}")
    kind, way = KINDS[number % len(KINDS)], WAYS[number // len(KINDS) % len(WAYS)]
    shards, out = folder / "shards of one", folder / f"run {number}"
    for left in (shards, out):
        shutil.rmtree(left, ignore_errors=True)
    Path(f"{out}.log").unlink(missing_ok=True)
    # With its times, which an index compares.
    shutil.copytree(folder / "shards", shards)
    begin, tick = time.monotonic(), draw.randrange(1, ticks)
    run = Run(way, shards, out)
    hit = run.wait_for(tick, draw.randrange(WORLD), begin + patience)
    time.sleep(draw.random() * 0.05)
    details = strike(kind, run, shards, draw) if hit else "it was over"
    ended = run.end(patience)
    over = (out / "weights.pt").exists()
    broken = after(kind, out, draw)
    shutil.rmtree(shards)
    shutil.copytree(folder / "shards", shards)
    again = Run(way, shards, out)
    finished = again.end(patience)
    result = dict.fromkeys(("weights", "E", "csv"), False)
    if finished == [0] * WORLD:
        result = same(folder / way, out)
    found = {
        "number": number,
        "kind": kind,
        "way": way,
        "tick": tick,
        "details": f"{details}; {broken}" if broken else details,
        "ended": ended,
        "finished": finished,
        "hang": None in ended or None in finished,
        "same": all(result.values()),
        "named": named(kind, again, ended, broken, over),
        "seconds": round(time.monotonic() - begin, 1),
    }
    if found["same"] and found["named"] is not False:
        shutil.rmtree(out)
    return found


def undisturbed(way: str, folder: Path, patience: float) -> int:
    """Make the run that others must equal; return the number of its moments."""
    out, count = folder / way, folder / f"{way}.json"
    if not count.exists():
        shutil.rmtree(out, ignore_errors=True)
        run = Run(way, folder / "shards", out)
        if run.end(patience) != [0] * WORLD:
            raise RuntimeError(f"The undisturbed run failed:\n{run.said()}")
        count.write_text(json.dumps(min(ticks.value for ticks in run.ticks)))
    return int(json.loads(count.read_text()))


def study(
    folder: Path, faults: int, seed: int, patience: float, show: Callable[[str], None]
) -> list[dict]:
    """All faults, those of an earlier call included."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "shards").exists():
        write_shards(folder / "shards")
        for step in range(STEPS):
            open_tar_index(folder / "shards" / str(step))
    ticks = min(undisturbed(way, folder, patience) for way in WAYS)
    path = folder / f"faults_{seed}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    known = {row["number"]: row for row in map(json.loads, lines)}
    for number in range(faults):
        if number not in known:
            known[number] = one(number, folder, seed, patience, ticks)
            with open(path, "a") as file:
                file.write(json.dumps(known[number]) + "\n")
            show(json.dumps(known[number]))
    return [known[number] for number in range(faults)]


def summary(rows: list[dict]) -> tuple[str, bool]:
    """A table of what came out, and whether all is well."""
    lines = [
        f"{'fault':22}{'count':>6}{'wrong':>7}{'hangs':>7}{'named':>7}{'unnamed':>9}"
    ]
    for kind in (*KINDS, "all"):
        of = [row for row in rows if kind in (row["kind"], "all")]
        said = Counter(row["named"] for row in of)
        wrong = sum(not row["same"] for row in of)
        hangs = sum(row["hang"] for row in of)
        lines.append(
            f"{kind:22}{len(of):6}{wrong:7}{hangs:7}{said[True]:7}{said[False]:9}"
        )
    lines.append(
        "Faults that are neither named nor unnamed met nothing that they broke."
    )
    seconds = np.median([row["seconds"] for row in rows]) if rows else 0
    lines.append(f"{seconds:.1f} s per fault (median)")
    return "\n".join(lines), not (wrong or hangs or said[False])


def main() -> int:
    """Break, start again, compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("random_faults"))
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--patience", type=float, default=600, help="seconds")
    given = parser.parse_args()
    show = partial(print, flush=True)
    rows = study(given.out.resolve(), given.faults, given.seed, given.patience, show)
    text, well = summary(rows)
    show(text)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
