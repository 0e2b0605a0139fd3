"""Samples of a folder of files, found as those of archives are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from avalanche_clip.benchmarks.datasets.captioned import is_text
from avalanche_clip.benchmarks.datasets.text_columns import TextColumn
from avalanche_clip.benchmarks.datasets.web.tars import split_name
from avalanche_clip.benchmarks.items.skipped import SampleFault
from avalanche_clip.common.checks import existing_folder
from avalanche_clip.common.files import file_limits

PICTURES = ("webp", "png", "jpg", "jpeg")
"""Endings of pictures; of several that a sample has the first counts."""


class FolderIndex:
    """Samples of a folder and those in it, for :class:`TarPairs`.

    As img2dataset's format ``files`` has them: a picture (``webp``, ``png``, ``jpg`` or
    ``jpeg``), a caption (``txt``) and facts (``json``) of one name up to the first dot.
    Other files, and folders that are links, are passed over.

    :param folder: of the files.
    :raises FileNotFoundError: if there is no such folder.

    :ivar names: of the samples below the folder, in order of name.
    :ivar faults: names that are no UTF-8, or of pictures with several dots, and members
        that occur twice.
    """

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder).expanduser()
        self.folder = existing_folder(folder, "give the folder of the pictures")
        self.tars, self.faults = [self.folder], list[SampleFault]()
        samples: dict[str, list[str]] = {}
        for base, _, files in os.walk(self.folder):
            for file in files:
                path = os.path.relpath(os.path.join(base, file), self.folder)
                key, ending = split_name(path.replace(os.sep, "/"))
                if "." in ending and ending.rpartition(".")[2] in PICTURES:
                    words = f"{self.folder}: the name of {path!a} has several dots, so"
                    words = f"{words} that it belongs to {key!a}; rename it."
                    self.faults.append(SampleFault("member refused", words))
                elif ending in (*PICTURES, "txt", "json"):
                    samples.setdefault(key, []).append(path[len(key) + 1 :])
        found: dict[str, str] = {}
        for key, endings in sorted(samples.items()):
            lower = [ending.lower() for ending in endings]
            cause = "" if is_text(key) else "member refused"
            cause = cause or ("member twice" if len({*lower}) < len(lower) else "")
            if cause:
                words = f"{self.folder}: {key!a} has the files {endings}."
                self.faults.append(SampleFault(cause, words))
            elif lower != ["json"]:  # as that of an archive's statistics
                found[key] = "/".join(sorted(endings))
        self.names = TextColumn.from_texts(found)
        self._endings = TextColumn.from_texts(found.values())

    def __len__(self) -> int:
        return len(self.names)

    def rows_with(self, *endings: str) -> npt.NDArray[np.bool_]:
        """Say which samples have a file of one of some endings, bool ``(N,)``."""
        having = [
            not {*endings}.isdisjoint(self._files(row)) for row in range(len(self))
        ]
        return np.array(having, dtype=bool)

    def read(self, index: int, ending: str) -> bytes | None:
        """Read a file of a sample; None if it has none of that ending.

        :raises SampleFault: if it is gone or too large.
        """
        name = self._files(index).get(ending)
        if name is None:
            return None
        path = self.folder / f"{self.names[index]}.{name}"
        try:
            if not path.is_file():
                raise SampleFault("content changed", f"{path} is no file any more.")
            if (size := path.stat().st_size) > file_limits.member_bytes:
                words = f"{path} has {size} bytes, over file_limits.member_bytes."
                raise SampleFault("member too large", words)
            return path.read_bytes()
        except OSError as error:
            raise SampleFault("content changed", f"{path}: {error}.") from error

    def file(self, index: int) -> Path:
        """Return the path of the picture of a sample, or else of its first file."""
        files = self._files(index)
        first = next((e for e in PICTURES if e in files), min(files))
        return self.folder / f"{self.names[index]}.{files[first]}"

    def where(self, index: int) -> str:
        """Name a sample, for messages."""
        return str(self.folder / self.names[index])

    def _files(self, index: int) -> dict[str, str]:
        """Endings in lower case -> as they are."""
        return {ending.lower(): ending for ending in self._endings[index].split("/")}
