"""Summaries of a stream of languages, for runs and their reports."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from avalanche_clip.evaluation import _html
from avalanche_clip.evaluation._results import Matrix
from avalanche_clip.evaluation.functional import forgetting_per_task

EXPLANATION = (
    "Average recall is the mean over the languages learned so far, after the last "
    "one. Recall forgetting is the mean drop from the best earlier result since a "
    "language was learned, first-task forgetting that of the first language."
)


def language_table(name: str, matrix: Matrix) -> str:
    """Return one row of results per language, as HTML.

    :param name: metric, which decides whether percent are shown.
    :param matrix: of a stream of languages, one row per column or fewer.
    :return: HTML; per language the result before the stream, when it was
        learned, the best since then, and the last, with what was forgotten.
    """
    percent = _html.is_fraction(name)
    E, before = matrix.E, matrix.before
    size = min(E.shape)
    forgotten = forgetting_per_task(E)[-1]
    columns: Mapping[str, np.ndarray] = {
        **({} if before is None else {"before": before[:size]}),
        "when learned": np.diagonal(E),
        "best since": np.array([E[j:, j].max() for j in range(size)]),
        "last": E[-1, :size],
        "forgotten": forgotten[:size],
    }
    rows = [
        [matrix.labels[j]]
        + [_html.number(float(c[j]), percent=percent) for c in columns.values()]
        for j in range(size)
    ]
    # The last language has nothing to forget yet; it does not enter that mean.
    means = [
        c[:-1] if key == "forgotten" and size > 1 else c for key, c in columns.items()
    ]
    mean = [_html.number(float(c.mean()), percent=percent) for c in means]
    return _html.table([name, *columns], [*rows, ["mean", *mean]])


__all__ = ["EXPLANATION", "language_table"]
