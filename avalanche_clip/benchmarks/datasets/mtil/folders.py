"""Read ImageNet, TinyImageNet and ImageNet-R from their folders of images.

Layout of ImageNet-1K (or of a subset of its classes)::

    <root>/train/n01440764/n01440764_18.JPEG
    <root>/val/n01440764/ILSVRC2012_val_00000293.JPEG

The official archive of the validation images is one flat folder; its images must
be moved into one folder per WordNet id first.

Layout of TinyImageNet, as its archive unpacks::

    <root>/wnids.txt                              200 ids, one per line
    <root>/words.txt                              <id> TAB <lemma, lemma, ...>
    <root>/train/n02124075/images/n02124075_0.JPEG
    <root>/val/images/val_0.JPEG
    <root>/val/val_annotations.txt                <file> TAB <id> TAB <box>

Test images are the validation images of both; the official test labels are
not public.

Layout of ImageNet-R, which comes in one piece and is split 80/20::

    <root>/n01443537/art_0.jpg
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip.benchmarks.datasets.mtil.images import (
    IMAGE_ENDINGS,
    ClassImages,
    MTILDomain,
)
from avalanche_clip.benchmarks.datasets.mtil.names import given_names
from avalanche_clip.benchmarks.datasets.mtil.readers import (
    CHECKS,
    check_counts,
    check_files,
    random_80_20,
)
from avalanche_clip.benchmarks.datasets.mtil.table import (
    IMAGENET_1K,
    IMAGENET_100,
    IMAGENET_R,
    TINY_IMAGENET,
)
from avalanche_clip.benchmarks.datasets.mtil.templates import (
    CIL_TEMPLATES,
    MTIL_TEMPLATES,
)
from avalanche_clip.benchmarks.datasets.plain_texts import (
    check_names,
    plain_lines,
    read_plain,
)
from avalanche_clip.common.checks import (
    existing_folder,
    require_choice,
    require_distinct,
)
from avalanche_clip.models.encoders.imagenet_names import (
    imagenet_class_names,
    imagenet_wnids,
)

_TINY_IMAGENET_START = ("n02124075", "n04067472", "n04540053", "n04099969")
_IMAGENET = {100: IMAGENET_100, 1000: IMAGENET_1K}


def read_imagenet(
    root: str | Path,
    *,
    num_classes: int = 1000,
    class_names: Sequence[str] | str | Path | None = None,
    check: str = "warn",
) -> MTILDomain:
    """Read ImageNet-1K, or ImageNet-100, from folders named by WordNet ids.

    Classes are the first ``num_classes`` of ImageNet-1K in sorted order of their
    ids; class 0 is n01440764, class 99 n01855672. Further folders are ignored.

    :param root: directory with ``train`` and ``val``, each with a folder per id.
    :param num_classes: 1000 or 100.
    :param class_names: one name per class in that order, or a text file with one
        name per line; default the names published with CLIP, found by id.
    :param check: ``"warn"``, ``"raise"`` or ``"ignore"`` when the WordNet ids or
        the numbers of images differ from the published ones.
    :return: training and validation images, class names, the template
        ``a photo of a {}.`` and the name.
    :raises FileNotFoundError: if folders are missing.
    :raises ValueError: if an argument is not allowed, there are too few
        classes, or a folder has no published name and none was given.

    Source of the subset of 100: Thengane et al. (Continual-CLIP, arXiv
    2210.03114) and the authors' released code.
    """
    require_choice("check", check, CHECKS)
    require_choice("num_classes", num_classes, _IMAGENET)
    facts, base = _IMAGENET[num_classes], Path(root).expanduser()
    check_files(facts, base)
    wnids = _folders(base / "train")
    if len(wnids) < num_classes:
        raise ValueError(
            f"{base / 'train'} holds {len(wnids)} class folders, but {facts.name} "
            f"needs {num_classes}. {facts.expected}"
        )
    wnids = wnids[:num_classes]
    names = _names(class_names, wnids, base / "train")
    train, test = (_class_folders(base / part, wnids, "") for part in ("train", "val"))
    fault = "" if check == "ignore" else _differing_id(wnids, imagenet_wnids())
    check_counts(facts, len(wnids), train, test, check, fault)
    return MTILDomain(train, test, names, MTIL_TEMPLATES["ImageNet"], facts.name)


def read_tiny_imagenet(
    root: str | Path,
    *,
    class_names: Sequence[str] | str | Path | None = None,
    check: str = "warn",
) -> MTILDomain:
    """Read TinyImageNet in its official format.

    Class ``i`` is line ``i`` of ``wnids.txt`` (class 0 is n02124075), not the
    ``i``-th folder in sorted order.

    :param root: directory with ``wnids.txt``, ``train`` and ``val``, usually
        ``tiny-imagenet-200``.
    :param class_names: one name per class in that order, or a text file with one
        name per line. Default: the name published with CLIP for the same WordNet id
        ("Egyptian Mau", "fishing casting reel"), or, for ids that are not in
        ImageNet-1K, the first lemma of ``words.txt``.
    :param check: ``"warn"``, ``"raise"`` or ``"ignore"`` when numbers of classes
        or images, or the first ids of ``wnids.txt``, differ from the published
        ones.
    :return: training and validation images, class names, the template
        ``a bad photo of a {}.`` and the name.
    :raises FileNotFoundError: if files are missing.
    :raises ValueError: if an argument is not allowed, or a file is malformed.
    """
    require_choice("check", check, CHECKS)
    base = Path(root).expanduser()
    check_files(TINY_IMAGENET, base)
    path = base / "wnids.txt"
    lines = plain_lines(path, "a list of WordNet ids")
    wnids = [wnid for _, line in lines for wnid in line.split()]
    check_names(wnids, path, base / "train")
    require_distinct(wnids, f"ids of {path}")
    names = _names(class_names, wnids, path, base / "words.txt")
    train = _class_folders(base / "train", wnids, "images")
    test = _annotated(base / "val", wnids)
    fault = "" if check == "ignore" else _differing_id(wnids, _TINY_IMAGENET_START)
    check_counts(TINY_IMAGENET, len(wnids), train, test, check, fault)
    templates = CIL_TEMPLATES["TinyImageNet"]
    return MTILDomain(train, test, names, templates, TINY_IMAGENET.name)


def read_imagenet_r(
    root: str | Path,
    *,
    class_names: Sequence[str] | str | Path | None = None,
    check: str = "warn",
) -> MTILDomain:
    """Read ImageNet-R, split 80/20 as in the released code of SIT.

    Images are listed by WordNet id and name; training images are the first 80 % of
    ``torch.randperm`` with a generator seeded 0, test images the rest, both in the
    order of the list. Class ``i`` is the ``i``-th id in sorted order.

    :param root: directory with a folder per WordNet id, usually ``imagenet-r``.
    :param class_names: one name per class in that order, or a text file with one
        name per line; default the names published with CLIP, found by id.
    :param check: as in :func:`read_imagenet`.
    :return: training and test images, class names, the template
        ``a bad photo of a {}.`` and the name.
    :raises FileNotFoundError: if folders are missing or empty.
    :raises ValueError: if an argument is not allowed, or a folder has no published
        name and none was given.

    Source: Hendrycks et al., ICCV 2021 (arXiv 2006.16241); the split is that of
    Wang et al., 2024 (SIT, arXiv 2405.15155).
    """
    require_choice("check", check, CHECKS)
    base = existing_folder(Path(root).expanduser(), f"get it from {IMAGENET_R.source}")
    wnids = _folders(base)
    if not wnids:
        raise FileNotFoundError(f"{base} has no folders. {IMAGENET_R.expected}")
    names = _names(class_names, wnids, base)
    everything = _class_folders(base, wnids, "")
    parts = [np.sort(part) for part in random_80_20(len(everything), seed=0)]
    train, test = (everything.subset(part) for part in parts)
    check_counts(IMAGENET_R, len(wnids), train, test, check)
    return MTILDomain(train, test, names, CIL_TEMPLATES["ImageNetR"], IMAGENET_R.name)


def _folders(parent: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones."""
    names = [entry.name for entry in os.scandir(parent) if entry.is_dir()]
    return sorted(name for name in names if not name.startswith("."))


