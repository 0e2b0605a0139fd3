"""Reader of evaluation sets in tar shards, as CLIP_benchmark and DataComp have them.

::

    classnames.txt                           one class per line
    zeroshot_classification_templates.txt    one template per line, with {c}
    dataset_type.txt                         retrieval or multilabel; else classes
    test/nshards.txt                         a number
    test/0.tar, 1.tar, ...

The members of a sample have one name up to the first dot: a picture (``webp``, ``png``,
``jpg`` or ``jpeg``), its class (``cls``, a number), its labels or facts (``npy``), or
its captions (``txt``, one per line).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avalanche_clip.benchmarks.datasets.web.pairs import PICTURES, decode_text
from avalanche_clip.benchmarks.datasets.web.tar_index import TarIndex
from avalanche_clip.benchmarks.datasets.web.tars import read_member
from avalanche_clip.common.arrays import UNREADABLE
from avalanche_clip.common.checks import (
    require_array,
    require_choice,
    require_indices,
    require_length,
)
from avalanche_clip.common.files import read_lines, read_text, require_file, unreadable
from avalanche_clip.common.pictures import read_picture

KINDS = ("classification", "multilabel", "retrieval")
_CONTENT = ("cls", "npy", "txt")
_NAMES = "classnames.txt"
_TEMPLATES = "zeroshot_classification_templates.txt"


class WebFolder:
    """Pictures in tar shards with classes, labels or captions, in random order.

    The shards are read once, but for the pictures, of which the places are noted: 24
    bytes each. Items are pictures in RGB, read when they are asked for.

    :param folder: with the files above.
    :param split: folder of the shards.
    :param captions: of retrieval sets. ``"lines"``, the default: a ``txt`` holds one
        caption per line, as evaluation sets have them; lines end at line feeds only and
        empty ones are dropped. ``"whole"``: it holds one caption, as in sets that were
        downloaded.
    :raises FileNotFoundError: naming the file, if one is missing.
    :raises ValueError: if a file or a sample has another form, or ``captions`` are
        given for a set that has none.

    :ivar kind: ``"classification"``, ``"multilabel"`` or ``"retrieval"``.
    :ivar class_names: in the order of the labels.
    :ivar templates: with ``{c}`` where the class name goes.
    :ivar labels: int64 ``(N,)``, or zeros and ones ``(N, C)``.
    :ivar facts: numbers of a sample's ``npy`` beside a class, ``(N, F)``, or None.
    :ivar texts: captions of each picture.

    Source: the format of LAION's CLIP_benchmark (the file ``webdataset_builder.py``).
    """

    def __init__(
        self, folder: str | Path, split: str = "test", *, captions: str | None = None
    ) -> None:
        require_choice("captions", captions, (None, "lines", "whole"))
        self.folder, self.captions = Path(folder), captions
        where = self.folder / split / "nshards.txt"
        count = read_text(require_file(where, "give the folder of a whole set")).strip()
        if not count.isdecimal() or not int(count):
            raise unreadable(where, "a number of shards", f"it holds {count!r}")
        advice = "the set is not complete: download it again"
        self.shards = [
            require_file(where.parent / f"{number}.tar", advice)
            for number in range(int(count))
        ]
        kind = self.folder / "dataset_type.txt"
        self.kind = read_text(kind).strip() if kind.is_file() else KINDS[0]
        require_choice(str(kind), self.kind, KINDS)
        if captions is not None and self.kind != "retrieval":
            raise ValueError(
                f"captions={captions!r} has no effect on {self.folder}, a set of "
                f"{self.kind} without captions; leave it out."
            )
        names = () if self.kind == "retrieval" else (_NAMES, _TEMPLATES)
        found = [self._lines(name) for name in names] or [(), ()]
        self.class_names, self.templates = found
        needed = dict(zip(KINDS, _CONTENT, strict=True))[self.kind]
        index = self._checked(TarIndex.of(self.shards))
        rows = np.flatnonzero(index.rows_with(*PICTURES, *_CONTENT)).tolist()
        self.places = np.array([_place(index, row) for row in rows], dtype=np.int64)
        content = {
            e: [part for row in rows if (part := index.read(row, e)) is not None]
            for e in _CONTENT
        }
        if not len(self) or len(content[needed]) < len(self):
            what = f"{len(content[needed])} of {len(self)} samples have a {needed}"
            raise unreadable(self.folder, "a set of whole samples", what)
        self._interpret(content)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Image.Image:
        shard, start, size = self.places[index].tolist()
        where = f"{self.shards[shard]}, picture {index}"
        content = read_member(self.shards[shard], (start, size, 0), where)
        return read_picture(content, where)

    def _checked(self, index: TarIndex) -> TarIndex:
        """Refuse archives that are not whole, or not of this format."""
        if index.faults:
            raise index.faults[0]
        for ending in index.endings:
            if "." in ending and ending.rpartition(".")[2] in (*PICTURES, *_CONTENT):
                row = int(index.rows_with(ending).argmax())
                words = f"{index.where(row)}.{ending} has more than one dot"
                raise _unreadable(index, row, words)
        return index

    def _lines(self, name: str) -> tuple[str, ...]:
        path = require_file(self.folder / name, "give one name or template per line")
        lines = [line for _, line in read_lines(path)]
        while lines and not lines[-1].strip():
            lines.pop()
        return tuple(lines)

    def _interpret(self, content: dict[str, list[bytes]]) -> None:
        """Turn the content of small members into columns."""
        count, classes = len(self), len(self.class_names)
        self.texts: list[list[str]] = []
        self.labels: Any = None
        self.facts: Any = None
        if self.kind == "retrieval":
            self.texts = [self._texts(text) for text in content["txt"]]
            if not all(self.texts):
                place = self.texts.index([])
                raise unreadable(self.folder, "captions", f"sample {place} has none")
            return
        self.facts = _rows(content["npy"], self.folder)
        if self.kind == "multilabel":
            require_array(self.facts, f"{self.folder}: npy", f"{count} {classes}")
            if not np.isin(self.facts, (0, 1)).all():
                raise unreadable(
                    self.folder, "labels (npy) of zeros and ones", "others"
                )
            self.labels, self.facts = np.int64(self.facts), None
            return
        try:
            self.labels = np.array([int(label) for label in content["cls"]])
        except ValueError as error:
            raise unreadable(self.folder, "classes as numbers", error) from error
        require_indices(self.labels, classes, f"{self.folder}: cls")
        if self.facts is not None:
            require_length(self.facts, count, "npy members", "sample")

    def _texts(self, content: bytes) -> list[str]:
        text = decode_text(content, f"{self.folder}: txt")
        lines = [text] if self.captions == "whole" else text.split("\n")
        return [line for line in lines if line.strip()]


class FolderPairs:
    """Pictures of a retrieval set with their captions, for training and streams.

    Sets of classes need no such form: they are data of a :class:`Domain`.

    :param folder: which they are of.
    :raises ValueError: if it has no captions.
    """

    def __init__(self, folder: WebFolder) -> None:
        require_choice(f"{folder.folder}: kind", folder.kind, KINDS[2:])
        self.folder = folder

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, item: int) -> tuple[Image.Image, list[str]]:
        return self.folder[item], self.text(item)

    def text(self, item: int) -> list[str]:
        """Return the captions of an item without its picture."""
        return self.folder.texts[item]


def _place(index: TarIndex, row: int) -> tuple[int, int, int]:
    """Archive, first byte and size of the picture of a sample."""
    own = index.sample(row)
    for ending in PICTURES:
        if ending in own:
            return (int(index.tar[row]), *own[ending][:2])
    words = f"{index.names[row]} has no picture ({', '.join(PICTURES)})"
    raise _unreadable(index, row, words)


def _unreadable(index: TarIndex, row: int, words: str) -> ValueError:
    return unreadable(index.tars[int(index.tar[row])], "a tar of samples", words)


def _rows(content: list[bytes], path: Path) -> Any:
    """Stack arrays of numbers, one per sample."""
    try:
        found = [
            np.lib.format.read_array(io.BytesIO(part), allow_pickle=False)
            for part in content
        ]
        if any(row.dtype.kind not in "biuf" for row in found):
            raise ValueError("they hold no numbers")
        return np.stack([np.atleast_1d(row) for row in found]) if found else None
    except UNREADABLE as error:
        raise unreadable(path, "arrays of one length (npy)", error) from error
