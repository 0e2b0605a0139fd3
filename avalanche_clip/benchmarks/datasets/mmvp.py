"""Readers of MMVP and MMVP-VLM: pairs of images that CLIP confuses."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from avalanche_clip.benchmarks.items.marks import digest_of
from avalanche_clip.common.checks import (
    require_choice,
    require_distinct,
    require_some,
)
from avalanche_clip.common.files import read_text, require_file, unreadable
from avalanche_clip.common.pictures import read_picture

MMVP_PATTERNS = {
    "Orientation": "Orientation and Direction",
    "Presence": "Presence of Specific Features",
    "State": "State and Condition",
    "Quantity": "Quantity and Count",
    "Spatial": "Positional and Relational Context",
    "Color": "Color and Appearance",
    "Structural Character": "Structural and Physical Characteristics",
    "Text": "Text",
    "Camera Perspective": "Viewpoint and Perspective",
}
"""Folder or ``Type`` in the files -> name in tables of results, in their order."""

MMVP_CORRECTIONS = {99: "b", 100: "a", 279: "b", 280: "a"}
"""Number of a question of MMVP -> right answer, where the released file is wrong."""

_OTHER_TYPES = {"Structural Characteristics": "Structural Character", "Texts": "Text"}
_DO = "get the file again"
_FOLDERS = ("MLLM_VLM Images", "MMVP_VLM_Images")
_OPTIONS = re.compile(r"\s*\(a\)\s*(\S.*?)\s*\(b\)\s*(\S.*?)\s*", re.I | re.S)


class ImagePair(NamedTuple):
    """Two images, the statement that describes each, and what they differ in."""

    images: tuple[Image.Image, Image.Image]
    statements: tuple[str, str]
    pattern: str
    pair_id: int


class MMVPVLMDataset:
    """MMVP-VLM: 135 pairs of images with statements, in nine visual patterns.

    Read as released: ``Questions.csv`` by the names of its columns, in any order of
    its rows, and ``<pattern>/<question id>.jpg`` below ``MLLM_VLM Images`` or
    ``MMVP_VLM_Images``. Images are read when an item is. Never train on it.

    :param root: the folder.
    :raises FileNotFoundError: if a file is missing, naming it.
    :raises ValueError: if a pattern is unknown, an id occurs twice, or a question has
        no partner of the same pattern.

    :ivar patterns: of each pair, as in the tables of results.
    :ivar pair_ids: k of the pair of the questions 2k-1 and 2k, ascending.
    :ivar statements: of each pair.
    :ivar labels: hash of the file of statements, 16 hexadecimal digits.

    Source: Tong et al., CVPR 2024 (MMVP, arXiv 2401.06209); ``MMVP/MMVP_VLM``.
    """

    def __init__(self, root: str | Path):
        root = Path(root)
        columns = ("Question ID", "Type", "Statement")
        rows, self.labels = _read_rows(root / "Questions.csv", columns)
        kinds = {n: _OTHER_TYPES.get(kind, kind) for n, (kind, _) in rows.items()}
        for number, kind in kinds.items():
            require_choice(f"Type of question {number} in {root}", kind, MMVP_PATTERNS)
            if kind != kinds[_partner(number)]:
                raise ValueError(
                    f"{root}: the questions {number} and {_partner(number)} are a pair "
                    f"of the types {kind!r} and {kinds[_partner(number)]!r}; {_DO}."
                )
        folder = root / next((n for n in _FOLDERS if (root / n).is_dir()), _FOLDERS[0])
        paths = [
            require_file(folder / kind / f"{number}.jpg", "get MMVP/MMVP_VLM")
            for number, kind in kinds.items()
        ]
        texts = [statement for _, statement in rows.values()]
        self.paths = list(zip(paths[0::2], paths[1::2], strict=True))
        self.statements = list(zip(texts[0::2], texts[1::2], strict=True))
        self.pair_ids = [number // 2 for number in rows if number % 2 == 0]
        self.patterns = [MMVP_PATTERNS[kinds[2 * pair]] for pair in self.pair_ids]

    def __len__(self) -> int:
        return len(self.pair_ids)

    def __getitem__(self, item: int) -> ImagePair:
        """Return a pair, its images as RGB."""
        first, second = self.paths[item]
        return ImagePair(
            (read_picture(first), read_picture(second)),
            self.statements[item],
            self.patterns[item],
            self.pair_ids[item],
        )


class MMVPQuestion(NamedTuple):
    """An image, a question with two options ``(a)`` and ``(b)``, the right letter.

    ``prompt`` is what a model is asked: the question and the options as they are in
    the file.
    """

    image: Image.Image
    question: str
    options: tuple[str, str]
    answer: str
    pair_id: int
    prompt: str


class MMVPDataset:
    """MMVP: 300 questions for models that answer in words, in 150 pairs.

    Read as released: ``Questions.csv`` by the names of its columns and
    ``MMVP Images/<number>.jpg``; questions 2k-1 and 2k are a pair. Images are read when
    an item is. Never train on it.

    :param root: the folder.
    :param corrected: put :data:`MMVP_CORRECTIONS` in, four answers that are swapped in
        the released file; tables of results use the file as it is.
    :raises FileNotFoundError: if a file is missing, naming it.
    :raises ValueError: if a row has not two options and one answer, an id occurs twice
        or a question has no partner.

    :ivar numbers: of the questions, ascending.
    :ivar answers: right letters.
    :ivar labels: ``"corrected"`` or ``"released"``, as the answers in use are, or
        ``"other"`` where the file has other questions; and a hash of the file.

    Source: Tong et al., CVPR 2024 (MMVP, arXiv 2401.06209); ``MMVP/MMVP``.
    """

    def __init__(self, root: str | Path, *, corrected: bool = False):
        require_choice("corrected", corrected, (True, False))
        path = Path(root) / "Questions.csv"
        columns = ("Index", "Question", "Options", "Correct Answer")
        rows, digest = _read_rows(path, columns)
        self.numbers = list(rows)
        self.answers, self._rows = [], []
        for number, (question, options, answer) in rows.items():
            texts, letter = _OPTIONS.fullmatch(options), answer.lower().strip("()")
            if texts is None or letter not in ("a", "b"):
                raise ValueError(
                    f"{path}: question {number} has the options {options!r} and the "
                    f"answer {answer!r}; give '(a) ... (b) ...', and '(a)' or '(b)'."
                )
            self.answers.append(letter)
            self._rows.append((question, (texts[1], texts[2]), f"{question} {options}"))
        wrong = {n: self.numbers.index(n) for n in MMVP_CORRECTIONS if n in rows}
        if corrected and len(wrong) < len(MMVP_CORRECTIONS):
            raise ValueError(
                f"{path} has not all of the questions {list(MMVP_CORRECTIONS)}, which "
                "corrected=True is about; leave it out."
            )
        if corrected:
            for number, place in wrong.items():
                self.answers[place] = MMVP_CORRECTIONS[number]
        right = [self.answers[p] == MMVP_CORRECTIONS[n] for n, p in wrong.items()]
        known = len(right) == len(MMVP_CORRECTIONS) and len(set(right)) == 1
        kind = ("corrected" if right[0] else "released") if known else "other"
        self.labels = f"{kind} {digest}"
        self.paths = [
            require_file(Path(root) / "MMVP Images" / f"{n}.jpg", "get MMVP/MMVP")
            for n in self.numbers
        ]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, item: int) -> MMVPQuestion:
        """Return a question with its image as RGB."""
        question, options, prompt = self._rows[item]
        image, pair = read_picture(self.paths[item]), (self.numbers[item] + 1) // 2
        return MMVPQuestion(image, question, options, self.answers[item], pair, prompt)


def _partner(number: int) -> int:
    return number + 1 if number % 2 else number - 1


def _read_rows(
    path: Path, columns: tuple[str, ...]
) -> tuple[dict[int, list[str]], str]:
    """Read a table by number, ascending, and hash it; the first column has numbers."""
    text = read_text(path, "a table of questions")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [(name or "").strip() for name in reader.fieldnames or ()]
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(f"it has no column {missing[0]!r}, but {names}")
        reader.fieldnames = names
        rows = [[(row[name] or "").strip() for name in columns] for row in reader]
        bad = [row for row in rows if not all(row) or not row[0].isdecimal()]
        if bad:
            raise ValueError(f"a row holds {bad[0]} as {list(columns)}")
    except (ValueError, csv.Error) as error:
        raise unreadable(path, "a table of questions", error) from error
    require_some(rows, f"questions in {path}")
    require_distinct([int(row[0]) for row in rows], f"numbers of questions in {path}")
    found = {int(row[0]): row[1:] for row in sorted(rows, key=lambda row: int(row[0]))}
    alone = [number for number in found if _partner(number) not in found]
    if alone:
        raise ValueError(f"{path}: question {alone[0]} has no partner; {_DO}.")
    return found, digest_of([text.encode()]).hex()[:16]
