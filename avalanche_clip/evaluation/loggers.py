"""A CSV logger for long runs: one row per value, safe to stop and resume."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

from avalanche.evaluation.metric_results import AlternativeValues, MetricValue
from avalanche.logging import BaseLogger
from torch import Tensor

COLUMNS = ("time", "experience", "metric", "value")


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
    ``state_dict()`` holds the number of rows: loading it into the logger of a
    resumed run removes the rows written after that point, which the resumed
    run writes again. Apart from the times, the file then equals that of an
    uninterrupted run.

    :param path: CSV file; missing folders are created.
    :raises ValueError: if the file exists and is no file of this logger.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self.experience = -1
        self._num_rows = 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._open_existing()

    @property
    def num_rows(self) -> int:
        """Number of rows in the file, without the header."""
        return self._num_rows

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
        if not 0 <= num_rows <= self._num_rows:
            raise ValueError(
                f"{self.path} holds {self._num_rows} rows, {num_rows} are to be kept; "
                "resume with the file that belongs to the checkpoint."
            )
        lines = self.path.read_bytes().splitlines(keepends=True)
        size = sum(len(line) for line in lines[: num_rows + 1])
        with self.path.open("r+b") as file:
            file.truncate(size)
        self._num_rows = num_rows

    def state_dict(self) -> dict[str, int]:
        """Return the number of rows and the current experience."""
        return {"num_rows": self._num_rows, "experience": self.experience}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go back to the point at which :meth:`state_dict` was called.

        :param state: plain data.
        :raises ValueError: if the file holds fewer rows than it did then.
        """
        self.truncate_to(state["num_rows"])
        self.experience = state["experience"]

    def _open_existing(self) -> None:
        """Write the header, or check it and cut off a half-written line."""
        header = ",".join(COLUMNS).encode() + b"\n"
        content = self.path.read_bytes() if self.path.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        if not complete and header.startswith(content):
            self.path.write_bytes(header)
            self._num_rows = 0
            return
        if not complete.startswith(header):
            first = content.split(b"\n", 1)[0][:80].decode(errors="replace")
            raise ValueError(
                f"{self.path} begins with {first!r} instead of {','.join(COLUMNS)!r}; "
                "give another path or move the file away."
            )
        if len(complete) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(complete))
        self._num_rows = complete.count(b"\n") - 1

    def _write(self, named_values: list[tuple[str, Any]]) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        rows = [
            (now, self.experience, name.replace("\n", " "), repr(number))
            for name, value in named_values
            if (number := _as_number(value)) is not None
        ]
        if not rows:
            return
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        with self.path.open("ab") as file:
            file.write(text.getvalue().encode())
        self._num_rows += len(rows)


def _as_number(value: Any) -> float | int | None:
    """Return the value as a Python number, None if it is none."""
    if isinstance(value, AlternativeValues):
        value = value.best_supported_value(float, int, Tensor)
    if isinstance(value, Tensor) and value.numel() != 1:
        return None
    if hasattr(value, "item"):  # tensors and NumPy scalars
        try:
            value = value.item()
        except ValueError:
            return None
    if isinstance(value, bool):
        return int(value)
    return value if isinstance(value, (float, int)) else None


__all__ = ["COLUMNS", "MetricsCSVLogger"]
