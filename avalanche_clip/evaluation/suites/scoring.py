"""Metrics of zero-shot tasks from features, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avalanche_clip.evaluation.functional.classification import (
    accuracies,
    class_ranks,
    class_vectors,
    classification_metrics,
    macro_f1,
)
from avalanche_clip.evaluation.functional.intervals import (
    Interval,
    bootstrap_interval,
    resampled_interval,
    wilson_interval,
)
from avalanche_clip.evaluation.functional.retrieval import retrieval_metrics

Encode = Callable[[Sequence[str]], Tensor]
_DRAWS = 1000


class Scores:
    """Values of a task with their intervals of 95 %."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, metric: str, value: float, interval: Interval) -> None:
        """Note a metric."""
        self.values[metric] = value
        self.values[f"{metric}_low"], self.values[f"{metric}_high"] = interval

    def share(self, metric: str, value: float, total: int) -> None:
        """Note a share of so many items; NaN has no interval."""
        if value == value:
            self.add(metric, value, wilson_interval(round(value * total), total))
        else:
            self.values[metric] = value


def score(task: Any, images: Tensor, encode: Encode) -> dict[str, float]:
    """Score a task.

    Shares of items have Wilson's interval, all others that of a bootstrap over items;
    that of the mean of both directions of retrieval takes them as independent.

    :param task: a :class:`ZeroShotTask`.
    :param images: features of its pictures, ``(N, D)``.
    :param encode: texts to features.
    :return: the main metric first, then the others, with ``_low`` and ``_high``;
        ``count`` of pictures and, of retrieval, ``texts``.
    """
    values = _SCORERS[task.kind](task, images, encode)
    main = [task.metric, f"{task.metric}_low", f"{task.metric}_high"]
    return {**{key: values[key] for key in main}, **values, "count": len(images)}


def _vectors(task: Any, encode: Encode) -> Tensor:
    sizes = torch.tensor([len(prompts) for prompts in task.prompts])
    owners = torch.arange(len(sizes)).repeat_interleave(sizes)
    return class_vectors(encode([t for own in task.prompts for t in own]), owners)


def _classification(task: Any, images: Tensor, encode: Encode) -> dict[str, float]:
    labels, scores = torch.from_numpy(task.labels), Scores()
    found = class_ranks(images, _vectors(task, encode), labels)
    values = accuracies(found.ranks, labels, len(task.prompts))
    for metric in ("acc1", "acc5"):
        scores.share(metric, values[metric], len(labels))
    first = (found.ranks < 1).numpy()

    def recall(counts: Any) -> float:
        hits = np.bincount(task.labels, counts * first)
        there = np.bincount(task.labels, counts)
        return float((hits[there > 0] / there[there > 0]).mean())

    def f1(counts: Any) -> float:
        return macro_f1(found.predictions, labels, torch.from_numpy(counts))

    value = values["mean_per_class_recall"]
    interval = resampled_interval(recall, len(labels))
    scores.add("mean_per_class_recall", value, interval)
    if task.metric == "macro_f1":
        value = macro_f1(found.predictions, labels)
        scores.add("macro_f1", value, resampled_interval(f1, len(labels)))
    if task.groups is not None:
        for k in (1, 5) if len(task.prompts) >= 5 else (1,):
            hits = (found.ranks < k).double().numpy()
            known = np.unique(task.groups[task.groups >= 0])
            parts = [hits[task.groups == group] for group in known]
            worst = min(parts, key=lambda part: part.mean())
            scores.share(f"worst_group_acc{k}", float(worst.mean()), len(worst))
    return scores.values


def _multilabel(task: Any, images: Tensor, encode: Encode) -> dict[str, float]:
    grades, labels = images @ _vectors(task, encode).T, torch.from_numpy(task.labels)

    def precision(counts: Any) -> float:
        rows = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
        found = classification_metrics(grades[rows], labels[rows])
        return found["mean_average_precision"]

    scores = Scores()
    interval = resampled_interval(precision, len(labels), draws=100)
    whole = precision(np.ones(len(labels), dtype=np.int64))
    scores.add("mean_average_precision", whole, interval)
    return scores.values


def _retrieval(task: Any, images: Tensor, encode: Encode) -> dict[str, float]:
    numbers: dict[str, int] = {}
    pairs = [
        (numbers.setdefault(text, len(numbers)), image)
        for image, texts in enumerate(task.texts)
        for text in texts
    ]
    texts, scores = encode(list(numbers)), Scores()
    values = retrieval_metrics(images, texts, torch.tensor(pairs))
    totals = {"image_to_text": len(images), "text_to_image": len(texts)}
    for metric, value in values.items():
        direction, _, k = metric.partition("_R@")
        if direction in totals and k:
            scores.share(metric, value, totals[direction])
        elif k:
            parts = [
                np.arange(total) < round(values[f"{name}_R@{k}"] * total)
                for name, total in totals.items()
            ]
            scores.add(metric, value, bootstrap_interval(parts, draws=_DRAWS))
        else:
            scores.values[metric] = value
    return {**scores.values, "texts": len(texts)}


def _association(task: Any, images: Tensor, encode: Encode) -> dict[str, float]:
    cues, found = encode([text for (text,) in task.prompts]), []
    for number, cue in enumerate(cues):
        rows = np.flatnonzero(task.groups == number)
        right, grades = task.labels[rows], (images[rows] @ cue).numpy()
        # of equal grades the wrong picture comes first
        chosen = np.lexsort((right, -grades))[: right.sum()]
        hits = right[chosen].sum()
        found.append(hits / (2 * right.sum() - hits))
    scores = Scores()
    mean = float(np.mean(found))
    scores.add("jaccard", mean, bootstrap_interval([found], draws=_DRAWS))
    return scores.values


_SCORERS: dict[str, Callable[[Any, Tensor, Encode], dict[str, float]]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "retrieval": _retrieval,
    "association": _association,
}
