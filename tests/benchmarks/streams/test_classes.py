import logging

import numpy as np
import pytest
import torch
from avalanche.benchmarks.utils import AvalancheDataset
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from avalanche_clip.benchmarks import (
    Domain,
    class_incremental_benchmark,
    class_targets,
    few_shot_indices,
    multi_domain_benchmark,
)
from tests.benchmarks.small_streams import check_ids_differ, column, sizes_of
from tests.helpers import stub_dataset
from tests.refused import refused
from tests.training.classes import Labelled, cycle, domains, names_of


def targets_of(experience):
    return column(experience).tolist()


def ids_of(stream):
    return [column(e, "sample_id").tolist() for e in stream]


# ------------------------------------------------------------------ multi-domain
def test_multi_domain__global_ids_tasks_and_facts():
    benchmark = multi_domain_benchmark(domains((3, 4, 2)), order=[2, 0, 1])
    prompts = benchmark.class_prompts
    assert benchmark.protocol == "multi_domain" and len(prompts) == 9
    expected = [(2, (7, 8)), (0, (0, 1, 2)), (1, (3, 4, 5, 6))]
    for stream in (benchmark.train_stream, benchmark.test_stream):
        for position, (experience, (index, ids)) in enumerate(
            zip(stream, expected, strict=True)
        ):
            assert experience.class_ids == ids
            assert experience.dataset_index == index
            assert experience.domain == experience.label == f"domain-{index}"
            assert experience.class_names == tuple(names_of(ids[0], len(ids)))
            assert experience.templates == ("a {}.", "the {} b")
            assert experience.task_label == position
            assert experience.task_labels == [position]
            assert experience.class_prompts is prompts
            assert experience.origin_stream.benchmark is benchmark
            assert set(targets_of(experience)) == set(ids)
            tasks = column(experience, "targets_task_labels")
            assert set(tasks.tolist()) == {position}


def test_multi_domain__ids_of_classes_and_samples_do_not_depend_on_the_order():
    one = multi_domain_benchmark(domains())
    two = multi_domain_benchmark(domains(), order=[1, 2, 0])
    assert one.class_prompts == two.class_prompts
    for name in ("train", "test"):
        left, right = (
            {e.dataset_index: (ids_of([e]), targets_of(e)) for e in built.streams[name]}
            for built in (one, two)
        )
        assert left == right
    check_ids_differ(one)


def test_multi_domain__items_are_images_with_the_prompt_of_their_class():
    given = domains((3, 2))
    benchmark = multi_domain_benchmark(given)
    image, text, sample, target, task = benchmark.train_stream[1].dataset[3]
    assert torch.equal(image, given[1][0].images[3])
    assert text == f"a {names_of(3, 2)[1]}." and target == 4 and task == 1
    assert sample == 18 + 3


def test_multi_domain__mistakes_are_named():
    train, test, names, templates, _ = domains((3,))[0]
    halves = Labelled([0, 1])
    halves.targets = [0.5, 1.0]
    for words, given in (
        ("no domains", []),
        (r"give \(train, test", [(train, test, names)]),
        (r"labels 0\.\.2, but 2 class names", [(train, test, names[:2], templates)]),
        ("is empty", [(train, Labelled([]), names, templates)]),
        ("more than once", [(train, test, names, templates, "x")] * 2),
        ("exactly once", [(train, test, names, "no braces")]),
        ("one per item", [(halves, test, names, templates)]),
        ("name of domain 0 is 7.*give a string", [(train, test, names, "{}", 7)]),
    ):
        refused(words, multi_domain_benchmark, given)
    words, given = "2 data sets of stream 'valid'", [(train, test, names, templates)]
    refused(words, multi_domain_benchmark, given, valid=[test, test])


