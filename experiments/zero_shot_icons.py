"""Zero-shot table: what the shipped weights know before any stream.

Commands (from the repository root), seconds each:

    python experiments/zero_shot_icons.py
    python experiments/zero_shot_icons.py --models tiny-emoji --pretrained FILE

Twemoji drawings, a style that no weights were trained on, are named with the names of
a time step's emoji, or of a group's later emoji (after 2010), as classes; so are icons
of names that were held out of the training. ``emoji-2010`` of the same preset and
chance stand beside. Names are given as they are, and in prompt templates. Intervals
are of 95 %: Wilson's for one share, else a bootstrap over drawings.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from command_line import check_start, refusals
from figures import say_what_goes
from torch import Tensor

from avalanche_clip.evaluation.functional.intervals import (
    Interval,
    bootstrap_interval,
    wilson_interval,
)

MODELS = ("tiny-emoji", "tiny-emoji-vit")
BASE = "emoji-2010"
TEMPLATES = {
    "names": ("{}",),
    "templates": (
        "{}",
        "{} icon",
        "a drawing of a {}",
        "a picture of the {}",
        "a photo of a {}.",
    ),
}
GOAL = {"tiny-emoji": 0.12, "tiny-emoji-vit": 0.10}
"""Mean over groups of later emoji that the weights are to reach, by preset."""
KEPT = 0.8
"""Share of what ``emoji-2010`` knows of 2010 that the weights are to have."""
FREE = "Flags"
"""Group that may fall behind."""
Hits = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Task:
    """Drawings with their names, each a class of its own.

    :param kind: ``"step"``, ``"group"``, ``"all"`` or ``"icons"``.
    :param pool: of drawings and names.
    :param rows: of the pool.
    """

    kind: str
    name: str
    pool: str
    rows: npt.NDArray[np.int64]


def tasks() -> list[Task]:
    """Return the emoji per time step and per group, all of them, and icons."""
    from avalanche_clip.benchmarks.datasets import load_emoji_table
    from avalanche_clip.benchmarks.datasets.emoji import EMOJI_STEPS
    from avalanche_clip.benchmarks.datasets.icons import HeldOutIcons

    table = load_emoji_table()
    chosen = [
        *(("step", s.label, table.step == k) for k, s in enumerate(EMOJI_STEPS)),
        *(
            ("group", name, (table.group == k) & (table.step > 0))
            for k, name in enumerate(table.groups)
        ),
        ("all", "all emoji", table.step >= 0),
    ]
    emoji = [Task(kind, name, "emoji", np.flatnonzero(m)) for kind, name, m in chosen]
    every = np.arange(len(HeldOutIcons()))
    return [*emoji, Task("icons", "held-out icons", "icons", every)]


def pools() -> dict[str, tuple[Sequence[Any], Sequence[str]]]:
    """Return drawings and their names, by pool."""
    from avalanche_clip.benchmarks.datasets import EmojiImages, load_emoji_table
    from avalanche_clip.benchmarks.datasets.icons import HeldOutIcons

    sheet, icons = EmojiImages("twemoji"), HeldOutIcons()
    emoji = [sheet[row] for row in range(len(sheet))]
    return {
        "emoji": (emoji, load_emoji_table().names),
        "icons": ([icons[row][0] for row in range(len(icons))], icons.names),
    }


@torch.inference_mode()
def encode_drawings(model: Any, drawings: Sequence[Any]) -> Tensor:
    """Return features of drawings, ``(N, D)``."""
    transform = model.transform(False)
    parts = [torch.stack([transform(d) for d in part]) for part in _parts(drawings)]
    return torch.cat([model.encode_image(part) for part in parts])


@torch.inference_mode()
def encode_names(model: Any, names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Return a vector per name, the mean over templates, ``(N, D)``."""
    from avalanche_clip.benchmarks import ClassPrompts
    from avalanche_clip.evaluation.functional import class_vectors

    prompts = ClassPrompts(names, templates).prompts(which="all")
    texts = [text for row in prompts for text in row]
    words = [model.encode_text(model.tokenizer(part)) for part in _parts(texts)]
    owners = torch.arange(len(prompts)).repeat_interleave(len(templates))
    return class_vectors(torch.cat(words), owners)


def _parts(items: Sequence[Any], size: int = 256) -> list[list[Any]]:
    return [list(items[k : k + size]) for k in range(0, len(items), size)]


def hits(drawings: Tensor, names: Tensor) -> Hits:
    """Return which drawings are named rightly, row by row; a tie is a miss."""
    from avalanche_clip.evaluation.functional.ranks import retrieval_ranks

    found = retrieval_ranks(drawings, names).image_to_text == 0
    return found.numpy()


