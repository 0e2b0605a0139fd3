"""Hashes that tell whether two data sets hold the same samples."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from avalanche.benchmarks.utils import AvalancheDataset

from avalanche_clip.benchmarks.items.flat import raw_item
from avalanche_clip.benchmarks.items.items import attribute_array
from avalanche_clip.benchmarks.items.marks import digest_of, picture_pieces
from avalanche_clip.benchmarks.items.scenario import TASK_LABELS, PartStream
from avalanche_clip.benchmarks.items.streamed import StreamedItems
from avalanche_clip.common.randomness import kept_rng, seed_cpu

SAMPLED = 16
"""Items of a data set that are looked at."""
_FACTS = ("sample_id", "targets", "language", "timestamp", TASK_LABELS)
_PARTS = ("pictures", "captions")


class Remembered:
    """What was found out about data sets, which may not be hashable."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Any], Any]] = {}

    def get(self, dataset: Any) -> Any:
        """What was put in for this very object, or None."""
        found = self._known.get(id(dataset))
        return None if found is None or found[0]() is not dataset else found[1]

    def put(self, dataset: Any, value: Any) -> Any:
        """Keep a value until the data set is gone, and return it."""
        key = id(dataset)
        gone = weakref.ref(dataset, lambda _: self._known.pop(key, None))
        self._known[key] = (gone, value)
        return value


_HASHES = Remembered()


def content_hash(dataset: AvalancheDataset) -> str:
    """Hash what a data set holds, at a cost that does not grow with its items.

    Covered are the number of items; sample ids, targets, languages, timestamps
    and task labels of all of them, in order; and picture and captions of
    :data:`SAMPLED` items spread over the data set, the first and the last
    included, as they are before any transform. So other data under the same ids
    are found if they differ in one of these items.

    Items are read twice, with seeded generators. If pictures or captions differ
    between the two readings, they are drawn at random outside the generators of
    Python, NumPy and torch, and are not covered; if an item cannot be read, it is
    not covered. The hash then says so in words. Pictures are compared decoded:
    another version of a decoder may give other pixels.

    :param dataset: image-text data, prepared or not.
    :return: 16 hexadecimal digits, and words about what is not covered.
    """
    digest = hashlib.sha256(f"{len(dataset)}".encode())
    if isinstance(dataset, StreamedItems):
        digest.update(dataset.fingerprint().encode())
        return f"{digest.hexdigest()[:16]} (items are not read)"
    for name in _FACTS:
        if name in dataset._data_attributes:
            column = np.ascontiguousarray(attribute_array(dataset, name))
            digest.update(f"|{name}|{column.dtype.str}|".encode())
            digest.update(column.data)
    places = np.unique(np.linspace(0, len(dataset) - 1, SAMPLED).round().astype(int))
    items = hashed_items(dataset, places.tolist() if len(dataset) else [])
    notes = [
        f"{part} are random"
        for number, part in enumerate(_PARTS)
        if any(item and item[0][number] != item[1][number] for item in items)
    ]
    for item in items:
        for number, part in enumerate(_PARTS):
            if item and f"{part} are random" not in notes:
                digest.update(item[0][number])
    missing = items.count(None)
    if missing:
        notes.append(f"{missing} of {len(items)} items cannot be read")
    words = f" ({', '.join(notes)})" if notes else ""
    return digest.hexdigest()[:16] + words


def hashed_items(
    dataset: AvalancheDataset, places: Sequence[int]
) -> list[tuple[list[bytes], list[bytes]] | None]:
    """Hashes of picture and captions of each, of two readings; None if unreadable."""
    with kept_rng():
        return [_hashed_item(dataset, place) for place in places]


def _hashed_item(
    dataset: AvalancheDataset, index: int
) -> tuple[list[bytes], list[bytes]] | None:
    readings = []
    for _ in range(2):
        seed_cpu(0)
        try:
            item = raw_item(dataset, index)
            readings.append([digest_of(_pieces(part)) for part in (item[0], item[1:])])
        except Exception:  # readers raise nearly anything
            return None
    return readings[0], readings[1]


