"""Every reader on damaged and foreign files: our error, or a right value.

Files are cut, have bits flipped, or are replaced by what often stands in their place.
What is raised must be ours: a plain ValueError that names the file (or, for lists that
torchvision reads, the folder), or a FileNotFoundError.
"""

from __future__ import annotations

import gzip
import json
import random

import pytest

from avalanche_clip.benchmarks.datasets import emoji, icons, shipped
from avalanche_clip.benchmarks.datasets.captioned import (
    read_annotations,
    read_ground_truth,
)
from avalanche_clip.benchmarks.datasets.coco36 import Coco36
from avalanche_clip.benchmarks.datasets.mtil import (
    given_names,
    read_coop_split,
    read_mtil_domain,
    read_tiny_imagenet,
    read_x_tail_domain,
)
from avalanche_clip.benchmarks.datasets.mtil.readers import UnreadableDataError
from avalanche_clip.benchmarks.datasets.text_columns import read_table
from avalanche_clip.benchmarks.datasets.xm3600 import XM3600
from tests.benchmarks.datasets.coco36_files import write_coco, write_gz, write_xm3600
from tests.benchmarks.datasets.mtil import coop_files, disk
from tests.damage import PAGE, POINTER
from tests.refused import refused

OURS = (ValueError, UnreadableDataError, FileNotFoundError)
CORPUS = "data/corpus/multilingual_coco/36langs"
FOREIGN = {
    "empty": b"",
    "zeros": bytes(600),
    "web page": PAGE,
    "pointer": POINTER,
    "other encoding": "[1, 2]\nabc\n".encode("utf-16"),
    "not UTF-8": b"caf\xe9\n" * 5,
    "gzipped": gzip.compress(b"abc\n"),
    "nested": b"[" * 200_000,
    "a number": b"1",
    "a list": b'[1, "a", null]',
    "a mapping": b'{"a": {"b": []}}',
    "large numbers": b'[{"image": "a", "caption": "x", "image_id": 1e400}]',
    "half a pair": b'[{"image": "a", "caption": "\\ud800", "image_id": 1}]',
}


def annotations(folder):
    write_coco(folder)
    return folder / "data/annotations/coco/translated/de/test.json"


def truth(folder):
    return annotations(folder).with_name("test_gt.json")


def table(folder):
    write_coco(folder)
    return folder / CORPUS / "triplet/coco_vision-en-de.tsv.gz"


def plain(folder):
    write_coco(folder)
    return folder / CORPUS / "plain_text/de.txt"


def lines_of_pictures(folder):
    texts = {"en": [["a dog", "dogs"], ["cat"]], "de": [["Hund"], ["Katze"]]}
    write_xm3600(folder / "captions.jsonl", texts)
    return folder / "captions.jsonl"


def coop(folder):
    return coop_files.write_list(folder, "EuroSAT")


def names(folder):
    (folder / "names.txt").write_text("tench\ngoldfish\nshark\n")
    return folder / "names.txt"


def tiny(name):
    def write(folder):
        wnids = ["n02124075", "n04067472", "n04540053"]
        disk.tiny_imagenet(folder, wnids, dict.fromkeys(wnids, "a thing"))
        return folder / name

    return write


def torchvision(name, file):
    def write(folder):
        disk.WRITERS[name](folder)
        return folder / file

    return write


def aircraft(folder):
    coop_files.write_aircraft(folder)
    return folder / "fgvc_aircraft" / "images_variant_train.txt"


READERS = {
    "annotations": (annotations, read_annotations),
    "ground truth": (truth, read_ground_truth),
    "table": (table, lambda path: read_table(path, 3)),
    "plain text": (plain, lambda path: read_table(path, 1)),
    "coco": (table, lambda path: Coco36(path.parents[5]).train("de").text(0)),
    "xm3600": (lines_of_pictures, lambda path: XM3600(path).test("en")),
    "coop": (coop, read_coop_split),
    "names": (names, lambda path: given_names(path, 3)),
    "wnids": (
        tiny("wnids.txt"),
        lambda path: read_tiny_imagenet(path.parent, check="ignore"),
    ),
    "words": (
        tiny("words.txt"),
        lambda path: read_tiny_imagenet(path.parent, check="ignore"),
    ),
    "val": (
        tiny("val/val_annotations.txt"),
        lambda path: read_tiny_imagenet(path.parents[1], check="ignore"),
    ),
    "aircraft": (
        aircraft,
        lambda path: read_x_tail_domain("Aircraft", path.parents[1], check="ignore"),
    ),
}
LISTS = {
    "Aircraft": "fgvc-aircraft-2013b/data/images_variant_train.txt",
    "DTD": "dtd/dtd/labels/train1.txt",
    "Food": "food-101/meta/train.json",
    "OxfordPet": "oxford-iiit-pet/annotations/trainval.txt",
    "Flowers": "flowers-102/imagelabels.mat",
    "StanfordCars": "stanford_cars/devkit/cars_train_annos.mat",
    "CIFAR100": "cifar-100-python/meta",
    "MNIST": "MNIST/raw/train-labels-idx1-ubyte",
}


