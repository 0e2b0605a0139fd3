"""Every method on three streams, at equal budgets, in one table.

Commands (from the repository root):

    python experiments/leaderboard.py --quick
    python experiments/leaderboard.py --search
    python experiments/leaderboard.py --seeds 0,1,2
    python experiments/leaderboard.py --methods Sequential,ModX --streams time

A tiny CLIP that knows a small web of icons, and the emoji of 2010, learns later emoji
as they were released (``time``, by their captions), later emoji group by group
(``domain``, names as classes) or the emoji of 2010 in one language after the other
(``language``, stored image features). Each method makes the same number of updates
with batches of the same size per step. Rows are in ``leaderboard_rows.py``; a method
of your own is one line there.

Each cell (a method on a stream with a seed) is a process of its own on one core, so
that its peak of memory is its own, and is stored by itself with all that it depends
on: a killed command, given again, goes on with the next cell, and a cell of other
settings, weights or another version is made again. Several commands may work on one
table side by side. ``--search`` chooses the strength of methods that have one, on
drawings kept out of training, with seed 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from command_line import seed_list
from leaderboard_rows import METHODS, QUICK, STREAMS, Row
from leaderboard_table import write_table
from search import base_facts, chosen, search, search_table

import avalanche_clip
from avalanche_clip.common.files import read_json, write_json
from avalanche_clip.common.lock import FolderLock

STUDY = "leaderboard"
SEARCHED = 0
"""Seed of the search."""
BUSY = 75
"""What a process ends with whose cell another one is making."""
SMALL = {
    "iterations": {"time": 6, "domain": 4, "language": 6},
    "selector_iterations": 50,
}
"""What ``--quick`` changes."""
ABOUT_METHOD = ("name", "plugins", "settings", "strategy", "trained", "joint")


# ----------------------------------------------------------------------- cells
@dataclass(frozen=True)
class Cell:
    """One method on one stream with one seed.

    :param folder: of its file and its run.
    :param facts: all that its figures depend on, as plain data.
    """

    row: Row
    folder: Path
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What it is called on the screen."""
        return f"{self.facts['stream']}, {self.row.name}, seed {self.facts['seed']}"

    def read(self) -> dict[str, Any] | None:
        """What was found; None if it was not, or with other facts."""
        path = self.folder / "cell.json"
        if not path.is_file():
            return None
        kept = read_json(path, dict, checksum=True, rewrite="delete it")
        return kept["found"] if kept["facts"] == self.facts else None


def make_cell(
    out: Path,
    config: Mapping[str, Any],
    stream: str,
    row: Row,
    seed: int,
    base: str,
    *,
    validation: bool = False,
) -> Cell:
    """Describe a cell.

    :param config: of all methods.
    :param base: content hash of the weights that training starts from.
    """
    method = {name: asdict(row)[name] for name in ABOUT_METHOD}
    own = {k: v[stream] if isinstance(v, Mapping) else v for k, v in config.items()}
    facts = {
        "stream": stream,
        "seed": seed,
        "validation": validation,
        "method": method,
        "config": own,
        "base": base,
        "package": avalanche_clip.__version__,
    }
    folder = out / stream / slug(row.name) / f"seed_{seed}"
    return Cell(row, folder, json.loads(json.dumps(facts)))


