"""Small building blocks of the HTML reports."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

_CSS = """
:root { --ink: #1d2329; --soft: #66707a; --line: #e2e6ea; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: #f5f6f8; line-height: 1.5;
  font-family: -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { margin: 0; font-size: 1.9rem; }
h2 { margin: 0 0 1rem; font-size: 1.2rem; }
h3 { margin: 1.6rem 0 .6rem; font-size: 1rem; }
p.lead, p.note { color: var(--soft); margin: .3rem 0 1.5rem; }
p.note { font-size: .88rem; margin: .6rem 0 0; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px;
  padding: 1.4rem 1.6rem; margin: 1.2rem 0; overflow-x: auto; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.card { flex: 1 1 9.5rem; background: #fff; border: 1px solid var(--line);
  border-radius: 10px; padding: .8rem 1rem; }
.card b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--soft); font-size: .82rem; }
img { display: block; max-width: min(100%, 56rem); height: auto;
  margin: .6rem 0 1.2rem; }
table { border-collapse: collapse; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: bottom; }
td, tbody th { white-space: nowrap; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; }
td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tbody th { color: var(--ink); font-weight: 500; text-align: left; }
tr.apart td, tr.apart th { border-bottom: 2px solid #b9c0c7; }
td.own { font-weight: 700; }
td.best { font-weight: 700; color: var(--accent); }
details { margin: .4rem 0; }
summary { cursor: pointer; color: var(--accent); }
"""

_NOT_FRACTIONS = ("rank", "rsum", "loss", "seconds", "macs")


def is_fraction(metric: str) -> bool:
    """Whether values of this name lie in [0, 1] and are shown in percent."""
    return not any(word in metric.lower() for word in _NOT_FRACTIONS)


def is_score(metric: str) -> bool:
    """Whether larger values are better, so that forgetting has a meaning."""
    return is_fraction(metric) and "tie_share" not in metric


def number(value: float | None, *, percent: bool) -> str:
    """Format a value with one decimal, fractions in percent; missing as a dash."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value * 100 if percent else value:.1f}"
    return "0.0" if text == "-0.0" else text


def spread(mean: float, deviation: float, *, percent: bool) -> str:
    """Format mean and deviation; a missing deviation is left out."""
    text = number(mean, percent=percent)
    if text == "–" or not math.isfinite(deviation):
        return text
    return f"{text} ± {number(deviation, percent=percent)}"


def quantity(value: float | None, unit: str = "") -> str:
    """Format a large count with a prefix, for example ``1.25 T``."""
    if value is None or not math.isfinite(value):
        return "–"
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M")):
        if abs(value) >= 10**power:
            return f"{value / 10**power:.3g} {prefix}{unit}"
    return f"{value:,.0f} {unit}".strip()


def duration(seconds: float | None) -> str:
    """Format seconds as hours, minutes and seconds."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def escape(value: Any) -> str:
    """Return the text of a value with special characters escaped."""
    return html.escape(str(value))


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    classes: dict[tuple[int, int], str] | None = None,
    apart: int | None = None,
) -> str:
    """Return a table; the first cell of each row is its header.

    :param header: names of the columns.
    :param rows: cells as plain text.
    :param classes: (row, column) -> style class of that cell.
    :param apart: row with a thick line below it.
    :return: HTML.
    """
    classes = classes or {}
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = []
    for i, (first, *cells) in enumerate(rows):
        line = f"<th>{escape(first)}</th>"
        for j, cell in enumerate(cells, start=1):
            style = f' class="{classes[i, j]}"' if (i, j) in classes else ""
            line += f"<td{style}>{escape(cell)}</td>"
        lines.append(f"<tr{' class=apart' if i == apart else ''}>{line}</tr>")
    body = "\n".join(lines)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def facts(values: dict[str, Any]) -> str:
    """Return a two-column table of names and values; nested names get dots."""
    lines = [
        f'<tr><th>{escape(name)}</th><td class="text">{escape(value)}</td></tr>'
        for name, value in _flat("", values)
    ]
    return f"<table><tbody>\n{chr(10).join(lines)}\n</tbody></table>"


def cards(values: dict[str, str]) -> str:
    """Return a row of cards with a large value and a small name each."""
    inner = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
        for name, value in values.items()
    )
    return f'<div class="cards">{inner}</div>'


def section(title: str, *parts: str) -> str:
    """Return a titled section."""
    return f"<section><h2>{escape(title)}</h2>\n{chr(10).join(parts)}</section>"


def details(title: str, *parts: str) -> str:
    """Return a part that opens on a click."""
    inner = "\n".join(parts)
    return f"<details><summary>{escape(title)}</summary>\n{inner}</details>"


def image(path: Path, alternative: str) -> str:
    """Return a PNG as part of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(alternative)}">'


def page(title: str, lead: str, *parts: str) -> str:
    """Return a complete page that needs no other file."""
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n"
        f'<main>\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        f"{body}\n</main>\n</body>\n</html>\n"
    )


def _flat(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, inner in enumerate(value):
            yield from _flat(f"{prefix}[{index}]", inner)
    else:
        yield prefix, value


__all__ = [
    "cards",
    "details",
    "duration",
    "escape",
    "facts",
    "image",
    "is_fraction",
    "is_score",
    "number",
    "page",
    "quantity",
    "section",
    "spread",
    "table",
]
