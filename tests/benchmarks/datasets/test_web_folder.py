"""Evaluation sets in tar shards: everything comes back, whatever is wrong is said."""

import io
import pickle
import shutil
import tarfile

import numpy as np
import pytest

from avalanche_clip.benchmarks.datasets import WebFolder
from avalanche_clip.common.pictures import read_picture
from tests.web_folders import npy, picture, write_web_folder

LABELS = [2, 0, 1, 1, 2]
ENDINGS = ("png", "webp", "jpg", "jpeg", "png")


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    samples = [
        {"cls": str(label), ending: picture(n, ending), "json": "{}"}
        for n, (label, ending) in enumerate(zip(LABELS, ENDINGS, strict=True))
    ]
    return write_web_folder(
        tmp_path_factory.mktemp("web") / "set",
        samples,
        classes=["dog, hound", "{cat}", "été"],
        templates=["a photo of a {c}.", "{c}"],
    )


def test_folder__gives_pictures_labels_and_names_in_any_order(classes):
    found = pickle.loads(pickle.dumps(WebFolder(classes)))
    assert (len(found), found.kind) == (5, "classification")
    assert found.labels.tolist() == LABELS and found.facts is None
    assert found.class_names == ("dog, hound", "{cat}", "été")
    assert found.templates == ("a photo of a {c}.", "{c}")
    for n in (4, 0, 2, 2, 1):
        whole = read_picture(picture(n, ENDINGS[n]))
        assert found[n].mode == "RGB" and found[n].tobytes() == whole.tobytes()


def test_folder__captions_end_at_line_feeds_only(tmp_path):
    texts = ["one\ntwo", "a\\nb", "1\u20282\x0b3\x0c4\x855\n\n2\n3\n4\n5\n"]
    samples = [{"txt": t, "jpg": picture(n, "jpg")} for n, t in enumerate(texts)]
    folder = write_web_folder(tmp_path / "set", samples, kind="retrieval", shards=1)
    found = WebFolder(folder)
    assert found.kind == "retrieval" and found.labels is None
    assert [len(t) for t in found.texts] == [2, 1, 5]
    assert found.texts[2][0] == "1\u20282\x0b3\x0c4\x855"
    assert WebFolder(folder, captions="whole").texts == [[t] for t in texts]


@pytest.mark.parametrize("captions", ["lines", "whole"])
def test_captions__of_a_set_that_has_none__are_refused(classes, captions):
    with pytest.raises(ValueError, match="no effect .* classification"):
        WebFolder(classes, captions=captions)


def test_folder__of_several_labels_and_of_facts(tmp_path):
    samples = [{"npy": npy([1, 0, n % 2]), "png": picture(n)} for n in range(3)]
    names = {"classes": ["a", "b", "c"], "templates": ["{c}"]}
    found = WebFolder(
        write_web_folder(tmp_path / "many", samples, kind="multilabel", **names)
    )
    assert found.labels.tolist() == [[1, 0, 0], [1, 0, 1], [1, 0, 0]]
    for n, sample in enumerate(samples):
        sample |= {"npy": npy([n + 5, 2016]), "cls": "1"}
    found = WebFolder(write_web_folder(tmp_path / "facts", samples, **names))
    assert found.facts.tolist() == [[5, 2016], [6, 2016], [7, 2016]]


def change(folder, name, content=None):
    path = folder / name
    path.unlink() if content is None else path.write_text(content)


def swap(folder, **member):
    """Put other samples into the last shard."""
    path = folder / "test" / "1.tar"
    path.unlink()
    inner = write_web_folder(folder / "new", [member], shards=1)
    shutil.move(inner / "test" / "0.tar", path)


def huge():
    """An array that declares 800 TB."""
    head, content = {"descr": "<f8", "fortran_order": False}, io.BytesIO()
    np.lib.format.write_array_header_1_0(content, {**head, "shape": (10**14,)})
    return content.getvalue()


