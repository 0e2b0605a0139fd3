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
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from avalanche_clip.common.checks import (
    require_array,
    require_choice,
    require_indices,
    require_length,
)
from avalanche_clip.common.files import read_lines, read_text, require_file, unreadable
from avalanche_clip.common.pictures import read_picture
from avalanche_clip.common.progress import progress

KINDS = ("classification", "multilabel", "retrieval")
_PICTURES = ("webp", "png", "jpg", "jpeg")
_CONTENT = ("cls", "npy", "txt")
_NAMES = "classnames.txt"
_TEMPLATES = "zeroshot_classification_templates.txt"


class WebFolder:
    """Pictures in tar shards with classes, labels or captions, in random order.

    The shards are read once, but for the pictures, of which the places are noted: 20
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
        self.shards = [where.parent / f"{number}.tar" for number in range(int(count))]
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
        what = f"reading {self.folder}"
        shards = enumerate(progress(self.shards, what, unit="shard"))
        samples = [s for number, path in shards for s in _samples(path, number)]
        self.places = np.array([place for place, _ in samples], dtype=np.int64)
        content = {e: [own[e] for _, own in samples if e in own] for e in _CONTENT}
        if not samples or len(content[needed]) < len(samples):
            what = f"{len(content[needed])} of {len(samples)} samples have a {needed}"
            raise unreadable(self.folder, "a set of whole samples", what)
        self._interpret(content)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Image.Image:
        shard, start, size = self.places[index].tolist()
        path = self.shards[shard]
        with open(path, "rb") as file:
            file.seek(start)
            return read_picture(file.read(size), f"{path}, picture {index}")

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
        text = content.decode("utf-8")
        lines = [text] if self.captions == "whole" else text.split("\n")
        return [line for line in lines if line.strip()]


def _samples(
    path: Path, number: int
) -> Iterator[tuple[tuple[int, int, int], dict[str, bytes]]]:
    """Yield the place of the picture and the small members of each sample."""
    require_file(path, "the set is not complete: download it again")
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, _, end = name.partition(".")
                last = end.lower().rpartition(".")[2]
                if last != end.lower() and last in (*_PICTURES, *_CONTENT):
                    raise ValueError(f"{member.name} has more than one dot")
                if member.isfile() and last in (*_PICTURES, *_CONTENT):
                    own = members.setdefault(f"{folder}/{key}", {})
                    if own.setdefault(end.lower(), member) is not member:
                        raise ValueError(f"{member.name} occurs twice")
            if tar.offset >= path.stat().st_size:  # no mark of its end
                raise ValueError("it is cut off")
            for key, own in members.items():
                pictures = [own[end] for end in _PICTURES if end in own]
                if not pictures:
                    raise ValueError(f"{key} has no picture ({', '.join(_PICTURES)})")
                files = {e: tar.extractfile(own[e]) for e in _CONTENT if e in own}
                place = (number, pictures[0].offset_data, pictures[0].size)
                yield place, {end: file.read() for end, file in files.items() if file}
    except (tarfile.TarError, ValueError, OSError) as error:
        raise unreadable(path, "a tar of samples", error) from error


def _rows(content: list[bytes], path: Path) -> Any:
    """Stack arrays of numbers, one per sample."""
    try:
        found = [np.load(io.BytesIO(part), allow_pickle=False) for part in content]
        return np.stack([np.atleast_1d(row) for row in found]) if found else None
    except (ValueError, EOFError) as error:
        raise unreadable(path, "arrays of one length (npy)", error) from error
