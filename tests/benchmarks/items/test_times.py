"""Points in time and calendar periods."""

import datetime as dt
import math

import numpy as np
import pandas as pd
import pytest
import torch

from avalanche_clip.benchmarks import (
    make_image_text_dataset,
    time_stamped_benchmark,
    with_facts,
)
from avalanche_clip.benchmarks.items.times import (
    PERIODS,
    iso_date,
    iso_time,
    period_starts,
    stored_timestamp,
    timestamp_column,
    to_timestamp,
)
from tests.benchmarks.small_streams import CountedPairs
from tests.refused import refused

TOKYO = dt.timezone(dt.timedelta(hours=9))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (5, 5.0),
        (np.float32(0.5), 0.5),
        (-1.5, -1.5),
        ("1970-01-02", 86400.0),
        ("1970-01-01T00:00:10", 10.0),
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T09:00:00+09:00", 0.0),
        (dt.date(1969, 12, 31), -86400.0),
        (dt.datetime(1970, 1, 1, 1), 3600.0),
        (dt.datetime(1970, 1, 1, 9, tzinfo=TOKYO), 0.0),
        (dt.datetime(1950, 1, 1, tzinfo=dt.timezone.utc), -631152000.0),
        (np.datetime64("1970-01-01T00:00:00.5"), 0.5),
        (np.datetime64("2000-02-29"), 951782400.0),
        (np.datetime64("1500"), -14831769600.0),
    ],
)
def test_to_timestamp__values(value, seconds):
    assert to_timestamp(value) == seconds
    assert timestamp_column([value, value]).tolist() == [seconds, seconds]


@pytest.mark.parametrize(
    "value", ["", "2016", "soon", None, [1], float("nan"), "nan", np.datetime64("NaT")]
)
def test_to_timestamp__no_finite_time_raises(value):
    refused("time|ISO date", to_timestamp, value)


def start_by_datetime(seconds, period):
    """The start of a period, by Python's calendar."""
    epoch = dt.datetime(1970, 1, 1, tzinfo=dt.timezone.utc)
    day = (epoch + dt.timedelta(seconds=seconds)).date()
    if period == "week":
        day -= dt.timedelta(days=day.weekday())
    elif period == "month":
        day = day.replace(day=1)
    elif period == "quarter":
        day = day.replace(month=day.month - (day.month - 1) % 3, day=1)
    elif period == "year":
        day = day.replace(month=1, day=1)
    return (day - epoch.date()).total_seconds()


@pytest.mark.parametrize("period", PERIODS)
def test_period_starts__agree_with_pythons_calendar(period):
    rng = np.random.default_rng(0)
    # Years 1900 to 2100; 2000 is a leap year, 1900 and 2100 are not.
    times = rng.uniform(-2208988800, 4102444800, 400)
    days = ["1900-02-28", "2000-02-29", "2000-03-01", "1969-12-31", "1972-12-31"]
    edges = np.array([to_timestamp(day) for day in days])
    times = np.concatenate([times, edges, edges - 1e-3, edges + 86399.5, [0.0, -0.5]])
    expected = [start_by_datetime(float(t), period) for t in times]
    assert period_starts(times, period).tolist() == expected


def test_iso__negative_and_far_times():
    assert iso_date(-1e-6) == "1969-12-31" and iso_date(951782400.0) == "2000-02-29"
    assert iso_time(-1.0) == "1969-12-31T23:59:59"
    assert iso_date(1.7e12) == "1.7e+12" and iso_date(-1e300) == "-1e+300"


FLOATS = [np.float32, np.float16]


@pytest.mark.parametrize("dtype", FLOATS)
def test_timestamps__floats_of_few_bits_are_taken_while_exact(dtype):
    most = {np.float32: 2**24, np.float16: 2**11}[dtype]
    small = np.array([0, -7, most - 1, np.nan], dtype=dtype)
    assert timestamp_column(small)[:3].tolist() == [0, -7, most - 1]
    assert timestamp_column(list(small)).tolist()[:3] == [0, -7, most - 1]
    assert to_timestamp(dtype(-(most - 1))) == 1 - most


BIG = 1_500_000_077  # as float32 it is 51 seconds off


@pytest.mark.parametrize(
    "values",
    [
        np.array([0, BIG], dtype=np.float32),
        np.array([-(2**24)], dtype=np.float32),
        [np.float32(BIG), None, "2016-01-01"],
        torch.tensor([float(BIG)]),
        torch.tensor([300.0], dtype=torch.bfloat16),
        np.array([2**11], dtype=np.float16),
    ],
)
def test_timestamps__lost_seconds_are_refused(values):
    refused("float64", timestamp_column, values)
    with pytest.raises(ValueError, match="float64"):
        make_image_text_dataset(CountedPairs(len(values)), timestamps=values)