@pytest.mark.parametrize(
    "damage, error, words",
    [
        (lambda f: change(f, "test/nshards.txt"), FileNotFoundError, "nshards.txt"),
        (lambda f: change(f, "test/nshards.txt", "9" * 30), FileNotFoundError, "2.tar"),
        (
            lambda f: swap(f, cls="1", png=picture(0), npy=b"PK\3\4x"),
            ValueError,
            "npy",
        ),
        (
            lambda f: swap(f, cls="1", png=picture(0), npy=huge()),
            ValueError,
            "npy",
        ),
        (
            lambda f: swap(f, cls="1", png=picture(0), npy=npy("a")),
            ValueError,
            "no numbers",
        ),
        (lambda f: change(f, "test/nshards.txt", "two"), ValueError, "holds 'two'"),
        (lambda f: change(f, "test/1.tar"), FileNotFoundError, "1.tar.*not complete"),
        (lambda f: change(f, "test/0.tar", "x"), ValueError, "0.tar is not a tar"),
        (lambda f: change(f, "classnames.txt"), FileNotFoundError, "classnames.txt"),
        (lambda f: change(f, "classnames.txt", "a\nb\n"), ValueError, "0..1"),
        (lambda f: change(f, "dataset_type.txt", "audio"), ValueError, "'audio'"),
        (
            lambda f: change(f, "dataset_type.txt", "retrieval"),
            ValueError,
            "0 of 5 samples have a txt",
        ),
        (lambda f: swap(f, cls="1"), ValueError, "1.tar .* no picture"),
        (
            lambda f: swap(f, cls="1", **{"left.png": picture(0)}),
            ValueError,
            "left.png has more than one dot",
        ),
        (lambda f: swap(f, cls="a", png=picture(0)), ValueError, "classes as numbers"),
        (lambda f: swap(f, cls="-1", png=picture(0)), ValueError, "holds -1 to 2"),
    ],
)
def test_folder__damage_is_named(classes, tmp_path, damage, error, words):
    folder = tmp_path / "set"
    shutil.copytree(classes, folder)
    damage(folder)
    with pytest.raises(error, match=words):
        WebFolder(folder)


def test_folder__a_damaged_picture_is_named_when_it_is_read(classes, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(classes, folder)
    swap(folder, cls="1", png=picture(0)[:60])
    with pytest.raises(ValueError, match=r"1.tar, picture 3"):
        WebFolder(folder)[3]


def test_folder__samples_need_not_lie_together(classes, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(classes, folder)
    with tarfile.open(folder / "test/0.tar") as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar]
    with tarfile.open(folder / "test/0.tar", "w") as tar:
        import io

        for m, raw in sorted(members, key=lambda e: e[0].name.partition(".")[2]):
            tar.addfile(m, io.BytesIO(raw))
    found, plain = WebFolder(folder), WebFolder(classes)
    assert sorted(found.labels[:3]) == sorted(plain.labels[:3])
    pixels = {found[n].tobytes(): found.labels[n] for n in range(3)}
    assert pixels == {plain[n].tobytes(): plain.labels[n] for n in range(3)}
    assert np.array_equal(found.labels[3:], plain.labels[3:])


def test_folder__cut_between_two_samples_is_not_complete(classes, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(classes, folder)
    shard = folder / "test/1.tar"
    with tarfile.open(shard) as tar:
        second = [member for member in tar if member.name.endswith(".cls")][1]
    shard.write_bytes(shard.read_bytes()[: second.offset])
    with pytest.raises(ValueError, match="1.tar is not .* it is cut off"):
        WebFolder(folder)


def test_folder__labels_of_several_classes_are_zeros_and_ones(tmp_path):
    samples = [{"npy": npy([0.5, 1]), "png": picture(0)}]
    names = {"classes": ["a", "b"], "templates": ["{c}"], "shards": 1}
    folder = write_web_folder(tmp_path / "set", samples, kind="multilabel", **names)
    with pytest.raises(ValueError, match="zeros and ones"):
        WebFolder(folder)
