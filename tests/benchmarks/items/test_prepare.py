"""Binding benchmarks to a model."""

import copy

import pytest
import torch
from avalanche.benchmarks.scenarios.dataset_scenario import benchmark_from_datasets
from avalanche.benchmarks.scenarios.task_aware import task_incremental_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TransformGroups

from avalanche_clip.benchmarks import (
    RandomCaption,
    attribute_array,
    prepare_benchmark,
    split_online,
    split_validation,
    time_stamped_benchmark,
    with_facts,
)
from avalanche_clip.benchmarks.items.prepare import is_prepared, require_prepared
from tests.benchmarks.small_streams import CharModel, counted_benchmark, counted_dataset
from tests.refused import refused


def pixel(dataset, position=0):
    return float(dataset[position][0][0, 0, 0])


def collate(dataset, positions):
    return dataset.collate_fn([dataset[i] for i in positions])


def assert_transformed_once(dataset):
    raw = attribute_array(dataset, "sample_id")[0] % 100
    assert pixel(dataset.train()) == raw + 1000
    assert pixel(dataset.eval()) == raw + 2000


# --- transforms ---------------------------------------------------------------


def test_prepare__train_and_eval_groups():
    original = counted_benchmark(captions=3)
    prepared = prepare_benchmark(original, CharModel())
    train, test = (prepared.streams[name][1].dataset for name in ("train", "test"))
    assert pixel(train) == 1004 and pixel(train.eval()) == 2004
    assert pixel(test) == 2002 and pixel(test.train()) == 1002
    # One caption in training, all of them in evaluation.
    assert isinstance(train[0][1], str) and train[0][1] in ("4", "4.1", "4.2")
    assert test[0][1] == ["2", "2.1", "2.2"]
    batch, _, _ = collate(test, [0, 1])
    assert batch["owner"].tolist() == [0, 0, 0, 1, 1, 1] and len(batch) == 2
    # The benchmark that was given stays as it was.
    assert pixel(original.train_stream[1].dataset) == 4
    assert not is_prepared(original.train_stream[1].dataset) and is_prepared(train)


def test_prepare__own_transforms_replace_the_models():
    class Falsy(torch.nn.Sequential):
        def forward(self, image):
            return image * 0 - 1

    prepared = prepare_benchmark(
        counted_benchmark(captions=2),
        CharModel(),
        train_transform=Falsy(),
        eval_transform=Falsy(),
        train_text_transform=max,
    )
    train, test = (prepared.streams[name][0].dataset for name in ("train", "test"))
    assert pixel(train) == pixel(test) == -1
    assert train[0][1] == "0.1"


@pytest.mark.parametrize("between", ["nothing", "reading", "validation", "online"])
def test_prepare__twice_transforms_once(between):
    prepared = prepare_benchmark(counted_benchmark(), CharModel())
    if between == "reading":
        for stream in prepared.streams.values():
            for exp in stream:
                list(exp.dataset)
    elif between == "validation":
        prepared = split_validation(prepared, 0.5)
    elif between == "online":
        prepared = split_online(prepared, 2)
    model = CharModel()
    again = prepare_benchmark(prepare_benchmark(prepared, model), model)
    for stream in again.streams.values():
        for exp in stream:
            assert_transformed_once(exp.dataset)
            assert exp.dataset.collate_fn.tokenizer is model.tokenizer


def test_prepare__replaces_own_groups_and_keeps_frozen_transforms():
    groups = TransformGroups({"train": (torch.neg, None), "eval": (torch.neg, None)})
    frozen = counted_dataset([0.0, 1.0], transform_groups=groups).freeze_transforms()
    loose = counted_dataset([0.0, 1.0], transform_groups=groups)
    assert pixel(loose, 1) == pixel(frozen, 1) == -1
    for dataset, expected in ((loose, 1.0), (frozen, -1.0)):
        scenario = time_stamped_benchmark(dataset, num_experiences=1)
        prepared = prepare_benchmark(scenario, CharModel()).train_stream[0].dataset
        assert pixel(prepared, 1) == expected + 1000
        assert pixel(prepared.eval(), 1) == expected + 2000


# --- tokenizer ----------------------------------------------------------------


def test_prepare__tokenizer_is_held_by_reference_and_called_once_per_batch():
    model = CharModel()
    prepared = prepare_benchmark(counted_benchmark(languages=None), model)
    dataset = prepared.train_stream[0].dataset
    first, _, _ = collate(dataset, [0, 1])
    model.tokenizer.offset = 10
    grown, _, _ = collate(dataset, [0, 1])
    assert torch.equal(grown["text"][:, 0], first["text"][:, 0] + 10)
    assert model.tokenizer.calls == [(["0", "1"], None)] * 2


# --- what benchmarks carry ----------------------------------------------------


def test_prepare__keeps_labels_fields_and_scenario_facts():
    scenario = counted_benchmark()
    scenario.class_prompts = "prompts"
    scenario.train_stream[1].note = {"kept": True}
    prepared = prepare_benchmark(scenario, CharModel())
    assert prepared.time_labels == ["a", "b", "c"]
    assert prepared.class_prompts == "prompts"
    assert [e.time_label for e in prepared.test_stream] == ["a", "b", "c"]
    assert prepared.train_stream[1].note == {"kept": True}
    assert prepared.train_stream.benchmark is prepared


