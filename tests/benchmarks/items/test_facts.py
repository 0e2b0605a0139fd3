"""Facts added to data sets, and data sets without pictures."""

import numpy as np
import pytest
import torch

from avalanche_clip.benchmarks import (
    attribute_array,
    make_image_text_dataset,
    prepare_benchmark,
    with_facts,
    without_images,
)
from avalanche_clip.benchmarks.items.flat import has_no_images
from avalanche_clip.benchmarks.items.items import concatenate, item_fields
from tests.benchmarks.small_streams import (
    CharModel,
    Texts,
    counted_benchmark,
    counted_dataset,
)
from tests.refused import refused


def test_with_facts__adds_and_replaces_before_the_task_label():
    data = counted_dataset([0.0, 1.0, 2.0], targets=[5, 6, 7])
    more = with_facts(data, {"image_id": np.array([4, 4, 9]), "sample_id": [7, 8, 9]})
    assert item_fields(more) == (
        *("image", "text", "sample_id", "targets"),
        *("image_id", "targets_task_labels"),
    )
    assert item_fields(data)[-1] == "targets_task_labels"
    batch, targets, task = more.collate_fn(
        [(torch.zeros(1), torch.tensor([1]), *more[k][2:]) for k in range(3)]
    )
    assert batch["image_id"].tolist() == [4, 4, 9]
    assert batch["sample_id"].tolist() == [7, 8, 9]
    assert targets.tolist() == [5, 6, 7] and task.tolist() == [0, 0, 0]
    assert attribute_array(data, "sample_id").tolist() == [0, 1, 2]
    assert not hasattr(data, "image_id")
    # Avalanche concatenates the field of that name, not the attribute.
    both = concatenate([more.subset([2]), more.subset([0])])
    assert attribute_array(both, "sample_id").tolist() == [9, 7]
    assert attribute_array(both, "image_id").tolist() == [9, 4]


def test_with_facts__checks_names_and_lengths():
    data = counted_dataset([0.0, 1.0])
    with pytest.raises(ValueError, match="3 values of fact 'image_id' given, 2"):
        with_facts(data, {"image_id": [1, 2, 3]})
    for name in ("owner", "subset", "targets_task_labels"):
        refused("cannot be named", with_facts, data, {name: [1, 2]})
    with pytest.raises(TypeError, match="make_image_text_dataset"):
        with_facts([1, 2], {"image_id": [1, 2]})


def test_without_images__decodes_nothing():
    texts = make_image_text_dataset(Texts("text 0", "text 1", "text 2", " "))
    data = without_images(texts.subset([2, 0]))
    assert has_no_images(data)
    image, text, *_ = data[0]
    assert image.shape == (0,) and text == "text 2"
    with pytest.raises(ValueError, match="empty caption"):
        without_images(texts)[3]


def test_without_images__trains_and_evaluates_on_texts():
    benchmark = counted_benchmark(captions=2)
    for experience in benchmark.train_stream:
        experience._dataset = without_images(experience.dataset)
    prepared = prepare_benchmark(benchmark, CharModel())
    data = prepared.train_stream[1].dataset
    batch, *_ = data.collate_fn([data[k] for k in range(4)])
    assert batch["image"].shape == (4, 0) and len(batch) == 4
    assert batch["text"].shape[0] == 4
    assert [len(part) for part in batch.split(2)] == [2, 2]
    evaluated = data.eval()
    batch, *_ = evaluated.collate_fn([evaluated[k] for k in range(4)])
    assert batch["text"].shape[0] == 8
    whole = concatenate([e.dataset for e in prepared.train_stream])
    assert has_no_images(whole) and len(whole) == 12
    test = prepared.test_stream[0].dataset
    assert test[0][0].shape == (3, 4, 4)


def test_without_images__refuses_prepared_data():
    prepared = prepare_benchmark(counted_benchmark(), CharModel())
    refused("prepared for a model", without_images, prepared.train_stream[0].dataset)
