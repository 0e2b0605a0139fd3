"""MIRB's files: names old and new, fields, pictures, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from avalanche_clip.benchmarks.datasets import (
    MIRB_CONTROLS,
    MIRB_DIMENSIONS,
    MIRB_SUBSETS,
    MIRBDataset,
    MultiImageSample,
)
from avalanche_clip.benchmarks.datasets.mirb import mirb_subset
from tests.refused import refused

OLDER = {
    "domain": "attribute",
    "foods": "food",
    "image_needles": "visual_chain",
    "places": "sightseeing",
    "plot": "plot_code",
    "image_needles_concat": "visual_chain_concat",
}
TABLE = [  # subset, dimension, kind, instruction
    ("codeu", "Reasoning", "letter", "Answer with the option symbol."),
    ("plot_code", "Reasoning", "title", "Answer with a single word."),
    ("analogy", "Reasoning", "yesno", "Answer with a single word."),
    (
        *("3d_scene", "Reasoning", "number"),
        "The following images are different views of the same 3D scene. "
        "Answer with a single number.",
    ),
    ("food", "Knowledge", "letter", "Answer with the option symbol."),
    ("sightseeing", "Knowledge", "contains", "Answer with a single word."),
    ("image_jigsaw", "Perception", "letter", "Answer with the option symbol."),
    ("count", "Perception", "number", "Answer with a single number."),
    ("attribute", "Perception", "yesno", "Answer with a single word."),
    ("visual_chain", "Multi-hop", "number", "Answer with a single word."),
    ("arxiv", "Multi-hop", "title", "Answer with the paper title."),
]


def picture(folder, name, value=9):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(path)
    return name


def write(folder, name, rows):
    (folder / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")


def row(answer="yes", images=(), **more):
    return {"questions": "a?", "answers": answer, "images": list(images), **more}


@pytest.mark.parametrize("line", TABLE, ids=lambda line: line[0])
def test_subset__is_as_published(line):
    name, dimension, kind, instruction = line
    answer = "yes" if kind == "yesno" else "A"
    sample = MultiImageSample([], "a?", answer, name)
    assert (sample.dimension, sample.kind, sample.instruction) == line[1:]
    assert sample.subset == name
    assert name in MIRB_DIMENSIONS[dimension]


def test_subsets__are_eleven_in_four_dimensions():
    assert [line[0] for line in TABLE] == list(MIRB_SUBSETS)
    assert sum(map(len, MIRB_DIMENSIONS.values())) == 11
    assert list(MIRB_DIMENSIONS) == "Reasoning Knowledge Perception Multi-hop".split()


@pytest.mark.parametrize("control", MIRB_CONTROLS)
def test_control__has_the_instruction_of_its_base_and_no_dimension(control):
    base = MultiImageSample([], "a?", "3", MIRB_CONTROLS[control])
    sample = MultiImageSample([], "a?", "3", control)
    assert sample.dimension is None and sample.subset == control
    assert (sample.kind, sample.instruction) == (base.kind, base.instruction)


@pytest.mark.parametrize("old", OLDER)
def test_older_name__gives_the_same_samples(tmp_path, old):
    new = OLDER[old]
    old_root, new_root = tmp_path / "old", tmp_path / "new"
    for root, name in ((old_root, old), (new_root, new)):
        image = picture(root, "images/x/1.png")
        write(root, name, [row(images=[image])])
    found = [list(MIRBDataset(root, [new])) for root in (old_root, new_root)]
    for left, right in zip(*found, strict=True):
        assert (left.id, left.subset, left.kind) == (right.id, right.subset, right.kind)
        assert left.dimension == right.dimension
    assert list(MIRBDataset(new_root, [old])) == found[1]
    assert mirb_subset(old) == mirb_subset(new) == new
    assert MIRBDataset(found[0]).checksum == MIRBDataset(found[1]).checksum


def test_fields__are_read_as_released(tmp_path):
    names = [picture(tmp_path, f"images/count/{n}.jpg", 40 * n) for n in range(3)]
    rows = [
        row(7, names, note="kept"),
        {"questions": "b?", "answers": "3", "images": names[1]},
    ]
    write(tmp_path, "count", rows)
    write(tmp_path, "codeu_text", [row("B")])
    data = MIRBDataset(tmp_path, ["codeu_text", "count"])
    assert [sample.id for sample in data] == ["codeu_text/0", "count/0", "count/1"]
    text, many, one = data
    assert list(text.images) == [] and text.answer == "B"
    assert many.answer == "7" and many.extra == {"note": "kept"}
    assert len(many.images) == 3 and len(one.images) == 1
    shown = many.picture(2)
    assert shown.mode == "RGB" and shown.size == (6, 4)
    assert data.missing == {}


def test_missing_files__are_named_and_the_rest_is_read(tmp_path):
    write(tmp_path, "arxiv", [row("A title")])
    data = MIRBDataset(tmp_path)
    assert len(data) == 1 and set(data.missing) == set(MIRB_SUBSETS) - {"arxiv"}
    assert data.missing["food"] == f"{tmp_path}/food.json or {tmp_path}/foods.json"
    assert data.missing["count"] == f"{tmp_path}/count.json"
    refused("holds none of", MIRBDataset, tmp_path, ["count"], error=FileNotFoundError)
    no = tmp_path / "no"
    refused("no holds none of", MIRBDataset, no, error=FileNotFoundError)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({}, "a list"),
        ([3], "entry 0.*mapping"),
        ([row(), {"questions": "a?"}], "entry 1.*'answers' and no 'images'"),
        ([{**row(), "questions": ["a?"]}], "'questions'"),
        ([row("maybe")], "'maybe'; give 'yes' or 'no'"),
        ([row(None)], "The answer of attribute/0"),
        ([row(1.5)], "The answer of attribute/0"),
        ([row(images=["../x.png"])], "outside"),
        ([{**row(), "images": 3}], "'images'"),
    ],
)
def test_damaged_file__is_refused_by_name(tmp_path, rows, words):
    write(tmp_path, "attribute", rows)
    refused(f"(?s)attribute.json.*{words}", MIRBDataset, tmp_path)


def test_wrong_folder__is_refused(tmp_path):
    write(tmp_path, "places", [row("Rome")])
    write(tmp_path, "sightseeing", [row("Rome")])
    refused("two names of one subset", MIRBDataset, tmp_path)
    refused("foods.*mean", MIRBDataset, tmp_path, ["foodz"])
    write(tmp_path, "foods", [row("A")])
    refused("more than once", MIRBDataset, tmp_path, ["food", "foods"])
    write(tmp_path, "count", [row(3, ["images/a.jpg", "images/b.jpg"])])
    refused(
        "2 of 2 images are missing.*unpack images.zip",
        *(MIRBDataset, tmp_path, ["count"]),
        error=FileNotFoundError,
    )


def test_checksum__follows_content_and_not_order(tmp_path):
    image = Image.fromarray(np.zeros((2, 2, 3), np.uint8))
    one = MultiImageSample([image], "a?", "3", "count", "1")
    two = MultiImageSample([], "b?", "3", "count", "2")
    content = MIRBDataset([one, two])
    assert content.checksum == MIRBDataset([two, one]).checksum
    other = Image.fromarray(np.ones((2, 2, 3), np.uint8))
    for changed in (
        MultiImageSample([other], "a?", "3", "count", "1"),
        MultiImageSample([image], "a??", "3", "count", "1"),
        MultiImageSample([image], "a?", "4", "count", "1"),
        MultiImageSample([image], "a?", "3", "count", "1", {"grid": [2, 2]}),
    ):
        assert MIRBDataset([changed, two]).checksum != content.checksum
    refused("ids", MIRBDataset, [one, one])
    refused("no questions", MIRBDataset, [])
    refused("MultiImageSample", MIRBDataset, [3], error=TypeError)