def test_prepare__sees_attributes_that_decorators_added():
    scenario = time_stamped_benchmark(
        counted_dataset([0.0, 1.0], task_labels=None), num_experiences=2
    )
    prepared = prepare_benchmark(task_incremental_benchmark(scenario), CharModel())
    for index, exp in enumerate(prepared.train_stream):
        assert collate(exp.dataset, [0])[2].tolist() == [index]
    dataset = counted_dataset([0.0, 1.0])
    colour = DataAttribute([8, 9], "colour", use_in_getitem=True)
    coloured = dataset.update_data_attribute("colour", colour)
    plain = benchmark_from_datasets(train=[coloured])
    batch, _, _ = collate(
        prepare_benchmark(plain, CharModel()).train_stream[0].dataset, [1, 0]
    )
    assert batch["colour"].tolist() == [9, 8] and batch["sample_id"].tolist() == [1, 0]


def test_prepare__refuses_other_data_sets():
    scenario = benchmark_from_datasets(train=[AvalancheDataset([[(1, 2), (3, 4)]])])
    refused("make_image_text_dataset", prepare_benchmark, scenario, CharModel())


# --- sample ids ---------------------------------------------------------------


def test_prepare__ids_repeated_in_training_raise():
    parts = [counted_dataset([0.0, 0.0]), counted_dataset([1.0, 1.0], first_id=1)]
    scenario = benchmark_from_datasets(train=parts)
    with pytest.raises(ValueError, match=r"example 1, in experience\(s\) \[0, 1\]"):
        prepare_benchmark(scenario, CharModel())


def test_prepare__ids_shared_with_training_are_warned_about():
    # Left at their default, ids of train and test are the same.
    scenario = time_stamped_benchmark(
        counted_dataset([0.0, 1.0]), num_experiences=1, test=counted_dataset([0.0])
    )
    with pytest.warns(UserWarning, match=r"1 sample_ids of stream 'test'.*unique"):
        prepare_benchmark(scenario, CharModel())


# --- captions -----------------------------------------------------------------


def test_random_caption__probabilities():
    torch.manual_seed(0)
    captions = ["name", "x", "y", "z"]
    drawn = [RandomCaption()(captions) for _ in range(2000)]
    assert all(abs(drawn.count(c) / 2000 - 0.25) < 0.04 for c in captions)
    drawn = [RandomCaption(0.7)(captions) for _ in range(2000)]
    assert abs(drawn.count("name") / 2000 - 0.7) < 0.04
    assert abs(drawn.count("y") / 2000 - 0.1) < 0.03
    assert RandomCaption(0.0)(["only"]) == "only" and RandomCaption()("text") == "text"
    assert RandomCaption(1.0)(captions) == "name"
    for wrong in (-0.1, 1.1, float("nan")):
        refused("name_probability", RandomCaption, wrong)


# --- workers ------------------------------------------------------------------


class OtherModel(CharModel):
    """A model whose ids or pixels may differ."""

    def __init__(self, offset=0, pixels=None, **facts):
        super().__init__()
        self.tokenizer.offset = offset
        self.pixels = pixels
        for name, value in facts.items():
            setattr(self.tokenizer, name, value)

    def transform(self, train):
        return super().transform(train) if self.pixels is None else Add(self.pixels)


class Add:
    """A transform that says what it does."""

    def __init__(self, value):
        self.value = value

    def __call__(self, image):
        return image + self.value

    def __repr__(self):
        return f"Add({self.value})"


def test_require_prepared__another_object_with_equal_ids_and_pixels_will_do():
    benchmark = prepare_benchmark(counted_benchmark(), OtherModel(pixels=1.0))
    for stream in benchmark.streams.values():
        for experience in stream:
            require_prepared(experience.dataset)
            require_prepared(experience.dataset, OtherModel(pixels=1.0))
            require_prepared(experience.dataset, copy.deepcopy(OtherModel(pixels=1.0)))
            require_prepared(experience.dataset, object())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (OtherModel(offset=1, pixels=1.0), "tokenizer writes 'a photo of a dog.'"),
        (OtherModel(pixels=2.0), r"images pass Add\(1.0\), those of this model Add"),
        (OtherModel(pixels=1.0, pad_id=7), "pad_id=-1, that of this model 7"),
        (OtherModel(pixels=1.0, context_length=9), "context_length=None"),
    ],
)
def test_require_prepared__other_ids_or_pixels_are_refused(model, said):
    benchmark = prepare_benchmark(counted_benchmark(), OtherModel(pixels=1.0))
    part = with_facts(benchmark.train_stream[0].dataset, {"extra": [1, 2, 3, 4]})
    sets = [benchmark.test_stream[0].dataset, part, part.subset([0, 2]), part.eval()]
    for dataset in sets:
        refused(f"another model: .*{said}", require_prepared, dataset, model)


def test_require_prepared__own_transforms_are_not_compared():
    benchmark = prepare_benchmark(
        counted_benchmark(), OtherModel(pixels=1.0), train_transform=Add(5.0)
    )
    require_prepared(benchmark.train_stream[0].dataset, OtherModel(pixels=2.0))
    # Prompts of classes replace the captions: their ids do not matter.
    other = OtherModel(offset=1, pixels=2.0)
    require_prepared(benchmark.train_stream[0].dataset, other, captions=False)
    # Only the transforms of the group in use matter.
    with pytest.raises(ValueError, match="images pass"):
        require_prepared(benchmark.test_stream[0].dataset, OtherModel(pixels=2.0))
