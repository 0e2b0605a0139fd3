"""Write the table of published claims and what became of them here.

    python tools/claims.py > docs/results/claims.rst

reads the figures of the studies in ``docs/results/figures`` (``--runs`` for another
folder, such as that of new runs). Every verdict follows from a rule, stated on the
page; what was not measured over three seeds, or from other weights than those named,
has no figure.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claim_rows import CLAIMS, PAPERS, STUDIES, Check, Claim, Study
from figure_table import VALIDATION, read_figures

FIGURES = "docs/results/figures"
SEEDS = 3
"""The least number of seeds."""
QUANTILES = (4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 percent points of Student's t, from two degrees of freedom on."""
NOT_MEASURED = "not measured"
HEAD = f"""\
Claims
======

What papers say of their methods, and what these studies found. The page is printed by
``tools/claims.py`` from the figures that the commands leave in their folders.

A check compares a figure of two methods, or a figure with zero, seed by seed. It comes
out if the 95 % interval of the mean difference (Student's t over seeds, at least
{SEEDS}) lies wholly on the side that the statement says, with the margin where one is
named; it fails if the interval lies wholly on the other side; else it is open: no
difference beyond the spread of seeds. A claim **holds** if all of its checks come out,
**holds partly** if some do, and **does not hold here** if none does. Figures are
percent unless said otherwise, mean ± standard deviation over seeds. What the papers
report belongs to models a hundred times as large, and to other data; "recalled" figures
were not checked against the paper's text.
"""


@dataclass(frozen=True)
class Found:
    """What became of a check; without figures, ``why`` says so.

    :param outcome: ``"yes"``, ``"no"``, ``"open"``, or empty if not measured.
    """

    outcome: str = ""
    left: tuple[float, ...] = ()
    right: tuple[float, ...] = ()
    interval: tuple[float, float] = (math.nan, math.nan)
    why: str = ""


class Figures:
    """Figures of the studies below a folder, read when they are asked for."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._read: dict[str, Any] = {}

    def of(self, study: Study) -> tuple[dict[str, Any], str]:
        """Method -> figure -> seed -> value, and why there is none."""
        if study.folder not in self._read:
            self._read[study.folder] = self._load(study)
        found: tuple[dict[str, Any], str] = self._read[study.folder]
        return found

    def _load(self, study: Study) -> tuple[dict[str, Any], str]:
        folder = self.folder / study.folder
        paths = sorted(folder.glob("figures*.json"))
        methods, starts = read_figures(paths) if paths else runs_of(folder)
        if VALIDATION in starts:
            return {}, VALIDATION
        if not methods:
            return {}, ""
        if starts != {study.pretrained}:
            names = sorted(Path(s).name if s else "random" for s in starts)
            return {}, f"from other weights: {', '.join(names)}"
        return methods, ""


def runs_of(folder: Path) -> tuple[dict[str, Any], set[Any]]:
    """Figures of the single runs of a study over time, and what they started from.

    :param folder: with ``<method>/seed_<number>/results.json``.
    """
    from avalanche_clip.evaluation.report.results import load_results

    methods: dict[str, Any] = {}
    starts = set()
    for path in sorted(folder.glob("*/seed_*/results.json")):
        results = load_results(path)
        levels = results["summary"].get("test", {}).get("mean_R@1", {})
        macs = results["macs"]
        figures = {k: 100 * v for k, v in levels.items() if v is not None}
        figures["cost"] = macs["total_macs"] / macs["macs"][0]["train"]
        starts.add(results["config"].get("pretrained"))
        own = methods.setdefault(path.parts[-3], {})
        for name, value in figures.items():
            own.setdefault(name, {})[int(results["seed"])] = value
    return methods, starts


# ------------------------------------------------------------------------- rule
def interval(differences: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of some numbers.

    :param differences: at least three.

    >>> [round(end, 3) for end in interval([1.0, 2.0, 3.0])]
    [-0.484, 4.484]
    """
    n = len(differences)
    mean = sum(differences) / n
    variance = sum((d - mean) ** 2 for d in differences) / (n - 1)
    half = QUANTILES[min(n - 3, len(QUANTILES) - 1)] * math.sqrt(variance / n)
    return mean - half, mean + half


def outcome(ends: tuple[float, float], wanted: str, margin: float) -> str:
    """Where an interval lies: ``"yes"``, ``"no"`` or ``"open"``.

    >>> outcome((-0.5, 2.0), "above", 1.0), outcome((0.5, 2.0), "below", 0.0)
    ('yes', 'no')
    """
    low, high = ends if wanted == "above" else (-ends[1], -ends[0])
    if low > -margin:
        return "yes"
    return "no" if high < -margin else "open"


