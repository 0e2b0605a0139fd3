"""Class names of the MTIL domains: torchvision's, with the published changes.

Source: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628) and the authors' released
code.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from avalanche_clip.benchmarks.datasets.plain_texts import read_plain

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
        path = Path(names).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"class_names={str(names)!r} is no file; give a list of names, or a "
                "text file with one name per line."
            )
        where = f"The file {path}"
        text = read_plain(path, "a text with one class name per line").rstrip()
        names = [line.removesuffix("\r") for line in text.split("\n")] if text else []
    wrong = [name for name in names if not isinstance(name, str)]
    if wrong:
        raise ValueError(
            f"{where} holds {wrong[0]!r}, a {type(wrong[0]).__name__}; names are texts."
        )
    listed = tuple(name.strip("\r\n") for name in names)
    _refuse_ids(listed, where)
    if len(listed) != count:
        raise ValueError(
            f"{where} holds {len(listed)} names, but there are {count} classes; give "
            "one name per class, in the order of the classes."
        )
    empty = [index for index, name in enumerate(listed) if not name.strip()]
    if empty:
        raise ValueError(f"{where} has no name for class {empty[0]}; give each a name.")
    return listed


_WORDNET = re.compile(r"\bn\d{8}\b")
# A number, what divides it from the name, and the name; or the other way round.
_NUMBER_FIRST = re.compile(r"""^[\s\[({'"]*(\d+)['"]?(?:\s*[:;,.)\]|=]+\s*|\s+|-)\S""")
_NUMBER_LAST = re.compile(r"""\S\s*[:;,\t|=]\s*['"]?(\d+)['"]?[\s\])},]*$""")
_QUOTED = re.compile(r"""^\s*[\[({]?\s*(['"]).*\1\s*[\])}]?\s*,?\s*$""")
_DIGITS = "zero one two three four five six seven eight nine".split()


def _refuse_ids(names: Sequence[str], where: str) -> None:
    """Raise ValueError where names carry ids or the marks of a data format."""
    filled = [name for name in names if name.strip()]
    # MNIST's published names begin with their numbers.
    if not filled or filled == [f"{k} - {d}" for k, d in enumerate(_DIGITS)]:
        return
    found = next((name for name in filled if _WORDNET.search(name)), None)
    if found is None and len(filled) > 1:
        for pattern in (_NUMBER_FIRST, _NUMBER_LAST):
            matches = [pattern.search(name) for name in filled]
            # A csv file may begin with the names of its columns.
            for part in (matches, matches[1:]):
                numbers = [int(m[1]) for m in part if m is not None]
                # "707-320" may be a name; "0-tench" is none.
                gaps = not any(m is not None and re.search(r"\d-", m[0]) for m in part)
                if len(numbers) == len(part) > 1 and _count_up(numbers, gaps):
                    found = filled[-1]
    if found is None and all(map(_QUOTED.match, filled)):
        found = filled[0]
    if found is None and filled[0].lstrip().startswith(("{", "[")):
        found = filled[0]
    if found is not None:
        raise ValueError(
            f"{where} holds {found[:60]!r}: that is a name with an id or with the "
            "marks of a data format, which would go into prompts. Give the bare names, "
            "one per class, in the order of the classes."
        )


def _count_up(numbers: Sequence[int], gaps: bool) -> bool:
    """Whether numbers can be ids: all of 0 .. C-1 or 1 .. C, or just ascending."""
    whole = set(numbers)
    size = len(numbers)
    if whole in (set(range(size)), set(range(1, size + 1))):
        return True
    # Two names may begin with numbers by chance.
    return gaps and size > 2 and all(a < b for a, b in zip(numbers[:-1], numbers[1:]))


__all__ = ["RENAMED", "given_names", "prompt_names"]
