"""Validation and online splits that keep attributes, labels and collate.

Avalanche 0.6.0's ``benchmark_with_validation_stream`` and
``split_online_stream`` rebuild plain experiences and drop their fields; these
two keep everything that a generator attached.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.scenarios.generic_scenario import (
    CLExperience,
    ExperienceAttribute,
)
from avalanche.benchmarks.scenarios.online import OnlineCLExperience
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.items.class_labels import occurring_ids
from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.benchmarks.items.scenario import (
    WORKED_OUT,
    PartStream,
    clone_experience,
    make_scenario,
)
from avalanche_clip.benchmarks.streams.quotas import keep_smallest, sample_priorities
from avalanche_clip.common.checks import as_finite, as_size, require_choice


def split_validation(
    benchmark: CLScenario,
    fraction: float = 0.2,
    *,
    seed: int = 0,
    select: Callable[[AvalancheDataset], np.ndarray] | None = None,
    stratify: str | None = None,
    train_name: str = "train",
    valid_name: str = "valid",
) -> CLScenario:
    """Move part of each training experience to a validation stream.

    The choice is by a hash of ``(seed, sample_id)``: it does not depend on the
    order of the samples, and a smaller fraction chooses a part of what a larger
    one does.

    With ``stratify="targets"`` each class of an experience gives its share, as near as
    whole samples allow, and keeps at least one for training. Classes that are too
    small to give one are named in a warning.

    :param benchmark: scenario with a training stream of image-text data.
    :param fraction: share of each experience, in ``(0, 1)``; at least one
        sample and at most all but one.
    :param seed: changes the choice.
    :param select: replaces the hash: takes a data set and returns a bool
        array, True for validation. Not with a fraction or a seed, which it ignores.
    :param stratify: ``"targets"``, or None for a choice without regard to classes; not
        with ``select``.
    :return: scenario with all streams, experience fields kept.
    :raises ValueError: if the fraction is not in ``(0, 1)``, an experience has
        fewer than two samples, ``select`` returns another shape, or there are no
        targets, or no class with two samples, to stratify by.

    >>> from avalanche_clip.benchmarks import multi_domain_emoji
    >>> stream = multi_domain_emoji()
    >>> split = split_validation(stream, 0.5, stratify="targets")
    >>> part, whole = split.streams["valid"][0], stream.train_stream[0]
    >>> len(part.dataset) / len(whole.dataset)
    0.5
    """
    require_choice("stratify", stratify, (None, "targets"))
    if select is None:
        as_finite(fraction, "fraction", above=0, below=1)
    else:
        unused: dict[str, tuple[Any, Any]] = {
            "fraction": (fraction, 0.2),
            "seed": (seed, 0),
            "stratify": (stratify, None),
        }
        for name, (value, default) in unused.items():
            if value != default:
                raise ValueError(
                    f"{name}={value!r} has no effect on what select chooses; leave one "
                    "out."
                )
    require_choice("train_name", train_name, benchmark.streams)
    if valid_name in benchmark.streams:
        raise ValueError(
            f"The benchmark already has a stream {valid_name!r}; choose another "
            "valid_name."
        )
    kept, held = [], []
    empty: dict[int, list[int]] = {}
    for index, experience in enumerate(benchmark.streams[train_name]):
        dataset = experience.dataset
        if stratify is not None:
            given, empty[index] = _strata(dataset, fraction, seed, index)
        else:
            given = select(dataset) if select else _hash_mask(dataset, fraction, seed)
        mask = np.asarray(given, dtype=bool)
        if mask.shape != (len(dataset),) or mask.all() or not mask.any():
            raise ValueError(
                f"Experience {index}: {int(mask.sum())} of {len(dataset)} samples "
                f"(mask of shape {mask.shape}) were chosen for validation; choose at "
                "least one and leave at least one."
            )
        left, out = (dataset.subset(np.flatnonzero(m).tolist()) for m in (~mask, mask))
        kept.append(clone_experience(experience, left))
        held.append(clone_experience(experience, out.eval()))
    _warn_of_empty({index: ids for index, ids in empty.items() if ids})
    streams: dict[str, Any] = {}
    for name, stream in benchmark.streams.items():
        own = {train_name: kept, valid_name: held}
        streams |= own if name == train_name else {name: stream}
    return make_scenario(streams, benchmark)


def _hash_mask(dataset: AvalancheDataset, fraction: float, seed: int) -> np.ndarray:
    ids = attribute_array(dataset, "sample_id")
    count = int(np.clip(round(fraction * len(ids)), 1, max(len(ids) - 1, 0)))
    chosen = keep_smallest(sample_priorities(ids, seed, 0), count)
    return np.isin(np.arange(len(ids)), chosen)


def _strata(
    dataset: AvalancheDataset, fraction: float, seed: int, index: int
) -> tuple[np.ndarray, list[int]]:
    """Mask of a stratified choice, and the classes that it has no sample of.

    Seats by Sainte-Lague: the k-th sample of a class of n comes at (k + 1/2) / n, so
    that a larger fraction only adds samples.
    """
    if "targets" not in getattr(dataset, "_data_attributes", ()):
        raise ValueError(
            f"stratify='targets', but experience {index} has no targets; give them to "
            "make_image_text_dataset, or leave stratify out."
        )
    ids, targets = (attribute_array(dataset, n) for n in ("sample_id", "targets"))
    order = np.lexsort((np.arange(len(ids)), sample_priorities(ids, seed, 0), targets))
    classes, first, sizes = np.unique(
        targets[order], return_index=True, return_counts=True
    )
    rank = np.arange(len(ids)) - np.repeat(first, sizes)
    of_class = np.repeat(sizes, sizes)
    places = np.where(rank < of_class - 1, (rank + 0.5) / of_class, np.inf)
    free = int(np.isfinite(places).sum())
    if not free:
        raise ValueError(
            f"stratify='targets', but no class of experience {index} has a second "
            "sample to give to validation; leave stratify out, or use larger steps."
        )
    count = int(np.clip(round(fraction * len(ids)), 1, free))
    chosen = order[np.lexsort((sample_priorities(ids[order], seed, 0), places))[:count]]
    mask = np.isin(np.arange(len(ids)), chosen)
    return mask, np.setdiff1d(classes, targets[mask]).tolist()


def _warn_of_empty(empty: dict[int, list[int]]) -> None:
    if not empty:
        return
    shown = "; ".join(
        f"experience {index}: {', '.join(map(str, ids[:5]))}"
        + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
        for index, ids in list(empty.items())[:5]
    )
    more = f"; and in {len(empty) - 5} more experiences" if len(empty) > 5 else ""
    warnings.warn(
        f"Some classes have no validation sample, being too small for their share "
        f"({shown}{more}). Use a larger fraction; a class of one sample can give none.",
        stacklevel=3,
    )


def split_online(
    benchmark: CLScenario,
    experience_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    train_name: str = "train",
) -> CLScenario:
    """Cut every training experience into small ones, seen once, in order.

    :param benchmark: scenario with a training stream.
    :param experience_size: samples per online experience, at least 1; the
        last of each time step may be smaller.
    :param shuffle: shuffle inside each time step; without it samples come in
        the order of the data set (by time, for time-stamped benchmarks).
    :param seed: seed of the shuffle.
    :param drop_last: leave out the smaller tail of each time step; a step may
        not vanish that way.
    :return: scenario whose training stream holds Avalanche
        ``OnlineCLExperience`` objects with what generators and decorators
        attached, task labels and classes (also ``class_ids``, in the order in which
        they occur) those of the part; other streams are unchanged. An experience is
        made when it is asked for, so that memory does not grow with their number.
    :raises ValueError: if ``experience_size`` is no integer of at least 1, or a
        step has no full experience and ``drop_last`` is set.
    """
    require_choice("train_name", train_name, benchmark.streams)
    experience_size = as_size(experience_size, "experience_size")
    orders, counts = [], []
    for number, origin in enumerate(benchmark.streams[train_name]):
        size = len(origin.dataset)
        order = np.arange(size)
        if shuffle:
            seeds = [int(seed) & (2**63 - 1), number]
            order = np.random.default_rng(seeds).permutation(size)
        starts = list(range(0, size, experience_size))
        if drop_last and size % experience_size:
            starts.pop()
        if not starts:
            raise ValueError(
                f"Experience {number} has {size} samples; with experience_size="
                f"{experience_size} and drop_last={drop_last} nothing is left of it. "
                "Choose a smaller size, or drop_last=False."
            )
        orders.append(order)
        counts.append(len(starts))
    wholes = list(benchmark.streams[train_name])
    parts = PartStream(train_name, wholes, orders, counts, experience_size, _part)
    return make_scenario({**benchmark.streams, train_name: parts}, benchmark)


def _part(whole: Any, positions: np.ndarray, number: int, count: int) -> Any:
    """Make an online experience of some samples of another one."""
    experience = OnlineCLExperience(
        dataset=whole.dataset.subset(positions.tolist()),
        origin_experience=whole,
        is_first_subexp=number == 0,
        is_last_subexp=number == count - 1,
        sub_stream_length=count,
        access_task_boundaries=False,
    )
    _copy_facts(whole, experience)
    return experience


def _copy_facts(origin: CLExperience, part: OnlineCLExperience) -> None:
    """Copy what generators and decorators attached to an experience."""
    for name, value in vars(origin).items():
        if name.startswith("_") or name in vars(part) or name in WORKED_OUT:
            continue
        shared = isinstance(value, ExperienceAttribute)
        setattr(part, name, copy.copy(value) if shared else value)
    ids = getattr(origin, "class_ids", None)
    if ids is not None:  # those to come are not known
        part.class_ids = occurring_ids(part.dataset)
        part.class_names = tuple(origin.class_prompts.name(i) for i in part.class_ids)
