"""What the benchmarks of TiC-CLIP share: time steps, and galleries of one size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario

from avalanche_clip.benchmarks.items.items import concatenate, make_image_text_dataset
from avalanche_clip.benchmarks.items.scenario import make_experience, make_scenario
from avalanche_clip.benchmarks.items.times import to_timestamp
from avalanche_clip.benchmarks.streams.quotas import keep_smallest, sample_priorities
from avalanche_clip.common.checks import as_integer, as_size, require_some


@dataclass
class TicPart:
    """The data of one experience.

    :param label: last year (``YYYY``) or month (``YYYYMM``) in it.
    :param since: first year or month in it; None for all before.
    :param step: place of its time step.
    :param pairs: sources of its pairs, one after the other.
    :param targets: classes of the pairs, if they have some.
    :param facts: further attributes of the experience.
    """

    label: str
    since: str | None
    step: int
    pairs: Sequence[Any]
    targets: np.ndarray | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def tic_scenario(streams: Mapping[str, Sequence[TicPart]], **facts: Any) -> CLScenario:
    """Make a scenario of time steps; sample ids count through all streams.

    :param streams: name -> parts.
    :param facts: further attributes of the scenario.
    """
    first = 0
    built: dict[str, list[Any]] = {}
    for name, parts in streams.items():
        built[name] = []
        for part in parts:
            sets = []
            for pairs in part.pairs:
                ids = first + np.arange(len(pairs))
                sets.append(
                    make_image_text_dataset(pairs, sample_ids=ids, targets=part.targets)
                )
                first += len(pairs)
            start = -np.inf if part.since is None else time_bounds(part.since)[0]
            end = time_bounds(part.label)[1]
            known = {"time_label": part.label, "time_start": start, "time_end": end}
            facts_of = {**known, "step": part.step, **part.facts}
            experience = make_experience(concatenate(sets), **facts_of)
            built[name].append(experience)
    labels = [part.label for part in streams["train"]]
    return make_scenario(built, time_labels=labels, **facts)


def gallery(ids: np.ndarray, size: int | None, seed: int, label: str) -> np.ndarray:
    """Choose pairs of an evaluation set by a hash of their ids.

    Smaller galleries are parts of larger ones.

    :param ids: of the pairs, ``(N,)``, that do not depend on their order.
    :param size: of the gallery, None for all.
    :param seed: of the choice.
    :param label: of the set, for messages.
    :return: positions, ascending.
    :raises ValueError: if the set is smaller.
    """
    seed = as_integer(seed, "seed")
    if size is None:
        return np.arange(len(ids))
    size = as_size(size, "gallery_size")
    require_some(ids, f"pairs in the evaluation set {label}", least=size)
    return keep_smallest(sample_priorities(ids, seed, 0), size)


def time_bounds(label: str) -> tuple[float, float]:
    """Start and end of a year or month."""
    if not (label.isascii() and label.isdecimal() and len(label) in (4, 6)):
        raise ValueError(f"{label!r} names no time; use a year YYYY or a month YYYYMM.")
    year, month = int(label[:4]), int(label[4:] or 1)
    later = (year + 1, 1) if len(label) == 4 or month == 12 else (year, month + 1)
    first, last = (to_timestamp(f"{y:04}-{m:02}-01") for y, m in ((year, month), later))
    return first, last
