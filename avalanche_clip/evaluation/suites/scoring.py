"""Metrics of zero-shot tasks from features, with intervals."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_clip.evaluation.functional.classification import (
    class_ranks,
    class_vectors,
    classification_metrics,
)
from avalanche_clip.evaluation.functional.intervals import (
    Interval,
    bootstrap_interval,
    resampled_interval,
    wilson_interval,
)
from avalanche_clip.evaluation.functional.retrieval import retrieval_metrics
from avalanche_clip.evaluation.suites.suite import Encode

Found = dict[str, tuple[float, Interval | None]]
"""Metric -> value and interval."""


def score(
    task: Any, images: Tensor, encode: Encode, variants: int = 1
) -> dict[str, float]:
    """Score a task.

    Shares of items have Wilson's interval of 95 %, all others that of a bootstrap over
    items; for the mean of both directions of retrieval these are independent.

    :param task: a :class:`ZeroShotTask`.
    :param images: features of its pictures, ``(N, D)``.
    :param encode: texts to features.
    :param variants: parts that features have, see :meth:`Encoded.matched`.
    :return: the main metric first, then the others, with ``_low`` and ``_high``;
        ``count`` of pictures and, of retrieval, ``texts``.
    """
    found = _SCORERS[task.kind](task, images, encode, variants)
    counts = {"count": len(images)}
    if task.kind == "retrieval":
        counts["texts"] = len({text for texts in task.texts for text in texts})
    values: dict[str, float] = {}
    for metric, (value, ends) in {task.metric: found[task.metric], **found}.items():
        values[metric] = value
        if ends is not None:
            values |= {f"{metric}_low": ends.low, f"{metric}_high": ends.high}
    return {**values, **counts}


def _share(value: float, total: int) -> tuple[float, Interval]:
    return float(value), wilson_interval(round(value * total), total)


def _resampled(
    statistic: Callable[[Any], float], size: int, draws: int = 200
) -> tuple[float, Interval]:
    whole = statistic(np.ones(size, dtype=np.int64))
    return whole, resampled_interval(statistic, size, draws=draws)


def _vectors(task: Any, encode: Encode, variants: int) -> Tensor:
    sizes = torch.tensor([len(prompts) for prompts in task.prompts])
    owners = torch.arange(len(sizes)).repeat_interleave(sizes)
    rows = encode([text for own in task.prompts for text in own])
    return torch.cat([class_vectors(p, owners) for p in rows.chunk(variants, 1)], 1)


def _scores(images: Tensor, texts: Tensor) -> Tensor:
    """Inner products that are equal where the features are, wherever they stand."""
    return (images.double() @ texts.double().T).float()


def _classification(task: Any, images: Tensor, encode: Encode, variants: int) -> Found:
    labels, size, classes = task.labels, len(images), len(task.prompts)
    ranks, predictions = class_ranks(images, _vectors(task, encode, variants), labels)
    hits = {k: (ranks < k).numpy() for k in (1, 5) if k <= classes or k == 1}
    found: Found = {f"acc{k}": _share(hit.mean(), size) for k, hit in hits.items()}
    found.setdefault("acc5", (math.nan, None))

    def mean(counts: Any, f1: bool) -> float:
        there = np.bincount(labels, counts, classes)
        right = np.bincount(labels, counts * hits[1], classes)[there > 0]
        said = np.bincount(predictions.numpy(), counts, classes)[there > 0]
        there = there[there > 0]
        each = 2 * right / (there + said) if f1 else right / there
        return float(each.mean())

    found["mean_per_class_recall"] = _resampled(partial(mean, f1=False), size)
    if task.metric == "macro_f1":
        found["macro_f1"] = _resampled(partial(mean, f1=True), size)
    if task.groups is not None:
        groups = np.unique(task.groups[task.groups >= 0])
        for k, hit in hits.items():
            parts = [hit[task.groups == group] for group in groups]
            worst = min(parts, key=np.mean)
            found[f"worst_group_acc{k}"] = _share(worst.mean(), len(worst))
    return found


def _multilabel(task: Any, images: Tensor, encode: Encode, variants: int) -> Found:
    grades = _scores(images, _vectors(task, encode, variants))
    labels = torch.tensor(task.labels)

    def precision(counts: Any) -> float:
        rows = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
        return classification_metrics(grades[rows], labels[rows])[task.metric]

    return {task.metric: _resampled(precision, len(labels), 100)}


def _retrieval(task: Any, images: Tensor, encode: Encode, variants: int) -> Found:
    numbers: dict[str, int] = {}
    pairs = [
        (numbers.setdefault(text, len(numbers)), image)
        for image, texts in enumerate(task.texts)
        for text in texts
    ]
    values = retrieval_metrics(images, encode(list(numbers)), torch.tensor(pairs))
    totals = {"image_to_text": len(images), "text_to_image": len(numbers)}
    found: Found = {}
    for metric, value in values.items():
        direction, _, k = metric.partition("_R@")
        found[metric] = value, None
        if k and direction in totals:
            found[metric] = _share(value, totals[direction])
        elif k:
            right = [(values[f"{name}_R@{k}"], n) for name, n in totals.items()]
            parts = [np.arange(n) < round(share * n) for share, n in right]
            found[metric] = value, bootstrap_interval(parts, draws=1000)
    return found


def _association(task: Any, images: Tensor, encode: Encode, variants: int) -> Found:
    found = []
    for number, cue in enumerate(encode([text for (text,) in task.prompts])):
        rows = np.flatnonzero(task.groups == number)
        grades = _scores(images[rows], cue[None])[:, 0].numpy()
        right = task.labels[rows]
        # of equal grades the wrong picture comes first
        hits = right[np.lexsort((right, -grades))[: right.sum()]].sum()
        found.append(hits / (2 * right.sum() - hits))
    return {task.metric: (float(np.mean(found)), bootstrap_interval([found]))}


_SCORERS: dict[str, Callable[[Any, Tensor, Encode, int], Found]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "retrieval": _retrieval,
    "association": _association,
}
