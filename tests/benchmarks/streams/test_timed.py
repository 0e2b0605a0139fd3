"""Streams of time steps."""

import logging

import numpy as np
import pytest
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute

from avalanche_clip.benchmarks import (
    attribute_array,
    make_image_text_dataset,
    time_stamped_benchmark,
)
from avalanche_clip.benchmarks.items.times import to_timestamp
from tests.benchmarks.small_streams import CountedPairs, counted_dataset, ids_of
from tests.refused import refused


def steps_of(scenario, stream="train"):
    return [ids_of(exp.dataset) for exp in scenario.streams[stream]]


def sizes_of(scenario, stream="train"):
    return [len(exp.dataset) for exp in scenario.streams[stream]]


def days(*names):
    return [to_timestamp(name) for name in names]


def random_cut(rng, times):
    """One of the four ways of cutting, chosen at random, that can be met."""
    different = np.unique(times)
    kind = rng.integers(4)
    if kind == 0:
        number = int(rng.integers(0, len(different)))
        return {"boundaries": np.sort(rng.permutation(different[1:])[:number])}
    if kind == 1:
        return {"num_experiences": int(rng.integers(1, len(different) + 1))}
    if kind == 2:
        _, ties = np.unique(times, return_counts=True)
        cuts = np.sort(rng.permutation(len(ties) - 1)[: len(ties) // 2])
        return {"counts": [int(p.sum()) for p in np.split(ties, cuts + 1)]}
    return {"period": str(rng.choice(["day", "week", "month", "quarter", "year"]))}


@pytest.mark.parametrize("seed", range(40))
def test_time_stamped_benchmark__every_sample_lands_in_exactly_one_step(seed):
    rng = np.random.default_rng(seed)
    size, spread = int(rng.integers(3, 80)), int(rng.integers(2, 40))
    times = rng.integers(-spread, spread, size) * 86400.0 * rng.choice([0.2, 1, 40])
    if len(np.unique(times)) == 1:
        times[0] += 86400.0
    train = counted_dataset(times, first_id=5)
    test_times = rng.permutation(np.concatenate([times, times]))
    test = counted_dataset(test_times, first_id=1000)
    cut = random_cut(rng, times)
    scenario = time_stamped_benchmark(train, test=test, **cut)
    for name, dataset in (("train", train), ("test", test)):
        pooled = sum(steps_of(scenario, name), [])
        assert sorted(pooled) == sorted(ids_of(dataset))
        for exp in scenario.streams[name]:
            inside = attribute_array(exp.dataset, "timestamp")
            assert (np.diff(inside) >= 0).all()
            assert (inside >= exp.time_start).all() and (inside < exp.time_end).all()
    ends = [exp.time_end for exp in scenario.train_stream]
    starts = [exp.time_start for exp in scenario.train_stream]
    assert starts == [-np.inf, *ends[:-1]] and ends[-1] == np.inf
    if "counts" in cut:
        assert sizes_of(scenario) == cut["counts"]


def test_boundaries__are_half_open_and_samples_outside_join_the_ends():
    dataset = counted_dataset([5.0, 1.0, 2.0, -9.0, 1.0, 99.0])
    scenario = time_stamped_benchmark(dataset, boundaries=[1.0, 5.0])
    assert steps_of(scenario) == [[3], [1, 4, 2], [0, 5]]
    assert [exp.current_experience for exp in scenario.train_stream] == [0, 1, 2]


def test_boundaries__none_gives_one_step_and_kinds_may_mix():
    dataset = counted_dataset(days("2016-01-01", "2016-02-29", "2016-03-01"))
    assert sizes_of(time_stamped_benchmark(dataset, boundaries=[])) == [3]
    mixed = ["2016-02-01", np.datetime64("2016-03-01")]
    assert sizes_of(time_stamped_benchmark(dataset, boundaries=mixed)) == [1, 1, 1]


def test_num_experiences__cuts_only_where_time_changes():
    times = [0.0] * 7 + [1.0] + [2.0] + [3.0]
    assert sizes_of(
        time_stamped_benchmark(counted_dataset(times), num_experiences=2)
    ) == [7, 3]
    assert sizes_of(
        time_stamped_benchmark(counted_dataset(times), num_experiences=4)
    ) == [7, 1, 1, 1]
    even = counted_dataset(np.arange(10.0)[::-1])
    assert sizes_of(time_stamped_benchmark(even, num_experiences=3)) == [3, 4, 3]
    assert sizes_of(time_stamped_benchmark(even, num_experiences=10)) == [1] * 10


@pytest.mark.parametrize("seed", range(10))
def test_num_experiences__cuts_are_nearest_to_equal_shares(seed):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.integers(0, 200, 300)).astype(float)
    sizes = sizes_of(time_stamped_benchmark(counted_dataset(times), num_experiences=4))
    changes = np.flatnonzero(np.diff(times)) + 1
    for k, cut in enumerate(np.cumsum(sizes)[:-1], 1):
        assert abs(cut - 75 * k) == np.abs(changes - 75 * k).min()


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ({}, "exactly one"),
        ({"num_experiences": 2, "period": "day"}, "exactly one"),
        ({"boundaries": [2.0, 2.0]}, "strictly increase"),
        ({"boundaries": [float("nan")]}, "must be finite times"),
        ({"boundaries": "2016"}, "single value"),
        ({"boundaries": 1.0}, "single value"),
        ({"num_experiences": 5}, "4 different"),
        ({"num_experiences": 0}, ">= 1"),
        ({"counts": [2, 2]}, "sum to 4"),
        ({"counts": [6, -1]}, "counts"),
        ({"counts": 5}, "counts"),
        ({"counts": []}, "counts"),
        ({"counts": [2, 3]}, r"equal timestamps \(samples 1 to 2.*cut at 1 or 3"),
        ({"period": "decade"}, "'decade'"),
        ({"boundaries": [1.0], "labels": ["a"]}, "2 are needed"),
        ({"boundaries": [1.0], "labels": "ab"}, "one per step"),
        ({"boundaries": [1.0], "missing": "keep"}, "missing='keep'"),
        ({"boundaries": [1.0], "empty": "keep"}, "empty='keep'"),
    ],
)
def test_time_stamped_benchmark__bad_cuts_raise(cut, message):
    dataset = counted_dataset([0.0, 1.0, 1.0, 2.0, 3.0])
    refused(message, time_stamped_benchmark, dataset, **cut)