def test_multi_domain__a_class_may_be_missing_in_a_set():
    given = Domain(Labelled([0, 2, 2]), Labelled([1, 1]), names_of(0, 3))
    benchmark = multi_domain_benchmark([given])
    assert targets_of(benchmark.test_stream[0]) == [1, 1]
    assert benchmark.test_stream[0].class_ids == (0, 1, 2)
    assert benchmark.train_stream[0].domain == "domain 0"
    assert benchmark.train_stream[0].templates == ("a photo of a {}.",)


def test_multi_domain__further_streams_and_default_names():
    given = [d[:4] for d in domains((3, 2))]
    valid = [Labelled([0, 1, 2]), Labelled([1])]
    benchmark = multi_domain_benchmark(given, order=[1, 0], valid=valid)
    assert [targets_of(e) for e in benchmark.streams["valid"]] == [[4], [0, 1, 2]]
    assert benchmark.class_prompts.domain_names == ("domain 0", "domain 1")


# --------------------------------------------------------------------- few-shot
def test_few_shot__exactly_the_smaller_of_shots_and_available():
    targets = np.array([0] * 10 + [1] * 3 + [2] * 7)
    chosen = few_shot_indices(targets, 5)
    assert np.bincount(targets[chosen]).tolist() == [5, 3, 5]
    assert (np.diff(chosen) > 0).all()
    assert few_shot_indices(np.empty(0, int), 3).tolist() == []


def test_few_shot__same_for_the_same_seed_and_nested():
    targets = np.random.default_rng(0).integers(0, 4, 100)
    first = few_shot_indices(targets, 5, seed=3)
    torch.manual_seed(99), np.random.seed(99)
    assert (first == few_shot_indices(targets, 5, seed=3)).all()
    assert (first != few_shot_indices(targets, 5, seed=4)).any()
    assert set(first) < set(few_shot_indices(targets, 8, seed=3))
    # A class's choice does not depend on the others.
    changed = np.where(targets == 3, 2, targets)
    again = few_shot_indices(changed, 5, seed=3)
    same = [k for k in first if targets[k] < 2]
    assert same == [k for k in again if changed[k] < 2]


def test_few_shot__reads_no_image_and_leaves_tests_whole():
    given = domains((3, 4))
    benchmark = multi_domain_benchmark(given, shots=2, seed=1)
    assert sizes_of(benchmark.train_stream) == [6, 8]
    assert sizes_of(benchmark.test_stream) == [9, 12]
    assert all(part.reads == [] for d in given for part in d[:2])
    whole = multi_domain_benchmark(domains((3, 4)))
    for few, full in zip(benchmark.train_stream, whole.train_stream, strict=True):
        assert set(ids_of([few])[0]) < set(ids_of([full])[0])
    moved = multi_domain_benchmark(domains((3, 4)), shots=2, seed=1, order=[1, 0])
    assert ids_of(moved.train_stream) == ids_of(benchmark.train_stream)[::-1]


# ---------------------------------------------------------------------- targets
class Bare:
    """A data set without a list of labels."""

    def __init__(self, labels, name=None, wrap=lambda v: v):
        self.items = labels
        if name:
            setattr(self, name, wrap(labels))

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        if hasattr(self, "closed"):
            raise AssertionError("an image was read")
        return torch.zeros(3, 8, 8), self.items[index]


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("targets", list),
        ("targets", torch.tensor),
        ("targets", np.array),
        ("labels", list),
        ("_labels", list),
        ("y", list),
        ("samples", lambda v: [("path", k) for k in v]),
        ("_samples", lambda v: [("path", k) for k in v]),
    ],
)
def test_class_targets__known_places_are_read_without_items(name, wrap):
    data = Bare([2, 0, 1], name, wrap)
    data.closed = True
    assert class_targets(data).tolist() == [2, 0, 1]
    assert class_targets(Subset(data, [2, 0])).tolist() == [1, 2]
    assert class_targets(ConcatDataset([data, data])).tolist() == [2, 0, 1] * 2
    nested = Subset(ConcatDataset([data, Subset(data, [1])]), [3, 0])
    assert class_targets(nested).tolist() == [0, 2]


