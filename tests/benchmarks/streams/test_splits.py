"""Validation and online splits."""

import gc
import warnings
import weakref

import numpy as np
import pytest
from avalanche.benchmarks import with_classes_timeline, with_task_labels
from avalanche.benchmarks.scenarios.online import OnlineCLExperience

from avalanche_clip.benchmarks import (
    attribute_array,
    prepare_benchmark,
    split_online,
    split_validation,
    time_stamped_benchmark,
)
from avalanche_clip.benchmarks.items.content import data_summary
from avalanche_clip.training.templates.visits import step_of
from tests.benchmarks.small_streams import CharModel, counted_dataset, ids_of
from tests.refused import refused


def benchmark(size=100, order=None):
    ids = np.arange(size) if order is None else np.asarray(order)
    return time_stamped_benchmark(
        counted_dataset(ids % 3 * 1.0, sample_ids=ids, targets=ids % 7),
        boundaries=[1.0, 2.0],
        labels=["a", "b", "c"],
        test=counted_dataset([0.0, 1.0, 2.0], first_id=500, targets=[0, 1, 2]),
    )


# --- validation ---------------------------------------------------------------


@pytest.mark.parametrize("prepare_first", [False, True])
def test_split_validation__disjoint_complete_and_keeps_everything(prepare_first):
    given = benchmark()
    if prepare_first:
        given = prepare_benchmark(given, CharModel())
    split = split_validation(given, 0.3)
    assert list(split.streams) == ["train", "valid", "test"]
    assert split.time_labels == ["a", "b", "c"]
    whole = zip(given.train_stream, split.train_stream, split.valid_stream, strict=True)
    for index, (before, train, valid) in enumerate(whole):
        left, right = ids_of(train.dataset), ids_of(valid.dataset)
        assert not set(left) & set(right)
        assert sorted(left + right) == sorted(ids_of(before.dataset))
        assert len(right) == round(0.3 * len(before.dataset))
        for exp in (train, valid):
            assert (
                exp.time_label == "abc"[index] and exp.time_start == before.time_start
            )
            assert exp.current_experience == index
            targets = attribute_array(exp.dataset, "targets")
            assert targets.tolist() == [i % 7 for i in ids_of(exp.dataset)]
            assert (attribute_array(exp.dataset, "timestamp") == index).all()
            assert exp.dataset.collate_fn.fields == before.dataset.collate_fn.fields
        if prepare_first:
            assert train.dataset[0][0][0, 0, 0] == 1000 + left[0]
            assert valid.dataset[0][0][0, 0, 0] == 2000 + right[0]
    assert ids_of(given.train_stream[0].dataset)[0] == 0, "the given one is unchanged"
    assert split.train_stream.benchmark is split


def test_split_validation__choice_is_by_id_and_nested():
    def chosen(scenario, fraction, seed=0):
        split = split_validation(scenario, fraction, seed=seed)
        return [set(ids_of(exp.dataset)) for exp in split.valid_stream]

    few, many = chosen(benchmark(), 0.1), chosen(benchmark(), 0.4)
    assert all(small < large for small, large in zip(few, many))
    shuffled = np.random.default_rng(0).permutation(100)
    assert chosen(benchmark(order=shuffled), 0.4) == many
    assert chosen(benchmark(), 0.4, seed=1) != many


def test_split_validation__select_replaces_the_hash():
    split = split_validation(
        benchmark(), select=lambda data: attribute_array(data, "targets") == 0
    )
    for exp in split.valid_stream:
        assert all(i % 7 == 0 for i in ids_of(exp.dataset))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0.0}, "must lie in"),
        ({"fraction": 1.0}, "must lie in"),
        ({"fraction": float("nan")}, "must lie in"),
        ({"valid_name": "test"}, "already has a stream 'test'"),
        ({"train_name": "tran"}, "train_name='tran' is unknown; use one of 'train'"),
        ({"select": lambda data: np.zeros(len(data), bool)}, "0 of 34"),
        ({"select": lambda data: np.ones(len(data), bool)}, "34 of 34"),
        ({"select": lambda data: [0, 5]}, r"shape \(2,\)"),
    ],
)
def test_split_validation__bad_arguments_raise(options, message):
    refused(message, split_validation, benchmark(), **options)


