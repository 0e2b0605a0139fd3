"""Write the data sets of X-TAIL as CoOp keeps them, with a few images per class.

Image ``number`` of class ``label`` has the colour of
``disk.colour(20 * label, number)``.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.benchmarks.datasets.mtil import disk

# domain: folder, list, folder of the images, class names
LISTS = {
    "Caltech101": (
        "caltech-101",
        "Caltech101",
        "101_ObjectCategories",
        ["face", "lotus", "water_lilly"],
    ),
    "DTD": ("dtd", "DescribableTextures", "images", ["banded", "polka-dotted"]),
    "EuroSAT": ("eurosat", "EuroSAT", "2750", ["Annual Crop Land", "Forest"]),
    "Flowers": ("oxford_flowers", "OxfordFlowers", "jpg", ["lotus", "tiger lily"]),
    "Food": ("food-101", "Food101", "images", ["apple_pie", "waffles"]),
    "OxfordPet": ("oxford_pets", "OxfordPets", "images", ["abyssinian", "beagle"]),
    "StanfordCars": (
        "stanford_cars",
        "StanfordCars",
        "",
        ["2012 Ram C/V Cargo Van Minivan", "2000 AM General Hummer SUV"],
    ),
    "SUN397": ("sun397", "SUN397", "SUN397", ["abbey", "outdoor apartment_building"]),
}
TRAIN, VAL, TEST = 3, 1, 2


def write_list(root: Path, name: str, train: int = TRAIN) -> Path:
    """Write one list and its images; numbers go on from train to val to test."""
    folder, file, images, classes = LISTS[name]
    parts: dict[str, list] = {"train": [], "val": [], "test": []}
    for label, class_name in enumerate(classes):
        number = 0
        for part, count in zip(parts, (train, VAL, TEST), strict=True):
            for _ in range(count):
                path = f"class_{label}/image_{number:04d}.jpg"
                parts[part].append([path, label, class_name])
                disk.save(root / folder / images / path, 20 * label, number)
                number += 1
    path = root / folder / f"split_zhou_{file}.json"
    # The last class comes first: the order of the file is kept, not sorted.
    content = {part: rows[::-1] for part, rows in parts.items()}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_aircraft(root: Path) -> None:
    disk.aircraft(root, 20)
    (root / "fgvc-aircraft-2013b" / "data").rename(root / "fgvc_aircraft")
    (root / "fgvc-aircraft-2013b").rmdir()


def write_x_tail(root: Path) -> None:
    for name in LISTS:
        write_list(root, name)
    write_aircraft(root)
    disk.mnist(root)
