"""TiC-YFCC and TiC-RedCaps from the tables that they are made of, split by a hash.

The result is a folder of ``{train|test}_batch_{b}.csv``, tab-separated with the header
``path``, ``caption``, as the released scripts write them, and ``split.json``.

Source: the scripts released with Garg et al., TiC-CLIP, ICLR 2024 (arXiv 2310.16226).
Ours are the calendar in UTC, and the split by a hash, which the seed decides whatever
the order of the rows.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import re
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

import numpy as np

from avalanche_clip.benchmarks.datasets.captioned import is_text
from avalanche_clip.benchmarks.datasets.plain_texts import check_names, require_last_end
from avalanche_clip.benchmarks.datasets.text_columns import TextColumn
from avalanche_clip.benchmarks.items.times import is_missing, to_timestamp
from avalanche_clip.benchmarks.streams.quotas import keep_smallest, sample_priorities
from avalanche_clip.common.checks import as_finite, as_integer, existing_folder
from avalanche_clip.common.files import (
    read_json,
    replacing_folder,
    require_file,
    unreadable,
    write_json,
)

logger = logging.getLogger(__name__)

YFCC_BATCHES = (0, 1, 2, 3)
"""Batches of TiC-YFCC: photos of 2004-2008, 2009-2010, 2011-2012 and 2013-2014."""
REDCAPS_BATCHES = (2017, 2018, 2019, 2020)
"""Batches of TiC-RedCaps; the first holds all years up to it."""
CAPTION_LENGTH = 500
_YFCC_STARTS = [to_timestamp(f"{y}-01-01") for y in (2004, 2009, 2011, 2013, 2015)]
_TAGS = re.compile("<.*?>")
_KEY = re.compile("[0-9a-fA-F]{6,}")
_YEAR = re.compile("_([0-9]{4})$")
_NAME = re.compile("[0-9A-Za-z_-]+/[0-9A-Za-z_-]+[.]jpg")
_OWN = re.compile(r"(train|test)_batch_[0-9]+\.csv|split\.json")
_HEADER = ["path", "caption"]


def yfcc_caption(title: Any, description: Any, usertags: Any) -> str:
    """Make the caption of a photo: decode, mend, strip tags, and cut, in this order.

    :param title: URL-encoded, as are the others; None and NaN are empty texts.
    :param description: of the photo.
    :param usertags: separated by commas.
    :return: at most 500 characters of ``title. description. usertags``.
    :raises ImportError: if ftfy is missing.

    >>> yfcc_caption("A+B", "&lt;b&gt;x", None)
    'A B. x. '
    """
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise ImportError(
            "Captions of TiC-YFCC are mended with ftfy, which is missing; install "
            "avalanche-clip[data]."
        ) from error
    given = (title, description, usertags)
    texts = ("" if is_missing(t) else str(t) for t in given)
    mended = fix_text(unquote_plus(". ".join(texts)))
    return _TAGS.sub("", mended)[:CAPTION_LENGTH]


def build_tic_yfcc(
    rows: Iterable[Mapping[str, Any]], folder: str | Path, *, seed: int = 0
) -> dict[str, Any]:
    """Make the tables of TiC-YFCC.

    The batch of a photo is that of its ``dateuploaded``, seconds since 1970, in UTC;
    other years and rows without a date are dropped and counted. Its path is
    ``key[0:3]/key[3:6]/key.jpg``.

    :param rows: mappings with ``key``, ``title``, ``description``, ``usertags`` and
        ``dateuploaded``, such as those of :class:`csv.DictReader`.
    :param folder: for the result; an older one is replaced.
    :param seed: of the split: of each batch of ``n`` photos those with the
        ``ceil(n / 100)`` smallest hashes of their path are its test set.
    :return: what is written to ``split.json``: ``seed``, photos by ``batches``, and
        ``dropped`` rows by cause; of a photo that comes twice in a batch the first
        row counts.
    :raises ValueError: if a column is missing, a key is no hash, or the folder holds
        something else.
    """

    def found() -> Iterator[tuple[Any, str, str]]:
        for number, row in enumerate(rows, 1):
            try:
                key, date = str(row["key"]), row["dateuploaded"]
                texts = row["title"], row["description"], row["usertags"]
            except (KeyError, TypeError) as error:
                raise ValueError(f"Row {number} has no column {error}.") from error
            if not _KEY.fullmatch(key):
                raise ValueError(f"Row {number}: the key {key!r:.80} is no hash.")
            batch = _yfcc_batch(date)
            caption = yfcc_caption(*texts) if isinstance(batch, int) else ""
            yield batch, f"{key[:3]}/{key[3:6]}/{key}.jpg", caption

    return _write_split(found(), YFCC_BATCHES, folder, seed)


def _yfcc_batch(date: Any) -> int | str:
    try:
        seconds = as_finite(float(date), "date")
    except (TypeError, ValueError):
        return "no date"
    batch = bisect_right(_YFCC_STARTS, seconds) - 1
    return batch if batch in YFCC_BATCHES else "other year"


def build_tic_redcaps(
    annotations: str | Path, folder: str | Path, *, seed: int = 0
) -> dict[str, Any]:
    """Make the tables of TiC-RedCaps.

    :param annotations: folder of ``{subreddit}_{year}.json``; the year of a picture is
        that of its file.
    :param folder: for the result, see :func:`build_tic_yfcc`.
    :param seed: of the split.
    :return: see :func:`build_tic_yfcc`.
    :raises FileNotFoundError: if there are no annotations.
    :raises ValueError: naming the file, if it is damaged or an annotation is not whole.
    """
    source = existing_folder(annotations, "give the folder of the annotations")
    files = [(p, _YEAR.search(p.stem)) for p in sorted(source.glob("*.json"))]
    dated = [(path, int(year[1])) for path, year in files if year]
    if not dated:
        raise FileNotFoundError(f"{source} holds no files {{subreddit}}_{{year}}.json.")

    def found() -> Iterator[tuple[Any, str, Any]]:
        for path, year in dated:
            batch = max(year, REDCAPS_BATCHES[0]) if year <= 2020 else "other year"
            try:
                for entry in read_json(path, dict)["annotations"]:
                    name = f"{entry['subreddit']}/{entry['image_id']}.jpg"
                    if not _NAME.fullmatch(name):
                        raise TypeError(f"it names the picture {name!r:.80}")
                    yield batch, name, entry["caption"]
            except (KeyError, TypeError) as error:
                raise unreadable(path, "annotations of RedCaps", error) from error

    return _write_split(found(), REDCAPS_BATCHES, folder, seed)


def _write_split(
    found: Iterator[tuple[Any, str, Any]],
    batches: Sequence[int],
    folder: str | Path,
    seed: int,
) -> dict[str, Any]:
    """Write rows (batch, path, caption); one whose batch is none is dropped."""
    seed, target = as_integer(seed, "seed"), Path(folder)
    other = [p.name for p in target.glob("*") if not _OWN.fullmatch(p.name)]
    if other:
        raise ValueError(
            f"{target} would be replaced, but holds {sorted(other)[:3]}; give a folder "
            "for the tables alone."
        )
    dropped: Counter[str] = Counter()
    places, hashes = array("q"), array("Q")
    sizes = {}
    with replacing_folder(target) as new:
        with _writers([new / "rows"]) as (writer,):
            for batch, path, caption in found:
                if batch in batches and not _is_caption(caption):
                    batch = "no text"
                if batch not in batches:
                    dropped[batch] += 1
                    continue
                places.append(batches.index(batch))
                hashes.append(name_hash(path))
                # A bare return would end the row.
                writer.writerow((path, caption.replace("\r", " ")))
        order = np.full(len(places), -1)
        for k, batch in enumerate(batches):
            own = np.flatnonzero(np.array(places) == k)
            ids, first = np.unique(np.array(hashes)[own], return_index=True)
            count = -(-len(ids) // 100)
            test = keep_smallest(sample_priorities(ids, seed, batch), count)
            order[own[first]] = 2 * k
            order[own[first[test]]] = 2 * k + 1
            sizes[f"{batch}"] = {"train": len(ids) - count, "test": count}
            dropped["twice"] += len(own) - len(ids)
        parts = [f"{part}_batch_{b}.csv" for b in batches for part in ("train", "test")]
        with _writers([new / part for part in parts]) as writers:
            for writer in writers:
                writer.writerow(_HEADER)
            for row, k in zip(_rows(new / "rows"), order.tolist(), strict=True):
                if k >= 0:
                    writers[k].writerow(row)
        (new / "rows").unlink()
        causes = {cause: count for cause, count in dropped.items() if count}
        facts = {"seed": seed, "batches": sizes, "dropped": causes}
        write_json(new / "split.json", facts, checksum=True)
    logger.info("%s: %s", target, facts)
    return facts


def name_hash(name: str) -> int:
    """Hash a name to 64 bits."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _is_caption(text: Any) -> bool:
    fits = is_text(text) and len(text) <= csv.field_size_limit()
    return fits and bool(text.strip()) and "\0" not in text