def slug(name: str) -> str:
    """A name for folders.

    >>> slug("Mod-X + MoE")
    'mod-x-moe'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def fill(cells: Iterable[Cell], config: Mapping[str, Any]) -> dict[str, str]:
    """Make the cells that are missing, each in a process of its own.

    :return: cell -> why it could not be made; those that other commands are making
        are among them.
    """
    failed = {}
    for cell in cells:
        if cell.read() is not None:
            continue
        begin = time.monotonic()
        code, log = _start(cell, config)
        found = cell.read()
        if code == BUSY:
            failed[cell.name] = "another process is making it"
        elif code or found is None:
            lines = log.read_text(errors="replace").strip().splitlines() or ["nothing"]
            failed[cell.name] = f"it failed, see {log}: {lines[-1]}"
        else:
            said = found.get("reason") or f"score {found['figures']['score']:.1f}"
            print(f"{cell.name}: {said} ({time.monotonic() - begin:.0f} s)", flush=True)
            continue
        print(f"{cell.name}: {failed[cell.name]}", flush=True)
    return failed


def _start(cell: Cell, config: Mapping[str, Any]) -> tuple[int, Path]:
    """Make a cell in a fresh process; return its exit status and what it said."""
    log = cell.folder / "log.txt"
    cell.folder.mkdir(parents=True, exist_ok=True)
    task = {"folder": str(cell.folder), "facts": cell.facts, "config": config}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), "--cell"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    said = process.communicate(json.dumps(task))[1]
    if process.returncode != BUSY:
        log.write_text(said)
    return process.returncode, log


def work(task: Mapping[str, Any]) -> int:
    """Make one cell in this process.

    :param task: ``folder``, ``facts`` and ``config``.
    :return: exit status.
    """
    folder, facts = Path(task["folder"]), task["facts"]
    lock = FolderLock(folder)
    try:
        lock.acquire()
    except ValueError:
        return BUSY
    with contextlib.ExitStack() as stack:
        stack.callback(lock.release)
        row = Row(**facts["method"])
        if Cell(row, folder, facts).read() is not None:
            return 0  # made meanwhile
        # what a killed process has left is not gone on with: seconds would be wrong
        shutil.rmtree(folder / "run", ignore_errors=True)
        import torch
        from leaderboard_streams import Config, measure

        torch.set_flush_denormal(True)
        found = measure(
            Config(**task["config"]),
            facts["stream"],
            row,
            facts["seed"],
            folder,
            validation=facts["validation"],
        )
        for name in ("run/checkpoints", "teacher_features"):
            shutil.rmtree(folder / name, ignore_errors=True)
        content = {"facts": facts, "found": found}
        write_json(folder / "cell.json", content, checksum=True)
    return 0


# ---------------------------------------------------------------------- search
def choose(
    rows: Sequence[Row],
    streams: Sequence[str],
    out: Path,
    config: Mapping[str, Any],
    base: str,
) -> dict[str, str]:
    """Try the candidates of all methods, and keep the best ones.

    :return: as :func:`fill`; settings are kept when nothing has failed.
    """
    tried: dict[tuple[str, str], Cell] = {}
    grid: dict[str, Sequence[Mapping[str, Any]]] = {}
    for stream in streams:
        for row in rows:
            if stream not in row.streams or not row.candidates:
                continue
            method = f"{stream}/{row.name}"
            grid[method] = row.candidates
            for number, candidate in enumerate(row.candidates):
                place = out / "search" / f"candidate_{number}"
                tried[method, json.dumps(candidate)] = make_cell(
                    place,
                    config,
                    stream,
                    row.changed(candidate),
                    SEARCHED,
                    base,
                    validation=True,
                )
    failed = fill(tried.values(), config)
    if failed:
        return failed

    def score(method: str, candidate: Mapping[str, Any]) -> float:
        found = tried[method, json.dumps(candidate)].read() or {}
        # a method that cannot be used here has no score, whatever its strength
        return found["figures"]["score"] if "figures" in found else 0.0

    facts = {"base": base, "seed": SEARCHED, "config": dict(config)}
    search(STUDY, grid, score, json.loads(json.dumps(facts)))
    print(search_table(STUDY))
    return {}


def with_settings(row: Row, stream: str, quick: bool) -> Row:
    """The method with the settings that were chosen for a stream.

    :param quick: with those in the table of rows instead.
    :raises ValueError: if none were chosen.
    """
    searched = list(row.like) or [row.name] * bool(row.candidates)
    for name in [] if quick else searched:
        row = row.changed(chosen(STUDY, f"{stream}/{name}"))
    return row


# ---------------------------------------------------------------- command line
def names(text: str, known: Sequence[str]) -> list[str]:
    """Read comma-separated names out of those known, each once."""
    found = list(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in found if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)} unknown; use {', '.join(known)}"
        )
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = [row.name for row in METHODS]
    made.add_argument("--methods", type=lambda text: names(text, known))
    made.add_argument(
        "--streams", type=lambda text: names(text, STREAMS), default=list(STREAMS)
    )
    made.add_argument("--seeds", type=seed_list, help="default 0,1,2; with --quick 0")
    made.add_argument("--out", help="folder of the table")
    made.add_argument("--pretrained", help="a tag or a file of weights")
    made.add_argument("--model", help="a preset with residual blocks")
    made.add_argument("--quick", action="store_true", help="few methods and updates")
    made.add_argument("--search", action="store_true", help="choose settings")
    made.add_argument("--cell", action="store_true", help=argparse.SUPPRESS)
    made.add_argument("--config", action="store_true", help=argparse.SUPPRESS)
    return made


def _common(changes: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Config of all methods, and the hash of the base, asked of a fresh process.

    So this one, whose memory its children would be said to have, stays small.
    """
    said = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--config"],
        input=json.dumps(changes),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if said.returncode:
        raise SystemExit(said.returncode)
    found = json.loads(said.stdout.splitlines()[-1])
    return found["config"], found["base"]


def _answer() -> None:
    from leaderboard_streams import Config

    config = asdict(replace(Config(), **json.load(sys.stdin)))
    base = base_facts(config["model"], config["pretrained"])["base"]
    print(json.dumps({"config": config, "base": base}))


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing cells, then write the table.

    :return: exit status: 1 if cells are missing.
    """
    options = parser().parse_args(argv)
    if options.cell:
        return work(json.load(sys.stdin))
    if options.config:
        _answer()
        return 0
    chosen_names = options.methods or (QUICK if options.quick else None)
    rows = [r for r in METHODS if chosen_names is None or r.name in chosen_names]
    changes: dict[str, Any] = dict(SMALL) if options.quick else {}
    for name in ("pretrained", "model"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    config, base = _common(changes)
    kind = "_quick" if options.quick else ""
    out = Path(options.out or f"runs/{STUDY}{kind}")
    if options.search:
        failed = choose(rows, options.streams, out, config, base)
        return _end(failed, "settings were not chosen")
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    cells = [
        make_cell(
            out, config, stream, with_settings(row, stream, options.quick), seed, base
        )
        for seed in seeds
        for stream in options.streams
        for row in rows
        if stream in row.streams
    ]
    failed = fill(cells, config)
    found = [(cell, kept) for cell in cells if (kept := cell.read()) is not None]
    print("\n" + write_table(rows, options.streams, found, failed, config, base, out))
    return _end(failed, "the table has gaps")


def _end(failed: Mapping[str, str], what: str) -> int:
    if failed:
        print(f"\n{len(failed)} cells are missing, so {what}; give the command again.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
