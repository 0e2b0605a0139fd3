"""When a run is evaluated and stored."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from avalanche_clip.common.checks import as_integers, as_size, require_choice

STEPS = "steps"
_ALLOWED = (
    'give evaluate_at="steps", {"samples": n}, or a list of indices of training steps'
)


@dataclass(frozen=True)
class EvaluationPoints:
    """The steps of a training stream after which a run has a row of ``E``.

    :param at: the rule that chose them, as plain data: ``"steps"`` if it chose all.
    :param steps: indices of the steps, ascending; the last step is one of them.
    :param samples: samples of the stream up to the end of each of these steps.
    """

    at: str | dict[str, int] | list[int]
    steps: list[int]
    samples: list[int]

    def __contains__(self, step: object) -> bool:
        row = self.before(int(step))  # type: ignore[call-overload]
        return row < len(self.steps) and self.steps[row] == step

    def before(self, step: int) -> int:
        """Number of points that lie before a step."""
        return bisect_left(self.steps, step)

    def record(self) -> dict[str, Any]:
        """What ``results.json`` holds of them."""
        return {"at": self.at, "steps": self.steps, "samples": self.samples}


def evaluation_points(at: Any, sizes: Sequence[int]) -> EvaluationPoints:
    """Choose the points of a run.

    The model is evaluated between steps only. ``{"samples": n}`` counts each
    sample of the stream once, however many epochs it is trained for, and chooses
    the first step whose end lies beyond (not at) each multiple of ``n``, as the
    released code of SIT does between batches. The last step is always a point.

    :param at: ``"steps"`` for every step, ``{"samples": n}``, or indices of steps.
    :param sizes: samples of each step of the training stream.
    :raises ValueError: for anything else, and for indices that are repeated or are
        not those of a step.

    Source: Wang et al., 2024 (SIT, arXiv 2405.15155) and the authors' released code,
    which evaluates every 1,000 samples; that the last step is a point, and lists of
    steps, are our choice.

    >>> evaluation_points({"samples": 8}, [4] * 10).samples
    [12, 20, 28, 36, 40]
    """
    seen = list(accumulate(sizes))
    every = list(range(len(seen)))
    if isinstance(at, str):
        require_choice("evaluate_at", at, (STEPS,))
        steps = every
    elif isinstance(at, Mapping):
        at, steps = _by_samples(at, seen)
    else:
        at = steps = _by_index(at, len(seen))
    # Rows and reports must always show the model that the run ends with.
    steps = sorted({*steps, *every[-1:]})
    rule = STEPS if steps == every else at
    return EvaluationPoints(rule, steps, [seen[step] for step in steps])


def _by_samples(at: Mapping[Any, Any], seen: list[int]) -> tuple[Any, list[int]]:
    if list(at) != ["samples"]:
        raise ValueError(f"evaluate_at={dict(at)!r} is unknown; {_ALLOWED}.")
    period = as_size(at["samples"], 'evaluate_at["samples"]')
    passed = [max(count - 1, 0) // period for count in seen]
    steps = [k for k, n in enumerate(passed) if n > (passed[k - 1] if k else 0)]
    return {"samples": period}, steps


def _by_index(at: Any, count: int) -> list[int]:
    try:
        steps = as_integers(at, "evaluate_at")
    except ValueError as error:
        raise ValueError(f"{error} For evaluate_at {_ALLOWED}.") from None
    wrong = sorted(step for step in set(steps) if not 0 <= step < count)
    if wrong or not steps or len(set(steps)) < len(steps):
        cause = f"{wrong} are no steps" if wrong else "each step may be named once"
        cause = cause if steps else "it names no step"
        raise ValueError(
            f"evaluate_at={steps}: {cause}; the training stream has {count} steps, "
            f"with indices from 0. For evaluate_at {_ALLOWED}."
        )
    return sorted(steps)
