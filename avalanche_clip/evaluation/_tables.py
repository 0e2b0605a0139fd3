"""What the report of a run and the comparison of runs have in common."""

from __future__ import annotations

import re

from avalanche_clip.evaluation import _html
from avalanche_clip.evaluation._results import Matrix


def file_name(text: str) -> str:
    """Return a text with everything but letters, digits, - and _ replaced.

    :param text: for example a stream and a metric.
    :return: part of a file name.

    >>> file_name("test_mean_R@1")
    'test_mean_R_at_1'
    """
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text.replace("@", "_at_"))


def matrix_table(name: str, matrix: Matrix) -> str:
    """Return the matrix as a table; the own test set of a row is bold.

    :param name: metric, which decides whether percent are shown.
    :param matrix: the values.
    :return: HTML.
    """
    percent = _html.is_fraction(name)
    rows, classes = [], {}
    if matrix.before is not None:
        rows.append(
            ["before", *(_html.number(v, percent=percent) for v in matrix.before)]
        )
    offset = len(rows)
    for i, (label, values) in enumerate(zip(matrix.row_labels, matrix.E, strict=True)):
        cells = [_html.number(value, percent=percent) for value in values]
        rows.append([f"after {label}", *cells])
        if matrix.by_step:
            classes[i + offset, i + 1] = "own"
    return _html.table(
        ["model", *matrix.labels], rows, classes=classes, apart=0 if offset else None
    )


__all__ = ["file_name", "matrix_table"]