def test_time_stamped_benchmark__needs_data_sets_with_timestamps():
    with pytest.raises(TypeError, match="make_image_text_dataset"):
        time_stamped_benchmark(CountedPairs(3), num_experiences=1)
    with pytest.raises(TypeError, match="'test' is None"):
        time_stamped_benchmark(counted_dataset([0.0]), num_experiences=1, test=None)
    with pytest.raises(ValueError, match="no attribute 'timestamp'"):
        time_stamped_benchmark(
            make_image_text_dataset(CountedPairs(3)), num_experiences=1
        )


def test_missing__raises_or_drops_and_logs(caplog):
    times = [3.0, np.nan, 1.0, np.inf, -np.inf, 2.0]
    dataset = counted_dataset(times)
    with pytest.raises(ValueError, match=r"3 of 6.*position 1: nan.*missing='drop'"):
        time_stamped_benchmark(dataset, num_experiences=3)
    with caplog.at_level(logging.WARNING, "avalanche_clip"):
        scenario = time_stamped_benchmark(dataset, counts=[1, 2], missing="drop")
    assert steps_of(scenario) == [[2], [5, 0]]
    assert "3 samples without timestamp" in caplog.text


@pytest.mark.parametrize(
    "values",
    [
        np.array(["2014-01-01", "2015-06-01", "2016-01-01"], "datetime64[D]"),
        ["2014-01-01", "2015-06-01", "2016-01-01"],
    ],
)
def test_timestamp_attribute__of_any_type_is_read_as_seconds(values):
    dataset = AvalancheDataset(
        [CountedPairs(3)], data_attributes=[DataAttribute(values, "timestamp")]
    )
    scenario = time_stamped_benchmark(dataset, boundaries=["2015-06-01"])
    assert sizes_of(scenario) == [1, 2]
    assert scenario.train_stream[0].time_end == 1433116800.0
    assert scenario.time_labels == ["2014-01-01", "2015-06-01..2016-01-01"]


