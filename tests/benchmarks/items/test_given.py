"""Data whose items are no pairs: what is said, and that the advice works."""

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import (
    Domain,
    class_incremental_benchmark,
    make_image_text_dataset,
    multi_domain_benchmark,
)
from avalanche_clip.benchmarks.items.given import ItemsError
from avalanche_clip.benchmarks.items.items import find_corrupt_samples
from tests.benchmarks.small_streams import ListedPairs
from tests.refused import refused

IMAGE = torch.zeros(3, 4, 4)


class Table:
    """What is known of a DataFrame."""

    iloc = None
    columns = ("path", "caption", "image")

    def __len__(self):
        return 2

    def __getitem__(self, key):
        return {"image": ["a.jpg", "b.jpg"], "caption": ["x", "y"]}[key]


class Rows:
    """What is known of a table of Hugging Face's datasets."""

    column_names = ["image", "label"]

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return {"image": IMAGE, "label": 0}


def generator():
    yield IMAGE, "a"


@pytest.mark.parametrize(
    ("data", "found", "line"),
    [
        (
            [{"image": IMAGE, "text": "a"}],
            "item 0 is a dict",
            "[(row['image'], row['text']) for row in data]",
        ),
        (
            ({"jpg": IMAGE, "caption": "a", "url": "u"},),
            "item 0 is a dict",
            "[(row['jpg'], row['caption']) for row in data]",
        ),
        (Rows(), "rows by name (Rows)", "[(row['image'], row['label']) for row in"),
        (Table(), "a table (Table)", "zip(data['image'], data['caption'])"),
        ({"image": [IMAGE], "text": ["a"]}, "mapping of columns (dict)", "list(zip("),
        (
            {"train": Rows(), "test": Rows()},
            "several parts (['train', 'test']) were given; take one, such as "
            "data = data['train']",
            "[(row['image'], row['label']) for row in data]",
        ),
        ({0: (IMAGE, "a")}, "a mapping (dict)", "pairs = list(data.values())"),
        (generator(), "a generator was given", "pairs = list(data)"),
        (zip([IMAGE], ["a"]), "a zip was given", "pairs = list(data)"),
        ({(1, "a")}, "a set was given", "pairs = list(data)"),
        ("pictures/", "a str was given", "pairs = [(image_0, text_0)"),
        (None, "a NoneType was given", "pairs = [(image_0, text_0)"),
    ],
)
def test_source__other_forms_are_refused_with_the_lines_that_convert_them(
    data, found, line
):
    with pytest.raises(ItemsError) as caught:
        make_image_text_dataset(data)
    said = str(caught.value)
    assert "items must be (image, text)" in said and found in said and line in said
    assert len(said.splitlines()) == 3
    assert said.endswith("dataset = make_image_text_dataset(pairs)")
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, ValueError)


def test_source__the_lines_work():
    rows = [{"image": IMAGE, "text": "a"}, {"image": IMAGE, "text": "b"}]
    with pytest.raises(ItemsError) as caught:
        make_image_text_dataset(rows)
    names = {"data": rows, "make_image_text_dataset": make_image_text_dataset}
    for line in str(caught.value).splitlines()[1:]:
        exec(line.strip(), names)
    assert names["dataset"][1][1] == "b"


@pytest.mark.parametrize(
    ("item", "found"),
    [
        ({"image": IMAGE, "text": "a"}, "is a dict with ['image', 'text']"),
        ((IMAGE,), "is a tuple of 1 element(s)"),
        (IMAGE, "is a Tensor"),
        ("a.jpg", "is a str"),
        (None, "is a NoneType"),
    ],
)
def test_items__that_are_no_pairs_are_named_when_they_are_read(item, found):
    dataset = make_image_text_dataset(ListedPairs([(IMAGE, "a"), item]))
    assert dataset[0][1] == "a"
    with pytest.raises(ItemsError) as caught:
        dataset[1]
    said = str(caught.value)
    assert f"Item 1 (sample_id 1) {found}" in said
    assert "items must be (image, text)" in said
    assert [position for position, _ in find_corrupt_samples(dataset)] == [1]


@pytest.mark.parametrize(
    "data", [Rows(), [{"image": IMAGE, "label": 0}], generator(), Table()]
)
def test_labelled_data__other_forms_are_refused(data):
    whole = [(IMAGE, 0), (IMAGE, 0)]
    for build in (
        lambda: multi_domain_benchmark([Domain(data, whole, ["cat"])]),
        lambda: class_incremental_benchmark(data, whole, ["cat"], increment=1),
    ):
        refused(r"items must be \(image, label\)", build, error=ItemsError)


def test_items__rows_of_other_kinds_are_pairs():
    rows = np.empty((1, 2), dtype=object)
    rows[0] = IMAGE, "a"
    for data in (rows, [[IMAGE, "a"]], ListedPairs([(IMAGE, "a", "more")])):
        assert make_image_text_dataset(data)[0][1] == "a"


def test_labelled_data__dicts_with_known_labels_are_refused_when_read():
    rows = ListedPairs([{"image": IMAGE, "label": 0}])
    with pytest.raises(ItemsError, match=r"items must be \(image, label\)"):
        class_incremental_benchmark(rows, rows, ["cat"], increment=1)
    rows.targets = np.zeros(1, dtype=int)
    built = class_incremental_benchmark(rows, rows, ["cat"], increment=1)
    with pytest.raises(ItemsError, match=r"items must be \(image, label\)"):
        built.train_stream[0].dataset[0]
