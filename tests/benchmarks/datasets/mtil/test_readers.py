"""Every reader on files in the data set's own format."""

import pickle
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from avalanche_clip.benchmarks.datasets.mtil import (
    DATASETS,
    MTIL_TEMPLATES,
    ClassImages,
    MTILDomain,
    random_80_20,
    read_mtil_domain,
)
from tests.benchmarks.datasets.mtil import disk
from tests.refused import refused
from tests.scripts import loaded_after

pytestmark = pytest.mark.usefixtures("any_checksum")

NAMES = {
    "Aircraft": ("707-320", "F-16A/B", "DH-82"),
    "Caltech101": (
        *("off-center face", "centered face", "accordion"),
        *("head of a  crocodile", "yin and yang symbol"),
    ),
    "CIFAR100": ("apple", "aquarium fish", *(f"fine class {k}" for k in range(98))),
    "DTD": ("banded", "polka-dotted", "zigzagged"),
    "EuroSAT": (
        *("annual crop land", "forest", "brushland or shrubland", "highway or road"),
        *("industrial buildings or commercial buildings", "pasture land"),
        "permanent crop land",
        *("residential buildings or homes or apartments", "river", "lake or sea"),
    ),
    "Food": ("apple pie", "beef tartare", "waffles"),
    "MNIST": (
        *("0 - zero", "1 - one", "2 - two", "3 - three", "4 - four", "5 - five"),
        *("6 - six", "7 - seven", "8 - eight", "9 - nine"),
    ),
    "OxfordPet": ("Abyssinian", "American Bulldog", "Saint Bernard"),
    "StanfordCars": tuple(disk.CARS),
    "SUN397": ("abbey", "apartment building/outdoor", "badlands", "zoo"),
    "CIFAR10": tuple(f"kind {k}" for k in range(10)),
}
RANDOM = ("Caltech101", "EuroSAT", "SUN397")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All data sets below one root, and what they hold."""
    folder = tmp_path_factory.mktemp("all")
    written = {name: write(folder) for name, write in disk.WRITERS.items()}
    return folder, written


def read(name, root, **options):
    return read_mtil_domain(name, root, check="ignore", **options)


def content(data):
    """(class, number) of each image, from its colour."""
    found = []
    for image, label in data:
        assert image.mode == "RGB" and isinstance(label, int)
        red, green, _ = image.getpixel((3, 3))
        found.append((label, red, green))
    return found


def expected(name, items):
    if name == "MNIST":
        return [(label, 10 * label + n % 10, 10 * label + n % 10) for label, n in items]
    return [(label, *disk.colour(label, n)[:2]) for label, n in items]


def close(found, wanted, tolerance):
    found, wanted = np.array(found), np.array(wanted)
    assert found.shape == wanted.shape
    assert (found[:, 0] == wanted[:, 0]).all()
    assert np.abs(found[:, 1:] - wanted[:, 1:]).max() <= tolerance


@pytest.mark.parametrize("name", [n for n in disk.WRITERS if n not in RANDOM])
def test_reader__official_split(name, root):
    domain = read(name, root[0])
    for part, items in zip((domain.train, domain.test), root[1][name], strict=True):
        wanted = expected(name, items)
        if name == "OxfordPet":
            # One image is CMYK in the file, which changes its colours.
            found = np.array(content(part))
            assert found[:, 0].tolist() == [label for label, _ in items]
            close(found[1:], wanted[1:], 2)
        else:
            close(content(part), wanted, 2)
        assert part.targets.tolist() == [label for label, _ in items]


@pytest.mark.parametrize("name", RANDOM)
def test_reader__random_split(name, root):
    domain = read(name, root[0])
    items, _ = root[1][name]
    train, test = random_80_20(len(items))
    parts = ((domain.train, train), (domain.test, test))
    assert len(domain.train) == int(0.8 * len(items))
    for part, chosen in parts:
        wanted = [items[k] for k in chosen]
        assert part.targets.tolist() == [label for label, _ in wanted]
        colours = expected(name, wanted)
        for found, want, (_, number) in zip(content(part), colours, wanted):
            grey = name == "Caltech101" and number == 0
            assert grey or np.abs(np.subtract(found, want)).max() <= 2
    assert not set(domain.train.indices) & set(domain.test.indices)


@pytest.mark.parametrize("name", [*disk.WRITERS])
def test_reader__names_templates_and_types(name, root):
    domain = read(name, root[0])
    assert isinstance(domain, MTILDomain) and domain.name == name
    assert domain.templates == MTIL_TEMPLATES[name]
    if name == "Flowers":
        assert len(domain.class_names) == 102
        assert domain.class_names[59] == "pink-yellow dahlia"
        assert domain.class_names[0] == "pink primrose"
        assert domain.class_names[77] == "lotus"
        assert not any("?" in n for n in domain.class_names)
    else:
        assert domain.class_names == NAMES[name]
    for part in (domain.train, domain.test):
        assert isinstance(part, ClassImages)
        assert part.targets.dtype == np.int64 and part.targets.shape == (len(part),)
        assert not part.targets.flags.writeable
        assert part.targets.max() < len(domain.class_names)
    copy = pickle.loads(pickle.dumps(domain.test))
    assert (copy.targets == domain.test.targets).all()
    assert copy[0][0].tobytes() == domain.test[0][0].tobytes()


def test_reader__never_decodes_to_learn_the_targets(root, monkeypatch):
    from PIL import Image

    def refuse(*_args, **_options):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(Image, "fromarray", refuse)
    for name in disk.WRITERS:
        domain = read(name, root[0])
        assert len(domain.train.targets) and len(domain.test.targets)
        assert len(domain.train.subset([0]).targets) == 1


@pytest.mark.parametrize("name", [*disk.WRITERS])
def test_reader__missing_data_are_explained(name, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        read(name, tmp_path / "nothing")
    message = str(caught.value)
    facts = DATASETS[name]
    assert facts.layout in message and facts.source in message
    assert facts.files[0] in message
    assert ("download=True" in message) == facts.downloadable
    # torchvision makes the folder of Caltech101 when asked; nobody asked.
    assert not (tmp_path / "nothing").exists()


def test_reader__cars_cannot_be_downloaded(tmp_path, root):
    with pytest.raises(FileNotFoundError, match="cannot be downloaded"):
        read("cars", tmp_path, download=True)
    assert len(read("cars", root[0], download=True).train) == 3


def test_reader__partly_missing_data_name_the_file(tmp_path):
    disk.dtd(tmp_path)
    (tmp_path / "dtd" / "dtd" / "labels" / "test1.txt").unlink()
    with pytest.raises(FileNotFoundError, match="labels/test1.txt not found"):
        read("DTD", tmp_path)


def test_reader__damaged_files_are_named(tmp_path):
    disk.caltech(tmp_path)
    (tmp_path / "caltech101" / "101_ObjectCategories" / "notes.txt").write_text("x")
    with pytest.raises(RuntimeError, match="cannot read Caltech101.*notes.txt"):
        read("Caltech101", tmp_path)


def test_reader__lists_of_different_classes_are_refused(tmp_path):
    disk.dtd(tmp_path)
    path = tmp_path / "dtd" / "dtd" / "labels" / "test1.txt"
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")
    with pytest.raises(RuntimeError, match=r"different classes: \['banded'\]"):
        read("DTD", tmp_path)


def test_reader__missing_scipy_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    for name in ("Flowers", "StanfordCars"):
        refused(f"{name}.*pip install scipy", read, name, root[0], error=ImportError)
    assert len(read("DTD", root[0]).train) == 3


def test_reader__unknown_attribute_of_torchvision_is_named(root, monkeypatch):
    other = DATASETS["DTD"]._replace(targets="_renamed")
    monkeypatch.setitem(DATASETS, "DTD", other)
    with pytest.raises(RuntimeError, match=r"torchvision \S+ has no DTD._renamed"):
        read("DTD", root[0])


def test_reader__unpublished_sizes_warn_raise_or_pass(root):
    with pytest.warns(UserWarning, match="3 classes instead of 47, 3 training") as seen:
        read_mtil_domain("DTD", root[0])
    assert seen[0].filename == __file__
    with pytest.raises(ValueError, match="3 test images instead of 3,333"):
        read_mtil_domain("Aircraft", root[0], check="raise")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_mtil_domain("DTD", root[0], check="ignore")
    refused("check='no'", read_mtil_domain, "DTD", root[0], check="no")


def test_reader__split_does_not_follow_the_file_system(tmp_path, root):
    disk.sun397(tmp_path / "backwards", backwards=True)
    first, second = read("SUN397", root[0]), read("SUN397", tmp_path / "backwards")
    for a, b in ((first.train, second.train), (first.test, second.test)):
        assert content(a) == content(b)


def test_import__loads_no_torch():
    statement = "import avalanche_clip.benchmarks.datasets.mtil"
    assert loaded_after(statement, ("torch", "avalanche", "timm")) == []


def test_class_images__refuses_what_does_not_fit():
    refused("1 targets given, 2 are needed", ClassImages, [], [0, 1], [0])
    refused("integers", ClassImages, [], [0.5], [0])
    data = ClassImages([("a",), ("b",), ("c",)], [2, 0], [5, 6])
    assert list(data) == [("c", 5), ("a", 6)]
    mask = data.subset(np.array([False, True]))
    assert mask.indices.tolist() == [0] and mask.targets.tolist() == [6]
    assert len(data.subset([])) == 0
    with pytest.raises(IndexError):
        data[2]


FILES = [n for n in disk.WRITERS if n not in ("CIFAR100", "CIFAR10", "MNIST")]


@pytest.mark.parametrize("name", FILES)
def test_reader__pictures_follow_the_one_rule(name, tmp_path):
    disk.WRITERS[name](tmp_path)
    pictures = [p for p in tmp_path.rglob("*") if p.suffix in (".jpg", ".jpeg")]
    for path in pictures:
        Image.new("LA", (2, 2), (100, 153)).save(path, "PNG")
    train = read(name, tmp_path).train
    assert [image.getpixel((0, 0)) for image, _ in train] == [(162,) * 3] * len(train)
    for path in pictures:
        path.write_bytes(b"<html>404</html>")
    with pytest.raises((ValueError, OSError), match=r"\.jpe?g"):
        train[0]
