"""Pictures with captions, and features of pictures and captions, in parquet files."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from avalanche_clip.benchmarks.datasets.fields import FILE, Field
from avalanche_clip.benchmarks.datasets.rows import (
    ImageTextRows,
    needed_columns,
)
from avalanche_clip.benchmarks.teacher.store import TeacherFeatureStore
from avalanche_clip.common.arrays import read_npy
from avalanche_clip.common.checks import (
    as_texts,
    existing_folder,
    require_distinct,
    require_known,
    require_some,
)
from avalanche_clip.common.files import (
    file_limits,
    files_below,
    require_file,
    unreadable,
)


class ParquetTable:
    """Rows of parquet files in any order; a group of rows is read at a time.

    :param paths: of the files, which have the same columns.
    :raises FileNotFoundError: if one is missing.
    :raises ImportError: if pyarrow is not installed.
    :raises ValueError: if one is damaged, has other columns, or a group of rows exceeds
        ``file_limits.member_bytes``.
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = [require_file(path) for path in paths]
        self.groups: list[tuple[Path, int]] = []
        self.columns, sizes = list[str](), list[int]()
        self._held: tuple[Any, Any] = (None, None)
        for path in self.paths:
            with _opened(path) as file:
                groups = [
                    file.metadata.row_group(k) for k in range(file.num_row_groups)
                ]
                names, largest = file.schema_arrow.names, file_limits.member_bytes
                require_distinct(names, "the columns")
                if self.columns not in ([], names):
                    raise ValueError(f"it has other columns: {names}")
                if any(group.total_byte_size > largest for group in groups):
                    raise ValueError(
                        "a group of rows has more bytes than file_limits.member_bytes; "
                        "write it with a smaller row_group_size, 100 say"
                    )
            self.columns = names
            self.groups += [(path, k) for k in range(len(groups))]
            sizes += [group.num_rows for group in groups]
        self.starts = [0, *accumulate(sizes)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": (None, None)}

    def rows(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield some columns of all rows in order, each with the path of its file."""
        for place, (path, _) in enumerate(self.groups):
            for row in self._read(place, columns):
                yield {**row, FILE: path}

    def cell(self, column: str, row: int) -> Any:
        """Return a cell; its group of rows is kept for the next ones."""
        place = bisect_right(self.starts, row) - 1
        if self._held[0] != (place, column):
            self._held = (place, column), self._read(place, [column])
        return self._held[1][row - self.starts[place]][column]

    def _read(self, place: int, columns: Sequence[str]) -> list[dict[str, Any]]:
        path, group = self.groups[place]
        with _opened(path) as file:
            found = file.read_row_group(
                group, [*columns], use_threads=False
            ).to_pylist()
            if len(found) != self.starts[place + 1] - self.starts[place]:
                raise ValueError("it was changed after it was opened")
            return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file; whatever is wrong with it names it."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            'Parquet files need pyarrow: pip install "avalanche-clip[data]".'
        ) from error
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except Exception as error:  # pyarrow's are of many kinds
        raise unreadable(path, "a parquet file", error) from error


def _paths(given: str | Path | Sequence[str | Path]) -> list[Path]:
    paths = [given] if isinstance(given, (str, Path)) else given
    found = [Path(path).expanduser() for path in paths]
    if len(found) == 1 and found[0].is_dir():
        found = files_below(found[0], "*.parquet")
    require_some(found, f"parquet files in {given}")
    return found


def read_parquet(
    paths: str | Path | Sequence[str | Path],
    root: str | Path | None = "",
    *,
    image: str = "image",
    caption: Field = "caption",
    time: Field | None = None,
    group: Field | None = None,
    on_error: str = "raise",
) -> ImageTextRows:
    """Read parquet files of pictures and captions.

    As ``datasets.Dataset.to_parquet``, img2dataset (``image="jpg"``) and pyarrow write
    them. A picture costs the reading of its group of rows, so shuffled
    reading wants small groups (``row_group_size=100`` when they are written).

    Needs pyarrow: ``pip install "avalanche-clip[data]"``.

    :param paths: a file, a folder of ``*.parquet``, or a list of files.
    :param root: see :func:`read_rows`, as all that follows.
    :param image: column of the pictures: bytes, or bytes and path.
    :param caption: column of the caption or captions.
    :param time: column of the time.
    :param group: column that rows of one picture share.
    :param on_error: ``"raise"`` or ``"skip"``.
    :raises FileNotFoundError: if there is no such file.
    :raises ImportError: if pyarrow is not installed.
    :raises ValueError: naming the file and its row, if one is damaged or has no such
        column, or a group of rows exceeds ``file_limits.member_bytes``.
    """
    table = ParquetTable(_paths(paths))
    fields = {"image": image, "caption": caption, "time": time, "group": group}
    source = table.paths[0] if len(table.paths) == 1 else table.paths[0].parent
    rows = table.rows(needed_columns(fields, table.columns, source))
    pictures = partial(table.cell, image)
    return ImageTextRows(rows, source, root, fields, on_error, pictures)


def read_clip_retrieval(
    folder: str | Path, columns: Sequence[str] | None = None
) -> tuple[TeacherFeatureStore, list[dict[str, Any]]]:
    """Read what ``clip-retrieval inference`` has written: features and their rows.

    Needs pyarrow: ``pip install "avalanche-clip[data]"``.

    :param folder: with ``metadata/metadata_{n}.parquet``, and
        ``img_emb/img_emb_{n}.npy`` or ``text_emb/text_emb_{n}.npy`` or both.
    :param columns: of the metadata that are read; default all.
    :return: a store of image and text features whose ids are the rows' numbers, for
        :func:`attach_teacher_features`; and the rows, mappings of ``image_path``,
        ``caption`` and further facts, for :func:`read_rows` (``image="image_path"``).
        Features in one file are mapped, those of several read.
    :raises FileNotFoundError: if there is no such folder or file.
    :raises ImportError: if pyarrow is not installed.
    :raises ValueError: naming the file, if one is damaged, or its rows are not as many
        as those of the metadata.
    """
    base = existing_folder(Path(folder).expanduser(), "give that of the features")
    paths = sorted(base.glob("metadata/metadata_*.parquet"), key=_in_order)
    if not paths:
        raise FileNotFoundError(f"{base} has no files metadata/metadata_*.parquet.")
    tables, features = [ParquetTable([path]) for path in paths], {}
    if columns is not None:
        columns = as_texts(columns, "columns", least=0)
        known = [name for table in tables for name in table.columns]
        require_known(columns, dict.fromkeys(known), f"columns of {base}")
    for kind, name in (("image", "img_emb"), ("text", "text_emb")):
        files = sorted(base.glob(f"{name}/{name}_*.npy"), key=_in_order)
        parts = [path.stem.removeprefix(name) for path in files]
        if files and parts != [path.stem.removeprefix("metadata") for path in paths]:
            raise ValueError(f"{base}: {name} has the parts {parts}, metadata others.")
        arrays = [read_npy(path, mmap=True) for path in files]
        for path, array, table in zip(files, arrays, tables, strict=False):
            wrong = array.ndim != 2 or array.dtype.kind != "f"
            if wrong or array.shape != (len(table), arrays[0].shape[1]):
                cause = f"it holds {array.dtype} of shape {array.shape}"
                raise unreadable(path, f"features of {len(table)} rows", cause)
        if files:
            features[kind] = arrays[0] if len(files) == 1 else np.concatenate(arrays)
    rows: list[dict[str, Any]] = []
    for table in tables:
        rows += table.rows(table.columns if columns is None else columns)
    return TeacherFeatureStore(features), rows


def _in_order(path: Path) -> tuple[int, str]:
    """The order of numbers with or without zeros in front."""
    return len(path.name), path.name
