"""Points in time as float seconds since 1970 in UTC, and the calendar."""

from __future__ import annotations

import datetime as dt
import math
import re
from typing import Any

import numpy as np

from avalanche_clip.common.checks import require_choice

# NumPy's unit of a period, and seconds from the start of one to that of 1970.
_UNITS = {
    **{"day": ("D", 0), "week": ("W", 259200), "month": ("M", 0)},
    **{"quarter": ("3M", 0), "year": ("Y", 0)},
}
PERIODS = tuple(_UNITS)
Time = Any
"""Seconds since 1970 (UTC), an ISO string, a date, datetime or datetime64."""

# Whole numbers of seconds are exact up to here, by the bits of the fraction.
_EXACT = {"float16": 2**11, "bfloat16": 2**8, "float32": 2**24}
_YEARS = (1000, 2999)

_GIVE = "give seconds since 1970 (UTC), an ISO string, a date, datetime or datetime64"

# The first second of year 1 and of year 10000: what calendars can name.
_FIRST, _LAST = -62135596800.0, 253402300800.0


def to_timestamp(value: Time) -> float:
    """Convert a time to seconds since 1970 in UTC.

    Dates and times without a zone are taken as UTC.

    :raises ValueError: if the value is not a finite time, looks like a year (a whole
        number from 1000 to 2999), or is a number of too few bits, see
        :func:`timestamp_column`.

    >>> to_timestamp("1970-01-02"), to_timestamp(dt.date(1970, 1, 2))
    (86400.0, 86400.0)
    >>> to_timestamp("1970-01-01T01:00:00+01:00"), to_timestamp("1969-12-31T23:00Z")
    (0.0, -3600.0)
    """
    seconds = _seconds(value)
    if _is_number(value):
        _refuse_years(np.asarray([seconds]), repr(value))
    if not math.isfinite(seconds):
        raise ValueError(f"{value!r} is not a finite time; {_GIVE}.")
    return seconds


def is_missing(value: Any) -> bool:
    """Whether a value of a table is none: None, NaN, NaT or pandas' NA.

    >>> is_missing(math.nan), is_missing(0)
    (True, False)
    """
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):  # of NA, and of an array, which is a value
        return type(value).__name__ == "NAType"


_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_EXIF = re.compile("([12][0-9]{3}):([0-9]{2}):([0-9]{2})((?: .*)?)")
_COMPACT = re.compile("([12][0-9]{3})([0-9]{2})([0-9]{2})")


def stored_timestamp(value: Time) -> float:
    """Convert a time as a file holds it, see :func:`to_timestamp`.

    Nothing (None, NaN, an empty text) is NaN, a text of digits a number, one of eight
    digits a date; dates may have colons, as those of EXIF.

    :raises ValueError: also for whole numbers that may mean a date (20160603), and for
        times outside the years 1 to 9999, as milliseconds would be.

    >>> stored_timestamp("86400.5"), stored_timestamp("19700102"), stored_timestamp("")
    (86400.5, 86400.0, nan)
    """
    if isinstance(value, str):
        value = value.strip() or None
        if value and (date := _COMPACT.fullmatch(value)):
            value = "-".join(date.groups())
        elif value and (date := _EXIF.fullmatch(value)):
            value = "-".join(date.groups()[:3]) + date[4]
        elif value and _NUMBER.fullmatch(value):
            value = float(value)
    if is_missing(value):
        return math.nan
    seconds = to_timestamp(value)
    if _is_number(value) and _COMPACT.fullmatch(f"{seconds:.10g}"):
        words = "may mean a date or seconds since 1970; give dates as texts"
        raise ValueError(f"{value!r} {words}, or make them by a function.")
    if not _FIRST <= seconds < _LAST:
        words = "lies outside the years 1 to 9999; give seconds, not milliseconds"
        raise ValueError(f"{value!r} {words}.")
    return seconds


def timestamp_column(
    values: Any, what: str = "timestamps", *, checked: bool = False
) -> np.ndarray:
    """Convert one time per sample to float64 seconds since 1970 in UTC.

    Missing times (NaN, NaT, None) become NaN; what to do with them is decided
    where the stream is cut.

    :param values: numbers, numpy ``datetime64``, or a sequence of strings,
        dates or datetimes (those without a zone are UTC).
    :param what: what they are, for messages.
    :param checked: the numbers are known to be seconds, not years.
    :return: float64 array of the same shape.
    :raises ValueError: if a value is no time; if all numbers are whole and from 1000
        to 2999, so that they may be years; if floats of less than 64 bits are so
        large that seconds were lost (from 2**24 on for float32).
    """
    array = _as_array(values)
    if array.dtype.kind == "M":
        # Microseconds: nanoseconds would overflow before 1677 and after 2262.
        seconds = array.astype("datetime64[us]").astype(np.int64) / 1e6
        return np.where(np.isnat(array), np.nan, seconds)
    if array.dtype.kind in "iuf":
        _refuse_lost_seconds(array)
        seconds = np.ascontiguousarray(array, dtype=np.float64)
        if not checked:
            _refuse_years(seconds, what)
        return seconds
    if array.dtype.kind not in "OU":
        raise ValueError(
            f"timestamps have dtype {array.dtype}; {_GIVE} each; NaN is a missing one."
        )
    flat = array.ravel().tolist()
    seconds = np.fromiter(
        (_seconds(v) for v in flat), dtype=np.float64, count=len(flat)
    )
    if not checked:
        rows = [row for row, value in enumerate(flat) if _is_number(value)]
        _refuse_years(seconds[rows], what)
    return seconds.reshape(array.shape)


