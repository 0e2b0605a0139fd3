"""Streams of labelled images: one domain after the other, or new classes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.items.class_labels import (
    LABELLED,
    class_targets,
    few_shot_indices,
)
from avalanche_clip.benchmarks.items.class_prompts import ClassPrompts
from avalanche_clip.benchmarks.items.given import check_item, check_source
from avalanche_clip.benchmarks.items.items import (
    attribute_array,
    make_image_text_dataset,
)
from avalanche_clip.benchmarks.items.scenario import make_experience, make_scenario
from avalanche_clip.common.checks import (
    as_integers,
    as_permutation,
    as_size,
    require_choice,
    require_length,
    require_one_of,
    require_some,
    require_type,
)
from avalanche_clip.models.text.prompts import DEFAULT_TEMPLATE

RELABEL = ("arrival", "original")


class Domain(NamedTuple):
    """One data set of a multi-domain stream.

    :param train: training images: map-style, the image is the first element of
        an item; labels ``0 .. C-1``.
    :param test: test images.
    :param names: class names, in the order of the labels.
    :param templates: prompt templates, the first for training.
    :param name: of the domain; default ``"domain <index>"``.
    """

    train: Any
    test: Any
    names: Sequence[str]
    templates: str | Sequence[str] = DEFAULT_TEMPLATE
    name: str | None = None


class LabelledImages:
    """Items ``(image, prompt of its class)`` of a labelled data set.

    :param data: map-style data set; the image is the first element of an item.
    :param targets: position in ``prompts`` of each item, int64, ``(N,)``.
    :param prompts: one text per class.
    """

    def __init__(self, data: Any, targets: np.ndarray, prompts: Sequence[str]):
        self.data = data
        self.targets = targets
        self.prompts = tuple(prompts)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, str]:
        item = self.data[index]
        if isinstance(item, Mapping):
            check_item(item, f"Item {index}", "label")
        image = item[0] if isinstance(item, (tuple, list)) else item
        return image, self.prompts[int(self.targets[index])]


# ------------------------------------------------------------------- building
def labelled_dataset(
    where: str, data: Any, prompts: ClassPrompts, first_id: int, task: int = 0
) -> AvalancheDataset:
    """Wrap a labelled data set of a stream, with global ids as targets.

    :param where: what it is, for errors.
    :param prompts: of its classes, in the order of its labels.
    :param first_id: sample id of its first item.
    """
    targets = class_targets(data)
    count = len(prompts)
    if len(targets) == 0:
        raise ValueError(f"The {where} is empty.")
    if targets.min() < 0 or targets.max() >= count:
        raise ValueError(
            f"The {where} has labels {targets.min()}..{targets.max()}, but "
            f"{count} class names are given; labels must lie in 0..{count - 1}."
        )
    return make_image_text_dataset(
        LabelledImages(data, targets, prompts.prompts()),
        sample_ids=np.arange(len(targets)) + first_id,
        targets=np.asarray(prompts.ids, dtype=np.int64)[targets],
        task_labels=task,
    )


def class_experience(
    dataset: AvalancheDataset,
    label: str,
    prompts: ClassPrompts,
    class_ids: Sequence[int],
    *,
    dataset_index: int,
) -> DatasetExperience:
    """An experience that knows its classes."""
    return make_experience(
        dataset,
        class_prompts=prompts,
        class_ids=tuple(class_ids),
        class_names=tuple(prompts.name(i) for i in class_ids),
        templates=prompts.templates(class_ids[0]),
        domain=prompts.domain(class_ids[0]),
        dataset_index=dataset_index,
        label=label,
    )


def multi_domain_benchmark(
    domains: Sequence[Domain | Sequence[Any]],
    *,
    order: Sequence[int] | None = None,
    shots: int | None = None,
    seed: int = 0,
    **streams: Sequence[Any],
) -> CLScenario:
    """Learn several labelled data sets one after the other.

    Classes have global ids: those of a data set follow those of the data sets
    listed before it, whatever the ``order``. The scenario carries
    ``class_prompts``; each experience ``class_ids``, ``class_names``,
    ``templates``, ``domain``, ``dataset_index`` (its place in ``domains``) and
    ``label``. Its task label is its place in the stream. Items are pairs of an
    image and the first prompt of its class; ``targets`` are the global ids.
    Images are read when a batch needs them.

    :param domains: one :class:`Domain`, or tuple ``(train, test, names,
        templates[, name])``, per data set.
    :param order: indices into ``domains`` in the order of learning; default as
        listed.
    :param shots: training images per class: exactly ``min(shots, available)``
        of each, chosen by index; default all. Other streams stay whole.
    :param seed: of that choice. What is chosen of a domain depends on its name
        and not on other domains; that of a domain without a name, on its index.
    :param streams: further streams, one data set per domain as listed, for
        example ``valid=[...]``.
    :return: a scenario with streams ``train``, ``test`` and the given ones;
        pass it to :func:`prepare_benchmark` with a model.
    :raises ValueError: if there are no domains, ``order`` is no permutation,
        labels do not fit the names, a data set is empty, domain names repeat,
        or a stream has another number of data sets.

    Source: the stream of Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628), with
    any data sets; see ``mtil`` for theirs.
    """
    given_domains = list(enumerate(domains))
    listed = [as_domain(domain, index) for index, domain in given_domains]
    seeds = [domain_seed(domain, index) for index, domain in given_domains]
    require_some(listed, "domains")
    count = len(listed)
    chosen = as_permutation(range(count) if order is None else order, count, "order")
    parts = [ClassPrompts(d.names, d.templates, domains=d.name or "") for d in listed]
    prompts = ClassPrompts.merge(parts)
    given: dict[str, Sequence[Any]] = {
        "train": [d.train for d in listed],
        "test": [d.test for d in listed],
        **streams,
    }
    built: dict[str, list[Any]] = {name: [] for name in given}
    first_id = 0
    for name, sets in given.items():
        require_length(sets, count, f"data sets of stream {name!r}", "domain")
        for data in sets:
            check_source(data, "label", LABELLED)
        first = [first_id + n for n in np.cumsum([0, *map(len, sets)]).tolist()]
        first_id = first[-1]
        for position, index in enumerate(chosen):
            domain = listed[index]
            own = prompts.for_ids(prompts.ids_of(str(domain.name)))
            where = f"{name} set of domain {domain.name!r}"
            dataset = labelled_dataset(where, sets[index], own, first[index], position)
            if name == "train" and shots is not None:
                dataset = _few_shot(dataset, shots, (seed, seeds[index]), own)
            if name != "train":
                dataset = dataset.eval()
            label = str(domain.name)
            built[name].append(
                class_experience(dataset, label, prompts, own.ids, dataset_index=index)
            )
    return make_scenario(
        built, class_prompts=prompts, protocol="multi_domain", shots=shots
    )


def as_domain(given: Any, index: int) -> Domain:
    """Return a domain with a name; the index is its place in a list.

    :raises ValueError: if it is no tuple of 4 or 5 entries.
    """
    if not isinstance(given, (tuple, list)) or not 4 <= len(given) <= 5:
        raise ValueError(
            f"Domain {index} is {type(given).__name__!r}; give (train, test, class "
            "names, templates) or (train, test, class names, templates, name)."
        )
    domain = Domain(*given)
    what = f"The name of domain {index}"
    require_type(domain.name, (str, type(None)), what, "a string", error=ValueError)
    return domain._replace(name=domain.name or f"domain {index}")


def domain_seed(given: Sequence[Any], index: int) -> int:
    """Number that the few-shot choice of a domain starts from."""
    name = given[4] if len(given) > 4 else None
    if not name:
        return index
    return int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:7], "big")


def _few_shot(
    dataset: AvalancheDataset, shots: int, seed: Sequence[int], own: ClassPrompts
) -> AvalancheDataset:
    ids = attribute_array(dataset, "targets")
    # By label, not by global id: the choice does not depend on other domains.
    rows = {number: row for row, number in enumerate(own.ids)}
    labels = np.asarray([rows[int(i)] for i in ids], dtype=np.int64)
    return dataset.subset(few_shot_indices(labels, shots, seed=seed).tolist())


def class_incremental_benchmark(
    train: Any,
    test: Any,
    names: Sequence[str],
    templates: str | Sequence[str] = DEFAULT_TEMPLATE,
    *,
    class_order: Sequence[int] | None = None,
    sizes: Sequence[int] | None = None,
    base: int | None = None,
    increment: int | None = None,
    relabel: str = "arrival",
    shots: int | None = None,
    seed: int = 0,
    **streams: Any,
) -> CLScenario:
    """Learn the classes of one labelled data set step by step.

    No class is left out: where ``increment`` does not divide what remains, the
    last step is smaller. By default global ids are positions in the class
    order, as in the literature, so the classes of each step are consecutive.
    For what scenario and experiences carry see :func:`multi_domain_benchmark`;
    all samples have task label 0.

    :param train: training images with labels ``0 .. C-1``.
    :param test: test images.
    :param names: class names, in the order of the labels.
    :param templates: prompt templates, the first for training.
    :param class_order: labels in order of arrival; default ascending.
    :param sizes: number of classes of each step; their sum is C.
    :param base: classes of the first step; default ``increment``.
    :param increment: classes of each later step. Give ``sizes`` or this.
    :param relabel: ``"arrival"``: class ``c`` gets the global id
        ``class_order.index(c)``; ``"original"``: it keeps its label.
    :param shots: training images per class, see :func:`multi_domain_benchmark`.
    :param seed: of that choice.
    :param streams: further data sets, for example ``valid=...``.
    :return: a scenario with streams ``train``, ``test`` and the given ones.
    :raises ValueError: if the class order is no permutation, sizes do not add
        up, or a step has no sample in some stream.

    Source: the protocol of Continual-CLIP (arXiv 2210.03114) and of the
    class-incremental part of ZSCL (arXiv 2303.06628).
    """
    own = ClassPrompts(names, templates)
    count = len(own)
    require_some(own, "class names")
    given = range(count) if class_order is None else class_order
    arrival = as_permutation(given, count, "class_order")
    cuts = _sizes(sizes, base, increment, count)
    require_choice("relabel", relabel, RELABEL)
    ids = np.arange(count)
    if relabel == "arrival":
        ids[arrival] = np.arange(count)  # label -> position in the order
    by_label = ClassPrompts(own.names, own.domain_templates(""), ids=ids)
    ordered = [int(ids[label]) for label in arrival]
    prompts = by_label.for_ids(sorted(ordered))
    ends = np.cumsum(cuts).tolist()
    steps = np.split(np.asarray(ordered), ends[:-1])
    built: dict[str, list[Any]] = {}
    first_id = 0
    for name, data in {"train": train, "test": test, **streams}.items():
        whole = labelled_dataset(f"{name} set", data, by_label, first_id)
        first_id += len(whole)
        if name == "train" and shots is not None:
            whole = _few_shot(whole, shots, (seed, 0), by_label)
        targets = attribute_array(whole, "targets")
        built[name] = []
        for position, classes in enumerate(steps):
            rows = np.flatnonzero(np.isin(targets, classes))
            if not len(rows):
                raise ValueError(
                    f"Step {position} ({len(classes)} classes) has no sample in stream "
                    f"{name!r}; choose larger steps or another class order."
                )
            part = whole.subset(rows.tolist())
            if name != "train":
                part = part.eval()
            ids, last = classes.tolist(), ends[position] - 1
            label = f"{last}" if len(ids) == 1 else f"{last + 1 - len(ids)}-{last}"
            built[name].append(
                class_experience(part, label, prompts, ids, dataset_index=0)
            )
    return make_scenario(
        built,
        class_prompts=prompts,
        protocol="class_incremental",
        shots=shots,
        class_order=arrival,
    )


def _sizes(
    sizes: Sequence[int] | None, base: int | None, increment: int | None, count: int
) -> list[int]:
    """Number of classes of each step."""
    require_one_of(sizes=sizes, increment=increment)
    require_one_of(least=0, sizes=sizes, base=base)
    if sizes is None:
        increment = as_size(increment, "increment")
        first = increment if base is None else as_size(base, "base")
        if first > count:
            name = "increment" if base is None else "base"
            raise ValueError(
                f"{name}={first} exceeds the {count} classes; choose less."
            )
        full, last = divmod(count - first, increment)
        return [first, *[increment] * full, *([last] if last else [])]
    found = [as_size(size, "An entry of sizes") for size in as_integers(sizes, "sizes")]
    if sum(found) != count:
        raise ValueError(
            f"sizes={found} add up to {sum(found)}, but there are {count} classes; no "
            "class may be left out."
        )
    return found
