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
settings, weights, versions or code (``sources.py``) is made again. Several commands may
work on one table side by side: give two for two cores. The table has the methods,
streams and seeds of the command that ends last. ``--search`` chooses the strength of
methods that have one, on drawings kept out of training, with seed 0.
"""

from __future__ import annotations

import argparse
import functools
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
from search import base_facts, chosen, search, search_table, study_of
from sources import same_sources, sources

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

    :param name: what it is called on the screen.
    :param folder: of its file and its run.
    :param facts: all that its figures depend on beside code, as plain data.
    """

    row: Row
    name: str
    folder: Path
    facts: Mapping[str, Any]

    def read(self) -> dict[str, Any] | None:
        """What was found; None if it was not, or with other facts or code."""
        path = self.folder / "cell.json"
        if not path.is_file():
            return None
        kept = read_json(path, dict, checksum=True, rewrite="delete it")
        fresh = kept["facts"] == self.facts and same_sources(kept["sources"])
        return kept["found"] if fresh else None


def make_cell(
    out: Path,
    config: Mapping[str, Any],
    stream: str,
    row: Row,
    seed: int,
    base: str,
    candidate: Mapping[str, Any] | None = None,
) -> Cell:
    """Describe a cell.

    :param config: of all methods.
    :param base: content hash of the weights that training starts from.
    :param candidate: settings to be tried on validation drawings.
    """
    name = f"{stream}, {row.name}, seed {seed}"
    if candidate is not None:
        row = row.changed(candidate)
        name = ", ".join(
            [name, *(f"{key} {value}" for key, value in candidate.items())]
        )
    method = {key: asdict(row)[key] for key in ABOUT_METHOD}
    own = {k: v[stream] if isinstance(v, Mapping) else v for k, v in config.items()}
    facts = {
        "stream": stream,
        "seed": seed,
        "validation": candidate is not None,
        "method": method,
        "config": own,
        "base": base,
        "versions": package_versions(),
    }
    folder = out / stream / slug(row.name) / f"seed_{seed}"
    return Cell(row, name, folder, json.loads(json.dumps(facts)))


@functools.cache
def package_versions() -> dict[str, str]:
    """Versions of what decides results, as runs record them."""
    from avalanche_clip.training.runs.record import versions

    return versions()


def slug(name: str) -> str:
    """A name for folders.

    >>> slug("Mod-X + MoE")
    'mod-x-moe'
    """
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def fill(cells: Iterable[Cell], config: Mapping[str, Any]) -> dict[str, str]:
    """Make the cells that are missing, each in a process of its own.

    :return: cell -> why it could not be made; those that other commands are still
        making in the end are among them.
    """
    cells, failed = list(cells), {}
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
    changed = "the code changed after it was made"
    return {c.name: failed.get(c.name, changed) for c in cells if c.read() is None}


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
    known, since = set(sys.modules), time.time()
    folder, facts = Path(task["folder"]), task["facts"]
    lock = FolderLock(folder)
    try:
        lock.acquire()
    except ValueError:
        return BUSY
    try:
        row = Row(**facts["method"])
        if Cell(row, "", folder, facts).read() is not None:
            return 0  # made meanwhile
        # what a killed process has left is not gone on with: seconds would be wrong
        shutil.rmtree(folder / "run", ignore_errors=True)
        import torch
        from leaderboard_streams import Config, measure

        torch.set_flush_denormal(True)
        config, tried = Config(**task["config"]), facts["validation"]
        found = measure(
            config, facts["stream"], row, facts["seed"], folder, validation=tried
        )
        for name in ("run/checkpoints", "teacher_features"):
            shutil.rmtree(folder / name, ignore_errors=True)
        content = {"facts": facts, "sources": sources(known, since), "found": found}
        write_json(folder / "cell.json", content, checksum=True)
    finally:
        lock.release()
    return 0