def _as_array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if "bfloat16" in str(values.dtype):
            raise ValueError(_lost_seconds("bfloat16", float(values.reshape(-1)[0])))
    array = np.asarray(values)
    if array.dtype.kind == "U" and not hasattr(values, "dtype"):
        # A list of texts and numbers: NumPy would write the numbers as texts.
        array = np.asarray(values, dtype=object)
    return array


def _is_number(value: Time) -> bool:
    time = isinstance(value, (str, dt.date, np.datetime64))
    return value is not None and not time


def _refuse_lost_seconds(array: np.ndarray) -> None:
    """Raise ValueError where floats have too few bits for whole seconds."""
    limit = _EXACT.get(array.dtype.name)
    if limit is None:
        return
    large = array[np.isfinite(array) & (np.abs(array) >= limit)]
    if large.size:
        raise ValueError(_lost_seconds(array.dtype.name, float(large.ravel()[0])))


def _lost_seconds(kind: str, example: float) -> str:
    return (
        f"timestamps are {kind}, which holds whole seconds only below {_EXACT[kind]} "
        f"(found {example:.0f}): dates are off by up to minutes. Give them as float64, "
        "integers or datetime64, from the source on; converting what was rounded "
        "brings nothing back."
    )


def _refuse_years(seconds: np.ndarray, what: str) -> None:
    """Raise ValueError for numbers that are as likely years as seconds."""
    finite = seconds[np.isfinite(seconds)]
    low, high = _YEARS
    if not finite.size or (finite % 1 != 0).any():
        return
    if finite.min() >= low and finite.max() <= high:
        raise ValueError(
            f"{what}: whole numbers from {finite.min():.0f} to {finite.max():.0f} may "
            "mean a year or seconds since 1970. For years give dates, such as "
            "[f'{year}-01-01' for year in years]; for seconds "
            "numpy.asarray(seconds, dtype='datetime64[s]')."
        )


def _seconds(value: Time) -> float:
    """Convert one time; NaN for a missing one."""
    if value is None:
        return math.nan
    if isinstance(value, np.datetime64):
        return float(timestamp_column(value))
    if isinstance(value, str):
        value = _parse(value)
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day)
    if isinstance(value, dt.datetime):
        # pandas.NaT is a datetime that equals nothing, itself included.
        if value != value:
            return math.nan
        zoned = value if value.tzinfo else value.replace(tzinfo=dt.timezone.utc)
        return zoned.timestamp()
    try:
        if "bool" in str(getattr(value, "dtype", type(value).__name__)):
            raise TypeError("flags are no times")
        if hasattr(value, "dtype"):
            _refuse_lost_seconds(_as_array(value))
        return float(value)
    except (TypeError, OverflowError) as error:
        kind = type(value).__name__
        raise ValueError(f"{value!r} ({kind}) is no time; {_GIVE}.") from error


def _parse(text: str) -> dt.datetime:
    # Python 3.10 does not read the Z of UTC.
    plain = text[:-1] + "+00:00" if text.endswith(("Z", "z")) else text
    try:
        return dt.datetime.fromisoformat(plain)
    except ValueError as error:
        raise ValueError(
            f"{text!r} is no ISO date such as '2016-06-03' or "
            "'2016-06-03T12:00:00+00:00'."
        ) from error


def period_starts(times: np.ndarray, period: str) -> np.ndarray:
    """Return the start of the calendar period that each time lies in.

    :param times: float64 seconds UTC, finite, ``(N,)``.
    :param period: one of :data:`PERIODS`; weeks start on Monday.
    :return: float64 seconds UTC, ``(N,)``.
    :raises ValueError: for another period, or times outside the years 1 to
        9999, as milliseconds would be.
    """
    require_choice("period", period, PERIODS)
    outside = (times < _FIRST) | (times >= _LAST)
    if outside.any():
        raise ValueError(
            f"{int(outside.sum())} timestamps (for example {times[outside][0]:g}) lie "
            "outside the years 1 to 9999; give seconds, not milliseconds, since 1970."
        )
    unit, shift = _UNITS[period]  # 1970-01-01 was a Thursday
    seconds = (np.floor(times).astype(np.int64) + shift).astype("datetime64[s]")
    starts = seconds.astype(f"datetime64[{unit}]").astype("datetime64[s]")
    return (starts.astype(np.int64) - shift).astype(np.float64)


def period_label(timestamp: float, period: str) -> str:
    """Name the calendar period that a time lies in (UTC).

    >>> [period_label(0.0, p) for p in PERIODS]
    ['1970-01-01', '1970-W01', '1970-01', '1970-Q1', '1970']

    :param timestamp: seconds since 1970, in the years 1 to 9999.
    :param period: one of :data:`PERIODS`; weeks are ISO weeks.
    """
    date = dt.date.fromisoformat(iso_date(timestamp))
    if period == "week":
        year, week, _ = date.isocalendar()
        return f"{year:04d}-W{week:02d}"
    if period == "quarter":
        return f"{date.year:04d}-Q{(date.month + 2) // 3}"
    return date.isoformat()[: {"year": 4, "month": 7, "day": 10}[period]]


def iso_date(timestamp: float) -> str:
    """Format seconds since 1970 as a UTC date.

    Numbers that are no date (outside the years 1 to 9999) stay numbers.

    >>> iso_date(0.0), iso_date(-0.5), iso_date(1e15)
    ('1970-01-01', '1969-12-31', '1e+15')
    """
    return _iso(timestamp, "D")


def iso_time(timestamp: float) -> str:
    """Format seconds since 1970 as UTC date and time, to the second.

    >>> iso_time(61.9)
    '1970-01-01T00:01:01'
    """
    return _iso(timestamp, "s")


def _iso(timestamp: float, unit: str) -> str:
    if not _FIRST <= timestamp < _LAST:
        return f"{timestamp:g}"
    return str(np.datetime64(math.floor(timestamp), "s").astype(f"datetime64[{unit}]"))
