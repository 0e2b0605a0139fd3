"""Streams of time steps from any data set whose samples carry a time."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.benchmarks.items.scenario import make_experience, make_scenario
from avalanche_clip.benchmarks.items.times import (
    Time,
    iso_date,
    iso_time,
    period_label,
    period_starts,
    timestamp_column,
)
from avalanche_clip.common.checks import (
    as_integers,
    as_size,
    require_choice,
    require_length,
    require_one_of,
    require_some,
    require_type,
)

logger = logging.getLogger(__name__)


def time_stamped_benchmark(
    train: AvalancheDataset,
    *,
    boundaries: Sequence[Time] | None = None,
    num_experiences: int | None = None,
    counts: Sequence[int] | None = None,
    period: str | None = None,
    labels: Sequence[str] | None = None,
    missing: str = "raise",
    empty: str = "raise",
    **streams: AvalancheDataset,
) -> CLScenario:
    """Cut a time-stamped data set into a stream of time steps.

    Exactly one of ``boundaries``, ``num_experiences``, ``counts`` and
    ``period`` says where to cut. All four come down to points in time: step
    ``k`` holds the samples with ``b[k-1] <= timestamp < b[k]``, the first step
    everything before ``b[0]``, the last everything from ``b[-1]`` on. So every
    sample of every stream lands in exactly one experience, and samples with
    equal timestamps stay together. Samples need not be sorted; inside an
    experience they are ordered by time (equal times keep their order).

    :param train: data set with a ``timestamp`` attribute.
    :param boundaries: ``T - 1`` increasing times that start steps 2 to T.
    :param num_experiences: number of steps of nearly equal size: each cut is
        at the change of timestamp nearest to its ideal place.
    :param counts: exact sizes of the steps; their sum is ``len(train)``.
    :param period: ``"day"``, ``"week"`` (from Monday), ``"month"``,
        ``"quarter"`` or ``"year"`` in UTC; periods without training samples do
        not become steps.
    :param labels: one name per step; default the period (``"2017"``,
        ``"2017-Q1"``, ``"2017-03"``, ``"2017-W09"``), else the dates of the
        training samples (with the time of day where dates would repeat).
    :param missing: what to do with NaN or infinite timestamps: ``"raise"``, or
        ``"drop"`` them and log how many.
    :param empty: what to do when a step of some stream has no sample:
        ``"raise"``, or ``"drop"`` steps that are empty in every stream.
    :param streams: further data sets (``test=...``, ``valid=...``), cut at the
        same times.
    :return: a scenario with stream ``train`` and the given ones; experiences
        carry ``time_label``, ``time_start`` and ``time_end`` (seconds UTC).
    :raises ValueError: if the cut is not given exactly once, boundaries do not
        increase, counts cannot be met, timestamps are missing, or a step is
        empty.
    :raises TypeError: if a stream is not an Avalanche data set.
    """
    require_one_of(
        boundaries=boundaries,
        num_experiences=num_experiences,
        counts=counts,
        period=period,
    )
    require_choice("missing", missing, ("raise", "drop"))
    require_choice("empty", empty, ("raise", "drop"))
    datasets = {"train": train, **streams}
    times, kept = {}, {}
    for name, dataset in datasets.items():
        times[name], kept[name] = _valid_times(name, dataset, missing)
    ordered = np.sort(times["train"])
    if boundaries is not None:
        cuts = _given_cuts(boundaries)
    elif num_experiences is not None:
        cuts = _even_cuts(ordered, num_experiences)
    elif counts is not None:
        cuts = _count_cuts(ordered, counts)
    else:
        cuts = np.unique(period_starts(ordered, str(period)))[1:]
    positions = {
        name: _split_positions(times[name], kept[name], cuts) for name in datasets
    }
    steps = _nonempty_steps(positions, cuts, empty)
    names = _labels(labels, period, steps, ordered, cuts)
    bounds = np.concatenate([[-np.inf], cuts, [np.inf]])
    built = {
        name: [
            make_experience(
                dataset.subset(positions[name][step].tolist()),
                time_label=label,
                time_start=float(bounds[step]),
                time_end=float(bounds[step + 1]),
            )
            for step, label in zip(steps, names, strict=True)
        ]
        for name, dataset in datasets.items()
    }
    return make_scenario(built, time_labels=names)


def _valid_times(
    name: str, dataset: AvalancheDataset, missing: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return finite timestamps and their positions."""
    made = "one data set made by make_image_text_dataset with timestamps"
    require_type(dataset, AvalancheDataset, f"Stream {name!r}", made)
    times = timestamp_column(attribute_array(dataset, "timestamp"), checked=True)
    finite = np.isfinite(times)
    lost = int((~finite).sum())
    if lost and missing == "raise":
        first = int(np.flatnonzero(~finite)[0])
        raise ValueError(
            f"{lost} of {len(times)} samples of stream {name!r} have no valid "
            f"timestamp (first at position {first}: {times[first]}). Give each a "
            "time, or pass missing='drop' to leave them out."
        )
    if lost:
        logger.warning("Stream %r: %d samples without timestamp left out.", name, lost)
    if lost == len(times):
        raise ValueError(f"Stream {name!r} has no sample with a valid timestamp.")
    return times[finite], np.flatnonzero(finite)