def measure(
    preset: str, pretrained: str, todo: Sequence[Task]
) -> dict[str, list[Hits]]:
    """Return the hits of a model on each task, by kind of prompts."""
    from avalanche_clip.models import create_dual_encoder

    model = create_dual_encoder(preset, pretrained).eval()
    known = {
        pool: (
            encode_drawings(model, drawings),
            {kind: encode_names(model, names, t) for kind, t in TEMPLATES.items()},
        )
        for pool, (drawings, names) in pools().items()
    }
    found: dict[str, list[Hits]] = {kind: [] for kind in TEMPLATES}
    for task in todo:
        drawings, names = known[task.pool]
        for kind, vectors in names.items():
            found[kind].append(hits(drawings[task.rows], vectors[task.rows]))
    return found


@dataclass(frozen=True)
class Row:
    """One line of the table.

    :param chance: mean share of hits by guessing.
    :param cells: (weights, prompts) -> share of hits and its interval.
    """

    kind: str
    name: str
    classes: int | None
    chance: float
    cells: dict[tuple[str, str], tuple[float, Interval]]


def rows(
    todo: Sequence[Task], found: Mapping[str, Mapping[str, Sequence[Hits]]]
) -> list[Row]:
    """Return a line per task, and one for the mean over groups.

    :param found: weights -> prompts -> hits on each task.
    """
    columns = [(weights, kind) for weights in found for kind in found[weights]]
    lines = []
    for place, task in enumerate(todo):
        size = len(task.rows)
        cells = {}
        for weights, kind in columns:
            right = found[weights][kind][place]
            interval = wilson_interval(int(right.sum()), len(right))
            cells[weights, kind] = float(right.mean()), interval
        lines.append(Row(task.kind, task.name, size, 1 / size, cells))
    groups = [place for place, task in enumerate(todo) if task.kind == "group"]
    means = {}
    for weights, kind in columns:
        parts = [found[weights][kind][place] for place in groups]
        share = float(np.mean([part.mean() for part in parts]))
        means[weights, kind] = share, bootstrap_interval(parts)
    chance = float(np.mean([lines[place].chance for place in groups]))
    after = max(groups) + 1
    return [
        *lines[:after],
        Row("mean", "mean over groups", None, chance, means),
        *lines[after:],
    ]


