"""Orders of the MTIL data sets and of the classes in class-incremental streams.

Sources: Zheng et al., ICCV 2023 (ZSCL, arXiv 2303.06628); Xu et al., NeurIPS 2024
(X-TAIL); Thengane et al. (Continual-CLIP, arXiv 2210.03114) and their
released code. The class orders of CIFAR-100 and TinyImageNet are literal lists; those
of ImageNet are permutations of NumPy's legacy generator with seed 1993.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from avalanche_clip.common.checks import require_choice

MTIL_NAMES = (
    *("Aircraft", "Caltech101", "CIFAR100", "DTD", "EuroSAT", "Flowers", "Food"),
    *("MNIST", "OxfordPet", "StanfordCars", "SUN397"),
)
"""The eleven data sets in Order I; the position is the index of a data set."""

MTIL_ORDERS: dict[str, tuple[int, ...]] = {
    "I": tuple(range(11)),
    "II": (9, 6, 7, 8, 5, 10, 0, 1, 3, 4, 2),
}
"""Order -> indices into :data:`MTIL_NAMES`."""

X_TAIL_NAMES = tuple(name for name in MTIL_NAMES if name != "CIFAR100")
"""The ten domains of X-TAIL, in its order."""

_CIFAR100 = """
87 0 52 58 44 91 68 97 51 15 94 92 10 72 49 78 61 14 8 86 84 96 18 24 32 45 88 11 4 67
69 66 77 47 79 93 29 50 57 83 17 81 41 12 37 59 25 20 80 73 1 28 6 46 62 82 53 9 31 75
38 63 33 74 27 22 36 3 16 21 60 19 70 90 89 43 5 42 65 76 40 30 23 85 2 95 56 48 71 64
98 13 99 7 34 55 54 26 35 39
"""

_TINY_IMAGENET = """
131 181 22 172 144 92 97 187 58 93 6 70 106 68 153 168 179 199 29 46 9 142 134 88 193
110 26 32 117 112 17 39 166 13 94 138 109 147 51 101 59 188 116 5 170 99 100 167 180
146 65 1 104 43 38 184 123 171 137 162 71 44 95 174 12 7 54 152 21 47 28 176 34 2 132
118 42 189 150 14 165 41 192 45 82 128 63 57 197 160 53 75 108 135 121 159 183 67 169
50 87 69 89 196 115 19 148 96 86 11 8 60 33 173 78 4 119 105 182 127 177 30 186 40 49
178 76 157 161 73 164 151 31 74 191 27 125 198 81 20 155 114 139 36 61 56 145 48 16 83
62 85 126 0 102 23 3 140 15 195 133 113 190 141 52 163 156 80 111 90 175 143 120 84 18
25 79 37 154 136 64 158 24 185 72 35 129 55 149 91 122 77 103 124 130 66 10 107 194 98
"""

_LITERAL = {"CIFAR100": _CIFAR100, "TinyImageNet": _TINY_IMAGENET}
_PERMUTED = {"ImageNet100": 100, "ImageNet1K": 1000}
_PERMUTATION_SEED = 1993

ORDER_CHECKSUMS = {
    "CIFAR100": "62e36f48cf4f51c7",
    "TinyImageNet": "b0c978e9a0ad7a3c",
    "ImageNet100": "997a048a5344d216",
    "ImageNet1K": "305571fb8fde3e0f",
}
"""Published order -> :func:`order_checksum`."""


def class_order(dataset: str) -> tuple[int, ...]:
    """Return the published order in which the classes of a data set arrive.

    Classes are those of torchvision for CIFAR-100, lines of ``wnids.txt`` for
    TinyImageNet, and sorted WordNet ids for ImageNet (ImageNet-100: the first
    100 of the 1,000).

    :param dataset: ``"CIFAR100"``, ``"TinyImageNet"``, ``"ImageNet100"`` or
        ``"ImageNet1K"``.
    :return: original class ids; the position is the new label.
    :raises ValueError: if there is no published order for the data set.

    >>> class_order("ImageNet1K")[:5]
    (54, 7, 894, 512, 126)
    """
    require_choice("dataset", dataset, ORDER_CHECKSUMS)
    if dataset in _LITERAL:
        return tuple(int(number) for number in _LITERAL[dataset].split())
    generator = np.random.RandomState(_PERMUTATION_SEED)
    return tuple(generator.permutation(_PERMUTED[dataset]).tolist())


def order_checksum(order: Sequence[int]) -> str:
    """Return the first 16 hex digits of the SHA-256 of a class order.

    The ids are joined by commas without blanks.

    >>> order_checksum(class_order("CIFAR100"))
    '62e36f48cf4f51c7'
    """
    text = ",".join(str(int(number)) for number in order)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_ALIASES = {
    "fgvcaircraft": "Aircraft",
    "describabletextures": "DTD",
    "flowers102": "Flowers",
    "oxfordflowers": "Flowers",
    "food101": "Food",
    "pets": "OxfordPet",
    "oxfordpets": "OxfordPet",
    "oxfordiiitpet": "OxfordPet",
    "cars": "StanfordCars",
    "sun": "SUN397",
}


def dataset_name(name: str, known: Sequence[str]) -> str:
    """Return the spelling used here of the name of a data set.

    Case, blanks, underscores and hyphens do not matter; torchvision's class names
    and the short names of the papers (``"Pets"``, ``"Cars"``) are understood.

    :param name: a name.
    :param known: the names to choose from.
    :raises ValueError: if it is none of them.

    >>> dataset_name("stanford_cars", MTIL_NAMES)
    'StanfordCars'
    """
    plain = "".join(c for c in str(name).casefold() if c.isalnum())
    plain = _ALIASES.get(plain, plain).casefold()
    for candidate in known:
        if candidate.casefold() == plain:
            return candidate
    raise ValueError(f"Unknown data set {name!r}; use some of {', '.join(known)}.")