def test_split_validation__one_sample_raises_and_two_are_shared():
    one = time_stamped_benchmark(counted_dataset([0.0]), num_experiences=1)
    refused("0 of 1 samples", split_validation, one)
    two = time_stamped_benchmark(counted_dataset([0.0, 1.0]), num_experiences=1)
    for fraction in (0.01, 0.99):
        split = split_validation(two, fraction)
        assert len(split.train_stream[0].dataset) == 1
        assert len(split.valid_stream[0].dataset) == 1


def classes_of(*sizes, order=None):
    """One step of classes 0, 1, ... with so many samples each."""
    targets = np.repeat(np.arange(len(sizes)), sizes)
    ids = np.arange(len(targets)) if order is None else np.asarray(order)
    data = counted_dataset(ids * 0.0, sample_ids=ids, targets=targets[ids])
    return time_stamped_benchmark(data, num_experiences=1)


def shares(scenario, fraction, **options):
    """Validation samples per class, and their ids."""
    split = split_validation(scenario, fraction, stratify="targets", **options)
    data = split.valid_stream[0].dataset
    left = attribute_array(split.train_stream[0].dataset, "targets")
    targets = attribute_array(data, "targets")
    assert len(left) + len(targets) == len(scenario.train_stream[0].dataset)
    counts = np.bincount(targets, minlength=max(left) + 1).tolist()
    assert set(range(max(left) + 1)) <= set(left.tolist()), "each class is trained"
    return counts, set(ids_of(data))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.8])
def test_stratify__each_class_gives_its_share(fraction):
    sizes = (40, 20, 12, 30)
    counts, chosen = shares(classes_of(*sizes), fraction)
    assert len(chosen) == round(fraction * sum(sizes))
    assert all(abs(c - fraction * n) < 1 for c, n in zip(counts, sizes))


