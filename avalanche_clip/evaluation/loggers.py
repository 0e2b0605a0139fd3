"""A CSV logger for long runs: one row per value, safe to stop and resume."""

from __future__ import annotations

import base64
import csv
import io
import logging
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from avalanche.evaluation.metric_results import AlternativeValues, MetricValue
from avalanche.logging import BaseLogger
from torch import Tensor

from avalanche_clip.common.files import replacing
from avalanche_clip.common.plain import as_number
from avalanche_clip.common.space import told_when_full

logger = logging.getLogger(__name__)

COLUMNS = ("time", "experience", "metric", "value")
_HEADER = ",".join(COLUMNS).encode() + b"\n"
_BLOCK = 1 << 16


class MetricsCSVLogger(BaseLogger):
    """Append every scalar metric as one row to a CSV file.

    Columns: ``time`` (UTC, ISO 8601), ``experience`` (index of the training
    experience the model has seen last, -1 before the first), ``metric`` (full
    name; for evaluations it ends in the test experience) and ``value`` (number,
    exactly as computed). Values that are no numbers, such as images, are left
    to other loggers.

    The file is opened for each group of rows and closed again, so a killed run
    loses at most the row that was being written; a half-written last line is
    cut off when the next run opens the file. An existing file is continued.
    A row ends with a line feed and holds no other; in names one becomes a space,
    everything else is quoted as the ``csv`` module reads it.
    ``state_dict()`` holds the rows, packed to some twenty bytes each: loading it
    into the logger of a resumed run removes the rows written after that point,
    which the resumed run writes again, and writes the file anew if it was lost or
    damaged (which is then kept as ``<path>.damaged``). Apart from the times, the
    file then equals that of an uninterrupted run.

    :param path: CSV file; missing folders are created.
    :raises ValueError: if the file exists and is no file of this logger.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path).expanduser()
        self.experience = -1
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._open_existing()

    def log_metrics(self, metric_values: list[MetricValue]) -> None:
        """Write the scalar values of a callback.

        :param metric_values: values in the order in which they were emitted.
        """
        rows = []
        for metric in metric_values:
            if isinstance(metric.value, dict):
                for key, value in metric.value.items():
                    rows.append((f"{metric.name}/{key}", value))
            else:
                rows.append((metric.name, metric.value))
        self._write(rows)

    def log_single_metric(
        self, name: str, value: Any, x_plot: int | None = None
    ) -> None:
        """Write one value.

        :param name: full name of the metric.
        :param value: the value; ignored if it is no number.
        :param x_plot: ignored.
        """
        self._write([(name, value)])

    def before_training_exp(
        self, strategy: Any, metric_values: list[MetricValue], **kwargs: Any
    ) -> None:
        """Note the experience that the following rows belong to."""
        self.experience = int(strategy.experience.current_experience)

    def truncate_to(self, num_rows: int) -> None:
        """Keep only the first rows of the file.

        :param num_rows: number of rows to keep, without the header.
        :raises ValueError: if the file holds fewer rows.
        """
        if not 0 <= num_rows <= self.num_rows:
            raise ValueError(
                f"{self.path} holds {self.num_rows} rows, {num_rows} are to be kept; "
                "resume with the file that belongs to the checkpoint."
            )
        # Only line feeds end a row.
        lines = self.path.read_bytes().split(b"\n")[: num_rows + 1]
        self._cut(b"\n".join([*lines, b""]))

    def state_dict(self) -> dict[str, Any]:
        """Return the rows, packed into text, their number and the experience."""
        return {
            "num_rows": self.num_rows,
            "experience": self.experience,
            "rows": [*self._packed, _pack(self._recent)],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to the point at which :meth:`state_dict` was called.

        :param state: plain data.
        """
        self._restore(_HEADER + b"".join(_unpack(block) for block in state["rows"]))
        self.experience = state["experience"]

    def _restore(self, content: bytes) -> None:
        """Cut the file back to this content, or write it anew."""
        found = self.path.read_bytes() if self.path.exists() else b""
        if found.startswith(content):
            self._cut(content)
            return
        if not content.startswith(found):
            os.replace(self.path, self.path.with_name(self.path.name + ".damaged"))
        logger.warning(
            "%s did not hold the rows that it had when the checkpoint was written; "
            "they are written again.",
            self.path,
        )
        with replacing(self.path) as temporary:
            temporary.write_bytes(content)
        self._remember_all(content)

    def _cut(self, content: bytes) -> None:
        """Leave only this beginning of the file."""
        with self.path.open("r+b") as file:
            file.truncate(len(content))
        self._remember_all(content)

    def _open_existing(self) -> None:
        """Write the header, or check it and cut off a half-written line."""
        content = self.path.read_bytes() if self.path.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        if not complete and _HEADER.startswith(content):
            self.path.write_bytes(_HEADER)
            self._remember_all(_HEADER)
            return
        if not complete.startswith(_HEADER):
            first = content.split(b"\n", 1)[0][:80].decode(errors="replace")
            raise ValueError(
                f"{self.path} begins with {first!r} instead of {','.join(COLUMNS)!r}; "
                "give another path or move the file away."
            )
        self._cut(complete)

    def _remember_all(self, content: bytes) -> None:
        """Take the whole content of the file as what was written."""
        self._packed: list[str] = []
        self._recent = b""
        self.num_rows = 0
        """Number of rows in the file, without the header."""
        self._remember(content[len(_HEADER) :])

    def _remember(self, rows: bytes) -> None:
        self.num_rows += rows.count(b"\n")
        self._recent += rows
        while len(self._recent) >= _BLOCK:
            self._packed.append(_pack(self._recent[:_BLOCK]))
            self._recent = self._recent[_BLOCK:]

    def _write(self, named_values: list[tuple[str, Any]]) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        rows = [
            (now, self.experience, name.replace("\n", " "), repr(number))
            for name, value in named_values
            if (number := _as_number(value)) is not None
        ]
        if not rows:
            return
        content = "".join(map(_line, rows)).encode("utf-8", "backslashreplace")
        left = "A row that is not whole is cut off when the run goes on"
        with told_when_full(self.path, left), self.path.open("ab") as file:
            file.write(content)
        self._remember(content)


def _line(row: Sequence[Any]) -> str:
    text = io.StringIO(newline="")
    # Python < 3.13 quotes a carriage return only if the line ends with one.
    csv.writer(text, lineterminator="\r\n").writerow(row)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _pack(rows: bytes) -> str:
    return base64.b64encode(zlib.compress(rows)).decode()


def _unpack(block: str) -> bytes:
    return zlib.decompress(base64.b64decode(block))


def _as_number(value: Any) -> float | int | None:
    """Return the value as a Python number, None if it is none."""
    if isinstance(value, AlternativeValues):
        value = value.best_supported_value(float, int, Tensor)
    value = as_number(value.reshape(-1) if hasattr(value, "reshape") else value)
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, (float, int)) else None
