"""Points in time and calendar periods."""

import datetime as dt

import numpy as np
import pytest

from avalanche_clip.benchmarks.times import (
    PERIODS,
    iso_date,
    iso_time,
    period_starts,
    timestamp_column,
    to_timestamp,
)

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
    with pytest.raises(ValueError, match="time|ISO date"):
        to_timestamp(value)


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


def test_period_starts__milliseconds_and_unknown_periods_raise():
    with pytest.raises(ValueError, match="milliseconds"):
        period_starts(np.array([1.7e12]), "year")
    with pytest.raises(ValueError, match="period='decade'"):
        period_starts(np.array([0.0]), "decade")


def test_iso__negative_and_far_times():
    assert iso_date(-1e-6) == "1969-12-31" and iso_date(951782400.0) == "2000-02-29"
    assert iso_time(-1.0) == "1969-12-31T23:59:59"
    assert iso_date(1.7e12) == "1.7e+12" and iso_date(-1e300) == "-1e+300"
