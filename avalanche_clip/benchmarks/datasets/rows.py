"""Pictures with captions from rows by name: tables, JSON, Hugging Face's data sets."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avalanche_clip.benchmarks.datasets.captioned import (
    CaptionedImages,
    is_id,
    is_text,
)
from avalanche_clip.benchmarks.datasets.fields import (
    FILE,
    Field,
    Row,
    as_picture,
    picture_path,
    require_times,
    time_of,
    value_of,
)
from avalanche_clip.benchmarks.datasets.plain_texts import (
    refuse_foreign,
    require_last_end,
)
from avalanche_clip.benchmarks.datasets.text_columns import TextColumn
from avalanche_clip.benchmarks.items.skipped import SampleFault, leave_out, skipped_for
from avalanche_clip.benchmarks.items.times import is_missing
from avalanche_clip.common.checks import as_texts, require_distinct, require_type
from avalanche_clip.common.files import (
    parse_json,
    read_json,
    read_lines,
    require_file,
    unreadable,
)


class ImageTextRows(CaptionedImages):
    """Map-style data set of the pictures and captions that rows hold.

    Items are ``(RGB image, caption)``, or ``(RGB image, list of captions)`` if one
    picture has several of them or rows hold lists; :func:`make_image_text_dataset`
    takes the times, too. Made by :func:`read_rows` and the readers of files.

    :param rows: mappings, or faults in the place of some; read once.
    :param source: names them in messages.
    :param root: see :func:`read_rows`.
    :param fields: ``image``, ``caption``, ``time`` and ``group`` of it, in this order.
    :param on_error: ``"raise"`` or ``"skip"``.
    :param pictures: gives the picture of a row by its number; by default the field
        ``image`` is a path.

    :ivar names: path of each picture; the number of its row where rows hold pictures.
    :ivar rows: first row of each picture, from 0, int64 ``(N,)``.
    :ivar image_id: value of ``group=`` where all are integers, else 0..N-1, ``(N,)``.
    :ivar timestamps: seconds since 1970 (UTC), NaN for missing ones, ``(N,)``, or None.
    :ivar skipped: what was left out until now, by cause; None with ``"raise"``.
    """

    def __init__(
        self,
        rows: Iterable[Any],
        source: str | Path,
        root: str | Path | None,
        fields: Mapping[str, Any],
        on_error: str,
        pictures: Callable[[int], Any] | None = None,
    ) -> None:
        self.source, self.image_root, self.fields = str(source), root, fields
        self.skipped, self.pictures = skipped_for(on_error), pictures
        keys: dict[Any, int] = {}
        names, times, owners, firsts = list[str](), array("d"), array("q"), array("q")
        lists = False

        def captions() -> Iterator[bytes]:
            nonlocal lists
            for number, row in enumerate(guarded(rows, source)):
                where = f"{source}, row {number + 1}"
                try:
                    key, name, when, texts = self._read(number, row, where)
                    item = keys.get(key, len(keys))
                    if item < len(keys):
                        same = (
                            times[item] == when or np.isnan([times[item], when]).all()
                        )
                        if not same or (pictures is None and names[item] != name):
                            words = f"{where} has another time or path than row"
                            words = f"{words} {firsts[item] + 1}, of the same picture."
                            raise SampleFault("row unreadable", words)
                except SampleFault as fault:
                    leave_out(fault, self.skipped)
                    continue
                if item == len(keys):
                    keys[key] = item
                    names.append(name)
                    times.append(when)
                    firsts.append(number)
                lists = lists or isinstance(texts, list)
                for text in [texts] if isinstance(texts, str) else texts:
                    owners.append(item)
                    yield text.encode()

        column = TextColumn.from_bytes(captions())
        if not keys:
            words = "has no row with a picture and a caption"
            raise ValueError(f"{source} {words}: {self.skipped}.")
        owner = np.array(owners)
        if (np.diff(owner) < 0).any():
            order = np.argsort(owner, kind="stable").tolist()
            column = TextColumn.from_bytes(column[i].encode() for i in order)
        numbered = fields["group"] is not None and all(map(is_id, keys))
        ids = [*keys] if numbered else np.arange(len(keys))
        single = not lists and len(owner) == len(keys)
        super().__init__(names, column, np.bincount(owner), ids, root, single=single)
        self.rows = np.array(firsts)
        self.timestamps = None if fields["time"] is None else np.array(times)
        if self.timestamps is not None:
            require_times(self.timestamps, fields["time"], source)

    def __getitem__(self, item: int) -> tuple[Image.Image, str | list[str]]:
        text, row = self.text(item), int(self.rows[item])
        value = self.names[item] if self.pictures is None else self.pictures(row)
        where = f"{self.source}, row {row + 1}"
        return as_picture(value, self.image_root, where), text

    def _read(self, number: int, row: Any, where: str) -> tuple[Any, str, float, Any]:
        """Return key, name, time and captions of a row."""
        if isinstance(row, SampleFault):
            raise row
        if not isinstance(row, Mapping):
            raise SampleFault("row unreadable", f"{where} is a {type(row).__name__}.")
        name, (image, caption, time, group) = str(number), self.fields.values()
        if self.pictures is None:
            name = value_of(row, image, where)
            row = {**row, FILE: picture_path(name, self.image_root, where)}
        texts = captions_of(row, caption, where)
        when = np.nan if time is None else time_of(row, time, where)
        key = name if group is None else value_of(row, group, where)
        if not (is_text(key) or is_id(key)):
            words = f"{where} has {key!r:.80} for {group!r}, neither text nor integer."
            raise SampleFault("row unreadable", words)
        return key, name, when, texts


def captions_of(row: Row, field: Field, where: str) -> str | list[str]:
    """Return the caption or captions of a row.

    :raises SampleFault: if there is none, or something else.
    """
    value = value_of(row, field, where)
    for text in (value or [None]) if isinstance(value, list) else [value]:
        if is_missing(text) or (isinstance(text, str) and not text.strip()):
            raise SampleFault("no caption", f"{where} has no caption, or an empty one.")
        if not is_text(text):
            words = f"{where} has {text!r:.80} in place of a caption."
            raise SampleFault("caption unreadable", words)
    return value


def guarded(rows: Iterable[Any], source: str | Path) -> Iterator[Any]:
    """Yield rows; what stops them names their source."""
    try:
        yield from rows
    except Exception as error:  # of a library, where it is not ours
        if isinstance(error, ValueError) and str(source) in str(error):
            raise
        raise unreadable(source, "a table of pictures and captions", error) from error


# --------------------------------------------------------------------------- readers
def read_rows(
    rows: Any,
    root: str | Path | None = "",
    *,
    image: str = "image",
    caption: Field = "caption",
    time: Field | None = None,
    group: Field | None = None,
    on_error: str = "raise",
) -> ImageTextRows:
    """Make a data set of rows by name, such as a data set of Hugging Face's.

    Captions and times are read at once, pictures when an item is; those that are not
    decoded yet are decoded by our rules, with our limits. No library is imported.

    :param rows: a ``datasets.Dataset``, or a list of mappings. (A streamed data set:
        :class:`RowStream`.)
    :param root: folder of pictures that are given by path, which they must not leave;
        None allows absolute paths instead. By default paths are refused.
    :param image: field of the picture: a PIL image, bytes, a path, or a mapping of
        ``bytes`` and ``path``.
    :param caption: field of the caption, or list of captions; ``"a.b"`` is field ``b``
        of the mapping, or of each of the list of mappings, in field ``a``. Or a
        function of the row without its picture, as are the next two.
    :param time: field of the time: whatever :func:`make_image_text_dataset` takes, or a
        text of digits; nothing is a missing time.
    :param group: field that rows of one picture have in common: they become one item
        with all captions, and the picture of the first of them. By default each row is
        one item.
    :param on_error: about rows without picture or caption or with an unreadable time:
        ``"raise"``, or ``"skip"``: they are left out and counted, see :class:`Skipped`.
    :raises SampleFault: (a ValueError) for the first of them, with ``"raise"``.
    :raises ValueError: if a field is missing, or no row is left.
    :raises TypeError: if these are no rows.

    >>> red = Image.new("RGB", (8, 8), "red")
    >>> rows = [{"image": red, "caption": "red", "date": "2016-06-03"}]
    >>> pairs = read_rows(rows, time="date")
    >>> pairs[0][1], pairs.timestamps.tolist()
    ('red', [1464912000.0])
    """
    source = f"the rows of the {type(rows).__name__}"
    if hasattr(rows, "column_names") and not hasattr(rows, "__len__"):
        raise TypeError(f"{source} come as a stream; give them to RowStream.")
    rows, names = undecoded(rows)
    fields = {"image": image, "caption": caption, "time": time, "group": group}
    facts = (
        SampleFault("no picture", f"{source}, row {number} has no picture {image!r}.")
        if isinstance(row, Mapping) and row.get(image) is None
        else row
        for number, row in enumerate(rows, 1)
    )
    if names is not None:
        facts = rows.select_columns(needed_columns(fields, names, source))
        rows = rows.select_columns([image])
    pictures = partial(_cell, rows, image)
    return ImageTextRows(facts, source, root, fields, on_error, pictures)


def _cell(rows: Any, image: str, number: int) -> Any:
    return rows[number].get(image)


def undecoded(rows: Any) -> tuple[Any, list[str] | None]:
    """Return rows whose pictures are left as stored, and their columns if known.

    Hugging Face's own decoder knows no limits, and turns pictures.
    """
    if not hasattr(rows, "column_names"):
        require_type(rows, list, "rows", "a data set of rows, or a list of mappings")
        return rows, None
    if isinstance(rows, Mapping):
        raise TypeError(f"rows has the parts {[*rows]}; take one: rows['train'].")
    for name, feature in (rows.features or {}).items():
        if type(feature).__name__ == "Image":
            plain = type(feature)(mode=feature.mode, decode=False)
            rows = rows.cast_column(name, plain)
    return rows.with_format(None), rows.column_names


def needed_columns(
    fields: Mapping[str, Any], names: Iterable[str], source: str | Path
) -> list[str]:
    """Return the columns beside the picture that are read of a table.

    :raises ValueError: if one is missing.
    """
    known, wanted = [*names], set()
    for role, field in fields.items():
        if isinstance(field, str):
            whole_name = field in known or role == "image"
            column = field if whole_name else field.partition(".")[0]
            if column not in known:
                raise ValueError(f"{source} has no column {field!r}, but {known}.")
            wanted.add(column)
    whole = any(map(callable, fields.values()))
    return [n for n in known if n != fields["image"] and (whole or n in wanted)]


def read_image_table(
    path: str | Path,
    root: str | Path | None,
    *,
    image: Field = "filepath",
    caption: Field = "title",
    time: Field | None = None,
    group: Field | None = None,
    separator: str | None = None,
    on_error: str = "raise",
) -> ImageTextRows:
    """Read a table of paths and captions, as open_clip is trained from.

    Rows that name one picture become one item with all their captions.

    :param path: CSV or TSV with names in its first line, as the ``csv`` module and
        pandas write it; ``.json``, a list of mappings; or ``.jsonl``, one mapping a
        line. Also gzipped (``.gz``).
    :param root: folder that the paths begin in and must not leave; None takes absolute
        paths, anywhere.
    :param image: column of the path.
    :param caption: column of the caption.
    :param time: column of the time, see :func:`read_rows`; or a function of the row,
        which finds the path of the picture in ``"__file__"``, such as
        :func:`file_time`.
    :param group: column that rows of one picture share; default its path.
    :param separator: of columns; by default tab or comma, with which the first line has
        the columns.
    :param on_error: ``"raise"`` or ``"skip"``, see :func:`read_rows`.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: naming file and row, see :func:`read_rows`; also if quotation
        marks do not match, or the last line has no end, since it may be cut.
    """
    path = require_file(path)
    fields = {"image": image, "caption": caption, "time": time, "group": group}
    ending = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if ending == "json":
        rows: Iterable[Any] = read_json(path, list)
    elif ending == "jsonl":
        rows = (_json_row(line, path) for _, line in read_lines(path) if line.strip())
    else:
        wanted = {field for field in fields.values() if isinstance(field, str)}
        rows = _table_rows(path, separator, wanted)
    return ImageTextRows(rows, path, root, fields, on_error)


def _json_row(line: str, path: Path) -> Any:
    try:
        return parse_json(line, path)
    except ValueError as error:
        return SampleFault("row unreadable", str(error))


def _table_rows(path: Path, separator: str | None, wanted: set[str]) -> Iterator[Any]:
    lines = read_lines(path)
    number, header = next(lines, (0, ""))
    if not number:
        raise unreadable(path, "a table of pictures and captions", "it is empty")
    refuse_foreign(path, header[:512].encode(), "a table of pictures and captions")
    require_last_end(path)
    given = (separator,) if separator else ("\t", ",")
    heads = {s: next(csv.reader([header], delimiter=s), []) for s in given}
    fits = [s for s, names in heads.items() if wanted <= {*names}]
    if len(fits) != 1:
        cause = f"its first line is {header[:80]!r}"
        raise unreadable(path, f"a table with the columns {sorted(wanted)}", cause)
    names = heads[fits[0]]
    require_distinct(names, f"columns of {path}")
    texts = (f"{line}\n" for _, line in lines)
    reader = csv.reader(texts, delimiter=fits[0], strict=True)
    try:
        for cells in reader:
            if len(cells) == len(names):
                yield dict(zip(names, cells, strict=True))
            elif cells:
                words = f"{path}: a row has {len(cells)} cells, not {len(names)}"
                yield SampleFault("row unreadable", f"{words}: {cells!r:.80}.")
    except csv.Error as error:
        words = f"up to line {reader.line_num + 1}: {error}"
        raise unreadable(path, "a table of pictures and captions", words) from error


def read_karpathy(
    path: str | Path,
    root: str | Path | None,
    split: str | Sequence[str] = "train",
    *,
    time: Field | None = None,
    on_error: str = "raise",
) -> ImageTextRows:
    """Read a split of Karpathy's ``dataset_coco.json``, ``dataset_flickr30k.json``, ...

    :param path: JSON of ``images`` with ``filename``, ``sentences`` (each with
        ``raw``), ``split`` and, of COCO, ``filepath`` and ``cocoid``.
    :param root: folder of the pictures, see :func:`read_image_table`.
    :param split: one or several: ``("train", "restval")``.
    :param time: field of an image, see :func:`read_rows`.
    :param on_error: ``"raise"`` or ``"skip"``.
    :return: one item per picture with the list of its captions; ``image_id`` is
        ``cocoid`` where there are such, else ``imgid``.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: naming the file, see :func:`read_rows`; also if no image is of
        the split.
    """
    images = _entries(require_file(path), "images")
    splits = [split] if isinstance(split, str) else as_texts(split, "split")
    rows = [row for row in images if _get(row, "split", splits[0]) in splits]
    if not any(isinstance(row, Mapping) for row in rows):
        known = {str(_get(row, "split", "")) for row in images}
        raise ValueError(f"{path} has no image of {split!r}, but of {sorted(known)}.")
    group = "cocoid" if any(_get(row, "cocoid", None) for row in rows) else "imgid"
    fields = {"image": _karpathy_name, "caption": "sentences.raw"}
    fields = {**fields, "time": time, "group": group}
    source = f"{path}, {'+'.join(splits)}"
    return ImageTextRows(rows, source, root, fields, on_error)


def _karpathy_name(row: Row) -> str:
    return "/".join(filter(None, (row.get("filepath"), row["filename"])))


def _get(row: Any, name: str, default: Any) -> Any:
    return row.get(name) if isinstance(row, Mapping) else default


def _entries(path: Path, name: str) -> list[Any]:
    found = read_json(path, dict).get(name)
    if not isinstance(found, list) or not found:
        raise unreadable(path, f"JSON with a list of {name}", f"{name!r} is no list")
    return found


def read_coco_captions(
    path: str | Path,
    root: str | Path | None,
    *,
    time: Field | None = None,
    on_error: str = "raise",
) -> ImageTextRows:
    """Read captions in the format of COCO: ``captions_train2017.json`` and alike.

    :param path: JSON of ``images`` (``id``, ``file_name``) and ``annotations``
        (``image_id``, ``caption``).
    :param root: folder of the pictures, see :func:`read_image_table`.
    :param time: field of an image, such as ``"date_captured"``, see :func:`read_rows`.
    :param on_error: ``"raise"`` or ``"skip"``: also about images without captions, and
        annotations of no image.
    :return: one item per image in the order of the file, with the list of its captions
        in theirs; ``image_id`` is its ``id``.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: naming the file, see :func:`read_rows`.
    """
    path = require_file(path)
    images, notes = _entries(path, "images"), _entries(path, "annotations")
    captions: dict[Any, list[Any]] = {}
    for note in notes:
        key = _get(note, "image_id", None)
        captions.setdefault(key if is_id(key) or is_text(key) else None, []).append(
            _get(note, "caption", None)
        )

    def rows() -> Iterator[Any]:
        for image in images:
            key = _get(image, "id", None)
            own = captions.pop(key, None) if is_id(key) or is_text(key) else None
            yield {**image, "caption": own} if isinstance(image, Mapping) else image
        for key, lost in captions.items():
            words = f"{path}: captions {lost!r:.80} are of {key!r}, which is no image."
            yield SampleFault("row unreadable", words)

    fields = {"image": "file_name", "caption": "caption", "time": time, "group": "id"}
    return ImageTextRows(rows(), path, root, fields, on_error)
