"""Read the MTIL data sets through torchvision, with the published splits.

All data sets may lie under one root; this is the layout that torchvision
expects and makes when it downloads (``<root>`` left out)::

    fgvc-aircraft-2013b/data/    variants.txt, images_variant_{train,test}.txt, images/
    caltech101/101_ObjectCategories/    one folder per category
    cifar-100-python/            train, test, meta
    cifar-10-batches-py/         data_batch_1..5, test_batch, batches.meta
    dtd/dtd/                     labels/{train,test}1.txt, images/
    eurosat/2750/                one folder per class
    flowers-102/                 imagelabels.mat, setid.mat, jpg/
    food-101/                    meta/{train,test}.json, images/
    MNIST/raw/                   four idx files, unpacked
    oxford-iiit-pet/             annotations/{trainval,test}.txt, images/
    stanford_cars/               devkit/, cars_test_annos_withlabels.mat,
                                 cars_train/, cars_test/
    SUN397/                      ClassName.txt, a/ ... z/
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip.benchmarks.datasets.mtil.images import (
    ClassImages,
    FolderFiles,
    MTILDomain,
)
from avalanche_clip.benchmarks.datasets.mtil.mat_files import check_mat
from avalanche_clip.benchmarks.datasets.mtil.names import prompt_names
from avalanche_clip.benchmarks.datasets.mtil.orders import dataset_name
from avalanche_clip.benchmarks.datasets.mtil.table import DATASETS, DatasetFacts
from avalanche_clip.benchmarks.datasets.mtil.templates import MTIL_TEMPLATES
from avalanche_clip.benchmarks.datasets.plain_texts import refuse_foreign
from avalanche_clip.common.checks import require_choice
from avalanche_clip.common.files import unreadable
from avalanche_clip.common.pictures import read_picture

SPLIT_SEED = 42
CHECKS = ("warn", "raise", "ignore")


class UnreadableDataError(ValueError, RuntimeError):
    """Raised when the files of a data set are there but are not what they should be."""


def read_mtil_domain(
    name: str, root: str | Path, *, download: bool = False, check: str = "warn"
) -> MTILDomain:
    """Read one data set as MTIL uses it.

    Splits: official ``train`` (Aircraft: without ``val``; DTD: partition 1;
    Flowers: the 1,020), ``trainval`` for OxfordPet; Caltech101, EuroSAT and
    SUN397 are split 80/20 at random with a fixed seed. No image is decoded.

    :param name: one of the eleven MTIL names, or ``"CIFAR10"``; torchvision's
        names and short forms (``"pets"``, ``"cars"``) are understood.
    :param root: directory that holds the folder of the data set (see the
        module's text for all layouts).
    :param download: let torchvision fetch what is missing.
    :param check: what to do when the number of classes or images differs from
        the published one: ``"warn"``, ``"raise"`` or ``"ignore"``.
    :return: training and test images, class names, templates and the name.
    :raises ValueError: if the name or an argument is unknown, the sizes differ
        and ``check="raise"``, or a download is asked for that does not exist.
    :raises FileNotFoundError: if files are missing; the message names them, the
        expected folder and the source.
    :raises UnreadableDataError: if the files are there but damaged; it is a
        ValueError.
    :raises ImportError: if scipy is missing where annotations are ``.mat`` files.

    Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628), section on MTIL, and
    the authors' released code. The files of SUN397 are sorted by path before the
    split (our choice: torchvision lists them in the order of the file system, so
    that the published split cannot be had again).
    """
    facts = DATASETS[dataset_name(name, tuple(DATASETS))]
    require_choice("check", check, CHECKS)
    base = Path(root).expanduser()
    opened = [_open(facts, base, part, download) for part in facts.parts]
    if len(opened) == 1:
        train, test = _split_in_two(facts, opened[0])
    else:
        train, test = (_whole(facts, part) for part in opened)
    names = prompt_names(facts.name, _raw_names(facts, opened))
    for part in (train, test):
        if len(part) and not 0 <= part.targets.min() <= part.targets.max() < len(names):
            raise UnreadableDataError(
                f"{facts.name} in {root} has labels {part.targets.min()} to "
                f"{part.targets.max()} for {len(names)} classes; its lists are "
                f"damaged. Get them again from {facts.source}."
            )
    check_counts(facts, len(names), train, test, check)
    return MTILDomain(train, test, names, MTIL_TEMPLATES[facts.name], facts.name)


def random_80_20(size: int, seed: int = SPLIT_SEED) -> tuple[np.ndarray, np.ndarray]:
    """Split ``0 .. size-1`` as the published random 80/20 splits do.

    :param size: number of samples.
    :param seed: seed of torch's CPU generator; the global one is not touched.
    :return: int64 positions of ``int(0.8 * size)`` training samples and of the
        rest, each in the order drawn.
    """
    import torch
    from torch.utils.data import random_split

    count = int(0.8 * size)
    generator = torch.Generator("cpu").manual_seed(int(seed))
    everything: Any = range(size)
    parts = random_split(everything, [count, size - count], generator=generator)
    first, second = (np.asarray(list(p.indices), dtype=np.int64) for p in parts)
    return first, second


def check_counts(
    facts: DatasetFacts,
    classes: int,
    train: Sized,
    test: Sized,
    check: str,
    fault: str = "",
) -> None:
    """Compare numbers of classes and images with the published ones.

    :param fault: something else that differs, in words.
    :raises ValueError: if they differ and ``check`` is ``"raise"``.
    """
    found = (classes, len(train), len(test))
    labels = ("classes", "training images", "test images")
    differing = [
        f"{have:,} {label} instead of {want:,}"
        for have, want, label in zip(found, facts.sizes, labels)
        if want is not None and have != want
    ]
    differing += [fault] if fault else []
    if not differing or check == "ignore":
        return
    message = (
        f"{facts.name} has {', '.join(differing)}; results do not compare with "
        f"published ones. {facts.expected}"
    )
    if check == "raise":
        raise ValueError(message)
    warnings.warn(message, stacklevel=3)


def check_files(facts: DatasetFacts, root: Path, download: bool = False) -> None:
    """Say what is missing below the root of a data set.

    :raises FileNotFoundError: naming the missing files, the expected folder and
        the source of the data.
    """
    missing = [file for file in facts.files if not (root / file).exists()]
    if not missing:
        return
    do = f"Get it from {facts.source}, or pass download=True."
    if not facts.downloadable:
        do = "cannot be downloaded (download=True was given); it " if download else ""
        do = f"It {do}comes from {facts.source}."
    raise FileNotFoundError(
        f"{facts.name} is not in {root}: {', '.join(missing)} not found. Expected "
        f"below that directory: {facts.layout}. {do}"
    )


def _open(
    facts: DatasetFacts, root: Path, arguments: Mapping[str, object], download: bool
) -> Any:
    """Make the torchvision data set, or say what is missing."""
    if any(name.endswith(".mat") for name in facts.files):
        _need_scipy(facts)
    fetch = download and facts.downloadable
    if not fetch:
        check_files(facts, root, download)
    _check_texts(facts, root)
    from torchvision import datasets

    try:
        cls = getattr(datasets, facts.torchvision or facts.name)
        found = cls(str(root), download=fetch, **arguments)
    # It opens lists, pickles and .mat files, which raise nearly anything.
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).rstrip('.')}"
        raise UnreadableDataError(
            f"torchvision cannot {'fetch or ' if fetch else ''}read {facts.name} in "
            f"{root} ({said}). Files that are there may be incomplete, damaged or of "
            f"another version. {facts.expected}"
        ) from error
    if hasattr(found, "loader"):
        found.loader = read_picture
    _check_paths(facts, found, root)
    return found


def _check_texts(facts: DatasetFacts, root: Path) -> None:
    """Refuse lists that torchvision would misread, or that end the process."""
    for name in facts.files:
        path = root / name
        if path.suffix == ".mat" and path.is_file():
            check_mat(path)
        if path.suffix not in (".txt", ".json") or not path.is_file():
            continue
        with open(path, "rb") as file:
            head = file.read(512)
        refuse_foreign(path, head, "a list of the data set")
        if head.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")) or not head:
            do = "save it as UTF-8 without a byte order mark" if head else "it is empty"
            raise unreadable(path, "a list that torchvision can read", do)


def _check_paths(facts: DatasetFacts, dataset: Any, root: Path) -> None:
    """Raise ValueError where a list of the data set leads out of its folder."""
    start, climbs = str(root), root.parts.count("..")
    for attribute in ("_image_files", "_images", "_samples"):
        for entry in getattr(dataset, attribute, ()):
            path = str(entry[0] if isinstance(entry, tuple) else entry)
            if path.startswith(start) and ".." not in path:
                continue
            if not path.startswith(start) or Path(path).parts.count("..") > climbs:
                raise UnreadableDataError(
                    f"A list of {facts.name} names {path}, which leads outside the "
                    f"folder of its images in {root}. Get the lists again from "
                    f"{facts.source}."
                )


def _need_scipy(facts: DatasetFacts) -> None:
    try:
        import scipy.io  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"The annotations of {facts.name} are .mat files, which torchvision reads "
            "with scipy; install it with: pip install scipy"
        ) from error


def _attribute(facts: DatasetFacts, dataset: Any, attribute: str) -> Any:
    if not hasattr(dataset, attribute):
        import torchvision

        raise RuntimeError(
            f"torchvision {torchvision.__version__} has no {type(dataset).__name__}."
            f"{attribute}; this reader was checked with torchvision 0.29."
        )
    return getattr(dataset, attribute)


def _raw_names(facts: DatasetFacts, opened: list[Any]) -> list[str]:
    """torchvision's class names; those of training and test must agree."""
    listed = [[str(n) for n in _attribute(facts, d, facts.names)] for d in opened]
    if listed[0] != listed[-1]:
        differing = sorted(set(listed[0]) ^ set(listed[-1]))
        raise UnreadableDataError(
            f"The training and test lists of {facts.name} hold different classes: "
            f"{differing[:5]} are in one only, so that their labels do not mean the "
            f"same. {facts.expected}"
        )
    return listed[0]


