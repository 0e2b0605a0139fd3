"""Class names of the MTIL domains: torchvision's, with the published changes.

Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628) and the authors' released
code.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

RENAMED: dict[str, dict[str, str]] = {
    "Caltech101": {
        "Faces": "off-center face",
        "Faces_easy": "centered face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
        "airplanes": "airplane",
        "car_side": "side of a car",
        "cougar_body": "body of a cougar cat",
        "cougar_face": "face of a cougar cat",
        # Two blanks, as published.
        "crocodile_head": "head of a  crocodile",
        "flamingo_head": "head of a flamingo",
        "snoopy": "snoopy (cartoon beagle)",
        "yin_yang": "yin and yang symbol",
    },
    "EuroSAT": {
        "AnnualCrop": "annual crop land",
        "Forest": "forest",
        "HerbaceousVegetation": "brushland or shrubland",
        "Highway": "highway or road",
        "Industrial": "industrial buildings or commercial buildings",
        "Pasture": "pasture land",
        "PermanentCrop": "permanent crop land",
        "Residential": "residential buildings or homes or apartments",
        "River": "river",
        "SeaLake": "lake or sea",
    },
    "Flowers": {"pink-yellow dahlia?": "pink-yellow dahlia"},
}
"""Data set -> torchvision's name of a class -> name in the prompts."""


def prompt_names(dataset: str, raw: Sequence[str]) -> tuple[str, ...]:
    """Turn torchvision's class names into those of the prompts.

    Underscores become blanks; Caltech101, EuroSAT and Flowers have names of
    their own for some classes (:data:`RENAMED`). Slashes stay.

    :param dataset: name of the data set, as in ``MTIL_NAMES``.
    :param raw: names or folder names, one per class.
    :return: one name per class, in the same order.

    >>> prompt_names("Caltech101", ["Faces", "sea_horse", "crocodile_head"])
    ('off-center face', 'sea horse', 'head of a  crocodile')
    """
    renamed = RENAMED.get(dataset, {})
    return tuple(renamed.get(name, name.replace("_", " ")) for name in raw)


def given_names(names: Sequence[str] | str | Path, count: int) -> tuple[str, ...]:
    """Return class names that a user gave, as a list or as a text file.

    :param names: the names, or the path of a UTF-8 file with one name per line
        (blank lines at its end do not count).
    :param count: how many classes there are.
    :raises ValueError: if their number is not ``count``, or one is empty.
    :raises FileNotFoundError: if there is no such file.

    >>> given_names(["cat", "dog"], 2)
    ('cat', 'dog')
    """
    where = "class_names"
    if isinstance(names, (str, Path)):
        path = Path(names).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"class_names={str(names)!r} is no file; give a list of names, or a "
                "text file with one name per line."
            )
        where = f"The file {path}"
        names = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    listed = tuple(str(name).strip("\r\n") for name in names)
    if len(listed) != count:
        raise ValueError(
            f"{where} holds {len(listed)} names, but there are {count} classes; give "
            "one name per class, in the order of the classes."
        )
    empty = [index for index, name in enumerate(listed) if not name.strip()]
    if empty:
        raise ValueError(f"{where} has no name for class {empty[0]}; give each a name.")
    return listed


__all__ = ["RENAMED", "given_names", "prompt_names"]