def test_stratify__is_by_id_and_nested():
    sizes, steps = (5, 9, 3, 20), np.linspace(0.1, 0.85, 12)
    shuffled = np.random.default_rng(0).permutation(sum(sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [shares(classes_of(*sizes), f)[1] for f in steps]
        again = [shares(classes_of(*sizes, order=shuffled), f)[1] for f in steps]
        other = shares(classes_of(*sizes), 0.5, seed=1)[1]
    assert found == again and other not in found
    assert all(few <= many for few, many in zip(found, found[1:]))


def test_stratify__classes_left_empty_are_named():
    words = r"no validation sample.*experience 0: 1, 3\).*larger fraction"
    with pytest.warns(UserWarning, match=words) as caught:
        counts, _ = shares(classes_of(20, 1, 20, 2), 0.2)
    assert counts in ([4, 0, 5, 0], [5, 0, 4, 0])
    assert len([w for w in caught if "no validation" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shares(classes_of(6, 6, 3), 0.3)[0] in ([2, 2, 1], [2, 1, 1], [1, 2, 1])
        split_validation(classes_of(20, 1), 0.2)


def test_stratify__keeps_a_sample_of_each_class_for_training():
    assert shares(classes_of(2, 2, 2), 0.99)[0] == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stratify": "target"}, "stratify='target' is unknown.*mean 'targets'"),
        ({"stratify": True}, "stratify=True is unknown"),
        ({"stratify": "targets", "select": len}, "no effect on what select chooses"),
        ({"fraction": 0.3, "select": len}, "fraction=0.3 has no effect"),
        ({"seed": 1, "select": len}, "seed=1 has no effect"),
    ],
)
def test_stratify__bad_arguments_raise(options, message):
    refused(message, split_validation, benchmark(), **options)


def test_stratify__without_targets_or_second_samples_raises():
    bare = time_stamped_benchmark(counted_dataset([0.0, 1.0]), num_experiences=1)
    words = "experience 0 has no targets"
    refused(words, split_validation, bare, stratify="targets")
    words = "no class of experience 0 has a second sample"
    refused(words, split_validation, classes_of(1, 1), stratify="targets")


# --- online -------------------------------------------------------------------


@pytest.mark.parametrize("shuffle", [False, True])
def test_split_online__concatenation_equals_the_original(shuffle):
    given = benchmark()
    online = split_online(given, 10, shuffle=shuffle)
    parts = list(online.train_stream)
    assert [len(e.dataset) for e in parts] == ([10, 10, 10, 4] + [10, 10, 10, 3] * 2)
    for index, exp in enumerate(given.train_stream):
        mine = parts[4 * index : 4 * index + 4]
        pooled = sum((ids_of(e.dataset) for e in mine), [])
        assert (pooled == ids_of(exp.dataset)) is not shuffle
        assert sorted(pooled) == ids_of(exp.dataset)
        assert {e.time_label for e in mine} == {exp.time_label}
        assert [e.is_first_subexp for e in mine] == [True, False, False, False]
        assert [e.is_last_subexp for e in mine] == [False, False, False, True]
    assert [e.current_experience for e in parts] == list(range(12))
    assert all(isinstance(e, OnlineCLExperience) for e in parts)
    assert online.time_labels == ["a", "b", "c"]
    assert [ids_of(e.dataset) for e in online.test_stream] == [[500], [501], [502]]


def test_split_online__shuffle_depends_on_the_seed():
    def order(seed):
        online = split_online(benchmark(), 5, shuffle=True, seed=seed)
        return [ids_of(exp.dataset) for exp in online.train_stream]

    assert order(1) == order(1) != order(2)
    assert order(-1) == order(-1)


def test_split_online__drop_last_leaves_full_experiences_and_no_step_vanishes():
    online = split_online(benchmark(), 10, drop_last=True)
    assert [len(e.dataset) for e in online.train_stream] == [10] * 9
    assert [e.is_last_subexp for e in online.train_stream] == [False, False, True] * 3
    with pytest.raises(ValueError, match="Experience 1 has 33 .*drop_last=False"):
        split_online(benchmark(), 34, drop_last=True)
    assert len(split_online(benchmark(), 34).train_stream) == 3


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_split_online__bad_size_raises(size):
    refused("experience_size", split_online, benchmark(), size)
    refused("train_name='tran'", split_online, benchmark(), 5, train_name="tran")


def test_split_online__keeps_what_decorators_attached():
    given = with_classes_timeline(with_task_labels(benchmark()))
    given.train_stream[2].note = "third"
    online = split_online(given, 20)
    assert [e.task_labels for e in online.train_stream] == [[0]] * 6
    assert [getattr(e, "note", None) for e in online.train_stream][3:] == [
        None,
        "third",
        "third",
    ]


def test_split_online__experiences_are_made_when_they_are_asked_for():
    stream = split_online(benchmark(), 10).train_stream
    first = weakref.ref(stream[0])
    assert stream[0] is first() and stream[11].current_experience == 11
    gc.collect()
    assert first() is None
    assert stream[-1] is stream[11] and stream[-1].origin_stream is stream
    part = stream[3:6]
    assert [e.current_experience for e in part] == [3, 4, 5]
    assert part[1].origin_stream is stream and len(part) == 3
    with pytest.raises(IndexError):
        stream[12]


def test_split_online__may_be_prepared_before_or_after():
    model = CharModel()
    early = split_online(prepare_benchmark(benchmark(), model), 10, shuffle=True)
    late = prepare_benchmark(split_online(benchmark(), 10, shuffle=True), model)
    for one, other in zip(early.train_stream, late.train_stream, strict=True):
        assert ids_of(one.dataset) == ids_of(other.dataset)
        assert step_of(one) == step_of(other)
        assert other.benchmark is late and other.n_experiences == 12
    collate = early.train_stream[2].dataset.collate_fn
    assert collate.tokenizer is late.train_stream[2].dataset.collate_fn.tokenizer
    whole = [data_summary(b) for b in (early, late)]
    assert whole[0]["experiences"] == whole[1]["experiences"]
    assert whole[0]["counts"]["train"] == [len(e.dataset) for e in late.train_stream]
    assert whole[0]["labels"]["train"] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    hashes = set(whole[0]["experiences"]["train"].values())
    assert len(hashes) == 12
    other = split_online(benchmark(), 10, shuffle=True, seed=1)
    assert not hashes & set(data_summary(other)["experiences"]["train"].values())
