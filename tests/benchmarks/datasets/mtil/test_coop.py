"""CoOp's lists, and the domains of X-TAIL read from them."""

import json

import pytest

from avalanche_clip.benchmarks.datasets.mtil import (
    X_TAIL_NAMES,
    X_TAIL_TEMPLATES,
    read_coop_split,
    read_x_tail_domain,
)
from tests.benchmarks.datasets.mtil import coop_files, disk
from tests.benchmarks.datasets.mtil.disk import labels_and_colours as content
from tests.refused import refused

pytestmark = pytest.mark.usefixtures("any_checksum")

NAMES = {
    "Aircraft": ("707-320", "F-16A/B", "DH-82"),
    "Caltech101": ("face", "lotus", "water lilly"),
    "DTD": ("banded", "polka-dotted"),
    "EuroSAT": ("Annual Crop Land satellite location", "Forest satellite location"),
    "Flowers": ("lotus", "tiger lily"),
    "Food": ("apple pie", "waffles"),
    "OxfordPet": ("abyssinian", "beagle"),
    "StanfordCars": ("2012 Ram C/V Cargo Van Minivan", "2000 AM General Hummer SUV"),
    "SUN397": ("abbey", "outdoor apartment building"),
}


def test_x_tail__sizes_of_the_released_lists():
    from avalanche_clip.benchmarks.datasets.mtil.coop import _LISTS

    classes = {name: entry.sizes[0] for name, entry in _LISTS.items()}
    assert classes["Caltech101"] == 100
    # Aircraft and MNIST have no such list.
    assert sum(classes.values()) + 100 + 10 == 1100
    assert set(classes) | {"Aircraft", "MNIST"} == set(X_TAIL_NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_x_tail_domain__names_labels_and_pictures(x_root, name):
    domain = read_x_tail_domain(name, x_root, check="ignore")
    assert domain.class_names == NAMES[name] and domain.name == name
    assert domain.templates == (X_TAIL_TEMPLATES[name],)
    train, test = content(domain.train), content(domain.test)
    if name == "Aircraft":
        assert train == [(2, 2, 0), (0, 0, 1), (1, 1, 2)]
        assert test == [(1, 1, 3), (0, 0, 4), (0, 0, 5)]
        return
    labels = range(len(domain.class_names))
    # As in the file, which is written backwards; "val" is in neither.
    assert train == [(k, k, n) for k in labels for n in range(3)][::-1]
    assert test == [(k, k, n) for k in labels for n in (4, 5)][::-1]


def test_x_tail_domain__mnist(x_root):
    domain = read_x_tail_domain("mnist", x_root, check="ignore")
    assert domain.class_names[0] == 'number: "0 - zero"'
    assert domain.class_names[9] == 'number: "9 - nine"'
    assert domain.templates == ("a photo of a {}.",)
    assert len(domain.train) == 12 and len(domain.test) == 2


def test_x_tail_domain__published_sizes_are_compared(x_root):
    with pytest.raises(ValueError, match="3 classes instead of 100.*4,128"):
        read_x_tail_domain("Caltech101", x_root, check="raise")
    with pytest.warns(UserWarning, match="2,463"):
        read_x_tail_domain("Flowers", x_root)
    refused("CIFAR100", read_x_tail_domain, "CIFAR100", x_root)


@pytest.mark.parametrize("name", sorted(coop_files.LISTS))
def test_x_tail_domain__what_is_missing_is_named(tmp_path, name):
    file = f"split_zhou_{coop_files.LISTS[name][1]}.json"
    with pytest.raises(FileNotFoundError, match=f"{file}.*CoOp"):
        read_x_tail_domain(name, tmp_path)
    folder, _, images, _ = coop_files.LISTS[name]
    if images:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).write_text("{}")
        with pytest.raises(FileNotFoundError, match=f"{images} is no folder"):
            read_x_tail_domain(name, tmp_path)


def test_x_tail_domain__missing_aircraft_lists(tmp_path):
    with pytest.raises(FileNotFoundError, match="variants.txt"):
        read_x_tail_domain("Aircraft", tmp_path)
    coop_files.write_aircraft(tmp_path)
    (tmp_path / "fgvc_aircraft" / "images_variant_test.txt").unlink()
    with pytest.raises(FileNotFoundError, match="images_variant_test.txt not found"):
        read_x_tail_domain("Aircraft", tmp_path)