def verdicts(
    preset: str,
    weights: str,
    todo: Sequence[Task],
    found: Mapping[str, Mapping[str, Sequence[Hits]]],
) -> list[tuple[str, bool]]:
    """Return what the weights are to reach against ``emoji-2010``, and whether they do.

    Names as they are count. A group falls behind where the interval of the paired
    difference lies below zero.
    """
    ours, base = found[weights]["names"], found[BASE]["names"]
    groups = [place for place, task in enumerate(todo) if task.kind == "group"]
    mean = float(np.mean([ours[place].mean() for place in groups]))
    behind = []
    for place in groups:
        change = ours[place].astype(float) - base[place].astype(float)
        if bootstrap_interval([change]).high < 0:
            behind.append(todo[place].name)
    first = next(place for place, task in enumerate(todo) if task.kind == "step")
    share = float(ours[first].mean()) / float(base[first].mean())
    named = [name for name in behind if name != FREE]
    return [
        (
            f"mean over groups {_percent(mean)}, at least {_percent(GOAL[preset])}",
            mean >= GOAL[preset],
        ),
        (
            f"no group but {FREE} below {BASE}: {', '.join(named) or 'none is'}"
            + (f" ({FREE} is)" if FREE in behind else ""),
            not named,
        ),
        (
            f"emoji of {todo[first].name}: {share:.2f} of {BASE}, at least {KEPT}",
            share >= KEPT,
        ),
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _cell(cell: tuple[float, Interval]) -> str:
    share, (low, high) = cell
    return f"{_percent(share)} ({_percent(low)}-{_percent(high)})"


def _grid(lines: Sequence[Row]) -> list[list[str]]:
    """Return header and lines of the table as text."""
    columns = list(lines[0].cells)
    head = ["", "classes", "chance", *(f"{w}, {kind}" for w, kind in columns)]
    body = [
        [
            row.name,
            "" if row.classes is None else str(row.classes),
            f"{100 * row.chance:.2f}",
            *(_cell(row.cells[column]) for column in columns),
        ]
        for row in lines
    ]
    return [head, *body]


def text_of(lines: Sequence[Row], judged: Sequence[tuple[str, bool]]) -> str:
    """Return table and verdicts as plain text."""
    grid = _grid(lines)
    widths = [max(len(row[k]) for row in grid) for k in range(len(grid[0]))]
    shown = [
        "  ".join(c.ljust(w) if not k else c.rjust(w) for k, (c, w) in enumerate(pairs))
        for pairs in (list(zip(row, widths, strict=True)) for row in grid)
    ]
    shown.insert(1, "-" * len(shown[0]))
    return "\n".join([*shown, *(f"{_word(ok)}: {what}" for what, ok in judged)])


def _word(reached: bool) -> str:
    return "reached" if reached else "not reached"


def rst_of(
    preset: str, lines: Sequence[Row], judged: Sequence[tuple[str, bool]]
) -> str:
    """Return table and verdicts for the documentation."""
    out = [f"``{preset}``:", "", ".. list-table::", "   :header-rows: 1", ""]
    for row in _grid(lines):
        for number, cell in enumerate(row):
            out.append(f"   {'* ' if number == 0 else '  '}- {cell}".rstrip())
    out += ["", *(f"- {_word(ok)}: {what}" for what, ok in judged)]
    return "\n".join(out).rstrip() + "\n"


def plot(lines: Sequence[Row], preset: str, path: Path) -> None:
    """Draw the shares per group, and of icons, with intervals and chance."""
    from avalanche_clip.evaluation.report.drawing import (
        INK,
        finish,
        look,
        name_ticks,
        new_axes,
    )
    from avalanche_clip.evaluation.report.plots import save_figure

    shown = [row for row in lines if row.kind in ("group", "mean", "icons")]
    columns = list(shown[0].cells)
    figure, ax = new_axes(11, 4.6)
    width = 0.8 / len(columns)
    for number, column in enumerate(columns):
        x = np.arange(len(shown)) + (number - (len(columns) - 1) / 2) * width
        cells = [row.cells[column] for row in shown]
        share = 100 * np.array([value for value, _ in cells])
        ends = 100 * np.array([interval for _, interval in cells]).T
        ax.bar(
            x,
            share,
            width * 0.92,
            color=look(number)[0],
            label=", ".join(column),
            yerr=np.abs(ends - share),
            error_kw={"ecolor": INK, "elinewidth": 1, "capsize": 2},
        )
    chance = [100 * row.chance for row in shown]
    half = np.arange(len(shown))
    ax.hlines(chance, half - 0.45, half + 0.45, color=INK, lw=1.5, label="chance")
    name_ticks(ax, [row.name for row in shown])
    title = f"Zero-shot on an unseen style, {preset}"
    finish(figure, ax, title, "", "named rightly (%)")
    save_figure(figure, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each preset, and write table, plot and the part for the docs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--pretrained", default="icons", help="a tag, or a file")
    parser.add_argument("--out", type=Path, help="default runs/zero_shot_WEIGHTS")
    options = parser.parse_args(argv)
    presets = list(dict.fromkeys(options.models.split(",")))
    if unknown := [preset for preset in presets if preset not in MODELS]:
        parser.error(f"unknown model {', '.join(unknown)}; use {', '.join(MODELS)}")
    with refusals(parser):
        for preset in presets:
            check_start(preset, options.pretrained)
        _main(options, presets)


def _main(options: argparse.Namespace, presets: Sequence[str]) -> None:
    from avalanche_clip.common.files import write_json, write_text

    torch.set_flush_denormal(True)
    todo, pages, stored = tasks(), [], {}
    name = Path(options.pretrained).name
    out = options.out or Path(f"runs/zero_shot_{Path(name).stem}")
    for preset in presets:
        found = {BASE: measure(preset, BASE, todo)}
        judged: list[tuple[str, bool]] = []
        if options.pretrained != BASE:
            found[name] = measure(preset, options.pretrained, todo)
            judged = verdicts(preset, name, todo, found)
        lines = rows(todo, found)
        print(f"\n{preset}\n{text_of(lines, judged)}")
        write_text(out / f"{preset}.txt", text_of(lines, judged) + "\n")
        plot(lines, preset, out / f"{preset}.png")
        pages.append(rst_of(preset, lines, judged))
        stored[preset] = {
            "rows": [
                {
                    "kind": row.kind,
                    "name": row.name,
                    "classes": row.classes,
                    "chance": row.chance,
                    "cells": [[*key, *value] for key, value in row.cells.items()],
                }
                for row in lines
            ],
            "verdicts": judged,
        }
    say_what_goes(out / "zero_shot.json", stored)
    write_json(out / "zero_shot.json", stored, checksum=True)
    write_text(out / "zero_shot_figures.inc", "\n".join(pages))
    print(f"\nTables and plots, and a part for the documentation: {out}")


if __name__ == "__main__":
    main()
