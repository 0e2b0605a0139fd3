"""Read CoOp's lists of images, and with them the data sets of X-TAIL.

A list is a JSON file beside the images, ``split_zhou_<name>.json``: an object with
``train``, ``val`` and ``test``, each a list of ``[path, label, class name]``. CoOp's
repository says where to get it for each data set. Below one root (``<root>`` left
out; any folder one level below the root will do in place of the first)::

    caltech-101/      split_zhou_Caltech101.json, 101_ObjectCategories/
    dtd/              split_zhou_DescribableTextures.json, images/
    eurosat/          split_zhou_EuroSAT.json, 2750/
    oxford_flowers/   split_zhou_OxfordFlowers.json, jpg/
    food-101/         split_zhou_Food101.json, images/
    oxford_pets/      split_zhou_OxfordPets.json, images/
    stanford_cars/    split_zhou_StanfordCars.json, cars_train/, cars_test/
    sun397/           split_zhou_SUN397.json, SUN397/
    fgvc_aircraft/    variants.txt, images_variant_{train,test}.txt, images/
    MNIST/            as torchvision has it

Sources: Zhou et al., IJCV 2022 (CoOp, arXiv 2109.01134); Xu et al., NeurIPS 2024
(X-TAIL, arXiv 2406.18868), and the code released with both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from avalanche_clip.benchmarks.datasets.captioned import is_id, is_text
from avalanche_clip.benchmarks.datasets.mtil.images import ClassImages, MTILDomain
from avalanche_clip.benchmarks.datasets.mtil.orders import X_TAIL_NAMES, dataset_name
from avalanche_clip.benchmarks.datasets.mtil.readers import (
    CHECKS,
    check_counts,
    check_files,
    read_mtil_domain,
)
from avalanche_clip.benchmarks.datasets.mtil.table import DATASETS, DatasetFacts
from avalanche_clip.benchmarks.datasets.mtil.templates import X_TAIL_TEMPLATES
from avalanche_clip.benchmarks.datasets.plain_texts import check_names, plain_lines
from avalanche_clip.common.checks import existing_file, existing_folder, require_choice
from avalanche_clip.common.files import read_json, unreadable

_SOURCE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"
_PARTS = ("train", "val", "test")
_WANTED = "a list of CoOp"


class _List(NamedTuple):
    """A list of CoOp: its name, where its images lie, and the published sizes."""

    file: str
    images: str
    sizes: tuple[int, int, int]
    """Classes, training images, test images."""


_LISTS = {
    "Caltech101": _List(
        "split_zhou_Caltech101.json", "101_ObjectCategories", (100, 4128, 2465)
    ),
    "DTD": _List("split_zhou_DescribableTextures.json", "images", (47, 2820, 1692)),
    "EuroSAT": _List("split_zhou_EuroSAT.json", "2750", (10, 13500, 8100)),
    "Flowers": _List("split_zhou_OxfordFlowers.json", "jpg", (102, 4093, 2463)),
    "Food": _List("split_zhou_Food101.json", "images", (101, 50500, 30300)),
    "OxfordPet": _List("split_zhou_OxfordPets.json", "images", (37, 2944, 3669)),
    "StanfordCars": _List("split_zhou_StanfordCars.json", "", (196, 6509, 8041)),
    "SUN397": _List("split_zhou_SUN397.json", "SUN397", (397, 15880, 19850)),
}
_AIRCRAFT = ("variants.txt", "images_variant_train.txt", "images_variant_test.txt")
_IMAGES = {
    **{entry.file: entry.images for entry in _LISTS.values()},
    "split_zhou_UCF101.json": "UCF-101-midframes",
}


class CoopSplit(NamedTuple):
    """The three parts of a list of CoOp.

    :ivar train: training images, in the order of the file.
    :ivar val: validation images.
    :ivar test: test images.
    :ivar class_names: name of each label, as in the file, underscores as blanks.
    """

    train: ClassImages
    val: ClassImages
    test: ClassImages
    class_names: tuple[str, ...]


def read_coop_split(path: str | Path, images: str | Path | None = None) -> CoopSplit:
    """Read a list of images as CoOp and many few-shot works use them.

    No image is opened.

    :param path: a file ``split_zhou_<name>.json``.
    :param images: folder that the paths in it are relative to; default the usual one
        beside the file (``101_ObjectCategories`` for Caltech101, ...), for lists
        under other names the folder of the file.
    :return: the parts and the class names.
    :raises FileNotFoundError: if the file or the folder is missing.
    :raises ValueError: naming the file, if it has another form, a path leaves the
        folder, labels are not ``0 .. C-1``, or a label has two names.
    """
    path = existing_file(Path(path).expanduser(), f"get the list from {_SOURCE}")
    folder = _image_folder(path, images)
    content = read_json(path, dict)
    names: dict[int, str] = {}
    train, val, test = (_part(path, content, p, folder, names) for p in _PARTS)
    labels = sorted(names)
    if not labels or labels != list(range(len(labels))):
        # Of a label of ten digits all smaller ones would be too many to list.
        missing = sorted(set(range(len(labels) + 4)) - set(labels))
        missing = [label for label in missing if label < max(labels, default=0)]
        raise unreadable(path, _WANTED, f"the labels {missing[:5]} do not occur")
    class_names = tuple(names[label].replace("_", " ") for label in labels)
    return CoopSplit(train, val, test, class_names)


def _image_folder(path: Path, images: str | Path | None) -> Path:
    inner = _IMAGES.get(path.name, "")
    folder = path.parent / inner if images is None else Path(images).expanduser()
    if images is None and not folder.is_dir() and path.parent.name == inner:
        folder = path.parent
    do = f"put the images beside {path}, or pass images=..."
    return existing_folder(folder, do)


def _part(
    path: Path, content: Any, part: str, folder: Path, names: dict[int, str]
) -> ClassImages:
    """One part of a list; class names are gathered in ``names``."""
    rows = content.get(part)
    if not isinstance(rows, list):
        fault = f"{part!r} is {type(rows).__name__}, not a list"
        raise unreadable(path, _WANTED, fault)
    for number, row in enumerate(rows):
        fault = _fault(row)
        if not fault and names.setdefault(row[1], row[2]) != row[2]:
            fault = f"label {row[1]} is {names[row[1]]!r} before"
        if fault:
            fault = f"entry {number} of {part!r} is {str(row)[:80]} ({fault}); entries"
            raise unreadable(path, _WANTED, f"{fault} are [path, label, class name]")
    files = [row[0] for row in rows]
    check_names(files, path, folder)
    return ClassImages.of_files(folder, files, [row[1] for row in rows])


def _fault(row: Any) -> str:
    if not isinstance(row, list) or len(row) != 3:
        return "not three values"
    if not is_text(row[0]):
        return "the path is no text"
    if not is_id(row[1]) or row[1] < 0:
        return "the label is no integer >= 0"
    if not is_text(row[2]) or not row[2].strip():
        return "the class name is empty or no text"
    return ""


def read_x_tail_domain(
    name: str, root: str | Path, *, download: bool = False, check: str = "warn"
) -> MTILDomain:
    """Read one data set as the released X-TAIL does.

    Splits and class names are those of CoOp's lists (Caltech101 without
    "Faces_easy": 100 classes; names of SUN397 with the words of the path reversed;
    cars with the year first). Aircraft follows its own lists, MNIST torchvision's.
    The names of EuroSAT end with "satellite location", those of MNIST read
    ``number: "0 - zero"``. All ten together have 1,100 classes.

    :param name: one of ``X_TAIL_NAMES``; other spellings are understood.
    :param root: directory with the folders of all data sets (see the module's
        text), or the folder of this one.
    :param download: let torchvision fetch MNIST; the others cannot be fetched.
    :param check: ``"warn"``, ``"raise"`` or ``"ignore"`` when the numbers of
        classes and images are not the published ones.
    :return: training and test images, class names, the template and the name.
    :raises FileNotFoundError: naming the list or the folder that is missing.
    :raises ValueError: if an argument is unknown, a file has another form, or the
        sizes differ and ``check="raise"``.
    """
    name = dataset_name(name, X_TAIL_NAMES)
    require_choice("check", check, CHECKS)
    base = Path(root).expanduser()
    templates = (X_TAIL_TEMPLATES[name],)
    if name == "MNIST":
        domain = read_mtil_domain(name, base, download=download, check=check)
        names = tuple(f'number: "{digit}"' for digit in domain.class_names)
        return domain._replace(class_names=names, templates=templates)
    facts = _facts(name)
    if name == "Aircraft":
        train, test, names = _read_aircraft(base, facts)
    else:
        split = read_coop_split(_find(_LISTS[name].file, base, facts))
        train, test, names = split.train, split.test, split.class_names
    if name == "EuroSAT":
        names = tuple(f"{place} satellite location" for place in names)
    check_counts(facts, len(names), train, test, check)
    return MTILDomain(train, test, names, templates, name)


def _facts(name: str) -> DatasetFacts:
    if name == "Aircraft":
        layout = "variants.txt, images_variant_train.txt, images_variant_test.txt and "
        return DATASETS[name]._replace(
            layout=layout + "images/<id>.jpg in one folder", downloadable=False
        )
    known = _LISTS[name]
    return DATASETS[name]._replace(
        sizes=known.sizes,
        layout=f"{known.file} beside the images ({known.images or 'cars_train'}/)",
        source=_SOURCE,
        downloadable=False,
    )


def _find(file: str, root: Path, facts: DatasetFacts) -> Path:
    """Find a file in the root or in a folder below it."""
    patterns = (file, f"*/{file}", f"*/data/{file}", f"dtd/dtd/{file}")
    found = sorted({path for pattern in patterns for path in root.glob(pattern)})
    if len(found) > 1:
        raise ValueError(
            f"{file} is there more than once: {', '.join(map(str, found))}. Keep one, "
            f"or give the folder of {facts.name} in a mapping as root."
        )
    if not found:
        raise FileNotFoundError(
            f"{facts.name} of X-TAIL is not in {root}: {file} is neither there nor in "
            f"a folder below. {facts.expected}"
        )
    return found[0]


def _read_aircraft(
    root: Path, facts: DatasetFacts
) -> tuple[ClassImages, ClassImages, tuple[str, ...]]:
    """Labels are lines of ``variants.txt``; ``val`` is not trained on."""
    folder = _find(_AIRCRAFT[0], root, facts).parent
    check_files(facts._replace(files=(*_AIRCRAFT, "images")), folder)
    lines = plain_lines(folder / _AIRCRAFT[0], "a list of variants")
    variants = [line for _, line in lines]
    labels = {variant: label for label, variant in enumerate(variants)}
    parts = [_aircraft_part(folder, name, labels) for name in _AIRCRAFT[1:]]
    return parts[0], parts[1], tuple(v.replace("_", " ") for v in variants)


def _aircraft_part(folder: Path, name: str, labels: dict[str, int]) -> ClassImages:
    path, wanted = folder / name, "a list of aircraft"
    files: list[str] = []
    targets: list[int] = []
    for number, line in plain_lines(path, wanted):
        image, _, variant = line.partition(" ")
        if variant not in labels:
            fault = f"line {number} names the variant {variant[:60]!r}, which is not in"
            raise unreadable(path, wanted, f"{fault} {_AIRCRAFT[0]}")
        files.append(f"{image}.jpg")
        targets.append(labels[variant])
    check_names(files, path, folder / "images")
    return ClassImages.of_files(folder / "images", files, targets)
