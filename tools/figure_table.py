"""Figures of a study as the table of a page.

    python tools/figure_table.py docs/results/figures/online_emoji --figures A_AUC

prints mean and standard deviation over seeds. A study leaves ``figures.json`` in its
folder; files named ``figures*.json`` in one folder are parts of one study, with other
methods or seeds.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avalanche_clip.common.files import read_json

BASE = "base"
"""Row of the model before the stream, which is of no seed."""
VALIDATION = "made with --validation"

Methods = dict[str, dict[str, dict[int, Any]]]
"""Method -> figure -> seed -> value."""


def read_figures(paths: Iterable[Path]) -> tuple[Methods, set[Any]]:
    """Join the figures of commands of one study.

    :return: figures, and what the runs started from (``VALIDATION`` for figures on
        validation data).
    :raises ValueError: naming the file, if values are not one per seed, or a method and
        seed has another value in a file before.
    """
    methods: Methods = {}
    starts: set[Any] = set()
    for path in paths:
        content = read_json(path, checksum=True, rewrite="run the study again")
        facts, table = content["facts"], dict(content["methods"])
        starts.add(VALIDATION if facts.get("validation") else facts.get("pretrained"))
        table.pop(BASE, None)
        for method, name, values in _columns(table):
            if len(values) != len(facts["seeds"]):
                raise ValueError(
                    f"In {path} {method!r} has {len(values)} values of {name!r} "
                    f"for {len(facts['seeds'])} seeds; run the study again."
                )
            own = methods.setdefault(method, {}).setdefault(name, {})
            for seed, value in zip(facts["seeds"], values, strict=True):
                if own.setdefault(seed, value) != value:
                    raise ValueError(
                        f"{path} has {value} for {name!r} of {method!r} with seed "
                        f"{seed}, a file before {own[seed]}: these are of two studies."
                    )
    return methods, starts


def _columns(table: Mapping[str, Any]) -> Iterator[tuple[str, str, list[Any]]]:
    """Method, name and values per seed of each figure."""
    for method, figures in table.items():
        for name, values in figures.items():
            yield method, name, values


def cell(values: Iterable[float | None], digits: int = 1) -> str:
    """Mean and sample standard deviation of some numbers.

    >>> cell([1.0, 2.0, 3.0]), cell([2.0]), cell([None, 1.0])
    ('2.0 ± 1.0', '2.0', '–')
    """
    known = list(values)
    if not known or None in known:
        return "–"
    mean = f"{statistics.fmean(known):.{digits}f}"  # type: ignore[type-var]
    if len(known) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(known):.{digits}f}"  # type: ignore[type-var]


def table(methods: Methods, names: Sequence[str]) -> str:
    """A table in reStructuredText, a line per method.

    :raises ValueError: for a figure that no method has.
    """
    known = dict.fromkeys(name for figures in methods.values() for name in figures)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no figure {unknown[0]!r}; there are {', '.join(known)}.")
    shown = list(names) or list(known)
    rows = [["", *shown]]
    for method, figures in methods.items():
        rows.append([method, *(cell(figures.get(n, {}).values()) for n in shown)])
    first, *others = [", ".join(f'"{text}"' for text in row) for row in rows]
    lines = [".. csv-table::", f"   :header: {first}", "", *(f"   {o}" for o in others)]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--figures", default="", help="comma-separated; default all")
    options = parser.parse_args(argv)
    paths = sorted(options.folder.glob("figures*.json"))
    if not paths:
        parser.error(f"{options.folder} holds no figures.json")
    try:
        methods, _ = read_figures(paths)
        print(table(methods, [n for n in options.figures.split(",") if n]))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