def _class_folders(folder: Path, wnids: Sequence[str], inner: str) -> ClassImages:
    """The images in ``<folder>/<id>/<inner>``, by class and name."""
    names: list[str] = []
    targets: list[int] = []
    missing, empty = [], []
    for label, wnid in enumerate(wnids):
        place = f"{wnid}/{inner}".rstrip("/")
        if not (folder / place).is_dir():
            missing.append(wnid)
            continue
        found = _images(os.listdir(folder / place))
        if not found:
            empty.append(wnid)
        names += [f"{place}/{name}" for name in found]
        targets += [label] * len(found)
    if missing or empty:
        where = f"{folder}/<id>/{inner}".rstrip("/")
        raise FileNotFoundError(
            f"{len(missing)} classes have no folder {where} (for example "
            f"{missing[:3]}) and {len(empty)} have one without images (for example "
            f"{empty[:3]}); images lie in one folder per WordNet id."
        )
    return ClassImages.of_files(folder, names, targets)


def _images(names: Iterable[str]) -> list[str]:
    return sorted(
        name
        for name in names
        if name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")
    )


def _annotated(folder: Path, wnids: Sequence[str]) -> ClassImages:
    """The validation images of TinyImageNet, in the order of the annotations."""
    labels = {wnid: label for label, wnid in enumerate(wnids)}
    path = folder / "val_annotations.txt"
    present = set(os.listdir(folder / "images"))
    found: dict[str, int] = {}
    for number, line in plain_lines(path, "a list of pictures and classes"):
        fields = line.split()
        if len(fields) < 2 or fields[1] not in labels or fields[0] not in present:
            raise ValueError(
                f"{path}, line {number}: {line!r} must begin with the name of a file "
                f"in {folder / 'images'} and an id of wnids.txt."
            )
        if fields[0] in found:
            raise ValueError(
                f"{path}, line {number}: {fields[0]!r} is named before; use the "
                "official file."
            )
        found[fields[0]] = labels[fields[1]]
    names = [f"images/{name}" for name in found]
    return ClassImages.of_files(folder, names, list(found.values()))


