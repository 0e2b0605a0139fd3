"""Class names of the MTIL domains: torchvision's, with the published changes.

Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628) and the authors' released
code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

from avalanche_clip.benchmarks.datasets.plain_texts import read_plain
from avalanche_clip.common.checks import existing_file, require_length, require_type

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

    Names only: lines that carry ids (``0 tench``, ``n01440764 tench``,
    ``0: 'tench',``, ``tench,0``) are refused, since the ids would go into prompts.

    :param names: the names, or the path of a UTF-8 file with one name per line
        (blank lines at its end do not count).
    :param count: how many classes there are.
    :raises ValueError: if their number is not ``count``, one is empty or no text,
        they carry ids, or the file is something else.
    :raises FileNotFoundError: if there is no such file.

    >>> given_names(["cat", "dog"], 2)
    ('cat', 'dog')
    """
    where = "class_names"
    if isinstance(names, (str, Path)):
        give = "give class_names as a list, or as a text file with one name per line"
        path = existing_file(Path(names).expanduser(), give)
        where = f"file {path}"
        text = read_plain(path, "a text with one class name per line").rstrip()
        names = [line.removesuffix("\r") for line in text.split("\n")] if text else []
    if isinstance(names, (Mapping, Set)):
        raise ValueError(
            f"{where} is a {type(names).__name__}, which has no order of classes or "
            "carries ids; give a list of names, in the order of the classes."
        )
    names = list(names)
    for name in names:
        require_type(name, str, f"A name in {where}", "texts", error=ValueError)
    listed = tuple(name.strip("\r\n") for name in names)
    _refuse_ids(listed, where)
    require_length(listed, count, f"names in {where}", "class")
    for index, name in enumerate(listed):
        if not name.strip():
            raise ValueError(f"{where} has no name for class {index}; give each one.")
    return listed


# Ids of WordNet, and those of Freebase that Open Images uses.
_KNOWN_ID = re.compile(r"\bn\d{8}\b|^/[mg]/\w+\W")
# A number, what divides it from the name, and the name; or the other way round.
_FIRST = re.compile(
    r"""^[\s\[({'"#]*(?P<id>\d+)['"]?(?P<by>\s*[:;,.)\]|=]+\s*|\s+|-|_)(?P<name>\S.*)$"""
)
_LAST = re.compile(
    r"""^(?P<name>.*?\S)(?P<by>\s*[:;,\t|=(\[]\s*|\s+)['"]?(?P<id>\d+)['"]?[\s\])},]*$"""
)
_QUOTED = re.compile(r"""^\s*[\[({]?\s*(['"]).*\1\s*[\])}]?\s*,?\s*$""")
_DIGITS = "zero one two three four five six seven eight nine".split()
# MNIST's published names begin with their numbers.
_PUBLISHED = {f"{number} - {digit}" for number, digit in enumerate(_DIGITS)}


def _refuse_ids(names: Sequence[str], where: str) -> None:
    """Raise ValueError where names carry ids or the marks of a data format."""
    filled = [name for name in names if name.strip()]
    if _PUBLISHED.issuperset(filled):
        return
    found = next((name for name in filled if _KNOWN_ID.search(name)), None)
    # A csv file may begin with the names of its columns.
    if any(
        _numbered(p, part) for p in (_FIRST, _LAST) for part in (filled, filled[1:])
    ):
        found = filled[-1]
    if found is None and all(map(_QUOTED.match, filled)):
        found = filled[0]
    first, last = filled[0].strip(), filled[-1].strip()
    if found is None and (first[0], last[-1]) in (("{", "}"), ("[", "]")):
        found = filled[0]
    if found is not None:
        raise ValueError(
            f"{where} holds {found[:60]!r}: that is a name with an id or with the "
            "marks of a data format, which would go into prompts. Give the bare names, "
            "one per class, in the order of the classes."
        )


def _numbered(pattern: re.Pattern[str], names: Sequence[str]) -> bool:
    """Whether every name has a number that is an id rather than a part of it."""
    matches = [m for name in names if (m := pattern.search(name)) is not None]
    size = len(names)
    if size < 2 or len(matches) < size:
        return False
    # "3 of clubs", "4 of clubs" differ by their numbers alone.
    if len({m["name"] for m in matches}) <= 0.75 * size:
        return False
    numbers = [int(m["id"]) for m in matches]
    marks = [m["by"] for m in matches]
    if set(numbers) in (set(range(size)), set(range(1, size + 1))):
        return True
    if len(set(numbers)) == size and all(re.search(r"[:;,\t|=]", by) for by in marks):
        return True
    # Two names may begin with numbers by chance; "707-320" may be a name, and "1957
    # Chevrolet" begins with a year. Names that end with any numbers are ordinary.
    if size < 3 or pattern is _LAST or "-" in marks or "_" in marks:
        return False
    years = all(1000 <= number < 3000 for number in numbers)
    return not years and all(a < b for a, b in zip(numbers[:-1], numbers[1:]))