def look(check: Check, figures: Figures) -> Found:
    """Compare the figures of a check."""
    methods, why = figures.of(STUDIES[check.study])
    columns = []
    for method in filter(None, (check.method, check.other)):
        values = methods.get(method, {}).get(check.figure, {})
        columns.append({s: v for s, v in values.items() if v is not None})
    seeds = sorted(set.intersection(*map(set, columns)))
    if len(seeds) < SEEDS:
        few = f"{len(seeds)} of {SEEDS} seeds" if seeds else ""
        return Found(why=why or few)
    left, right = (
        tuple(float(column[s]) for s in seeds)
        for column in (
            columns[0],
            columns[1] if check.other else dict.fromkeys(seeds, 0),
        )
    )
    ends = interval([a - b for a, b in zip(left, right, strict=True)])
    return Found(outcome(ends, check.wanted, check.margin), left, right, ends)


def verdict(found: Sequence[Found]) -> str:
    """What follows for a claim from its checks, in words."""
    outcomes = [one.outcome for one in found]
    if not all(outcomes):
        return NOT_MEASURED
    if all(one == "yes" for one in outcomes):
        return "**holds**"
    start = "**holds partly**" if "yes" in outcomes else "**does not hold here**"
    reasons = {"no": "the other way round", "open": "not beyond the spread of seeds"}
    parts = [
        f"{', '.join(str(k + 1) for k, o in enumerate(outcomes) if o == kind)} {words}"
        for kind, words in reasons.items()
        if kind in outcomes
    ]
    return (
        f"{start}: {'; '.join(parts)}" if len(outcomes) > 1 else _single(start, parts)
    )


def _single(start: str, parts: Sequence[str]) -> str:
    return f"{start}: {parts[0].partition(' ')[2]}"


# ------------------------------------------------------------------------- page
def said(check: Check, found: Found) -> str:
    """A check and its figures in words."""
    wanted = f"{check.figure}: {check.method}"
    if not found.outcome:
        against = f" against {check.other}" if check.other else ""
        end = f" ({found.why})" if found.why else ""
        return f"{wanted}{against}: {NOT_MEASURED}{end}"
    low, high = found.interval
    words = f"{wanted} {_spread(found.left)}"
    middle = f", {check.other} {_spread(found.right)}" if check.other else ""
    mean = (low + high) / 2
    return f"{words}{middle}: {_signed(mean)} [{_signed(low)}, {_signed(high)}]"


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return f"{mean:.1f} ± {math.sqrt(variance):.1f}"


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def row(claim: Claim, figures: Figures) -> list[str]:
    """The cells of a claim, each some lines."""
    found = [look(check, figures) for check in claim.checks]
    several = len(found) > 1
    lines = [
        f"{f'{number}. ' if several else ''}{said(check, one)}"
        for number, (check, one) in enumerate(zip(claim.checks, found, strict=True), 1)
    ]
    said_of_all = verdict(found)
    short = any(one.outcome in ("no", "open") for one in found)
    return [
        f"{claim.statement} ({claim.paper}: {claim.source})",
        claim.measure,
        "\n\n".join(lines),
        "\n\n".join(dict.fromkeys(f":ref:`{key(c.study)}`" for c in claim.checks)),
        f"{said_of_all}. {claim.why}" if claim.why and short else said_of_all,
    ]


def key(study: str) -> str:
    """Label of the command of a study."""
    return f"{study} <claims-{study.lower().replace(' ', '-')}>"


def page(figures: Figures, claims: Sequence[Claim] = CLAIMS) -> Iterator[str]:
    """Yield the lines of the page."""
    yield HEAD
    yield ".. list-table::\n   :header-rows: 1\n   :widths: 27 20 30 8 15\n"
    cells = [["statement and source", "our measure", "figures", "command", "verdict"]]
    for row_cells in [*cells, *(row(claim, figures) for claim in claims)]:
        for number, cell in enumerate(row_cells):
            start = "   * - " if number == 0 else "     - "
            yield start + cell.replace("\n\n", "\n\n       ")
    yield "\nSources\n-------\n"
    yield from (f"- {name}: {source}" for name, source in PAPERS.items())
    yield "\nCommands\n--------\n"
    for name, study in STUDIES.items():
        yield f".. _{key(name).partition('<')[2][:-1]}:\n"
        yield f"{name.capitalize()}, into ``runs/{study.folder}``:\n"
        yield f".. code-block:: console\n\n   {study.command}\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default=FIGURES, help="folder of all studies")
    options = parser.parse_args(argv)
    print("\n".join(page(Figures(options.runs))).rstrip())


if __name__ == "__main__":
    main()
