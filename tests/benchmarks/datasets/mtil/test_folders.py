"""ImageNet and TinyImageNet from folders of images."""

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks.datasets.mtil import (
    FolderFiles,
    read_imagenet,
    read_imagenet_r,
    read_tiny_imagenet,
)
from avalanche_clip.models.encoders.imagenet_names import (
    imagenet_class_names,
    imagenet_wnids,
)
from tests.benchmarks.datasets.mtil import disk
from tests.benchmarks.datasets.mtil.disk import labels_and_colours as content
from tests.refused import refused

# The first four lines of the official wnids.txt.
TINY = ["n02124075", "n04067472", "n04540053", "n04099969"]
WORDS = {
    "n04067472": "reel",
    "n02124075": "Egyptian cat",
    "n00000001": "made-up thing, artefact",
    "n04540053": "volleyball",
    "n04099969": "rocking chair, rocker",
}


def test_imagenet_names__follow_the_sorted_ids():
    wnids, names = imagenet_wnids(), imagenet_class_names()
    assert len(wnids) == len(names) == 1000 and list(wnids) == sorted(set(wnids))
    assert wnids[0] == "n01440764" and wnids[99] == "n01855672"
    assert names[:3] == ("tench", "goldfish", "great white shark")
    assert names[wnids.index("n02124075")] == "Egyptian Mau"
    assert names[-1] == "toilet paper"


def test_imagenet__subset_is_the_first_hundred_ids(tmp_path):
    wnids = list(imagenet_wnids()[:104])
    disk.imagenet(tmp_path, wnids[::-1][:4] + wnids[:100], per_class=2)
    # Neither hidden folders nor other files are classes or images.
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "list.txt").write_text("x")
    (tmp_path / "train" / wnids[0] / "notes.txt").write_text("x")
    # Names that sort otherwise than they were made; another ending.
    disk.save(tmp_path / "train" / wnids[0] / "a.jpg", 0, 3)
    domain = read_imagenet(tmp_path, num_classes=100, check="ignore")
    assert domain.name == "ImageNet100" and len(domain.class_names) == 100
    assert domain.class_names == imagenet_class_names()[:100]
    assert len(domain.templates) == 80 and domain.templates[0] == "a photo of a {}."
    assert len(domain.train) == 201 and len(domain.test) == 100
    assert (domain.test.targets == np.arange(100)).all()
    assert np.bincount(domain.train.targets).tolist() == [3] + [2] * 99
    assert [row[2] for row in content(domain.train.subset([0, 1, 2]))] == [3, 0, 1]
    label = 57
    chosen = domain.train.subset(domain.train.targets == label)
    path = chosen.source.path(chosen.indices[1])
    assert path.endswith(f"train/{wnids[label]}/{wnids[label]}_1.JPEG")


@pytest.fixture
def hundred(tmp_path):
    disk.imagenet(tmp_path, list(imagenet_wnids()[:100]))
    return tmp_path


def test_imagenet__sizes_are_compared(hundred):
    with pytest.warns(UserWarning, match="100 test images instead of 5,000") as seen:
        read_imagenet(hundred, num_classes=100)
    assert seen[0].filename == __file__
    refused("100 class folders, but ImageNet1K needs 1000", read_imagenet, hundred)
    refused("use one of 100, 1000", read_imagenet, hundred, num_classes=50)


def test_imagenet__names_may_be_given(hundred, tmp_path):
    names = [f"name {k}" for k in range(100)]
    (tmp_path / "names.txt").write_text("\n".join(names))
    options = {"num_classes": 100, "check": "ignore"}
    for given in (names, tmp_path / "names.txt"):
        domain = read_imagenet(hundred, class_names=given, **options)
        assert domain.class_names == tuple(names)
    with pytest.raises(ValueError, match="99 names in class_names"):
        read_imagenet(hundred, class_names=names[1:], **options)


def test_imagenet__other_folders_are_not_taken_for_the_published_classes(tmp_path):
    disk.imagenet(tmp_path, [f"n{k:08d}" for k in range(100)])
    with pytest.raises(ValueError, match="100 classes have no published name"):
        read_imagenet(tmp_path, num_classes=100)
    names = [f"name {k}" for k in range(100)]
    with pytest.warns(UserWarning, match="n00000000 where n01440764 is expected"):
        read_imagenet(tmp_path, num_classes=100, class_names=names)


def test_imagenet__flat_validation_folder_is_explained(hundred):
    for path in list((hundred / "val").rglob("*.JPEG"))[:3]:
        path.rename(hundred / "val" / path.name)
        path.parent.rmdir()
    with pytest.raises(FileNotFoundError, match="3 classes have no folder.*one folder"):
        read_imagenet(hundred, num_classes=100)


def test_imagenet__empty_class_is_named(hundred):
    wnid = imagenet_wnids()[7]
    next((hundred / "train" / wnid).iterdir()).unlink()
    with pytest.raises(FileNotFoundError, match=f"1 have one without.*{wnid}"):
        read_imagenet(hundred, num_classes=100)


def test_imagenet__missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="train, val not found.*image-net.org"):
        read_imagenet(tmp_path)