# ---------------------------------------------------------------------- search
def choose(
    pairs: Sequence[tuple[str, Row]],
    out: Path,
    config: Mapping[str, Any],
    base: str,
) -> dict[str, str]:
    """Try the candidates of all methods, and keep the best ones.

    :param pairs: streams and methods.
    :return: as :func:`fill`; settings are kept when nothing has failed.
    """
    place = out / "search"
    tried = {
        f"{stream}/{row.name}": {
            json.dumps(c): make_cell(
                place / f"candidate_{n}", config, stream, row, SEARCHED, base, c
            )
            for n, c in enumerate(row.candidates)
        }
        for stream, row in pairs
        if row.candidates
    }
    failed = fill([c for cells in tried.values() for c in cells.values()], config)
    if failed:
        return failed
    for method, cells in tried.items():
        found = {c: cell.read() or {} for c, cell in cells.items()}
        # a method that cannot be used here has no score, whatever its strength
        scores = {
            c: f.get("figures", {"score": 0.0})["score"] for c, f in found.items()
        }
        # scores are facts: those of other code are not taken for these
        facts = {"base": base, "seed": SEARCHED, "config": config, "scores": scores}
        search(
            settings_file(config),
            {method: [json.loads(c) for c in cells]},
            lambda _, candidate, scores=scores: scores[json.dumps(candidate)],
            json.loads(json.dumps(facts)),
        )
    print(search_table(settings_file(config)))
    return {}


def settings_file(config: Mapping[str, Any]) -> str:
    """Name of the file of settings that were chosen with a base."""
    model = config["model"]
    study = STUDY if model == "tiny-emoji-vit" else f"{STUDY}_{model}"
    return study_of(study, config["pretrained"])


def with_settings(row: Row, stream: str, study: str) -> Row:
    """The method with the settings that were chosen for a stream.

    :param study: name of their file.
    :raises ValueError: if none were chosen.
    """
    searched = list(row.like) or [row.name] * bool(row.candidates)
    for name in searched:
        row = row.changed(chosen(study, f"{stream}/{name}"))
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
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Make the missing cells, then write the table.

    :return: exit status: 1 if cells are missing.
    """
    command = parser()
    options = command.parse_args(argv)
    if options.cell:
        return work(json.load(sys.stdin))
    if options.search and (options.quick or options.seeds):
        command.error(
            f"--search is with seed {SEARCHED} and whole lengths; leave out --seeds "
            "and --quick"
        )
    chosen_names = options.methods or (QUICK if options.quick else None)
    rows = [r for r in METHODS if chosen_names is None or r.name in chosen_names]
    pairs = [(s, row) for s in options.streams for row in rows if s in row.streams]
    if options.search and not any(row.candidates for _, row in pairs):
        command.error("--search: these methods have nothing to choose on these streams")
    changes: dict[str, Any] = dict(SMALL) if options.quick else {}
    for name in ("pretrained", "model"):
        if getattr(options, name) is not None:
            changes[name] = getattr(options, name)
    seeds = options.seeds or ([0] if options.quick else [0, 1, 2])
    out = Path(options.out or f"runs/{STUDY}" + "_quick" * options.quick)
    from leaderboard_streams import Config

    config = asdict(replace(Config(), **changes))
    try:
        out.mkdir(parents=True, exist_ok=True)
        base = base_facts(config["model"], config["pretrained"])["base"]
        if not (options.quick or options.search):
            study = settings_file(config)
            pairs = [(s, with_settings(row, s, study)) for s, row in pairs]
    except (ValueError, OSError) as error:
        command.error(str(error))
    if options.search:
        failed = choose(pairs, out, config, base)
        return _end(failed, "settings were not chosen")
    cells = [
        make_cell(out, config, s, row, seed, base) for seed in seeds for s, row in pairs
    ]
    failed = fill(cells, config)
    found = [(cell, kept) for cell in cells if (kept := cell.read()) is not None]
    text = write_table(rows, options.streams, seeds, found, failed, config, base, out)
    print(f"\n{text}\n\nTables, pages and plots: {out}")
    return _end(failed, "the table has gaps")


def _end(failed: Mapping[str, str], what: str) -> int:
    if failed:
        print(f"\nMissing cells: {len(failed)}, so {what}; give the command again.")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