def _targets(facts: DatasetFacts, dataset: Any) -> np.ndarray:
    """The class of every sample, from torchvision's own list."""
    values = _attribute(facts, dataset, facts.targets)
    if facts.targets == "_samples":
        values = [label for _, label in values]
    try:
        return np.asarray([int(value) for value in values], dtype=np.int64)
    except (TypeError, ValueError, OverflowError) as error:
        raise UnreadableDataError(
            f"The labels of {facts.name} are no integers ({error}); its lists are "
            f"damaged. {facts.expected}"
        ) from error


def _whole(facts: DatasetFacts, dataset: Any) -> ClassImages:
    targets = _targets(facts, dataset)
    return ClassImages(_source(facts, dataset), np.arange(len(targets)), targets)


def _source(facts: DatasetFacts, dataset: Any) -> Any:
    """What the pictures are read from: torchvision knows no loader of the pets."""
    if facts.name != "OxfordPet":
        return dataset
    names = [path.name for path in _attribute(facts, dataset, "_images")]
    return FolderFiles(_attribute(facts, dataset, "_images_folder"), names)


def _split_in_two(facts: DatasetFacts, dataset: Any) -> tuple[ClassImages, ClassImages]:
    targets = _targets(facts, dataset)
    order = np.arange(len(targets))
    if facts.name == "SUN397":
        files = _attribute(facts, dataset, "_image_files")
        paths = [path.as_posix() for path in files]
        order = np.asarray(sorted(range(len(paths)), key=paths.__getitem__), dtype=int)
    parts = (order[part] for part in random_80_20(len(order)))
    train, test = (ClassImages(dataset, part, targets[part]) for part in parts)
    return train, test