def tiny(root, **options):
    return read_tiny_imagenet(root, check="ignore", **options)


def test_tiny_imagenet__class_is_the_line_of_wnids(tmp_path):
    labels = disk.tiny_imagenet(tmp_path, TINY, WORDS)
    domain = tiny(tmp_path)
    assert content(domain.train) == [(k, k, 0) for k in range(4)]
    # The sorted folders would be in another order.
    assert TINY != sorted(TINY)
    assert content(domain.test) == [(k, k, 1) for k in labels]
    assert domain.class_names == (
        *("Egyptian Mau", "fishing casting reel", "volleyball", "rocking chair"),
    )
    assert domain.templates == ("a bad photo of a {}.",)
    assert domain.name == "TinyImageNet"


def test_tiny_imagenet__lemma_where_clip_has_no_name(tmp_path):
    disk.tiny_imagenet(tmp_path, [*TINY[:1], "n00000001"], WORDS)
    assert tiny(tmp_path).class_names == ("Egyptian Mau", "made-up thing")
    assert tiny(tmp_path, class_names=["a", "b"]).class_names == ("a", "b")
    (tmp_path / "words.txt").unlink()
    refused("'n00000001'", tiny, tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "val_0.JPEG\tn99999999\t0\t0\t1\t1",
        "other.JPEG\tn02124075",
        "val_0.JPEG",
        "val_0.JPEG\tn02124075\t0\t0\t1\t1",
    ],
)
def test_tiny_imagenet__bad_annotation_is_named(tmp_path, line):
    disk.tiny_imagenet(tmp_path, TINY, WORDS)
    path = tmp_path / "val" / "val_annotations.txt"
    path.write_text(path.read_text() + line + "\n")
    refused("line 5", tiny, tmp_path)


def test_tiny_imagenet__missing_files_are_named(tmp_path):
    refused("wnids.txt.*tiny-imagenet-200.zip", tiny, tmp_path, error=FileNotFoundError)
    disk.tiny_imagenet(tmp_path, [*TINY, TINY[0]], WORDS)
    refused("more than once", tiny, tmp_path)


def test_folder_files__a_million_names_are_columns(tmp_path):
    names = [f"n{k % 1000:08d}/n{k % 1000:08d}_{k:05d}.JPEG" for k in range(100_000)]
    files = FolderFiles(tmp_path, names)
    assert len(files) == 100_000 and files.names.nbytes <= 33 * 100_000
    assert files.path(99_999) == str(tmp_path / names[-1])
    odd = FolderFiles(tmp_path, ["ä b/ü.jpg"])
    disk.save(tmp_path / "ä b" / "ü.jpg", 3, 4)
    assert odd[0][0].size == (8, 8)


def test_tiny_imagenet__first_ids_are_compared(tmp_path):
    disk.tiny_imagenet(tmp_path, TINY[::-1], WORDS)
    with pytest.raises(
        ValueError, match="class 0 is n04099969 where n02124075 is expected"
    ):
        read_tiny_imagenet(tmp_path, check="raise")
    read_tiny_imagenet(tmp_path, check="ignore")


# -------------------------------------------------------------------- ImageNet-R
@pytest.fixture
def renditions(tmp_path):
    """Four classes of 1 to 4 pictures, made in another order than the sorted one."""
    for label, wnid in reversed(list(enumerate(sorted(TINY)))):
        for number in range(label + 1):
            disk.save(tmp_path / wnid / f"art_{number}.jpg", 20 * label, number)
    (tmp_path / "README.txt").write_text("x")
    return tmp_path


def test_imagenet_r__split_is_that_of_the_released_code(renditions):
    domain = read_imagenet_r(renditions, check="ignore")
    assert domain.name == "ImageNetR" and domain.templates == ("a bad photo of a {}.",)
    names = dict(zip(imagenet_wnids(), imagenet_class_names(), strict=True))
    assert domain.class_names == tuple(names[wnid] for wnid in sorted(TINY))
    listed = [(label, label, n) for label in range(4) for n in range(label + 1)]
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0)).tolist()
    assert content(domain.train) == [listed[i] for i in sorted(order[:8])]
    assert content(domain.test) == [listed[i] for i in sorted(order[8:])]


def test_imagenet_r__what_is_wrong_is_said(renditions, tmp_path):
    with pytest.warns(UserWarning, match="4 classes instead of 200, 8 training"):
        read_imagenet_r(renditions)
    refused("check='x' is unknown", read_imagenet_r, renditions, check="x")
    refused("3 names in", read_imagenet_r, renditions, class_names=["a", "b", "c"])
    (renditions / "n99999999").mkdir()
    refused("1 classes have no published name", read_imagenet_r, renditions)
    given = {"class_names": list("abcde"), "check": "ignore"}
    words = "1 have one without images"
    refused(words, read_imagenet_r, renditions, error=FileNotFoundError, **given)
    nowhere = tmp_path / "none"
    refused("none is no folder; get", read_imagenet_r, nowhere, error=FileNotFoundError)
    nowhere.mkdir()
    refused("has no folders", read_imagenet_r, nowhere, error=FileNotFoundError)
