"""Write tiny data sets in the formats of the originals.

Every writer returns ``(train, test)``: lists of ``(class, number)`` in the order of
the files, or, where the original is one piece, ``(everything, None)``. An image is
filled with :func:`colour` of its class and number.
"""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image

CALTECH = ["Faces", "Faces_easy", "accordion", "crocodile_head", "yin_yang"]
AIRCRAFT = ["707-320", "F-16A/B", "DH-82"]
TEXTURES = ["banded", "polka-dotted", "zigzagged"]
FOODS = ["apple_pie", "beef_tartare", "waffles"]
CARS = [
    "AM General Hummer SUV 2000",
    "Ram C/V Cargo Van Minivan 2012",
    "smart fortwo Convertible 2012",
]
PETS = [("Abyssinian", 1), ("american_bulldog", 2), ("saint_bernard", 2)]
SCENES = ["/a/abbey", "/a/apartment_building/outdoor", "/b/badlands", "/z/zoo"]
EUROSAT = [
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
]
FINE = [f"fine_class_{k}" for k in range(98)]


def colour(label: int, number: int) -> tuple[int, int, int]:
    """Colour of an image; all three channels differ and survive JPEG."""
    return 2 * label % 256, 40 + 8 * (number % 20), 90


def save(path: Path, label: int, number: int, mode: str = "RGB") -> None:
    """Write one image of 8 x 8; other modes than RGB show RGB conversion."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (8, 8), colour(label, number)).convert(mode)
    image.save(path, format="JPEG", quality=100, subsampling=0)


def labels_and_colours(data, shade: int = 20) -> list[tuple[int, int, int]]:
    """(label, class of the picture, its number) of each item, classes in shades."""
    found = []
    for image, label in data:
        assert image.mode == "RGB"
        red, green, _ = image.getpixel((3, 3))
        found.append((label, round(red / (2 * shade)), round((green - 40) / 8)))
    return found


def aircraft(root: Path, shade: int = 1) -> tuple[list, list]:
    data = root / "fgvc-aircraft-2013b" / "data"
    (data / "images").mkdir(parents=True)
    (data / "variants.txt").write_text("".join(f"{n}\n" for n in AIRCRAFT))
    parts = {"train": [(2, 0), (0, 1), (1, 2)], "test": [(1, 3), (0, 4), (0, 5)]}
    # "val" is on disk and must stay out of the training images.
    for split, items in {**parts, "val": [(0, 6)]}.items():
        lines = []
        for label, number in items:
            lines.append(f"{1000 + number:07d} {AIRCRAFT[label]}\n")
            path = data / "images" / f"{1000 + number:07d}.jpg"
            save(path, shade * label, number)
        (data / f"images_variant_{split}.txt").write_text("".join(lines))
    return parts["train"], parts["test"]


def caltech(root: Path) -> tuple[list, None]:
    base = root / "caltech101" / "101_ObjectCategories"
    items = []
    for label, name in enumerate(CALTECH):
        for number in range(4 + label):
            mode = "L" if number == 0 else "RGB"
            save(base / name / f"image_{number + 1:04d}.jpg", label, number, mode)
            items.append((label, number))
    save(base / "BACKGROUND_Google" / "image_0001.jpg", 99, 0)
    return items, None


def _cifar(base: Path, files: dict[str, list], labels: str) -> None:
    base.mkdir()
    for name, items in files.items():
        data = np.stack([np.repeat(np.uint8(colour(*i)), 32 * 32) for i in items])
        entry = {"data": data, labels: [label for label, _ in items]}
        (base / name).write_bytes(pickle.dumps(entry))


def cifar100(root: Path) -> tuple[list, list]:
    base = root / "cifar-100-python"
    train = [(k % 100, k // 100) for k in range(200)][::-1]
    test = [(k, 5) for k in range(100)]
    _cifar(base, {"train": train, "test": test}, "fine_labels")
    names = ["apple", "aquarium_fish", *FINE]
    (base / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    return train, test


def cifar10(root: Path) -> tuple[list, list]:
    base = root / "cifar-10-batches-py"
    train = [(k % 10, k) for k in range(10)]
    test = [(9, 11), (0, 12)]
    files = {f"data_batch_{k + 1}": train[2 * k : 2 * k + 2] for k in range(5)}
    _cifar(base, {**files, "test_batch": test}, "labels")
    names = {"label_names": [f"kind_{k}" for k in range(10)]}
    (base / "batches.meta").write_bytes(pickle.dumps(names))
    return train, test


def dtd(root: Path) -> tuple[list, list]:
    base = root / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    parts = {"train": [(0, 1), (1, 2), (2, 3)], "test": [(0, 4), (2, 5), (1, 6)]}
    other = {"val": [(0, 7), (1, 7), (2, 7)]}
    for split, items in {**parts, **other}.items():
        lines = []
        for label, number in items:
            name = f"{TEXTURES[label]}/{TEXTURES[label]}_{number:04d}.jpg"
            save(base / "images" / name, label, number)
            lines.append(f"{name}\n")
        (base / "labels" / f"{split}1.txt").write_text("".join(lines))
        (base / "labels" / f"{split}2.txt").write_text("".join(lines[:1]))
    return parts["train"], parts["test"]


def eurosat(root: Path) -> tuple[list, None]:
    items = []
    for label, name in enumerate(EUROSAT):
        for number in range(3):
            path = root / "eurosat" / "2750" / name / f"{name}_{number + 1}.jpg"
            save(path, label, number)
            items.append((label, number))
    return items, None


def flowers(root: Path) -> tuple[list, list]:
    from scipy.io import savemat

    base = root / "flowers-102"
    (base / "jpg").mkdir(parents=True)
    # Image i (from 1) is of class labels[i - 1] (from 1).
    labels = np.array([60, 1, 102, 60, 60, 77, 1])
    for image, label in enumerate(labels, start=1):
        save(base / "jpg" / f"image_{image:05d}.jpg", label - 1, image)
    savemat(base / "imagelabels.mat", {"labels": labels[None]})
    ids = {"trnid": [[4, 1, 2]], "valid": [[5, 6]], "tstid": [[7, 3]]}
    savemat(base / "setid.mat", {name: np.array(rows) for name, rows in ids.items()})
    return [(59, 4), (59, 1), (0, 2)], [(0, 7), (101, 3)]


def food(root: Path) -> tuple[list, list]:
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    written = []
    for split, numbers in (("train", (0, 1, 2)), ("test", (3, 4))):
        listed, items = {}, []
        for label, name in enumerate(FOODS):
            listed[name] = [f"{name}/{100 + n}" for n in numbers]
            for n in numbers:
                save(base / "images" / name / f"{100 + n}.jpg", label, n)
                items.append((label, n))
        (base / "meta" / f"{split}.json").write_text(json.dumps(listed))
        written.append(items)
    return written[0], written[1]


def mnist(root: Path) -> tuple[list, list]:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    parts = {"train": [(k % 10, k) for k in range(12)], "t10k": [(9, 3), (4, 1)]}
    for name, items in parts.items():
        pixels = np.array(
            [np.full((28, 28), 10 * label + n % 10) for label, n in items], np.uint8
        )
        labels = np.array([label for label, _ in items], np.uint8)
        head = struct.pack(">IIII", 2051, len(items), 28, 28)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">II", 2049, len(items))
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return parts["train"], parts["t10k"]


def pets(root: Path) -> tuple[list, list]:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    parts = {"trainval": [(0, 1), (1, 2), (2, 3)], "test": [(2, 4), (1, 5), (0, 6)]}
    for split, items in parts.items():
        lines = []
        for label, number in items:
            breed, species = PETS[label]
            lines.append(f"{breed}_{number} {label + 1} {species} 1\n")
            mode = "CMYK" if number == 1 else "RGB"
            save(base / "images" / f"{breed}_{number}.jpg", label, number, mode)
        (base / "annotations" / f"{split}.txt").write_text("".join(lines))
    return parts["trainval"], parts["test"]


def cars(root: Path) -> tuple[list, list]:
    from scipy.io import savemat

    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    names = np.array(CARS, dtype=object)[None]
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": names})
    parts = {"train": [(0, 1), (2, 2), (1, 3)], "test": [(1, 1), (0, 2), (2, 3)]}
    targets = {
        "train": base / "devkit" / "cars_train_annos.mat",
        "test": base / "cars_test_annos_withlabels.mat",
    }
    for split, items in parts.items():
        kind = [("class", "O"), ("fname", "O")]
        rows = np.zeros((1, len(items)), dtype=kind)
        for k, (label, number) in enumerate(items):
            rows[0, k] = (np.array([[label + 1]]), f"{number:05d}.jpg")
            save(base / f"cars_{split}" / f"{number:05d}.jpg", label, number)
        savemat(targets[split], {"annotations": rows})
    return parts["train"], parts["test"]


def sun397(root: Path, backwards: bool = False) -> tuple[list, None]:
    base = root / "SUN397"
    base.mkdir(parents=True)
    (base / "ClassName.txt").write_text("".join(f"{name}\n" for name in SCENES))
    items = [(label, n) for label in range(len(SCENES)) for n in range(5)]
    for label, number in items[::-1] if backwards else items:
        save(base / SCENES[label][1:] / f"sun_a{number}.jpg", label, number)
    return items, None


WRITERS = {
    "Aircraft": aircraft,
    "Caltech101": caltech,
    "CIFAR100": cifar100,
    "DTD": dtd,
    "EuroSAT": eurosat,
    "Flowers": flowers,
    "Food": food,
    "MNIST": mnist,
    "OxfordPet": pets,
    "StanfordCars": cars,
    "SUN397": sun397,
    "CIFAR10": cifar10,
}


def accept_any_checksum(monkeypatch) -> None:
    """Let torchvision accept our files where it knows the MD5 of the originals."""
    from torchvision.datasets import cifar, flowers102
    from torchvision.datasets.utils import check_integrity

    def present(path, md5=None):
        return check_integrity(path)

    monkeypatch.setattr(cifar, "check_integrity", present)
    monkeypatch.setattr(flowers102, "check_integrity", present)


def imagenet(root: Path, wnids: list[str], per_class: int = 1) -> None:
    """ImageNet's folders; image n of class k has the colour of (k % 100, n)."""
    for part, extra in (("train", per_class), ("val", 1)):
        for label, wnid in enumerate(wnids):
            for number in range(extra):
                path = root / part / wnid / f"{wnid}_{number}.JPEG"
                save(path, label % 100, number)


def tiny_imagenet(root: Path, wnids: list[str], words: dict[str, str]) -> list:
    """TinyImageNet's folders with one training image per class; returns val labels.

    Images of class k have the colour of (20 k % 100, n).
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "wnids.txt").write_text("".join(f"{w}\n" for w in wnids))
    text = "".join(f"{wnid}\t{name}\n" for wnid, name in words.items())
    (root / "words.txt").write_text(text)
    for label, wnid in enumerate(wnids):
        folder = root / "train" / wnid
        save(folder / "images" / f"{wnid}_0.JPEG", 20 * label % 100, 0)
        (folder / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t1\t1\n")
    labels = list(range(len(wnids)))[::-1]
    lines = []
    for number, label in enumerate(labels):
        save(root / "val" / "images" / f"val_{number}.JPEG", 20 * label % 100, 1)
        lines.append(f"val_{number}.JPEG\t{wnids[label]}\t0\t32\t44\t62\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    return labels