def _lemmas(path: Path | None) -> dict[str, str]:
    """WordNet id -> first lemma; empty if there is no such file."""
    if path is None or not path.is_file():
        return {}
    lines = read_plain(path, "a list of WordNet ids and words").split("\n")
    pairs = (line.partition("\t") for line in lines if "\t" in line)
    return {wnid.strip(): words.split(",")[0].strip() for wnid, _, words in pairs}


def _names(
    given: Any, wnids: Sequence[str], source: Path, words: Path | None = None
) -> tuple[str, ...]:
    """The given name of each WordNet id, else CLIP's, else its lemma."""
    if given is not None:
        return given_names(given, len(wnids))
    known = {**_lemmas(words), **dict(zip(imagenet_wnids(), imagenet_class_names()))}
    unnamed = [wnid for wnid in wnids if wnid not in known]
    if unnamed:
        raise ValueError(
            f"{source}: {len(unnamed)} classes have no published name (for example "
            f"{unnamed[:3]}): they are not in ImageNet-1K nor in words.txt. Pass "
            "class_names, in the order of the classes."
        )
    return tuple(known[wnid] for wnid in wnids)


def _differing_id(wnids: Sequence[str], published: Sequence[str]) -> str:
    """The first id that is not the published one, in words."""
    for label, (have, want) in enumerate(zip(wnids, published)):
        if have != want:
            return f"class {label} is {have} where {want} is expected"
    return ""
