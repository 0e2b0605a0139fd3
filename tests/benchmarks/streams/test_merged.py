"""Experiences that are merged into one."""

import resource
import time

import numpy as np
import pytest

from avalanche_clip.benchmarks import (
    class_incremental_benchmark,
    make_image_text_dataset,
    merge_experiences,
    multi_domain_benchmark,
    multilingual_benchmark,
    prepare_benchmark,
    split_online,
    time_stamped_benchmark,
)
from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.benchmarks.items.scenario import make_experience, make_scenario
from avalanche_clip.benchmarks.streams.merged import counterparts
from tests.benchmarks.small_streams import (
    CharModel,
    CountedPairs,
    column,
    counted_benchmark,
    counted_dataset,
    ids_of,
    sizes_of,
)
from tests.refused import refused
from tests.training.classes import TEMPLATES, Labelled, cycle, domains, names_of

FACTS = ("sample_id", "targets", "language", "timestamp", "targets_task_labels")


def full_benchmark():
    """Three steps of pairs with every fact, in an order that is not that of ids."""
    times = np.repeat([2.0, 0.0, 1.0], 4)
    facts = {"targets": np.arange(12) % 5, "languages": np.arange(12) % 2}
    facts |= {"task_labels": np.arange(12) % 3}
    test = counted_dataset(times, first_id=100, **facts)
    return time_stamped_benchmark(
        counted_dataset(times, **facts),
        boundaries=[1.0, 2.0],
        labels=["a", "b", "c"],
        test=test,
    )


def test_merged__has_every_sample_once_with_all_its_facts():
    benchmark = full_benchmark()
    whole = merge_experiences(benchmark.train_stream)
    parts = list(benchmark.train_stream)
    for fact in FACTS:
        expected = np.concatenate([column(e, fact) for e in parts])
        np.testing.assert_array_equal(column(whole, fact), expected, fact)
    assert [whole.dataset[k][1] for k in range(12)] == [
        e.dataset[k][1] for e in parts for k in range(4)
    ]
    assert (whole.time_label, whole.merged) == ("a..c", (0, 1, 2))
    assert (whole.time_start, whole.time_end) == (-np.inf, np.inf)
    assert whole.benchmark.time_labels == ["a..c"]
    assert whole.classes_in_this_experience == set(range(5))
    assert whole.task_labels == [0, 1, 2] and whole.previous_classes == set()
    assert sizes_of(whole.benchmark.train_stream) == [12]
    assert sizes_of(whole.benchmark.test_stream) == [4, 4, 4]
    assert whole.benchmark.n_experiences == whole.n_experiences == 1
    # what was merged stays what it was
    assert sizes_of(benchmark.train_stream) == [4, 4, 4]
    assert [e.current_experience for e in benchmark.train_stream] == [0, 1, 2]
    assert benchmark.train_stream[2].time_label == "c"


def test_order__of_the_list_does_not_matter():
    stream = full_benchmark().train_stream
    expected = ids_of(merge_experiences(stream).dataset)
    for given in (list(stream)[::-1], [stream[1], stream[0], stream[2]]):
        assert ids_of(merge_experiences(given).dataset) == expected
    some = merge_experiences([stream[2], stream[0]])
    assert (some.merged, some.time_label) == ((0, 2), "a..c")
    later = merge_experiences(stream[1:])
    assert (later.merged, later.time_start) == ((1, 2), 1.0)


def test_one__stays_the_same_in_a_stream_of_its_own():
    step = full_benchmark().train_stream[1]
    for given in (step, [step]):
        alone = merge_experiences(given)
        assert ids_of(alone.dataset) == ids_of(step.dataset)
        assert (alone.time_label, alone.merged) == ("b", (1,))
        assert alone.current_experience == 0 and alone.n_experiences == 1
    assert alone.benchmark.time_labels == ["b"]
    assert step.current_experience == 1


def test_classes__are_those_of_all_domains_with_their_names():
    benchmark = multi_domain_benchmark(domains((3, 2, 4)))
    steps = list(benchmark.train_stream)
    whole = merge_experiences(benchmark.train_stream[::2])
    expected = {**zip_classes(steps[0]), **zip_classes(steps[2])}
    assert dict(zip(whole.class_ids, whole.class_names)) == expected
    assert set(whole.class_ids) == whole.classes_in_this_experience
    assert whole.class_prompts is benchmark.class_prompts
    assert whole.benchmark.class_prompts is benchmark.class_prompts
    assert (whole.label, whole.domain, whole.dataset_index) == ("joint", None, None)
    assert whole.benchmark.protocol == "multi_domain_joint"
    single = merge_experiences(steps[1])
    assert (single.domain, single.label) == (steps[1].domain, steps[1].label)
    assert single.benchmark.protocol == "multi_domain"


def zip_classes(experience):
    return dict(zip(experience.class_ids, experience.class_names))


def test_classes__that_two_steps_share_count_once():
    benchmark = class_incremental_benchmark(
        Labelled(cycle(4, 4)),
        Labelled(cycle(4, 2), seed=1),
        names_of(0, 4),
        TEMPLATES,
        increment=2,
    )
    online = split_online(benchmark, 4)
    whole = merge_experiences(online.train_stream)
    assert len(online.train_stream) > 2
    assert sorted(whole.class_ids) == [0, 1, 2, 3]
    assert dict(zip(whole.class_ids, whole.class_names)) == dict(
        enumerate(names_of(0, 4))
    )
    assert not hasattr(type(whole), "origin_experience")


