"""What runs found, in sentences, and which differences between them count."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from avalanche_clip.evaluation.report import html
from avalanche_clip.evaluation.report.plots import Spread
from avalanche_clip.evaluation.report.results import Matrix

LOWER_IS_BETTER = (
    "forgetting",
    "F_Last",
    "recall_forgetting",
    "first_task_forgetting",
)
"""Values whose small numbers are the good ones."""
_FORGETTING = {
    "F_Last": "classes fell by {} points from their best end of an earlier task",
    "recall_forgetting": "languages fell by {} points from their best earlier result",
    "forgetting": "earlier test sets fell by {} points from their best earlier result",
}


def clearly_best(cells: Sequence[Spread], *, lower: bool = False) -> int | None:
    """Index of the value that is better than all others by more than the spread.

    Two values differ if their means lie further apart than twice the deviation of
    their difference; nothing is known of a single seed.

    :param cells: mean and deviation of each method, NaN where it has none.
    :param lower: whether small values are the good ones.
    :return: None if no value is, or there is one only.

    >>> clearly_best([Spread(0.5, 0.1), Spread(0.9, 0.1), Spread(0.6, 0.1)])
    1
    >>> clearly_best([Spread(0.5, 0.1), Spread(0.6, 0.1)]) is None
    True
    """
    known = [k for k, cell in enumerate(cells) if math.isfinite(cell.mean)]
    if len(known) < 2:
        return None
    top = (min if lower else max)(known, key=lambda k: cells[k].mean)
    apart = all(differ(cells[top], cells[k]) for k in known if k != top)
    return top if apart else None


def differ(a: Spread, b: Spread) -> bool:
    """Whether means lie apart by twice the deviation of their difference."""
    return abs(a.mean - b.mean) > 2 * math.hypot(a.deviation, b.deviation)


def describe_run(name: str, matrix: Matrix) -> str:
    """Say what was gained and forgotten on a stream, in a sentence or two.

    :param name: the metric.
    :param matrix: its results.
    :return: plain text.
    """
    shown = matrix.online is None or "A_Last" in matrix.summary()
    summary, columns = matrix.summary(), matrix.E.shape[1]
    end = summary.get("A_Last") if shown else None
    end = float(np.nanmean(matrix.E[-1])) if end is None else end
    what = f"{name} over {columns} test sets" if columns > 1 else name
    if matrix.online is not None:
        what = f"{name} among the classes that have occurred"
    known = np.zeros(columns, dtype=bool)
    if matrix.before is not None:
        known = np.isfinite(matrix.before) & np.isfinite(matrix.E[-1])
    start = math.nan
    if matrix.before is not None and known.any():
        start, end = (float(row[known].mean()) for row in (matrix.before, matrix.E[-1]))
        if not known.all():  # others came later
            what = f"{name} over the {known.sum()} of {columns} test sets known before"
    percent, unit = html.is_fraction(name), html.unit(name)
    last = f"{html.score(end, name)}{unit}"
    gain = end - start
    if known.any():
        first = f"{html.score(start, name)}{unit}"
        points = " points" if percent else ""
        said = f"{what} {'rose' if gain > 0 else 'fell'} from {first} before the stream"
        said += f" to {last} after it ({html.signed(gain, name)}{points})"
        if first == last:
            said = f"{what} is {last}, as before the stream"
    else:
        said = f"{what} is {last} after the stream"
    if matrix.joint:
        said += ", in one training on all steps"
    if math.isfinite(chance := matrix.mean_chance()):
        said += f"; guessing would give {html.score(chance, name)}{unit}"
    if not math.isfinite(summary.get("forgetting", 0.0)) and len(lost := matrix.lost()):
        summary["forgetting"] = float(lost.mean())
    return f"{_capital(said)}.{_forgotten(summary, name) if percent else ''}"


def _forgotten(summary: Mapping[str, float], name: str) -> str:
    for key, text in _FORGETTING.items():
        value = summary.get(key, math.nan)
        if not math.isfinite(value):
            continue
        if round(100 * value, 1) <= 0:
            return " Nothing was forgotten on earlier steps."
        return f" {_capital(text.format(html.score(value, name)))} (forgetting)."
    return ""


def describe_methods(
    name: str,
    ends: Mapping[str, Spread],
    lost: Mapping[str, Spread],
    starts: Sequence[float],
    references: Sequence[str] = (),
) -> str:
    """Say which method ends highest and which forgets least, if that is clear.

    :param name: the metric.
    :param ends: method -> mean over test sets at the end.
    :param lost: method -> forgetting.
    :param starts: means before the stream.
    :param references: methods that others are measured by, which do not compete.
    :return: plain text.
    """
    own = {m: cell for m, cell in ends.items() if m not in references} or dict(ends)
    said = [_rank(name, own, False, "is highest at the end")]
    for method in references:
        said.append(f"{method}, the reference, reaches {_cell(ends[method], name)}.")
    known = [start for start in starts if math.isfinite(start)]
    if known:
        ends_of = sorted({html.score(s, name) for s in (min(known), max(known))})
        said.append(f"Before the stream {name} was {' to '.join(ends_of)}")
        said[-1] += f"{html.unit(name)}."
    own = {m: c for m, c in lost.items() if m not in references}
    if sum(math.isfinite(cell.mean) for cell in own.values()) > 1:
        said.append(_rank(name, own, True, "forgets least"))
    return " ".join(filter(None, said))


def _rank(name: str, cells: Mapping[str, Spread], lower: bool, verb: str) -> str:
    found = {m: c for m, c in cells.items() if math.isfinite(c.mean)}
    if not found:
        return ""
    sign = -1 if lower else 1
    top, *rest = sorted(found, key=lambda m: -sign * found[m].mean)
    text = f"{top} {verb} ({_cell(found[top], name)})"
    if not rest:
        return f"{name} of {top} is {_cell(found[top], name)} at the end."
    if all(math.isnan(cell.deviation) for cell in found.values()):
        return f"{text}, by one seed each: the spread is not known."
    near = [m for m in rest if not differ(found[top], found[m])]
    if not near:
        return f"{text}, by more than the spread."
    shown = ", ".join(f"{m} ({_cell(found[m], name)})" for m in near[:3])
    more = f" and {len(near) - 3} more" if len(near) > 3 else ""
    return f"{text}, within the spread of {shown}{more}."


def _cell(cell: Spread, name: str) -> str:
    return f"{html.spread(*cell, name)}{html.unit(name)}"


def _capital(text: str) -> str:
    return text if "_" in text.partition(" ")[0] else text[:1].upper() + text[1:]