def _pieces(value: Any) -> Iterator[Any]:
    """Bytes that say what a picture, caption or list of captions is."""
    if isinstance(value, str):  # numpy's strings, too
        yield b"text"
        yield value.encode("utf-8", "surrogatepass")
    elif isinstance(value, (list, tuple)):
        yield f"list {len(value)}".encode()
        for element in value:
            yield from _pieces(element)
    elif isinstance(value, np.generic):
        yield from _pieces(np.asarray(value))
    elif (pieces := picture_pieces(value)) is not None:
        yield from pieces
    elif isinstance(value, bytes) or value is None or isinstance(value, (int, float)):
        yield f"{type(value).__name__} {value!r}".encode()
    else:
        # Its printed form may hold an address.
        yield f"{type(value).__module__}.{type(value).__qualname__}".encode()


def data_summary(benchmark: Any) -> dict[str, Any]:
    """Hash, counts, labels and transforms of the data of a benchmark.

    The hash covers :func:`content_hash` of every experience of every stream, which
    ``experiences`` holds one by one, and class names and templates where there
    are any.
    """
    hashes: dict[str, dict[str, str]] = {}
    counts: dict[str, list[int]] = {}
    labels: dict[str, list[str]] = {}
    for name, stream in benchmark.streams.items():
        hashes[name] = experience_hashes(stream)
        counts[name] = stream_sizes(stream)
        labels[name] = _labels(stream)
    return {
        "hash": data_hash(hashes, getattr(benchmark, "class_prompts", None)),
        "experiences": hashes,
        "counts": counts,
        "labels": labels,
        "protocol": getattr(benchmark, "protocol", None),
        "transforms": getattr(benchmark, "transforms", None),
    }


def data_hash(hashes: Mapping[str, Mapping[str, str]], prompts: Any) -> str:
    """Hash of the data of a benchmark, see :func:`data_summary`.

    :param hashes: of the experiences of its streams, by name and place.
    :param prompts: its :class:`ClassPrompts`, or None.
    """
    digest = hashlib.sha256()
    if prompts is not None:
        digest.update(f"prompts|{prompts.fingerprint()}|".encode())
    for name, own in hashes.items():
        digest.update(f"{name}|{'|'.join(own.values())}|".encode())
    return digest.hexdigest()


def experience_hashes(stream: Any) -> dict[str, str]:
    """Hashes of the data of a stream, by the place of the experience in it."""
    if isinstance(stream, PartStream):
        return {str(part): step_hash(stream, part) for part in range(len(stream))}
    return {str(i): content_hash(e.dataset) for i, e in enumerate(stream)}


def step_hash(experiences: Any, place: int) -> str:
    """Hash the data of a step, which is not made for that.

    No item is read but those of :func:`content_hash`, once per data set. Of parts the
    hash is that of their place in an experience, and of the data of that.

    :param experiences: a stream of parts, or experiences by their places.
    """
    rows = None
    if isinstance(experiences, PartStream):
        number, _, rows = experiences.place_of(place)
        experiences, place = experiences.wholes, number
    dataset = experiences[place].dataset
    whole: str = _HASHES.get(dataset) or _HASHES.put(dataset, content_hash(dataset))
    if rows is None:
        return whole
    digest = hashlib.sha256(whole.encode())
    digest.update(np.ascontiguousarray(rows, dtype=np.int64).data)
    return digest.hexdigest()[:16] + whole[16:]


def stream_sizes(stream: Any) -> list[int]:
    """Samples of each experience of a stream."""
    if isinstance(stream, PartStream):
        return stream.sizes()
    return [len(experience.dataset) for experience in stream]


def _labels(stream: Any) -> list[str]:
    experiences: Any = stream
    if isinstance(stream, PartStream):
        places = (stream.place_of(part)[0] for part in range(len(stream)))
        experiences = (stream.wholes[place] for place in places)
    return [
        str(getattr(e, "time_label", getattr(e, "label", index)))
        for index, e in enumerate(experiences)
    ]