def read_list(name, path):
    root = path
    for _ in LISTS[name].split("/"):
        root = root.parent
    return read_mtil_domain(name, root, check="ignore")


for dataset_, file_ in LISTS.items():
    READERS[dataset_] = (
        torchvision(dataset_, file_),
        lambda path, name=dataset_: read_list(name, path),
    )


def damaged(content: bytes, count: int):
    """Cuts and flips of a file, the same each time."""
    chance = random.Random(len(content))
    for cut in sorted({1, len(content) // 3, len(content) // 2, len(content) - 1}):
        yield f"cut at {cut}", content[:cut]
    for _ in range(count):
        place, bit = chance.randrange(len(content)), chance.randrange(8)
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        yield f"bit {bit} of byte {place}", bytes(changed)
    yield from FOREIGN.items()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_readers__raise_their_own_errors_or_read(name, tmp_path, monkeypatch):
    disk.accept_any_checksum(monkeypatch)
    write, read = READERS[name]
    path = write(tmp_path)
    content = path.read_bytes()
    read(path)  # whole files are read
    wrong = []
    refused = set()
    for what, changed in damaged(content, 60 if name not in LISTS else 25):
        path.write_bytes(changed)
        try:
            read(path)
        except OURS as error:
            refused.add(what)
            if type(error) not in OURS:
                wrong.append(f"{what}: {type(error).__name__}: {error}")
            elif path.name not in str(error) and str(tmp_path) not in str(error):
                wrong.append(f"{what} does not name the file: {error}")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong[:5])
    # What stands in place of a file is never read as one.
    assert refused >= {"empty", "zeros", "web page", "pointer", "other encoding"} - (
        # TinyImageNet is read without its words, too.
        {"empty"} if name == "words" else set()
    )


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("emoji_table.jsonl.gz", emoji.load_emoji_table.__wrapped__),
        ("emoji_noto.webp", lambda: emoji._load_sheet.__wrapped__("noto")),
        ("icons_held_out.json", icons._load_table.__wrapped__),
        ("icons_held_out.webp", icons._load_sheet.__wrapped__),
    ],
)
def test_shipped__damaged_package_data_are_named(file, read, monkeypatch):
    emoji.load_emoji_table(), icons._load_table()  # that sheets are read with
    content = shipped.read_data(file)
    half = bytearray(content)
    half[len(half) // 2] ^= 16
    changes = [b"", b"<html>", content[: len(content) // 2]]
    if file.endswith("gz"):  # the others hold no checksum
        changes.append(bytes(half))
    for changed in changes:
        for module in (shipped, emoji, icons):
            monkeypatch.setattr(module, "read_data", lambda name, c=changed: c)
        refused(f"{file} .* is damaged", read)


# ------------------------------------------------------ names of other files
OUTSIDE = ["../secret.jpg", "/etc/passwd", "a/../../secret.jpg", "..", "..\\secret.jpg"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_names__that_leave_the_folder_are_refused(name, tmp_path, monkeypatch):
    path = tmp_path / "test.json"
    path.write_text(json.dumps([{"image": name, "caption": "x", "image_id": 1}]))
    refused("test.json names the file", read_annotations, path, tmp_path / "pictures")
    lines = tmp_path / "captions.jsonl"
    entry = {"image/key": name, "image/locale": "en", "en": {"caption": ["x"]}}
    lines.write_text(json.dumps(entry) + "\n")
    if name != "..":  # the ending makes it a name
        refused("captions.jsonl names the file", XM3600(lines).test, "en")
    triplets = table(tmp_path)
    write_gz(triplets, f"{name}\tone\teins\n")
    refused("coco_vision-en-de.tsv.gz names the file", Coco36(tmp_path).train, "de")


@pytest.mark.parametrize("name", ["Food", "DTD", "Aircraft"])
def test_names__in_lists_that_torchvision_reads(name, tmp_path):
    path = torchvision(name, LISTS[name])(tmp_path)
    path.write_text(
        {
            "Food": json.dumps({n: ["../../../secret"] for n in disk.FOODS}),
            "DTD": "".join(f"../{n}.jpg\n" for n in disk.TEXTURES),
            "Aircraft": "".join(f"../../../../x {n}\n" for n in disk.AIRCRAFT),
        }[name]
    )
    refused("outside|classes", read_mtil_domain, name, tmp_path, check="ignore")


def test_marks__in_lists_that_torchvision_reads_are_refused(tmp_path):
    path = torchvision("DTD", LISTS["DTD"])(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(ValueError, match="train1.txt .*byte order mark"):
        read_mtil_domain("DTD", tmp_path, check="ignore")
