"""Si-Blurry: a stream of classes whose task borders are blurred at random."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import CLScenario

from avalanche_clip.benchmarks.items.class_labels import LABELLED, class_targets
from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.benchmarks.items.given import check_source
from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.benchmarks.items.scenario import make_experience, make_scenario
from avalanche_clip.benchmarks.streams.classes import (
    Domain,
    as_domain,
    class_experience,
    labelled_dataset,
)
from avalanche_clip.common.checks import (
    as_finite,
    as_integer,
    as_size,
    require_choice,
    require_indices,
    require_some,
)
from avalanche_clip.common.columns import as_integer_array
from avalanche_clip.models.text.prompts import DEFAULT_TEMPLATE

SAMPLER_OPTIONS = "num_tasks disjoint_percent blurry_percent seed stochastic".split()
"""Arguments of :func:`si_blurry_benchmark` that say how the stream is drawn."""


def si_blurry_indices(
    targets: Any,
    *,
    num_tasks: int,
    disjoint_percent: int,
    blurry_percent: int,
    seed: int,
    stochastic: bool = True,
    num_classes: int | None = None,
) -> list[list[int]]:
    """Draw the samples of each task of a Si-Blurry stream, in their order.

    ``floor(C * N / 100)`` classes, rounded down to a multiple of T, are disjoint:
    all their samples lie in one task. So many others as T divides are blurry: M per
    cent of their samples, the first of each task in the order of the data set, are
    pooled, shuffled and given back to the tasks. Classes that are left over are not
    used. With ``stochastic`` the numbers of classes of a task, of samples it lends
    and of samples it gets back are random (Si-Blurry), else equal (as in i-Blurry);
    what then does not divide by T is lost. A task may come out empty.

    The draws are those of the released code, in its order, from one generator of
    torch on the CPU: the same seed gives the same stream. Data that are sorted by
    class lend the samples of the lowest classes only, as there; shuffle them first
    where that matters.

    :param targets: class of each sample, integers ``(N,)`` in 0..C-1.
    :param num_tasks: T, published 5.
    :param disjoint_percent: N, integer in [0, 100], published 50.
    :param blurry_percent: M, integer in [0, 100], published 10.
    :param seed: of the generator, published 1 to 5.
    :param stochastic: Si-Blurry; False for equal parts.
    :param num_classes: C; default the largest target and one. It decides the
        draws: give it where the last classes may lack samples.
    :return: one list of indices per task; no index occurs twice.
    :raises ValueError: if an argument is out of range.

    Source: Moon et al., ICCV 2023 (MVP), and the released codes of MVP and of SIT
    (Wang et al., 2024, arXiv 2405.15155). Memory and time grow with N log N, not
    with N times T.

    >>> si_blurry_indices([0, 1, 2, 3] * 2, num_tasks=2, disjoint_percent=50,
    ...                   blurry_percent=50, seed=1, stochastic=False)
    [[2, 6, 1, 5], [7, 0, 4, 3]]
    """
    labels = as_integer_array(targets, "targets", "N")
    count = int(labels.max()) + 1 if num_classes is None else num_classes
    options = (num_tasks, disjoint_percent, blurry_percent, seed, stochastic)
    return _draw(labels, as_size(count, "num_classes"), *options)[0]


def _draw(
    labels: np.ndarray, count: int, T: int, N: int, M: int, seed: int, stochastic: bool
) -> tuple[list[list[int]], ...]:
    """Samples, disjoint classes (of one task only) and blurry classes of each task."""
    tasks = as_size(T, "num_tasks")
    disjoint, blurring = _percent(N, "disjoint_percent"), _percent(M, "blurry_percent")
    require_choice("stochastic", stochastic, (True, False))
    require_indices(labels, count, "targets")
    generator = torch.Generator().manual_seed(as_integer(seed, "seed"))

    def permutation(size: int) -> np.ndarray:
        return torch.randperm(size, generator=generator).numpy()

    def shares(size: int) -> np.ndarray:
        """Sizes of T random or equal parts of ``size`` things."""
        if not stochastic:
            return np.full(tasks, size // tasks)
        inner = np.zeros(tasks - 1, dtype=np.int64)
        if size:
            drawn = torch.randint(0, size, (tasks - 1,), generator=generator)
            inner = np.sort(drawn.numpy())
        return np.diff(inner, prepend=0, append=size)

    first = count * disjoint // 100 // tasks * tasks
    second = (count - first) // tasks * tasks
    order = permutation(count)
    kinds = order[:first], order[first : first + second]
    disjoint_of, blurry_of = (_cut(classes, shares(len(classes))) for classes in kinds)
    # Class -> its place among the parts: disjoint ones, blurry ones, unused.
    places = np.full(count, 2 * tasks)
    for place, classes in enumerate(disjoint_of + blurry_of):
        places[classes] = place
    codes = places[labels].astype(np.int16 if tasks < 10**4 else np.int64)
    sizes = np.bincount(codes, minlength=2 * tasks + 1)
    parts = _cut(np.argsort(codes, kind="stable"), sizes)
    lent, kept = parts[tasks : 2 * tasks], sizes[tasks : 2 * tasks]
    m = int(kept.sum()) * blurring // 100
    quotas = shares(m) if stochastic else kept * blurring // 100
    pool = np.concatenate([part[:k] for part, k in zip(lent, quotas, strict=True)])
    back = quotas if stochastic else shares(len(pool))
    if len(pool):
        pool = pool[permutation(len(pool))]
    streams = []
    given = _cut(pool, np.append(back, 0))  # what is left over is lost
    for own, part, quota, more in zip(parts, lent, quotas, given):
        stream = np.concatenate([own, part[quota:], more])
        streams.append(stream[permutation(len(stream))])
    _warn_of_losses(streams, count - first - second, int(sizes[:-1].sum()))
    found = (streams, disjoint_of, blurry_of)
    return tuple([part.tolist() for part in each] for each in found)


def _cut(values: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    return np.split(values, np.cumsum(sizes)[:-1])


def _percent(value: int, what: str) -> int:
    as_finite(value, what, low=0, high=100)
    return as_size(value, what, least=0)


def _warn_of_losses(streams: list[np.ndarray], classes: int, samples: int) -> None:
    lost = samples - sum(map(len, streams))
    empty = [task for task, part in enumerate(streams) if not len(part)]
    said = [f"{classes} classes are not used"] * bool(classes)
    said += [f"{lost} samples of the pool are lost"] * bool(lost)
    said += [f"tasks {empty} are empty"] * bool(empty)
    if said:
        warnings.warn(
            f"Si-Blurry: {' and '.join(said)}. Choose a number of tasks that divides "
            "the classes, or another seed, if that is not wanted.",
            stacklevel=4,
        )


def si_blurry_benchmark(
    train: Any,
    test: Any,
    names: Sequence[str],
    templates: str | Sequence[str] = DEFAULT_TEMPLATE,
    *,
    num_tasks: int = 5,
    disjoint_percent: int = 50,
    blurry_percent: int = 10,
    seed: int = 1,
    stochastic: bool = True,
    zero_shot: Sequence[Domain | Sequence[Any]] = (),
    **streams: Any,
) -> CLScenario:
    """Build a Si-Blurry stream from any labelled data set.

    ``train`` has an experience per task, whose samples lie in the order of the
    stream. Learn them once and in that order: ``split_online(benchmark, 64)``, and
    ``train(..., shuffle=False)``. A task without a sample is left out, with a
    warning; ``task_sizes`` of the scenario has it.

    ``test`` has an experience per class, in the order of the labels. A run evaluates
    those whose class has occurred in the stream, among the classes that have: give
    the strategy ``eval_label_space="seen"``. The results of a run then hold
    :func:`online_accuracy`; see :func:`run_stream` for its points.

    Class ids are the labels. The scenario also has ``disjoint_classes`` and
    ``blurry_classes``, a tuple of class ids per task drawn.

    :param train: training images with labels ``0 .. C-1``.
    :param test: test images.
    :param names: class names, in the order of the labels.
    :param templates: prompt templates, the first for training.
    :param num_tasks: see :func:`si_blurry_indices`, also for the next four.
    :param disjoint_percent: share of the classes that are disjoint.
    :param blurry_percent: share of the samples of the others that are blurred.
    :param seed: of the stream.
    :param stochastic: False for equal tasks.
    :param zero_shot: data sets that are not learned, whose test images make the
        stream ``zero_shot``: an experience each, classified among its own classes
        whatever the strategy's label space. Evaluate it with ``final_streams``.
    :param streams: further labelled data sets with the same classes, in experiences
        like those of ``test``, for example ``valid=...``.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises ValueError: if labels do not fit the names, a data set is empty, no task
        has a sample, or an argument is out of range.

    Source: see :func:`si_blurry_indices`; the zero-shot test is that of SIT.

    >>> from avalanche_clip.benchmarks import si_blurry_emoji, split_online
    >>> online = split_online(si_blurry_emoji(), 64)
    >>> len(online.train_stream), len(online.streams["test"])
    (59, 95)
    """
    own = ClassPrompts(names, templates)
    require_some(own, "class names")
    # Refuses labels that do not fit the names.
    whole = labelled_dataset("train set", train, own, 0)
    options = (num_tasks, disjoint_percent, blurry_percent, seed, stochastic)
    indices, disjoint, blurry = _draw(class_targets(train), len(own), *options)
    if not any(indices):
        raise ValueError(
            f"num_tasks={num_tasks} leaves nothing to learn of {len(own)} classes and "
            f"{len(whole)} samples; choose fewer tasks."
        )
    used = sorted(sum(disjoint + blurry, []))
    known, first_id = own.for_ids(used), len(whole)
    built: dict[str, list[Any]] = {"train": []}
    for task, rows in enumerate(indices):
        facts: Any = {"class_prompts": known, "label": f"task {task + 1}"}
        if rows:
            built["train"].append(make_experience(whole.subset(rows), **facts))
    for name, data in {"test": test, **streams}.items():
        dataset = labelled_dataset(f"{name} set", data, own, first_id).eval()
        first_id += len(dataset)
        targets, built[name] = attribute_array(dataset, "targets"), []
        for number in used:
            if rows := np.flatnonzero(targets == number).tolist():
                part, what = dataset.subset(rows), (own.name(number), known, [number])
                built[name].append(class_experience(part, *what, dataset_index=0))
    if zero_shot:
        built["zero_shot"] = _held_out(known, zero_shot, first_id)
    return make_scenario(
        built,
        class_prompts=known,
        protocol="si_blurry",
        task_sizes=tuple(map(len, indices)),
        disjoint_classes=tuple(map(tuple, disjoint)),
        blurry_classes=tuple(map(tuple, blurry)),
    )


def _held_out(
    known: ClassPrompts, given: Sequence[Domain | Sequence[Any]], first_id: int
) -> list[Any]:
    """Experiences of data sets that are not learned, with classes of their own."""
    domains = [as_domain(domain, index) for index, domain in enumerate(given)]
    parts = [ClassPrompts(d.names, d.templates, domains=str(d.name)) for d in domains]
    prompts = ClassPrompts.merge([known, *parts])
    found = []
    for index, domain in enumerate(domains):
        check_source(domain.test, "label", LABELLED)
        own = prompts.for_ids(prompts.ids_of(str(domain.name)))
        where = f"test set of {domain.name!r}"
        dataset = labelled_dataset(where, domain.test, own, first_id, index + 1).eval()
        first_id += len(dataset)
        experience = class_experience(
            dataset, str(domain.name), prompts, own.ids, dataset_index=index + 1
        )
        experience.eval_label_space = "own"
        found.append(experience)
    return found
