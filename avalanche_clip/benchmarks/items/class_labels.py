"""Labels of a data set without its images, and choices of a few per class."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset
from torch import Tensor

from avalanche_clip.benchmarks.items.given import check_item, check_source
from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.common.checks import as_integer, as_size
from avalanche_clip.common.columns import as_integer_array

logger = logging.getLogger(__name__)

LABELLED = "domain = (pairs, test_pairs, class_names, templates)"
_TARGET_NAMES = ("targets", "labels", "_labels", "y")
_SAMPLE_NAMES = ("samples", "_samples")


def class_targets(data: Any) -> np.ndarray:
    """Return the labels of a data set without decoding its images.

    Looks for ``targets``, ``labels``, ``_labels``, ``y``, ``samples`` or
    ``_samples`` (as torchvision's classes have them), through subsets and
    concatenations, and applies the data set's ``target_transform`` to each
    different label once. Where there is none, every item is read once, with a
    warning in the log; the label is then its second element.

    :param data: map-style data set, or an ``AvalancheDataset`` with ``targets``.
    :return: int64, ``(len(data),)``.
    :raises ValueError: if labels are no integers or their number is wrong.
    """
    check_source(data, "label", LABELLED)
    found = _known_targets(data)
    if found is None:
        logger.warning(
            "%s has no list of labels; all %d items are read to find them.",
            type(data).__name__,
            len(data),
        )
        found = [_label(data[index], index) for index in range(len(data))]
    what = f"labels of the {type(data).__name__}"
    return as_integer_array(found, what, str(len(data)), give="one per item")


def occurring_ids(dataset: AvalancheDataset) -> tuple[int, ...]:
    """Classes of an image-text data set, in the order in which they first occur.

    :param dataset: without targets it has none.
    """
    if "targets" not in getattr(dataset, "_data_attributes", ()):
        return ()
    column = attribute_array(dataset, "targets")
    _, first = np.unique(column, return_index=True)
    return tuple(column[np.sort(first)].tolist())


def _label(item: Any, index: int) -> Any:
    check_item(item, f"Item {index}", "label", LABELLED)
    return item[1]


def _known_targets(data: Any) -> Any:
    if isinstance(data, AvalancheDataset):
        return attribute_array(data, "targets")
    parts, indices = getattr(data, "datasets", None), getattr(data, "indices", None)
    inner = getattr(data, "dataset", None)
    if inner is not None and indices is not None:  # torch's Subset
        known = _known_targets(inner)
        return None if known is None else np.asarray(known)[np.asarray(indices, int)]
    for name in _TARGET_NAMES:
        found = getattr(data, name, None)
        if isinstance(found, Tensor):
            found = found.cpu().numpy()
        if found is not None and not callable(found) and len(found) == len(data):
            return _transformed(data, found)
    for name in _SAMPLE_NAMES:
        found = getattr(data, name, None)
        if isinstance(found, Sequence) and len(found) == len(data):
            if all(isinstance(f, (tuple, list)) and len(f) > 1 for f in found):
                return _transformed(data, [f[1] for f in found])
    if parts is not None:  # torch's ConcatDataset
        known_parts = [_known_targets(part) for part in parts]
        if all(part is not None for part in known_parts):
            return np.concatenate([np.asarray(part) for part in known_parts])
    return None


def _transformed(data: Any, labels: Any) -> Any:
    """Apply the ``target_transform`` that items of torchvision's sets go through."""
    transform = getattr(data, "target_transform", None)
    array = np.asarray(labels)
    if not callable(transform) or array.ndim != 1 or array.size == 0:
        return labels
    values, places = np.unique(array, return_inverse=True)
    return np.asarray([transform(v) for v in values.tolist()])[places]


def few_shot_indices(
    targets: np.ndarray,
    shots: int,
    *,
    seed: int | Sequence[int] = 0,
    repeat: bool = False,
) -> np.ndarray:
    """Choose exactly ``min(shots, available)`` positions of each class.

    What is chosen of a class depends on the seed, the class and its number of
    samples only, and a smaller choice is a part of a larger one.

    :param targets: labels, integers >= 0, ``(N,)``.
    :param shots: samples per class, at least 1.
    :param seed: of the choice, one integer or several.
    :param repeat: draw ``shots`` positions with replacement where a class has fewer,
        as CoOp's code does, so that every class has the same number.
    :return: ascending positions, int64; equal ones only with ``repeat``.
    :raises ValueError: if ``shots`` is no integer of at least 1, or the seed none.

    >>> few_shot_indices(np.array([0, 1, 0, 0]), 2).shape
    (3,)
    """
    shots = as_size(shots, "shots", hint="None takes all")
    given = seed if isinstance(seed, (list, tuple)) else [seed]
    seeds = [as_integer(s, "seed") & (2**63 - 1) for s in given]  # type: ignore[arg-type]
    labels = np.asarray(targets)
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    ends = [*starts[1:], len(order)]
    chosen = [np.empty(0, dtype=np.int64)]
    for number, start, end in zip(classes, starts, ends, strict=False):
        rows = order[start:end]
        random = np.random.default_rng([*seeds, int(number)])
        if repeat and len(rows) < shots:
            chosen.append(rows[random.integers(len(rows), size=shots)])
        else:
            chosen.append(rows[random.permutation(len(rows))[:shots]])
    return np.sort(np.concatenate(chosen))
