"""When a run is evaluated and stored."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import numpy as np

from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.benchmarks.items.scenario import PartStream, whole_data
from avalanche_clip.common.checks import as_integers, as_size, require_choice
from avalanche_clip.training.templates.label_spaces import experience_ids

STEPS = "steps"
_ALLOWED = (
    'give evaluate_at="steps", {"samples": n}, {"task_ends": True} or both keys (with '
    '"include_final", too), or a list of indices of training steps'
)


@dataclass(frozen=True)
class EvaluationPoints:
    """The steps of a training stream after which a run has a row of ``E``.

    :param at: the rule that chose them, as plain data: ``"steps"`` if it chose all.
    :param steps: indices of the steps, ascending; the last step is one of them.
    :param samples: samples of the stream up to the end of each of these steps.
    :param curve: those of the steps that the period in samples chose; None without.
    :param task_ends: steps that end a task, whether they are points or not.
    """

    at: str | dict[str, int] | list[int]
    steps: list[int]
    samples: list[int]
    curve: list[int] | None = None
    task_ends: list[int] = field(default_factory=list)

    def __contains__(self, step: object) -> bool:
        row = self.before(int(step))  # type: ignore[call-overload]
        return row < len(self.steps) and self.steps[row] == step

    def before(self, step: int) -> int:
        """Number of points that lie before a step."""
        return bisect_left(self.steps, step)

    def with_steps(self, steps: Sequence[int], sizes: Sequence[int]) -> Any:
        """The same points and others, such as the end of a stream that has grown.

        :param steps: indices of further steps.
        :param sizes: samples of each step of the training stream.
        """
        every = sorted({*self.steps, *steps})
        seen = list(accumulate(sizes))
        return replace(self, steps=every, samples=[seen[step] for step in every])

    def record(self) -> dict[str, Any]:
        """What ``results.json`` holds of them."""
        return {"at": self.at, "steps": self.steps, "samples": self.samples}

    def online(self) -> dict[str, list[int] | None]:
        """Rows of ``E`` that :func:`online_accuracy` takes.

        There is no curve without a period in samples, and there are no ends of tasks
        where a row of one is missing.
        """
        ends = [self.before(step) for step in self.task_ends if step in self]
        return {
            "curve": self.curve and [self.before(step) for step in self.curve],
            "task_ends": ends if len(ends) == len(self.task_ends) else [],
        }


def task_ends(stream: Any) -> list[int]:
    """Indices of the steps of a training stream that end a task.

    :param stream: of an online stream (:func:`split_online`) the last part of each
        task, else every step.
    """
    if isinstance(stream, PartStream):
        return [end - 1 for end in stream.ends[1:]]
    parts = (experience.logging() for experience in stream)
    return [k for k, part in enumerate(parts) if getattr(part, "is_last_subexp", True)]


def arrivals(train: Any, stream: Any) -> list[int] | None:
    """The step of a training stream in which the classes of each test set have met.

    :param train: training stream.
    :param stream: to be evaluated.
    :return: index of the step per experience, that of the last of its classes; None
        if the stream is of classes that are never trained on.
    """
    first: dict[int, int] = {}
    for start, size, targets in _targets(train):
        ids, places = np.unique(targets, return_index=True)
        for number, place in zip(ids.tolist(), places.tolist(), strict=True):
            first.setdefault(number, start + place // size)
    never = len(train)
    met = [max(first.get(i, never) for i in experience_ids(e)) for e in stream]
    return None if min(met, default=never) == never else met


def _targets(train: Any) -> Iterator[tuple[int, int, np.ndarray]]:
    """First step, samples per step and targets in order, without making any part."""
    for number, dataset in enumerate(whole_data(train)):
        column = attribute_array(dataset, "targets")
        if isinstance(train, PartStream):
            start, end = train.ends[number : number + 2]
            kept = train.orders[number][: (end - start) * train.size]
            yield start, train.size, column[kept]
        else:
            yield number, len(column) + 1, column


def evaluation_points(
    at: Any, sizes: Sequence[int], ends: Sequence[int] | None = None
) -> EvaluationPoints:
    """Choose the points of a run.

    The model is evaluated between steps only. ``{"samples": n}`` counts each
    sample of the stream once, however many epochs it is trained for, and chooses
    the first step whose end lies beyond (not at) each multiple of ``n``, as the
    released code of SIT does between batches. With ``"task_ends": True``, beside
    it or alone, the last steps of all tasks are points, which ``A_Avg`` and
    ``F_Last`` of :func:`online_accuracy` need; ``"include_final": True`` lets its
    ``A_AUC`` average the end of the stream, too. The last step is always a point.

    :param at: ``"steps"`` for every step, a mapping as above, or indices of steps.
    :param sizes: samples of each step of the training stream.
    :param ends: indices of the steps that end a task; default every step.
    :raises ValueError: for anything else, and for indices that are repeated or are
        not those of a step.

    Source: Wang et al., 2024 (SIT, arXiv 2405.15155) and the authors' released code,
    which evaluates every 1,000 samples and at the ends of tasks; that the last step
    is a point, and lists of steps, are our choice.

    >>> evaluation_points({"samples": 8}, [4] * 10).samples
    [12, 20, 28, 36, 40]
    >>> evaluation_points({"samples": 16, "task_ends": True}, [4] * 6, [2, 5]).samples
    [12, 20, 24]
    """
    seen = list(accumulate(sizes))
    every = list(range(len(seen)))
    ends = every if ends is None else list(ends)
    curve = None
    if isinstance(at, str):
        require_choice("evaluate_at", at, (STEPS,))
        steps = every
    elif isinstance(at, Mapping):
        at, curve = _rule(at, seen)
        steps = [*(curve or ()), *(ends if "task_ends" in at else ())]
    else:
        at = steps = _by_index(at, len(seen))
    # Rows and reports must always show the model that the run ends with.
    steps = sorted({*steps, *every[-1:]})
    rule = STEPS if steps == every else at
    return EvaluationPoints(rule, steps, [seen[step] for step in steps], curve, ends)


def _rule(at: Mapping[Any, Any], seen: list[int]) -> tuple[Any, list[int] | None]:
    """A mapping without what is off, and the steps that its period chooses."""
    flags = {k: v for k, v in at.items() if k != "samples"}
    known = set(flags) <= {"task_ends", "include_final"}
    known = known and all(isinstance(value, bool) for value in flags.values())
    rule: dict[str, int] = {k: True for k in sorted(flags) if flags[k]}
    if not known or not ("samples" in at or [*rule] == ["task_ends"]):
        raise ValueError(f"evaluate_at={dict(at)!r} is unknown; {_ALLOWED}.")
    if "samples" not in at:
        return rule, None
    period = as_size(at["samples"], 'evaluate_at["samples"]')
    passed = [max(count - 1, 0) // period for count in seen]
    steps = [k for k, n in enumerate(passed) if n > (passed[k - 1] if k else 0)]
    if "include_final" in rule:
        steps = sorted({*steps, len(seen) - 1} - {-1})
    return {"samples": period, **rule}, steps


def _by_index(at: Any, count: int) -> list[int]:
    try:
        steps = as_integers(at, "evaluate_at")
    except ValueError as error:
        raise ValueError(f"{error} For evaluate_at {_ALLOWED}.") from None
    wrong = sorted(step for step in set(steps) if not 0 <= step < count)
    cause = "" if steps else "it names no step"
    cause = "each step may be named once" if len({*steps}) < len(steps) else cause
    if cause := f"{wrong} are no steps" if wrong else cause:
        raise ValueError(
            f"evaluate_at={steps}: {cause}; the training stream has {count} steps, "
            f"with indices from 0. For evaluate_at {_ALLOWED}."
        )
    return sorted(steps)