def test_x_tail_domain__folders_may_have_other_names(tmp_path):
    coop_files.write_list(tmp_path, "Caltech101")
    (tmp_path / "caltech-101").rename(tmp_path / "my caltech")
    for root in (tmp_path, tmp_path / "my caltech"):
        domain = read_x_tail_domain("Caltech101", root, check="ignore")
        assert content(domain.test)[-1] == (0, 0, 4)
    coop_files.write_list(tmp_path, "Caltech101")
    with pytest.raises(ValueError, match="more than once: .*caltech-101.*my caltech"):
        read_x_tail_domain("Caltech101", tmp_path)
    # SUN397's list inside the folder of its images.
    path = coop_files.write_list(tmp_path, "SUN397")
    path.rename(path.parent / "SUN397" / path.name)
    domain = read_x_tail_domain("SUN397", path.parent, check="ignore")
    assert len(content(domain.test)) == 4


def test_coop_split__any_list(tmp_path):
    disk.save(tmp_path / "a" / "x.jpg", 20, 0)
    path = tmp_path / "split_mine.json"
    rows = {"train": [["a/x.jpg", 0, "some_thing"]], "val": [], "test": []}
    # With a byte order mark, as some editors write it.
    path.write_text(json.dumps(rows), encoding="utf-8-sig")
    split = read_coop_split(path)
    assert split.class_names == ("some thing",)
    assert [len(part) for part in split[:3]] == [1, 0, 0]
    assert content(split.train) == [(0, 1, 0)]
    (tmp_path / "other").mkdir()
    assert read_coop_split(path, tmp_path / "other").train.source.folder.endswith(
        "other"
    )
    with pytest.raises(FileNotFoundError, match="none.json is no file"):
        read_coop_split(tmp_path / "none.json")


def good():
    return {
        "train": [["a.jpg", 0, "x"], ["b.jpg", 1, "y"]],
        "val": [],
        "test": [["c.jpg", 1, "y"]],
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda c: c.pop("test"), "'test' is NoneType"),
        (lambda c: c.update(train={}), "'train' is dict"),
        (lambda c: c["train"].append(["d.jpg", 0]), "entry 2 of 'train'"),
        (lambda c: c["train"].append(["d.jpg", "0", "x"]), "the label is no integer"),
        (lambda c: c["train"].append(["d.jpg", True, "x"]), "the label is no integer"),
        (lambda c: c["train"].append(["d.jpg", -1, "x"]), "the label is no integer"),
        (lambda c: c["train"].append(["d.jpg", 2**70, "x"]), "the label is no integer"),
        (lambda c: c["train"].append(["d.jpg", 2**40, "x"]), r"labels \[2, 3, 4"),
        (lambda c: c["train"].append([None, 0, "x"]), "the path is no text"),
        (lambda c: c["train"].append(["\ud800.jpg", 0, "x"]), "the path is no text"),
        (
            lambda c: c["train"].append(["d.jpg", 2, "\ud800"]),
            "the class name is empty",
        ),
        (lambda c: c["train"].append(["d.jpg", 0, " "]), "the class name is empty"),
        (lambda c: c["test"].append(["d.jpg", 0, "z"]), "label 0 is 'x' before"),
        (lambda c: c["test"].append(["d.jpg", 4, "z"]), r"labels \[2, 3\]"),
        (lambda c: c["val"].append(["../d.jpg", 0, "x"]), r"\.\./d\.jpg.*outside"),
        (lambda c: c["val"].append(["C:\\d.jpg", 0, "x"]), "no path below"),
    ],
)
def test_coop_split__other_forms_are_refused(tmp_path, change, said):
    path = tmp_path / "split.json"
    rows = good()
    change(rows)
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=said) as caught:
        read_coop_split(path)
    assert "split.json" in str(caught.value)


def test_aircraft__unknown_variants_are_named(tmp_path):
    coop_files.write_aircraft(tmp_path)
    path = tmp_path / "fgvc_aircraft" / "images_variant_train.txt"
    path.write_text("0000001 707-320\n0000002 Concorde\n")
    with pytest.raises(ValueError, match="line 2 names the variant 'Concorde'"):
        read_x_tail_domain("Aircraft", tmp_path)
    path.write_text("../../../secret 707-320\n")
    refused("outside", read_x_tail_domain, "Aircraft", tmp_path)
