"""MTIL and X-TAIL: data sets of different domains, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from avalanche.benchmarks import CLScenario
from torch.utils.data import Subset

from avalanche_clip.benchmarks.datasets.mtil.coop import read_x_tail_domain
from avalanche_clip.benchmarks.datasets.mtil.orders import (
    MTIL_NAMES,
    MTIL_ORDERS,
    X_TAIL_NAMES,
    dataset_name,
)
from avalanche_clip.benchmarks.datasets.mtil.readers import read_mtil_domain
from avalanche_clip.benchmarks.items.class_labels import class_targets, few_shot_indices
from avalanche_clip.benchmarks.streams.classes import (
    domain_seed,
    multi_domain_benchmark,
)
from avalanche_clip.common.checks import (
    as_permutation,
    require_choice,
    require_distinct,
    require_some,
)

Root = str | Path | Mapping[str, str | Path] | Sequence[Any]


def mtil(
    root: Root | None,
    order: str | Sequence[int] | Sequence[str] = "I",
    shots: int | None = None,
    seed: int = 42,
    *,
    datasets: Sequence[Any] | None = None,
    download: bool = False,
    check: str = "warn",
) -> CLScenario:
    """Build MTIL: eleven image classification data sets learned in sequence.

    Aircraft, Caltech101, CIFAR100, DTD, EuroSAT, Flowers, Food, MNIST, OxfordPet,
    StanfordCars, SUN397: 1,201 classes and 97,209 test images. Each is one
    experience of the streams ``train`` and ``test``, with its own class names and
    templates. A test image is classified among the classes of its data set: leave
    the label spaces of ``ClassNameTemplate`` at their defaults.

    The index of a data set, and with it its global class ids, is its place in
    Order I, whatever the order of the stream; the task label is the position
    in the stream.

    :param root: directory with the folders of all data sets, or a mapping from
        names to directories. The folders are listed in
        :mod:`avalanche_clip.benchmarks.datasets.mtil.readers`. None if all
        ``datasets`` are given as objects; a list is taken for ``datasets``.
    :param order: ``"I"`` (alphabetical), ``"II"`` (Cars first), or all indices or
        names in the order wanted.
    :param shots: training images per class, all of a smaller class; 5 in the
        published few-shot setting (500 iterations); None takes all.
    :param seed: seed of the few-shot choice. The random 80/20 splits of
        Caltech101, EuroSAT and SUN397 always have the published seed.
    :param datasets: the data sets to use; default all eleven. Names are put in
        Order I, and the orders leave out what is not there. Objects ``(train set,
        test set, class names, templates, name)``, such as
        :func:`read_mtil_domain` returns, are indexed as listed.
    :param download: let torchvision fetch what is missing (StanfordCars cannot be
        fetched).
    :param check: ``"warn"``, ``"raise"`` or ``"ignore"`` when the size of a data
        set is not the published one.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises ValueError: if the order is no permutation, a name is unknown or
        repeated, or a size differs and ``check="raise"``.
    :raises FileNotFoundError: if a data set is not there; the message names the
        expected folder and where the data come from.

    Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628) and the authors'
    released code.
    """
    read = partial(read_mtil_domain, download=download, check=check)
    chosen = _domains(root, datasets, MTIL_NAMES, read)
    positions = _positions(order, [_name(domain) for domain in chosen], MTIL_NAMES)
    return multi_domain_benchmark(chosen, order=positions, shots=shots, seed=seed)


def x_tail(
    root: Root | None,
    order: str | Sequence[int] | Sequence[str] = "I",
    shots: int | None = 16,
    seed: int = 42,
    *,
    datasets: Sequence[Any] | None = None,
    templates: str | Sequence[str] | None = None,
    download: bool = False,
    check: str = "warn",
) -> CLScenario:
    """Build X-TAIL: ten domains, few shots, and no hint of the domain in the test.

    Aircraft, Caltech101, DTD, EuroSAT, Flowers, Food, MNIST, OxfordPet,
    StanfordCars, SUN397 with the splits and class names of CoOp's lists
    (:func:`read_x_tail_domain`): 1,100 classes in all, of which Caltech101 has 100.
    16 training images per class, drawn with replacement where a class has fewer.
    A test image is classified among the classes of **all** domains, seen and
    unseen: give ``ClassNameTemplate`` the argument ``eval_label_space="all"``.
    Classes of equal name in two domains stay two classes; only that of the image's
    own domain is right.

    The released choice of images hangs on the state of Python's generator and cannot
    be had again; ours depends on ``seed``, the domain and the class alone.

    :param root: directory with the folders of all data sets, or a mapping from
        names to directories. The folders are listed in
        :mod:`avalanche_clip.benchmarks.datasets.mtil.coop`. None if all
        ``datasets`` are given as objects; a list is taken for ``datasets``.
    :param order: ``"I"``, ``"II"`` (as in MTIL, without CIFAR100; ten unnamed
        data sets are taken as listed in Order I), or all indices or names in the
        order wanted.
    :param shots: training images per class; None takes all.
    :param seed: seed of the choice of these images.
    :param datasets: as in :func:`mtil`.
    :param templates: of all domains; default that of each domain, as released. The
        authors score zero-shot CLIP with ``"a photo of a {}."`` for all.
    :param download: let torchvision fetch MNIST; the others cannot be fetched.
    :param check: as in :func:`mtil`.
    :return: a scenario; pass it to :func:`prepare_benchmark` with a model.
    :raises ValueError: as :func:`mtil`, or if a list has another form.
    :raises FileNotFoundError: if a list or a folder is not there; the message names
        it, and where it comes from.

    Source: Xu et al., NeurIPS 2024 (arXiv 2406.18868) and the authors' released
    code. For this protocol on the splits of MTIL give ``mtil`` the ten names and
    ``shots``.
    """
    read = partial(read_x_tail_domain, download=download, check=check)
    chosen = _domains(root, datasets, X_TAIL_NAMES, read)
    positions = _positions(order, [_name(domain) for domain in chosen], X_TAIL_NAMES)
    if templates is not None:
        chosen = [(*domain[:3], templates, *domain[4:]) for domain in chosen]
    if shots is not None:
        chosen = [_few(d, index, shots, seed) for index, d in enumerate(chosen)]
    scenario = multi_domain_benchmark(chosen, order=positions)
    scenario.shots = shots
    return scenario


def _few(domain: Sequence[Any], index: int, shots: int, seed: int) -> tuple[Any, ...]:
    """A domain with ``shots`` training images per class, some of them repeated."""
    seeds = (seed, domain_seed(domain, index))
    rows = few_shot_indices(class_targets(domain[0]), shots, seed=seeds, repeat=True)
    return (Subset(domain[0], rows.tolist()), *domain[1:])


def _domains(
    root: Root | None,
    datasets: Sequence[Any] | None,
    known: Sequence[str],
    read: Callable[..., Any],
) -> list[Any]:
    """Read the data sets given by name; keep those given as objects."""
    if isinstance(root, (list, tuple)):
        if datasets is not None:
            raise ValueError(
                "root is a list and datasets is given too; give the data sets once, as "
                "datasets=[...], and root as a directory or None."
            )
        root, datasets = None, root
    if isinstance(datasets, str):
        raise ValueError(f"datasets={datasets!r} is one name; give a list of names.")
    items = [
        dataset_name(item, known) if isinstance(item, str) else item
        for item in (known if datasets is None else datasets)
    ]
    require_some(items, f"datasets (known are {', '.join(known)})")
    names = [item if isinstance(item, str) else _name(item) for item in items]
    require_distinct((name for name in names if name is not None), "datasets")
    if all(isinstance(item, str) for item in items):
        items = [name for name in known if name in items]
    roots = {n: _root_of(root, n, known) for n in items if isinstance(n, str)}
    return [read(i, roots[i]) if isinstance(i, str) else i for i in items]


def _root_of(root: Any, name: str, known: Sequence[str]) -> str | Path:
    """The directory that holds the folder of one data set."""
    if isinstance(root, Mapping):
        roots = {dataset_name(key, MTIL_NAMES): path for key, path in root.items()}
        if name not in roots:
            raise ValueError(
                f"root has no directory for {name}, only for {sorted(roots)}; add it, "
                "or leave the data set out with datasets=[...]."
            )
        return str(roots[name])
    if root is None:
        raise ValueError(f"{name} is to be read, but root is None; give a directory.")
    return Path(root)


def _name(domain: Any) -> str | None:
    return str(domain[4]) if len(domain) > 4 else None


def _positions(
    order: str | Sequence[int] | Sequence[str],
    names: Sequence[str | None],
    known: Sequence[str],
) -> list[int]:
    """Indices of the data sets in the order of the stream."""
    if isinstance(order, str):
        require_choice("order", order, MTIL_ORDERS)
        if order == "I":
            return list(range(len(names)))
        sequence = [MTIL_NAMES[k] for k in MTIL_ORDERS[order] if MTIL_NAMES[k] in known]
        if set(names) <= set(sequence):
            return [names.index(name) for name in sequence if name in names]
        if len(names) == len(sequence):
            return [known.index(name) for name in sequence]
        raise ValueError(
            f"order={order!r} is defined for {sequence}; for data sets {list(names)} "
            "give a list of indices."
        )
    listed: list[Any] = list(order)
    if listed and all(isinstance(item, str) for item in listed):
        have = [name for name in names if name is not None]
        spelled = [i if i in have else dataset_name(i, have) for i in listed]
        listed = [names.index(item) for item in spelled]
    return as_permutation(listed, len(names), "order")
