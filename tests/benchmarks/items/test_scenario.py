"""What experiences and benchmarks say about themselves."""

import numpy as np
import pytest
from avalanche.benchmarks import with_classes_timeline, with_task_labels

from avalanche_clip.benchmarks import (
    class_incremental_benchmark,
    joint_languages,
    make_image_text_dataset,
    multi_domain_benchmark,
    multilingual_benchmark,
    prepare_benchmark,
    split_online,
    split_validation,
    time_stamped_benchmark,
)
from avalanche_clip.benchmarks.items.scenario import NoClassesError
from tests.benchmarks.small_streams import CharModel, CountedPairs, counted_dataset
from tests.refused import refused
from tests.training.classes import TEMPLATES, Labelled, cycle, domains, names_of


def targets_of(dataset):
    return {int(t) for t in dataset._data_attributes["targets"]}


def tasks_of(dataset):
    return sorted({int(t) for t in dataset._data_attributes["targets_task_labels"]})


def times():
    column = np.repeat([0.0, 1.0, 2.0], 8)
    groups = np.array([3, 3, 7, 7, 9, 9, 3, 3] + [7] * 8 + [1, 9] * 4)
    return time_stamped_benchmark(
        counted_dataset(column, targets=groups),
        boundaries=[1.0, 2.0],
        test=counted_dataset(column, first_id=100, targets=groups),
    )


def languages():
    return multilingual_benchmark(
        {
            name: make_image_text_dataset(
                CountedPairs(6),
                sample_ids=np.arange(6) + 10 * k,
                targets=np.arange(6) % (k + 2),
            )
            for k, name in enumerate(("en", "de", "fr"))
        }
    )


def classes():
    return class_incremental_benchmark(
        Labelled(cycle(6, 4)),
        Labelled(cycle(6, 2), seed=1),
        names_of(0, 6),
        TEMPLATES,
        increment=2,
        class_order=[5, 0, 3, 1, 4, 2],
        relabel="original",
    )


def many_domains():
    return multi_domain_benchmark(domains((3, 4, 2)), order=[2, 0, 1])


def emoji():
    from avalanche_clip.benchmarks import multi_domain_emoji

    return multi_domain_emoji(validation=True)


STREAMS = {
    "times": times,
    "languages": languages,
    "classes": classes,
    "domains": many_domains,
    "validation": lambda: split_validation(times()),
    "online": lambda: split_online(many_domains(), 5),
    "joint": lambda: joint_languages(languages()),
    "prepared": lambda: prepare_benchmark(split_online(times(), 3), CharModel()),
    "decorated": lambda: prepare_benchmark(
        with_classes_timeline(with_task_labels(times())), CharModel()
    ),
    "emoji": emoji,
}


@pytest.mark.parametrize("name", STREAMS)
def test_experiences__carry_what_stock_code_reads(name):
    benchmark = STREAMS[name]()
    train = benchmark.streams["train"]
    assert benchmark.n_experiences == len(train)
    assert name not in ("online", "prepared") or train[0].is_first_subexp
    assert name != "decorated" or benchmark.time_labels == times().time_labels
    assert benchmark.task_labels == [e.task_labels for e in train]
    for stream in benchmark.streams.values():
        data = [e.dataset for e in stream]
        if not all("targets" in d._data_attributes for d in data):
            continue
        own = [targets_of(d) for d in data]
        assert benchmark.classes_in_experience[stream.name] == own
        for index, experience in enumerate(stream):
            for exp in (experience, experience.logging(), experience.train()):
                assert exp.benchmark is benchmark
                assert exp.origin_stream is stream
                assert exp.n_experiences == len(stream)
                assert exp.task_labels == tasks_of(data[index])
                assert exp.task_label == exp.task_labels[0]
                assert set(exp.classes_in_this_experience) == own[index]
                assert set(exp.previous_classes) == set().union(*own[:index])
                seen = set().union(*own[: index + 1])
                assert set(exp.classes_seen_so_far) == seen
                assert set(exp.future_classes) == set().union(*own) - seen
            assert experience.logging().current_experience == index
    domain = name in ("domains", "emoji")
    expected = [[k] for k in range(len(train))] if domain else [[0]] * len(train)
    if name == "online":
        expected = [[e.origin_experience.task_label] for e in train]
        assert expected[0] == [0] and expected[-1] == [2]
    assert benchmark.task_labels == expected


def test_classes__of_pairs_without_targets_are_refused_in_words():
    times = np.repeat([0.0, 1.0], 4)
    benchmark = prepare_benchmark(
        time_stamped_benchmark(counted_dataset(times), boundaries=[1.0]), CharModel()
    )
    experience = benchmark.train_stream[1]
    assert experience.task_labels == [0] and benchmark.n_experiences == 2
    for name in ("classes_in_this_experience", "previous_classes", "future_classes"):
        assert not hasattr(experience, name)
        refused("'train' has no classes.*Give targets", getattr, experience, name)
    for name in ("n_classes", "classes_in_experience"):
        refused("without targets", getattr, benchmark, name, error=NoClassesError)


def test_task_label__of_several_tasks_is_refused_in_words():
    data = make_image_text_dataset(
        CountedPairs(6), timestamps=[0, 0, 0, 1, 1, 1], task_labels=[2, 5, 2, 1, 1, 1]
    )
    stream = time_stamped_benchmark(data, boundaries=[1.0]).train_stream
    assert [e.task_labels for e in stream] == [[2, 5], [1]]
    assert stream[1].task_label == 1 and not hasattr(stream[0], "task_label")
    with pytest.raises(AttributeError, match=r"\[2, 5\]; read task_labels"):
        _ = stream[0].task_label
    bare = make_image_text_dataset(CountedPairs(2), timestamps=[0, 1], task_labels=None)
    stream = time_stamped_benchmark(bare, boundaries=[1.0]).train_stream
    assert stream[0].task_labels == [0]


def test_facts__belong_to_the_data_of_a_copy():
    benchmark = with_classes_timeline(times())
    assert benchmark.train_stream[0].classes_in_this_experience == {3, 7, 9}
    # Lists of classes of the whole step would be wrong for its parts.
    online = split_online(benchmark, 2)
    found = [e.classes_in_this_experience for e in online.train_stream]
    assert found[:4] == [{3}, {7}, {9}, {3}]
    assert online.train_stream[2].previous_classes == {3, 7}
    assert online.train_stream[2].future_classes == {1}
    again = with_classes_timeline(online)
    assert again.train_stream[1].classes_in_this_experience == {7}


def test_facts__can_be_set_and_slices_know_the_whole_stream():
    benchmark = times()
    experience = benchmark.train_stream[1]
    experience.task_labels = [4]
    assert experience.task_label == 4
    assert benchmark.train_stream[0].task_label == 0
    part = benchmark.train_stream[1:]
    assert [e.previous_classes for e in part] == [{3, 7, 9}, {3, 7, 9}]
    assert part[0].n_experiences == 3 and part[0].benchmark is benchmark