def test_class_targets__unknown_places_are_read_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert class_targets(Bare([1, 0])).tolist() == [1, 0]
    assert "are read" in caplog.text
    tensors = TensorDataset(torch.zeros(3, 3, 8, 8), torch.tensor([0, 1, 1]))
    assert class_targets(tensors).tolist() == [0, 1, 1]


def test_class_targets__of_avalanche_data():
    data = stub_dataset([1, 0, 1], [0.0] * 3, targets=True)
    assert isinstance(data, AvalancheDataset)
    assert class_targets(data).tolist() == [1, 0, 1]
    benchmark = multi_domain_benchmark([(data, data, ["x", "y"], "{}")])
    image, text, *_ = benchmark.train_stream[0].dataset[0]
    assert torch.equal(image, data[0][0]) and text == "y"


# ------------------------------------------------------------- class-incremental
def build(classes=7, **options):
    return class_incremental_benchmark(
        Labelled(cycle(classes, 4)),
        Labelled(cycle(classes, 2), seed=1),
        names_of(0, classes),
        "a {}.",
        **options,
    )


def test_class_incremental__labels_are_places_in_the_order():
    train = Labelled([0, 1, 2, 1])
    benchmark = class_incremental_benchmark(
        train, train, ["zero", "one", "two"], class_order=[2, 0, 1], sizes=[3]
    )
    assert targets_of(benchmark.train_stream[0]) == [1, 2, 0, 2]
    assert benchmark.class_prompts.names == ("two", "zero", "one")
    assert benchmark.class_order == [2, 0, 1]
    texts = [benchmark.train_stream[0].dataset[k][1] for k in range(4)]
    assert texts == [f"a photo of a {n}." for n in ("zero", "one", "two", "one")]


def test_class_incremental__original_labels_on_request():
    train = Labelled([0, 1, 2, 1])
    benchmark = class_incremental_benchmark(
        train,
        train,
        ["zero", "one", "two"],
        class_order=[2, 0, 1],
        sizes=[1, 2],
        relabel="original",
    )
    assert [e.class_ids for e in benchmark.train_stream] == [(2,), (0, 1)]
    assert [targets_of(e) for e in benchmark.train_stream] == [[2], [0, 1, 1]]
    assert benchmark.class_prompts.name(2) == "two"
    refused("relabel", build, sizes=[7], relabel="none")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"increment": 2}, [2, 2, 2, 1]),  # nothing is dropped
        ({"increment": 3, "base": 1}, [1, 3, 3]),
        ({"increment": np.int8(2), "base": torch.tensor(5)}, [5, 2]),
        ({"increment": 1, "base": 7}, [7]),
        ({"increment": 7}, [7]),
        ({"sizes": [4, 1, 2]}, [4, 1, 2]),
    ],
)
def test_class_incremental__steps_partition_the_classes(options, expected):
    order = [6, 2, 0, 4, 1, 5, 3]
    benchmark = build(class_order=order, **options)
    assert [len(e.class_ids) for e in benchmark.train_stream] == expected
    ids = [i for e in benchmark.train_stream for i in e.class_ids]
    assert ids == list(range(7))  # contiguous per step
    names = [n for e in benchmark.train_stream for n in e.class_names]
    assert names == [names_of(0, 7)[label] for label in order]
    for name, count in (("train", 28), ("test", 14)):
        assert sum(sizes_of(benchmark.streams[name])) == count
        for experience in benchmark.streams[name]:
            assert set(targets_of(experience)) == set(experience.class_ids)
            assert experience.task_label == 0
    check_ids_differ(benchmark)
    assert benchmark.protocol == "class_incremental"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Give .* one of"),
        ({"sizes": [7], "increment": 7}, "Give .* one of"),
        ({"sizes": [3, 3]}, "add up to 6"),
        ({"sizes": [7, 0]}, "integer >= 1"),
        ({"sizes": 7}, "list of integers"),
        ({"increment": 0}, "increment=0|base=0"),
        ({"increment": 2, "base": 8}, "^base=8 exceeds the 7"),
        ({"increment": 9}, "^increment=9 exceeds the 7"),
        ({"increment": 2, "class_order": [0, 1, 2, 3, 4, 5, 5]}, r"missing \[6\]"),
    ],
)
def test_class_incremental__mistakes_are_named(options, message):
    refused(message, build, **options)


