"""What each data set of the MTIL family is: sizes, split, files on disk."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class DatasetFacts(NamedTuple):
    """Facts of one data set.

    :ivar name: the name used here.
    :ivar classes: number of classes.
    :ivar train_size: number of training images; None if not published.
    :ivar test_size: number of test images.
    :ivar files: what must exist below the root, without downloading.
    :ivar layout: the expected folder, in words.
    :ivar source: where the data come from.
    :ivar torchvision: class in ``torchvision.datasets``; empty where this package
        reads the folders itself.
    :ivar train: arguments of that class for the training images.
    :ivar test: the same for the test images; None means that the data set
        comes in one piece and is split 80/20 at random.
    :ivar targets: attribute of the torchvision object that holds the classes
        (checked with torchvision 0.29).
    :ivar names: attribute of the torchvision object that holds the class names.
    :ivar needs_scipy: whether the annotations are ``.mat`` files.
    :ivar downloadable: whether torchvision can fetch the data.
    """

    name: str
    classes: int
    train_size: int | None
    test_size: int
    files: tuple[str, ...]
    layout: str
    source: str
    torchvision: str = ""
    train: Mapping[str, object] = {}
    test: Mapping[str, object] | None = None
    targets: str = "targets"
    names: str = "classes"
    needs_scipy: bool = False
    downloadable: bool = True


_FACTS = (
    DatasetFacts(
        name="Aircraft",
        classes=100,
        train_size=3334,
        test_size=3333,
        torchvision="FGVCAircraft",
        train={"split": "train", "annotation_level": "variant"},
        test={"split": "test", "annotation_level": "variant"},
        targets="_labels",
        files=(
            "fgvc-aircraft-2013b/data/variants.txt",
            "fgvc-aircraft-2013b/data/images_variant_train.txt",
            "fgvc-aircraft-2013b/data/images_variant_test.txt",
            "fgvc-aircraft-2013b/data/images",
        ),
        layout="fgvc-aircraft-2013b/data/ with variants.txt, images_variant_train.txt, "
        "images_variant_test.txt and images/<id>.jpg",
        source="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
    ),
    DatasetFacts(
        name="Caltech101",
        classes=101,
        train_size=6941,
        test_size=1736,
        torchvision="Caltech101",
        targets="y",
        names="categories",
        files=("caltech101/101_ObjectCategories/BACKGROUND_Google",),
        layout="caltech101/101_ObjectCategories/<category>/image_0001.jpg ..., with "
        "the folder BACKGROUND_Google, which is not a class",
        source="https://data.caltech.edu/records/mzrjq-6wc02",
    ),
    DatasetFacts(
        name="CIFAR100",
        classes=100,
        train_size=50000,
        test_size=10000,
        torchvision="CIFAR100",
        train={"train": True},
        test={"train": False},
        files=tuple(f"cifar-100-python/{name}" for name in ("meta", "train", "test")),
        layout="cifar-100-python/ with train, test and meta (the python version)",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
    DatasetFacts(
        name="DTD",
        classes=47,
        train_size=1880,
        test_size=1880,
        torchvision="DTD",
        train={"split": "train", "partition": 1},
        test={"split": "test", "partition": 1},
        targets="_labels",
        files=(
            "dtd/dtd/labels/train1.txt",
            "dtd/dtd/labels/test1.txt",
            "dtd/dtd/images",
        ),
        layout="dtd/dtd/ with labels/train1.txt, labels/test1.txt and "
        "images/<class>/<class>_0001.jpg",
        source="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
    ),
    DatasetFacts(
        name="EuroSAT",
        classes=10,
        train_size=21600,
        test_size=5400,
        torchvision="EuroSAT",
        files=("eurosat/2750",),
        layout="eurosat/2750/<class>/<class>_1.jpg (the RGB version)",
        source="https://github.com/phelber/eurosat",
    ),
    DatasetFacts(
        name="Flowers",
        classes=102,
        train_size=1020,
        test_size=6149,
        torchvision="Flowers102",
        train={"split": "train"},
        test={"split": "test"},
        targets="_labels",
        files=tuple(
            f"flowers-102/{name}" for name in ("imagelabels.mat", "setid.mat", "jpg")
        ),
        layout="flowers-102/ with imagelabels.mat, setid.mat and jpg/image_00001.jpg",
        source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        needs_scipy=True,
    ),
    DatasetFacts(
        name="Food",
        classes=101,
        train_size=75750,
        test_size=25250,
        torchvision="Food101",
        train={"split": "train"},
        test={"split": "test"},
        targets="_labels",
        files=(
            "food-101/meta/train.json",
            "food-101/meta/test.json",
            "food-101/images",
        ),
        layout="food-101/ with meta/train.json, meta/test.json and "
        "images/<class>/<id>.jpg",
        source="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
    ),
    DatasetFacts(
        name="MNIST",
        classes=10,
        train_size=60000,
        test_size=10000,
        torchvision="MNIST",
        train={"train": True},
        test={"train": False},
        # Not the files: torchvision also reads MNIST/processed/*.pt.
        files=("MNIST",),
        layout="MNIST/raw/ with {train,t10k}-{images-idx3,labels-idx1}-ubyte, unpacked",
        source="https://ossci-datasets.s3.amazonaws.com/mnist/",
    ),
    DatasetFacts(
        name="OxfordPet",
        classes=37,
        train_size=3680,
        test_size=3669,
        torchvision="OxfordIIITPet",
        train={"split": "trainval", "target_types": "category"},
        test={"split": "test", "target_types": "category"},
        targets="_labels",
        files=(
            "oxford-iiit-pet/annotations/trainval.txt",
            "oxford-iiit-pet/annotations/test.txt",
            "oxford-iiit-pet/images",
        ),
        layout="oxford-iiit-pet/ with annotations/trainval.txt, annotations/test.txt "
        "and images/<Breed>_1.jpg",
        source="https://www.robots.ox.ac.uk/~vgg/data/pets/",
    ),
    DatasetFacts(
        name="StanfordCars",
        classes=196,
        train_size=8144,
        test_size=8041,
        torchvision="StanfordCars",
        train={"split": "train"},
        test={"split": "test"},
        targets="_samples",
        files=(
            "stanford_cars/devkit/cars_meta.mat",
            "stanford_cars/devkit/cars_train_annos.mat",
            "stanford_cars/cars_test_annos_withlabels.mat",
            "stanford_cars/cars_train",
            "stanford_cars/cars_test",
        ),
        layout="stanford_cars/ with devkit/cars_meta.mat, devkit/cars_train_annos.mat, "
        "cars_test_annos_withlabels.mat, cars_train/00001.jpg and cars_test/00001.jpg",
        source="https://ai.stanford.edu/~jkrause/cars/car_dataset.html, which no "
        "longer serves the files; take them from a mirror",
        needs_scipy=True,
        downloadable=False,
    ),
    DatasetFacts(
        name="SUN397",
        classes=397,
        train_size=87003,
        test_size=21751,
        torchvision="SUN397",
        targets="_labels",
        files=("SUN397/ClassName.txt",),
        layout="SUN397/ with ClassName.txt and <letter>/<class>/sun_<id>.jpg",
        source="https://vision.princeton.edu/projects/2010/SUN/",
    ),
    DatasetFacts(
        name="CIFAR10",
        classes=10,
        train_size=50000,
        test_size=10000,
        torchvision="CIFAR10",
        train={"train": True},
        test={"train": False},
        files=tuple(
            f"cifar-10-batches-py/{name}"
            for name in ("batches.meta", "data_batch_1", "test_batch")
        ),
        layout="cifar-10-batches-py/ with data_batch_1 ... data_batch_5, test_batch "
        "and batches.meta (the python version)",
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
    ),
)

DATASETS: dict[str, DatasetFacts] = {facts.name: facts for facts in _FACTS}
"""Facts by name: the eleven data sets of MTIL, then CIFAR10."""

TINY_IMAGENET = DatasetFacts(
    name="TinyImageNet",
    classes=200,
    train_size=100000,
    test_size=10000,
    files=("wnids.txt", "train", "val/images", "val/val_annotations.txt"),
    layout="wnids.txt, words.txt, train/<id>/images/*.JPEG, val/images/*.JPEG and "
    "val/val_annotations.txt, as the archive unpacks",
    source="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    downloadable=False,
)

IMAGENET_1K = DatasetFacts(
    name="ImageNet1K",
    classes=1000,
    train_size=1281167,
    test_size=50000,
    files=("train", "val"),
    layout="train/<WordNet id>/*.JPEG and val/<WordNet id>/*.JPEG",
    source="https://image-net.org (with an account)",
    downloadable=False,
)

IMAGENET_100 = IMAGENET_1K._replace(
    name="ImageNet100", classes=100, train_size=None, test_size=5000
)