@pytest.mark.parametrize("value", [np.float32(BIG), torch.tensor(float(BIG))])
def test_boundaries__lost_seconds_are_refused(value):
    dataset = make_image_text_dataset(
        CountedPairs(2), timestamps=["1990-01-01", "2020-01-01"]
    )
    refused("float64", time_stamped_benchmark, dataset, boundaries=[value])
    # A fact that was replaced later is checked, too.
    refused("float64", with_facts, dataset, {"timestamp": np.float32([0, BIG])})


@pytest.mark.parametrize(
    "values",
    [
        [2010, 2011],
        np.array([1000, 2999], dtype=np.int16),
        np.array([2012.0, np.nan]),
        [2012, None],
        torch.tensor([2012, 2013]),
        [2014, "2016-01-01"],
        np.array([2014.0], dtype=np.float32),
    ],
)
def test_years__are_not_taken_for_seconds(values):
    refused("year", timestamp_column, values)
    dataset = make_image_text_dataset(CountedPairs(4), timestamps=[0, 1, 4e9, 5e9])
    refused("year", time_stamped_benchmark, dataset, boundaries=values)
    with pytest.raises(ValueError, match="year"):
        with_facts(dataset.subset(list(range(len(values)))), {"timestamp": values})


@pytest.mark.parametrize(
    "values", [[999, 2000], [2000, 3000], [2000.5, 2001], [0, 1, 2], [3000], []]
)
def test_years__other_numbers_stay_seconds(values):
    assert timestamp_column(values).tolist() == values
    dataset = make_image_text_dataset(CountedPairs(4), timestamps=[0, 1, 1500, 5e9])
    if values:
        # A part of the data may lie wholly in that range.
        part = dataset.subset([2])
        scenario = time_stamped_benchmark(
            dataset, boundaries=[1400.5], test=dataset.subset([0, 2])
        )
        assert len(scenario.train_stream) == 2 and len(part) == 1


@pytest.mark.parametrize(
    "boundaries", [[500, 1500, 5000], [1000.5, 1500], [1500, 3000]]
)
def test_years__boundaries_are_judged_together(boundaries):
    dataset = make_image_text_dataset(
        CountedPairs(4), timestamps=[0, 1000, 1600, 6000.0]
    )
    scenario = time_stamped_benchmark(dataset, boundaries=boundaries, empty="drop")
    starts = [e.time_start for e in scenario.train_stream][1:]
    assert set(starts) <= set(map(float, boundaries))
    refused("year", time_stamped_benchmark, dataset, boundaries=[1500, 1600])


def test_years__seconds_can_be_given_in_words():
    seconds = np.asarray([1500, 2500], dtype="datetime64[s]")
    assert timestamp_column(seconds).tolist() == [1500.0, 2500.0]
    years = timestamp_column([f"{year}-01-01" for year in (2010, 2011)])
    assert [iso_date(t) for t in years] == ["2010-01-01", "2011-01-01"]


@pytest.mark.parametrize("value", [True, np.False_, 10**400])
def test_timestamps__flags_and_what_overflows_are_no_times(value):
    with pytest.raises(ValueError):
        to_timestamp(value)
    with pytest.raises(ValueError):
        timestamp_column([value])


# --------------------------------------------------------- times in what is stored
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1465000000", 1465e6),
        ("1.465e9", 1465e6),
        (1465000000, 1465e6),
        (" 20160604 ", 1464998400.0),
        (dt.datetime(2016, 6, 4), 1464998400.0),
        (np.datetime64("2016-06-04"), 1464998400.0),
        (pd.Timestamp("2016-06-04", tz="UTC"), 1464998400.0),
        ("2013-11-14 16:28:13", 1384446493.0),
        *((nothing, math.nan) for nothing in (None, pd.NaT, "  ", math.nan)),
    ],
)
def test_stored_timestamp__usual_forms(value, seconds):
    np.testing.assert_array_equal(stored_timestamp(value), seconds)


@pytest.mark.parametrize(
    "value",
    [
        "2016",
        2016,
        20160604,
        "1465000000000",
        1.465e12,
        "June",
        "inf",
        True,
        "20161399",
    ],
)
def test_stored_timestamp__what_may_mean_something_else_is_refused(value):
    with pytest.raises(ValueError):
        stored_timestamp(value)