def test_class_incremental__a_class_may_be_missing_but_no_whole_step():
    names = names_of(0, 4)
    train, test = Labelled(cycle(4, 2)), Labelled([0, 2, 3])
    benchmark = class_incremental_benchmark(train, test, names, increment=2)
    assert targets_of(benchmark.test_stream[0]) == [0]
    with pytest.raises(ValueError, match="Step 1 .* no sample in stream 'test'"):
        class_incremental_benchmark(train, test, names, increment=1)
    with pytest.raises(ValueError, match=r"labels 0\.\.3, but 3"):
        class_incremental_benchmark(train, test, names[:3], increment=1)


def test_class_incremental__few_shot_and_further_streams():
    benchmark = build(
        increment=3,
        shots=2,
        valid=Labelled([0, 3, 6]),
        class_order=[6, 5, 4, 3, 2, 1, 0],
    )
    assert sizes_of(benchmark.train_stream) == [6, 6, 2]
    assert [targets_of(e) for e in benchmark.streams["valid"]] == [[0], [3], [6]]
    assert sizes_of(benchmark.test_stream) == [6, 6, 2]
    assert [e.label for e in benchmark.test_stream] == ["0-2", "3-5", "6"]


# ------------------------------------------------------------------ strict input
class Shifted(Labelled):
    """A data set in torchvision's manner, whose transform renames labels."""

    def __init__(self, targets, transform):
        super().__init__(range(len(targets)))
        self.targets = targets
        self.target_transform = transform

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, self.target_transform(label)


@pytest.mark.parametrize(
    ("labels", "transform"),
    [
        ([0, 1, 2, 0], lambda y: 2 - y),
        (["x", "z", "x"], lambda y: {"x": 1, "z": 0}[y]),
        ([0, 1, 1], lambda y: torch.tensor(1 - y)),
    ],
)
def test_class_targets__go_through_the_target_transform(labels, transform):
    data = Shifted(labels, transform)
    expected = [int(transform(label)) for label in labels]
    assert class_targets(data).tolist() == expected
    assert not data.reads
    assert class_targets(Subset(data, [1, 0])).tolist() == [expected[1], expected[0]]
    whole = ConcatDataset([data, data])
    assert class_targets(whole).tolist() == 2 * expected


@pytest.mark.parametrize(
    "order", [[0.2, 1.7, 2.0], "021", ["0", "1", "2"], 3, [True, 0, 2]]
)
def test_orders__are_integers(order):
    refused("integer", multi_domain_benchmark, domains(), order=order)
    refused("integer", build, 3, class_order=order, increment=1)


def test_few_shot__choice_of_a_named_domain_does_not_depend_on_others():
    left, right, _ = domains(train=30)
    alone = multi_domain_benchmark([right], shots=3)
    both = multi_domain_benchmark([left, right], shots=3)
    first = len(left[0])
    shifted = [i - first for i in ids_of(both.train_stream)[1]]
    assert shifted == ids_of(alone.train_stream)[0]
    other = multi_domain_benchmark([(*right[:4], "other")], shots=3)
    assert ids_of(other.train_stream) != ids_of(alone.train_stream)
    # Without a name it is that of the index.
    plain = multi_domain_benchmark([left[:4], right[:4]], shots=3)
    assert ids_of(plain.train_stream) != ids_of(both.train_stream)


def test_messages__name_what_was_given():
    data = Labelled(cycle(4, 3))
    for seed in (None, 1.5, "1"):
        refused("seed is .*give an integer", build, increment=2, shots=1, seed=seed)
    refused("no class names", class_incremental_benchmark, data, data, [], increment=2)