def test_languages__are_those_of_all():
    names = ("en", "de", "fr")
    data = {
        name: make_image_text_dataset(CountedPairs(3), languages=[k] * 3)
        for k, name in enumerate(names)
    }
    benchmark = multilingual_benchmark(data, order=["fr", "en", "de"], test=data)
    whole = merge_experiences(benchmark.train_stream)
    assert whole.languages == whole.benchmark.languages == ("fr", "en", "de")
    assert whole.language is None and whole.language_code is None
    assert whole.label == "joint"
    assert column(whole, "language").tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1]
    two = merge_experiences([benchmark.train_stream[k] for k in (2, 0)])
    assert two.languages == two.benchmark.languages == ("fr", "de")
    tests = merge_experiences(benchmark.test_stream)
    assert tests.benchmark.languages == ("fr", "en", "de")
    assert sizes_of(tests.benchmark.test_stream) == [9]


def test_prepared__keeps_transforms_and_collate():
    model = CharModel()
    benchmark = prepare_benchmark(counted_benchmark(captions=2), model)
    whole = merge_experiences(benchmark.train_stream).dataset
    for mode, amount in (("train", 1000.0), ("eval", 2000.0)):
        data = getattr(whole, mode)()
        found = [float(data[k][0].reshape(-1)[0]) for k in range(12)]
        assert found == [amount + k for k in range(12)]
    batch = whole.train().collate_fn([whole.train()[k] for k in (0, 11)])
    assert batch[0]["sample_id"].tolist() == [0, 11]
    assert len(model.tokenizer.calls[-1][0]) == 2
    # and can be prepared afterwards as well as before
    late = merge_experiences(counted_benchmark(captions=2).train_stream).benchmark
    late = prepare_benchmark(late, model).train_stream[0].dataset
    for mode in ("train", "eval"):
        ours, expected = getattr(late, mode)(), getattr(whole, mode)()
        assert [float(ours[k][0].sum()) for k in range(12)] == [
            float(expected[k][0].sum()) for k in range(12)
        ]


def test_facts__of_a_users_own_are_kept_where_all_agree():
    benchmark = full_benchmark()
    for k, step in enumerate(benchmark.train_stream):
        step.artist, step.number = "one", k
        step.weights = np.ones(k + 1)
    whole = merge_experiences(benchmark.train_stream)
    assert (whole.artist, whole.number, whole.weights) == ("one", None, None)


def test_what_cannot_be_merged__is_refused():
    benchmark, other = full_benchmark(), full_benchmark()
    stream = benchmark.train_stream
    refused("nothing to merge.*no experience", merge_experiences, [])
    refused("nothing to merge", merge_experiences, stream[3:])
    for given in (benchmark, "train", 3, [stream[0], "x"]):
        refused(
            "give an experience, a stream", merge_experiences, given, error=TypeError
        )
    refused(
        "belong to 2 benchmarks", merge_experiences, [stream[0], other.train_stream[1]]
    )
    mixed = [stream[0], benchmark.test_stream[1]]
    refused(r"streams \['train', 'test'\]", merge_experiences, mixed)
    refused("1 of stream 'train' is given more", merge_experiences, [stream[1]] * 2)
    loose = make_experience(stream[0].dataset)
    refused("no benchmark", merge_experiences, [loose])
    data = [counted_dataset([0.0] * 3, first_id=k) for k in (0, 2)]
    clash = make_scenario({"train": [make_experience(d) for d in data]})
    message = r"1 sample ids occur.*for example 2 in experiences \[0, 1\]"
    refused(message, merge_experiences, clash.train_stream)
    data[1] = counted_dataset([0.0] * 3, first_id=7, targets=[1, 2, 3])
    clash = make_scenario({"train": [make_experience(d) for d in data]})
    refused("different facts", merge_experiences, clash.train_stream)


def test_counterparts__are_those_of_the_merged_places():
    benchmark = full_benchmark()
    test = benchmark.streams["test"]
    some = merge_experiences([benchmark.train_stream[k] for k in (2, 0)])
    assert counterparts(some, test) == [test[0], test[2]]
    assert counterparts(benchmark.train_stream[1], test) == [test[1]]
    assert counterparts(benchmark.train_stream[1], test[:1]) == []


class Unread:
    """Items that nobody may read."""

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        raise AssertionError("an item was read")


@pytest.mark.slow
def test_ten_million_samples__merge_in_three_seconds_and_300_MB():
    size = 10**6
    parts = [
        make_experience(
            make_image_text_dataset(Unread(size), sample_ids=np.arange(size) + size * k)
        )
        for k in range(10)
    ]
    stream = make_scenario({"train": parts}).train_stream
    start, before = time.process_time(), peak()
    whole = merge_experiences(stream)
    assert time.process_time() - start < 3
    assert peak() - before < 300e6
    assert len(whole.dataset) == 10**7
    assert attribute_array(whole.dataset, "sample_id")[-1] == 10**7 - 1


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
