"""Readers of MMVP and MMVP-VLM: pairs of images that CLIP confuses."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from avalanche_clip.common.checks import require_choice, require_distinct, require_some
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
        root, path = Path(root), Path(root) / "Questions.csv"
        columns = ("Question ID", "Type", "Statement")
        rows, self.labels = _read_rows(path, columns)
        found = {}
        for number, kind, statement in rows:
            kind = _OTHER_TYPES.get(kind, kind)
            require_choice(f"Type of question {number} in {path}", kind, MMVP_PATTERNS)
            found[number] = (kind, statement)
        existing = [root / name for name in _FOLDERS if (root / name).is_dir()]
        folder = existing[0] if existing else root / _FOLDERS[0]
        self.pair_ids: list[int] = []
        self.patterns: list[str] = []
        self.statements: list[tuple[str, str]] = []
        self.paths: list[tuple[Path, Path]] = []
        for number, (left, right) in _pairs(found, path):
            if left[0] != right[0]:
                raise ValueError(
                    f"{path}: the questions {2 * number - 1} and {2 * number} are a "
                    f"pair, but of the types {left[0]!r} and {right[0]!r}; get the "
                    "file again."
                )
            self.pair_ids.append(number)
            self.patterns.append(MMVP_PATTERNS[left[0]])
            self.statements.append((left[1], right[1]))
            advice = "put the images of MMVP/MMVP_VLM there"
            first, second = (
                require_file(folder / left[0] / f"{n}.jpg", advice)
                for n in (2 * number - 1, 2 * number)
            )
            self.paths.append((first, second))

    def __len__(self) -> int:
        return len(self.pair_ids)

    def __getitem__(self, item: int) -> ImagePair:
        """Return a pair, its images as RGB."""
        first, second = map(read_picture, self.paths[item])
        return ImagePair(
            (first, second),
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
        found = {}
        for number, question, options, answer in rows:
            texts = _OPTIONS.fullmatch(options)
            letter = answer.strip().lower().strip("()")
            if texts is None or letter not in ("a", "b"):
                raise ValueError(
                    f"{path}: question {number} has the options {options!r} and the "
                    f"answer {answer!r}; '(a) ... (b) ...' and '(a)' or '(b)' are "
                    "needed."
                )
            prompt = f"{question} {options}"
            found[number] = (question, (texts[1], texts[2]), letter, prompt)
        if corrected and not MMVP_CORRECTIONS.keys() <= found.keys():
            raise ValueError(
                f"{path} has {len(found)} questions, not all of "
                f"{list(MMVP_CORRECTIONS)}, which corrected=True is about; leave it "
                "out."
            )
        if corrected:
            for number, letter in MMVP_CORRECTIONS.items():
                found[number] = (*found[number][:2], letter, found[number][3])
        self.numbers = [n for k, _ in _pairs(found, path) for n in (2 * k - 1, 2 * k)]
        known = [found[n][2] for n in MMVP_CORRECTIONS if n in found]
        right = list(MMVP_CORRECTIONS.values())
        swapped = ["ab"[letter == "a"] for letter in right]
        kinds = ("corrected", right), ("released", swapped)
        kind = next((k for k, letters in kinds if letters == known), "other")
        self.labels = f"{kind} {digest}"
        self._rows = [found[number] for number in self.numbers]
        self.answers = [row[2] for row in self._rows]
        images = Path(root) / "MMVP Images"
        advice = "put the images of MMVP/MMVP there"
        self.paths = [
            require_file(images / f"{number}.jpg", advice) for number in self.numbers
        ]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, item: int) -> MMVPQuestion:
        """Return a question with its image as RGB."""
        question, options, answer, prompt = self._rows[item]
        pair = (self.numbers[item] + 1) // 2
        image = read_picture(self.paths[item])
        return MMVPQuestion(image, question, options, answer, pair, prompt)


def _read_rows(path: Path, columns: tuple[str, ...]) -> tuple[list[Any], str]:
    """Read columns of a table, the first an integer, and hash the text."""
    text = read_text(path, "a table of questions")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = {name.strip(): name for name in reader.fieldnames or ()}
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(f"it has no column {missing[0]!r}, but {list(names)}")
        rows = []
        for number, row in enumerate(reader, 1):
            cells = [(row[names[name]] or "").strip() for name in columns]
            if not all(cells) or not cells[0].isdecimal():
                raise ValueError(f"row {number} holds {cells} as {list(columns)}")
            rows.append((int(cells[0]), *cells[1:]))
    except (ValueError, csv.Error) as error:
        raise unreadable(path, "a table of questions", error) from error
    require_some(rows, f"questions in {path}")
    require_distinct([row[0] for row in rows], f"numbers of questions in {path}")
    return rows, hashlib.sha256(text.encode()).hexdigest()[:16]


def _pairs(found: dict[int, tuple], path: Path) -> Iterator[tuple[int, list[tuple]]]:
    """Yield k and the rows 2k-1 and 2k, by number."""
    for pair in sorted({(number + 1) // 2 for number in found}):
        both = (2 * pair - 1, 2 * pair)
        alone = [number for number in both if number not in found]
        if alone:
            raise ValueError(
                f"{path} has no question {alone[0]}, the partner in pair {pair}; get "
                "the file again."
            )
        yield pair, [found[number] for number in both]