@contextmanager
def _writers(paths: Sequence[Path]) -> Iterator[list[Any]]:
    with ExitStack() as stack:
        files = [
            stack.enter_context(open(path, "w", encoding="utf-8", newline=""))
            for path in paths
        ]
        yield [csv.writer(f, delimiter="\t", lineterminator="\n") for f in files]


def _rows(path: Path) -> Iterator[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        yield from csv.reader(file, delimiter="\t", strict=True)


def read_pair_table(path: str | Path) -> tuple[TextColumn, TextColumn]:
    """Read a ``{train|test}_batch_{b}.csv``: paths and captions.

    :param path: tab-separated with the header ``path``, ``caption``; captions with
        tabs, line feeds or quotation marks are quoted.
    :return: two columns, in the order of the rows.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: naming the file, and the row that does not fit; also if the last
        line has no end, or a ``split.json`` beside it tells of another number of rows.
    """
    path = require_file(path)
    require_last_end(path)
    stream, _, number = path.stem.partition("_batch_")
    facts = path.with_name("split.json")
    sizes = read_json(facts, checksum=True)["batches"] if facts.is_file() else {}
    said = sizes.get(number, {}).get(stream)

    def cells(column: int) -> Iterator[bytes]:
        number = 0
        try:
            rows = _rows(path)
            if next(rows, None) != _HEADER:
                raise ValueError(f"its first line is not {_HEADER}")
            for row in rows:
                number += 1
                if len(row) != 2:
                    raise ValueError(f"it has {len(row)} cells")
                check_names(row[:1], path, "images")
                yield row[column].encode()
        except (csv.Error, ValueError) as error:
            cause = f"row {number}: {error}"
            raise unreadable(path, "a table of paths and captions", cause) from error

    names, captions = (TextColumn.from_bytes(cells(column)) for column in (0, 1))
    if said not in (None, len(names)):
        cause = f"it has {len(names)} rows, {facts} says {said}"
        raise unreadable(path, "a whole table of paths and captions", cause)
    return names, captions
