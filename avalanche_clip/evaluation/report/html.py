"""Pages from templates, and how numbers are written on them."""

from __future__ import annotations

import base64
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

_NOT_FRACTIONS = ("rank", "rsum", "loss", "seconds", "macs", "count", "texts")
_NOISE = 1e-4
"""Values below, in percent, are shown as zero."""


def is_fraction(metric: str) -> bool:
    """Whether values of this name lie in [0, 1] and are shown in percent."""
    return not any(word in metric.lower() for word in _NOT_FRACTIONS)


def is_score(metric: str) -> bool:
    """Whether larger values are better, so that forgetting has a meaning."""
    return is_fraction(metric) and not any(w in metric for w in ("tie_share", "blind"))


def score(value: float | None, metric: str) -> str:
    """Format a value with one decimal, fractions in percent; missing as a dash.

    Smaller ones have one digit that counts, counts that are whole no decimal.
    """
    if value is None or not math.isfinite(value):
        return "–"
    if metric.endswith("count") and value == round(value):
        return f"{value:,.0f}"
    shown = value * 100 if is_fraction(metric) else value
    text = f"{shown:.1f}"
    if text in ("0.0", "-0.0"):
        text = f"{shown:.1g}" if abs(shown) > _NOISE else "0.0"
    return text


def signed(value: float, metric: str) -> str:
    """Format a difference with its sign."""
    return score(value, metric) if value < 0 else f"+{score(value, metric)}"


def unit(metric: str) -> str:
    """What follows a value in a sentence."""
    return " %" if is_fraction(metric) else ""


def spread(mean: float, deviation: float, metric: str) -> str:
    """Format mean and deviation; a missing deviation is left out."""
    text = score(mean, metric)
    known = math.isfinite(mean) and math.isfinite(deviation)
    return f"{text} ± {score(deviation, metric)}" if known else text


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


def file_name(text: str) -> str:
    """Return a text with everything but letters, digits, - and _ replaced.

    :param text: for example a stream and a metric.
    :return: part of a file name.

    >>> file_name("test_mean_R@1")
    'test_mean_R_at_1'
    """
    return re.sub(r"[^\w-]+", "_", text.replace("@", "_at_"))


def render(template: str, **values: Any) -> str:
    """Return a complete page that needs no other file.

    :param template: name of a file in ``templates``.
    :param values: what it shows; texts are escaped.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("avalanche_clip", "evaluation/report/templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "css_width": _css_width,
        "base64": lambda path: base64.b64encode(path.read_bytes()).decode(),
        "duration": duration,
        "flat": lambda values: flat("", values),
        "quantity": quantity,
        "score": score,
        "spread": spread,
    }
    return environment


def _css_width(path: Path) -> int:
    """Width of a picture at 96 dots per inch of what it was drawn with."""
    with Image.open(path) as image:
        dots = image.info.get("dpi", (96.0, 96.0))[0]
        return round(image.width * 96 / dots)


def flat(prefix: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Names of all values of nested mappings, with dots between.

    Of the parameters of an optimiser, which may be hundreds, it counts each group's.
    """
    if prefix == "optimizer.group of":
        for group, count in sorted(Counter(value.values()).items()):
            yield f"optimizer.groups[{group}].parameters", count
    elif isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat(f"{prefix}.{key}" if prefix else str(key), inner)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, inner in enumerate(value):
            yield from flat(f"{prefix}[{index}]", inner)
    else:
        yield prefix, value