def _given_cuts(boundaries: Sequence[Time]) -> np.ndarray:
    if isinstance(boundaries, str) or not np.iterable(boundaries):
        raise ValueError(
            f"boundaries={boundaries!r} is a single value; give a list of times, one "
            "less than there are steps."
        )
    # As one column: single numbers of it may look like years.
    given = boundaries if hasattr(boundaries, "dtype") else list(boundaries)
    cuts = timestamp_column(given, "boundaries")
    if not np.isfinite(cuts).all() or not (np.diff(cuts) > 0).all():
        raise ValueError(
            f"boundaries={list(boundaries)} must be finite times that strictly "
            "increase."
        )
    return cuts


def _even_cuts(ordered: np.ndarray, num: int) -> np.ndarray:
    starts = np.flatnonzero(np.diff(ordered) > 0) + 1
    count = as_size(num, "num_experiences")
    if count > len(starts) + 1:
        raise ValueError(
            f"num_experiences={num}, but there are {len(starts) + 1} different "
            "timestamps; choose at most that."
        )
    chosen: list[int] = []
    low = 0
    for k in range(1, count):
        # Leave enough different times for the steps still to come.
        high = len(starts) - (count - 1 - k)
        ideal = k * len(ordered) / count
        best = low + int(np.searchsorted(starts[low:high], ideal))
        if best == high or (
            best > low and ideal - starts[best - 1] <= starts[best] - ideal
        ):
            best -= 1
        chosen.append(int(starts[best]))
        low = best + 1
    return ordered[chosen]


def _count_cuts(ordered: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    given = as_integers(counts, "counts")
    sizes = np.asarray([as_size(count, "An entry of counts") for count in given])
    require_some(sizes, "counts")
    if int(sizes.sum()) != len(ordered):
        raise ValueError(
            f"counts sum to {int(sizes.sum())}, but there are {len(ordered)} samples "
            "with a timestamp; the sizes must add up."
        )
    starts = np.cumsum(sizes)[:-1]
    for step, start in enumerate(starts):
        if ordered[start - 1] == ordered[start]:
            left = int(np.searchsorted(ordered, ordered[start], "left"))
            right = int(np.searchsorted(ordered, ordered[start], "right"))
            raise ValueError(
                f"The cut after step {step} at sample {start} falls between equal "
                f"timestamps (samples {left} to {right - 1} share one). Equal times "
                f"stay together: cut at {left} or {right}."
            )
    return ordered[starts]


def _split_positions(
    times: np.ndarray, positions: np.ndarray, cuts: np.ndarray
) -> list[np.ndarray]:
    order = np.argsort(times, kind="stable")
    edges = np.searchsorted(times[order], cuts, side="left")
    return [positions[part] for part in np.split(order, edges)]


def _nonempty_steps(
    positions: dict[str, list[np.ndarray]], cuts: np.ndarray, empty: str
) -> list[int]:
    steps = []
    for step in range(len(cuts) + 1):
        hollow = [name for name, parts in positions.items() if not len(parts[step])]
        if not hollow:
            steps.append(step)
        elif empty == "raise" or len(hollow) < len(positions):
            low = "-inf" if step == 0 else iso_date(cuts[step - 1])
            high = "inf" if step == len(cuts) else iso_date(cuts[step])
            raise ValueError(
                f"Step {step}, [{low}, {high}), has no sample in stream(s) {hollow}. "
                "Move the boundaries; steps that are empty in every stream can be "
                "left out with empty='drop'."
            )
    return steps


def _labels(
    labels: Sequence[str] | None,
    period: str | None,
    steps: list[int],
    ordered: np.ndarray,
    cuts: np.ndarray,
) -> list[str]:
    if labels is not None:
        given = [] if isinstance(labels, str) else [str(label) for label in labels]
        require_length(given, len(cuts) + 1, "labels", "step")
        return [given[step] for step in steps]
    parts = np.split(ordered, np.searchsorted(ordered, cuts))
    ends = [(parts[step][0], parts[step][-1]) for step in steps]
    if period is not None:
        return [period_label(first, period) for first, _ in ends]
    names = [_span(iso_date(first), iso_date(last)) for first, last in ends]
    if len(set(names)) < len(names):
        # Several steps within a day.
        names = [_span(iso_time(first), iso_time(last)) for first, last in ends]
    return names


def _span(first: str, last: str) -> str:
    return first if first == last else f"{first}..{last}"