def test_missing__nothing_left_raises():
    with pytest.raises(ValueError, match="no sample with a valid timestamp"):
        time_stamped_benchmark(
            counted_dataset([np.nan]), num_experiences=1, missing="drop"
        )
    with pytest.raises(ValueError, match="'test' has no sample"):
        time_stamped_benchmark(
            counted_dataset([1.0]),
            num_experiences=1,
            test=counted_dataset([1.0]).subset([]),
        )


def test_empty__step_of_one_stream_raises_and_of_all_can_be_dropped():
    train = counted_dataset([0.0, 2.0, 4.0])
    test = counted_dataset([0.0, 4.0], first_id=9)
    with pytest.raises(ValueError, match=r"Step 1.*\['test'\]"):
        time_stamped_benchmark(train, test=test, boundaries=[1.0, 3.0], empty="drop")
    with pytest.raises(ValueError, match=r"Step 1, \[.*empty='drop'"):
        time_stamped_benchmark(train, boundaries=[2.5, 3.0])
    scenario = time_stamped_benchmark(
        train, test=test, boundaries=[2.5, 3.0], labels=["a", "gap", "c"], empty="drop"
    )
    assert scenario.time_labels == ["a", "c"] and sizes_of(scenario) == [2, 1]
    assert steps_of(scenario, "test") == [[9], [10]]


def test_labels__default_to_dates_and_to_times_where_dates_repeat():
    dataset = counted_dataset(["2016-01-01", "2016-01-05", "2017-01-01"])
    scenario = time_stamped_benchmark(dataset, boundaries=["2017-01-01"])
    assert scenario.time_labels == ["2016-01-01..2016-01-05", "2017-01-01"]
    assert [e.time_label for e in scenario.train_stream] == scenario.time_labels
    hours = time_stamped_benchmark(counted_dataset([0.0, 60.0]), num_experiences=2)
    assert hours.time_labels == ["1970-01-01T00:00:00", "1970-01-01T00:01:00"]


@pytest.mark.parametrize(
    ("period", "labels"),
    [
        ("year", ["2020", "2021"]),
        ("quarter", ["2020-Q4", "2021-Q1", "2021-Q4"]),
        ("month", ["2020-12", "2021-01", "2021-10", "2021-12"]),
        # 2021-01-03 is the Sunday of the last ISO week of 2020.
        ("week", ["2020-W53", "2021-W01", "2021-W39", "2021-W52"]),
        ("day", ["2020-12-31", "2021-01-03", "2021-01-04", "2021-10-01", "2021-12-31"]),
    ],
)
def test_labels__name_the_calendar_period(period, labels):
    times = ["2020-12-31", "2021-01-03", "2021-01-04", "2021-10-01", "2021-12-31"]
    scenario = time_stamped_benchmark(counted_dataset(times), period=period)
    assert scenario.time_labels == labels
    own = list("abcde")[: len(labels)]
    named = time_stamped_benchmark(counted_dataset(times), period=period, labels=own)
    assert named.time_labels == own


def test_time_stamped_benchmark__one_sample_and_milliseconds():
    scenario = time_stamped_benchmark(counted_dataset([1.7e12]), num_experiences=1)
    assert sizes_of(scenario) == [1] and scenario.time_labels == ["1.7e+12"]
    with pytest.raises(ValueError, match="milliseconds"):
        time_stamped_benchmark(counted_dataset([1.7e12]), period="year")
