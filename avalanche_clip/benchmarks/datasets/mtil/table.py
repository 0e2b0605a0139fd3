"""What each data set of the MTIL family is: sizes, split, files on disk."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class DatasetFacts(NamedTuple):
    """Facts of one data set.

    :ivar name: the name used here.
    :ivar sizes: numbers of classes, training images (None if not published) and test
        images.
    :ivar files: what must exist below the root, without downloading.
    :ivar layout: the expected folder, in words.
    :ivar source: where the data come from.
    :ivar parts: arguments of the class in ``torchvision.datasets`` for the training
        and the test images; only one if the data set comes in one piece and is split
        80/20 at random.
    :ivar targets: attribute of the torchvision object that holds the classes
        (checked with torchvision 0.29).
    :ivar names: attribute of the torchvision object that holds the class names.
    :ivar torchvision: class in ``torchvision.datasets``; empty if it has the name.
    :ivar downloadable: whether torchvision can fetch the data.
    """

    name: str
    sizes: tuple[int, int | None, int]
    files: tuple[str, ...]
    layout: str
    source: str
    parts: tuple[Mapping[str, object], ...] = ({},)
    targets: str = "targets"
    names: str = "classes"
    torchvision: str = ""
    downloadable: bool = True

    @property
    def expected(self) -> str:
        """What should be there and where it comes from, for messages."""
        return f"Expected: {self.layout}, from {self.source}."


def _below(folder: str, names: str) -> tuple[tuple[str, ...], str]:
    """Files and layout of a data set: names below its folder, ``<...>`` for any."""
    listed = names.split()
    needed = filter(None, (re.sub(r"(^|/)[^/]*<.*", "", name) for name in listed))
    files = tuple(f"{folder}/{name}" for name in needed)
    return files or (folder,), f"{folder}/ with {', '.join(listed)}"


def _splits(train: str, test: str, **both: object) -> tuple[Mapping[str, object], ...]:
    return {"split": train, **both}, {"split": test, **both}


_FLAGS = ({"train": True}, {"train": False})
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html (the python version)"
_FACTS = (
    DatasetFacts(
        "Aircraft",
        (100, 3334, 3333),
        *_below(
            "fgvc-aircraft-2013b/data",
            "variants.txt images_variant_train.txt images_variant_test.txt "
            "images/<id>.jpg",
        ),
        "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        _splits("train", "test", annotation_level="variant"),
        "_labels",
        torchvision="FGVCAircraft",
    ),
    DatasetFacts(
        "Caltech101",
        (101, 6941, 1736),
        ("caltech101/101_ObjectCategories/BACKGROUND_Google",),
        "caltech101/101_ObjectCategories/<category>/image_0001.jpg ..., with "
        "the folder BACKGROUND_Google, which is not a class",
        "https://data.caltech.edu/records/mzrjq-6wc02",
        targets="y",
        names="categories",
    ),
    DatasetFacts(
        "CIFAR100",
        (100, 50000, 10000),
        *_below("cifar-100-python", "meta train test"),
        _CIFAR,
        _FLAGS,
    ),
    DatasetFacts(
        "DTD",
        (47, 1880, 1880),
        *_below(
            "dtd/dtd",
            "labels/train1.txt labels/test1.txt images/<class>/<class>_0001.jpg",
        ),
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        _splits("train", "test", partition=1),
        "_labels",
    ),
    DatasetFacts(
        "EuroSAT",
        (10, 21600, 5400),
        *_below("eurosat/2750", "<class>/<class>_1.jpg"),
        "https://github.com/phelber/eurosat (the RGB version)",
    ),
    DatasetFacts(
        "Flowers",
        (102, 1020, 6149),
        *_below("flowers-102", "imagelabels.mat setid.mat jpg/image_<number>.jpg"),
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        _splits("train", "test"),
        "_labels",
        torchvision="Flowers102",
    ),
    DatasetFacts(
        "Food",
        (101, 75750, 25250),
        *_below("food-101", "meta/train.json meta/test.json images/<class>/<id>.jpg"),
        "https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        _splits("train", "test"),
        "_labels",
        torchvision="Food101",
    ),
    DatasetFacts(
        "MNIST",
        (10, 60000, 10000),
        # Not the files: torchvision also reads MNIST/processed/*.pt.
        ("MNIST",),
        "MNIST/raw/ with {train,t10k}-{images-idx3,labels-idx1}-ubyte, unpacked",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        _FLAGS,
    ),
    DatasetFacts(
        "OxfordPet",
        (37, 3680, 3669),
        *_below(
            "oxford-iiit-pet",
            "annotations/trainval.txt annotations/test.txt images/<Breed>_1.jpg",
        ),
        "https://www.robots.ox.ac.uk/~vgg/data/pets/",
        _splits("trainval", "test", target_types="category"),
        "_labels",
        torchvision="OxfordIIITPet",
    ),
    DatasetFacts(
        "StanfordCars",
        (196, 8144, 8041),
        *_below(
            "stanford_cars",
            "devkit/cars_meta.mat devkit/cars_train_annos.mat "
            "cars_test_annos_withlabels.mat cars_train/<number>.jpg "
            "cars_test/<number>.jpg",
        ),
        "https://ai.stanford.edu/~jkrause/cars/car_dataset.html, which no "
        "longer serves the files; take them from a mirror",
        _splits("train", "test"),
        "_samples",
        downloadable=False,
    ),
    DatasetFacts(
        "SUN397",
        (397, 87003, 21751),
        *_below("SUN397", "ClassName.txt <letter>/<class>/sun_<id>.jpg"),
        "https://vision.princeton.edu/projects/2010/SUN/",
        targets="_labels",
    ),
    DatasetFacts(
        "CIFAR10",
        (10, 50000, 10000),
        *_below("cifar-10-batches-py", "batches.meta data_batch_1 test_batch"),
        _CIFAR,
        _FLAGS,
    ),
)

DATASETS: dict[str, DatasetFacts] = {facts.name: facts for facts in _FACTS}
"""Facts by name: the eleven data sets of MTIL, then CIFAR10."""

TINY_IMAGENET = DatasetFacts(
    "TinyImageNet",
    (200, 100000, 10000),
    ("wnids.txt", "train", "val/images", "val/val_annotations.txt"),
    "wnids.txt, words.txt, train/<id>/images/*.JPEG, val/images/*.JPEG and "
    "val/val_annotations.txt, as the archive unpacks",
    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    downloadable=False,
)

IMAGENET_1K = DatasetFacts(
    "ImageNet1K",
    (1000, 1281167, 50000),
    ("train", "val"),
    "train/<WordNet id>/*.JPEG and val/<WordNet id>/*.JPEG",
    "https://image-net.org (with an account)",
    downloadable=False,
)

IMAGENET_100 = IMAGENET_1K._replace(name="ImageNet100", sizes=(100, None, 5000))

IMAGENET_R = DatasetFacts(
    "ImageNetR",
    (200, 24000, 6000),
    (),
    "one folder of images per WordNet id, as the archive unpacks",
    "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
    downloadable=False,
)
