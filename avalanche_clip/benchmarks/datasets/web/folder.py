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

import numpy as np
import numpy.typing as npt
from PIL import Image

from avalanche_clip.common.checks import (
    require_array,
    require_choice,
    require_indices,
    require_length,
)
from avalanche_clip.common.files import read_lines, read_text, require_file, unreadable
from avalanche_clip.common.pictures import read_picture

KINDS = ("classification", "multilabel", "retrieval")
_PICTURES = ("webp", "png", "jpg", "jpeg")
_CONTENT = ("cls", "npy", "txt")


class WebFolder:
    """Pictures in tar shards with classes, labels or captions, in random order.

    The shards are read once, but for the pictures, of which the places are noted: 20
    bytes each. Items are pictures in RGB, read when they are asked for.

    :param folder: with the files above.
    :param split: folder of the shards.
    :param captions: ``"lines"``: a ``txt`` holds one caption per line, as evaluation
        sets have them; lines end at line feeds only and empty ones are dropped.
        ``"whole"``: it holds one caption, as in sets that were downloaded.
    :raises FileNotFoundError: naming the file, if one is missing.
    :raises ValueError: if a file or a sample has another form.

    :ivar kind: ``"classification"``, ``"multilabel"`` or ``"retrieval"``.
    :ivar class_names: in the order of the labels.
    :ivar templates: with ``{c}`` where the class name goes.
    :ivar labels: int64 ``(N,)``, or zeros and ones ``(N, C)``.
    :ivar facts: numbers of a sample's ``npy`` beside a class, ``(N, F)``, or None.
    :ivar texts: captions of each picture.

    Source: the format of LAION's CLIP_benchmark (the file ``webdataset_builder.py``).
    """

    def __init__(
        self, folder: str | Path, split: str = "test", *, captions: str = "lines"
    ) -> None:
        require_choice("captions", captions, ("lines", "whole"))
        self.folder, self.captions = Path(folder), captions
        shards = require_file(
            self.folder / split / "nshards.txt", "give the folder of a whole set"
        )
        found = read_text(shards).strip()
        if not found.isdecimal() or not int(found):
            raise unreadable(shards, "a number of shards", f"it holds {found!r}")
        self.shards = [shards.parent / f"{number}.tar" for number in range(int(found))]
        kind = self.folder / "dataset_type.txt"
        self.kind = read_text(kind).strip() if kind.is_file() else KINDS[0]
        require_choice(str(kind), self.kind, KINDS)
        self.class_names = self._lines("classnames.txt")
        self.templates = self._lines("zeroshot_classification_templates.txt")
        places: list[tuple[int, int, int]] = []
        needed = dict(zip(KINDS, _CONTENT, strict=True))[self.kind]
        found_content: dict[str, list[bytes]] = {end: [] for end in _CONTENT}
        for number, path in enumerate(self.shards):
            for key, picture, content in _samples(path):
                places.append((number, *picture))
                for end in content:
                    found_content[end].append(content[end])
                if needed not in content:
                    raise unreadable(path, "whole samples", f"{key} has no {needed}")
        self.places = np.array(places, dtype=np.int64).reshape(-1, 3)
        self._interpret(found_content)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> Image.Image:
        shard, start, size = self.places[index].tolist()
        path = self.shards[shard]
        with open(path, "rb") as file:
            file.seek(start)
            return read_picture(file.read(size), f"{path}, picture {index}")

    def _lines(self, name: str) -> tuple[str, ...]:
        path = self.folder / name
        if not path.is_file():
            return ()
        lines = [line for _, line in read_lines(path)]
        while lines and not lines[-1].strip():
            lines.pop()
        return tuple(lines)

    def _interpret(self, content: dict[str, list[bytes]]) -> None:
        """Turn the content of small members into columns."""
        count = len(self)
        if not count:
            raise unreadable(self.folder, "a set of pictures", "its shards are empty")
        self.texts: list[list[str]] = []
        self.labels: npt.NDArray[np.int64] | None = None
        self.facts: npt.NDArray | None = None
        if self.kind == "retrieval":
            self.texts = [self._texts(text) for text in content["txt"]]
            if not all(self.texts):
                place = self.texts.index([])
                raise unreadable(self.folder, "captions", f"sample {place} has none")
            return
        self._require_names()
        rows = _rows(content["npy"], self.folder)
        if self.kind == "multilabel":
            assert rows is not None
            self.labels = rows.astype(np.int64)
            require_array(rows, "labels", f"{count} {len(self.class_names)}")
            return
        try:
            self.labels = np.array([int(label) for label in content["cls"]])
        except ValueError as error:
            raise unreadable(self.folder, "classes as numbers", error) from error
        require_indices(self.labels, len(self.class_names), f"{self.folder}: cls")
        if rows is not None:
            require_length(rows, count, "npy members", "sample")
            self.facts = rows

    def _require_names(self) -> None:
        for name, found in (
            ("classnames.txt", self.class_names),
            ("zeroshot_classification_templates.txt", self.templates),
        ):
            if not found:
                require_file(self.folder / name, "give one name or template per line")
                raise unreadable(
                    self.folder / name, "names or templates", "it is empty"
                )

    def _texts(self, content: bytes) -> list[str]:
        text = content.decode("utf-8")
        if self.captions == "whole":
            return [text] if text.strip() else []
        return [line for line in text.split("\n") if line.strip()]


def _samples(
    path: Path,
) -> Iterator[tuple[str, tuple[int, int], dict[str, bytes]]]:
    """Yield key, place of the picture, and the small members of each sample."""
    require_file(path, "the set is not complete: download it again")
    members: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                key, _, end = name.partition(".")
                if not member.isfile() or end.lower() not in (*_PICTURES, *_CONTENT):
                    continue
                own = members.setdefault(f"{folder}/{key}", {})
                if end.lower() in own:
                    raise ValueError(f"{member.name} occurs twice")
                own[end.lower()] = member
            for key, own in members.items():
                picture = next((own[end] for end in _PICTURES if end in own), None)
                if picture is None:
                    raise ValueError(f"{key} has no picture ({', '.join(_PICTURES)})")
                content = {
                    end: tar.extractfile(own[end]).read()  # type: ignore[union-attr]
                    for end in _CONTENT
                    if end in own
                }
                yield key, (picture.offset_data, picture.size), content
    except (tarfile.TarError, ValueError, OSError) as error:
        raise unreadable(path, "a tar of samples", error) from error


def _rows(content: list[bytes], path: Path) -> npt.NDArray | None:
    """Stack arrays of numbers, one per sample."""
    try:
        found = [np.load(io.BytesIO(part), allow_pickle=False) for part in content]
        return np.stack([np.atleast_1d(row) for row in found]) if found else None
    except (ValueError, EOFError) as error:
        raise unreadable(path, "arrays of one length (npy)", error) from error
